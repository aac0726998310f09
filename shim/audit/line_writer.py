"""Write lines to a file descriptor in a separate thread.

A full pipe blocks its writer. Here this is a thread and never the event loop. The writer does not use
Python's buffered files, because a blocked thread would hold their locks at exit.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class LineWriter:
    """A bounded queue of lines for `descriptor`, which stays open.

    `capacity`: number of lines in the queue. More lines are dropped and counted, and the callback of
    `on_dropped` gets their number when there is room again. `on_error` gets the error each time that writing
    starts to fail.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        capacity: int = 1024,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self.descriptor = descriptor
        self._capacity = capacity
        self._on_error = on_error or print_to_stderr
        self._on_dropped: Callable[[int], None] | None = None
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._thread: threading.Thread | None = None
        self._writing = False
        self._closed = False
        self._broken = False
        self._failing = False
        self._unreported = 0
        self._partial_write = False
        self.dropped = 0

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that the next line would be dropped."""
        return len(self._queue) >= self._capacity

    @property
    def broken(self) -> bool:
        """Whether the descriptor can never be written again (a closed pipe)."""
        return self._broken

    def on_dropped(self, callback: Callable[[int], None]) -> None:
        """Call `callback` with the number of dropped lines when there is room again."""
        self._on_dropped = callback

    def put(self, text: str) -> bool:
        """Queue a line without its line end, from any thread, without waiting. Return False if it was
        dropped."""
        data = text.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._closed or self._broken or self.full:
                self._drop()
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shim-lines", daemon=True)
                self._thread.start()
            self._queue.append(data)
            self._changed.notify_all()
        return True

    def flush(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until all lines are written. Return whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._writing, timeout)

    def close(self, timeout: float) -> bool:
        """Accept no more lines, and wait for the queued ones like `flush`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        written = self.flush(timeout)
        dropped = self._unreported + len(self._queue)
        if dropped:
            self._on_error(f"{dropped} log lines were lost")
        return written

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                self._writing = True
                data = self._queue.popleft()
            self._write(data)
            with self._changed:
                self._writing = False
                self._changed.notify_all()
            self._report_dropped()

    def _write(self, data: bytes) -> None:
        if self._partial_write:
            data = b"\n" + data
        total = len(data)
        try:
            while data:
                try:
                    data = data[os.write(self.descriptor, data) :]
                except BlockingIOError:  # another process made the descriptor non-blocking
                    _wait_until_writable(self.descriptor)
        except OSError as fault:
            self._failed(fault, partial=len(data) < total or self._partial_write)
        else:
            self._partial_write = self._failing = False

    def _failed(self, fault: OSError, *, partial: bool) -> None:
        with self._changed:
            self._drop()
            self._partial_write = partial
            if isinstance(fault, BrokenPipeError):
                self._broken = True
                for _ in range(len(self._queue)):
                    self._queue.popleft()
                    self._drop()
        if not self._failing:
            self._failing = True
            self._on_error(f"log lines can't be written: {fault}")

    def _drop(self) -> None:
        self.dropped += 1
        self._unreported += 1

    def _report_dropped(self) -> None:
        with self._changed:
            if (
                self._queue
                or self._failing
                or self._closed
                or not self._unreported
                or not self._on_dropped
            ):
                return
            dropped, self._unreported = self._unreported, 0
        self._on_dropped(dropped)


def print_to_stderr(text: str) -> None:
    """Write one line to standard error, in a separate thread because it may block too."""
    data = f"navidrome-shim: {text}\n".encode("utf-8", "backslashreplace")
    threading.Thread(target=_write_stderr, args=(data,), name="shim-stderr", daemon=True).start()


def _write_stderr(data: bytes) -> None:
    with suppress(OSError):  # there is no other place to report this
        os.write(2, data)


def _wait_until_writable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()
