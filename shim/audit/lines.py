"""Lines to a file descriptor, from a thread of their own.

A pipe that nobody reads blocks whoever writes to it: here that is a thread, and never the event loop.
The descriptor is written to without Python's buffered files, whose locks a stuck thread would hold
at exit.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class Lines:
    """A bounded number of lines on their way to `descriptor`, which stays open.

    `capacity`: lines that may wait; more are dropped and counted, and said by `when_lost` as soon as
    lines can be written again. `complain` is told, once each time that writing fails, why.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        capacity: int = 1024,
        complain: Callable[[str], None] | None = None,
    ) -> None:
        self.descriptor = descriptor
        self._capacity = capacity
        self._complain = complain or say_on_stderr
        self._tell_lost: Callable[[int], None] | None = None
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._thread: threading.Thread | None = None
        self._writing = False
        self._closed = False
        self._broken = False
        self._failing = False
        self._untold = 0
        self._torn = False
        self.dropped = 0

    @property
    def full(self) -> bool:
        """Whether the next line would be dropped for want of room."""
        return len(self._waiting) >= self._capacity

    @property
    def broken(self) -> bool:
        """Whether nobody will ever read what is written here (a closed pipe)."""
        return self._broken

    def when_lost(self, tell: Callable[[int], None]) -> None:
        """Have `tell` called with the number of lines that were dropped, when there is room again."""
        self._tell_lost = tell

    def put(self, line: str) -> bool:
        """Take a line, without its end, from any thread and without waiting. False: it was dropped."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._closed or self._broken or self.full:
                self._lose()
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shim-lines", daemon=True)
                self._thread.start()
            self._waiting.append(data)
            self._changed.notify_all()
        return True

    def flush(self, timeout: float) -> bool:
        """Wait, at most `timeout` seconds, until all lines are written. Whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, timeout)

    def close(self, timeout: float) -> bool:
        """Take no more lines, and wait like `flush` for those that were taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        written = self.flush(timeout)
        lost = self._untold + len(self._waiting)
        if lost:
            self._complain(f"{lost} log lines were lost")
        return written

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._writing = True
                data = self._waiting.popleft()
            self._write(data)
            with self._changed:
                self._writing = False
                self._changed.notify_all()
            self._tell_if_lost()

    def _write(self, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        total = len(data)
        try:
            while data:
                try:
                    data = data[os.write(self.descriptor, data) :]
                except BlockingIOError:  # somebody else made the descriptor non-blocking
                    _wait_until_writable(self.descriptor)
        except OSError as fault:
            self._failed(fault, torn=len(data) < total or self._torn)
        else:
            self._torn = self._failing = False

    def _failed(self, fault: OSError, *, torn: bool) -> None:
        with self._changed:
            self._lose()
            self._torn = torn
            if isinstance(fault, BrokenPipeError):
                self._broken = True
                for _ in range(len(self._waiting)):
                    self._waiting.popleft()
                    self._lose()
        if not self._failing:
            self._failing = True
            self._complain(f"log lines can't be written: {fault}")

    def _lose(self) -> None:
        self.dropped += 1
        self._untold += 1

    def _tell_if_lost(self) -> None:
        with self._changed:
            if (
                self._waiting
                or self._failing
                or self._closed
                or not self._untold
                or not self._tell_lost
            ):
                return
            lost, self._untold = self._untold, 0
        self._tell_lost(lost)


def say_on_stderr(text: str) -> None:
    """Write one line to standard error, from a thread of its own: it may be a stuck pipe as well."""
    data = f"navidrome-shim: {text}\n".encode("utf-8", "backslashreplace")
    threading.Thread(target=_write_stderr, args=(data,), name="shim-stderr", daemon=True).start()


def _write_stderr(data: bytes) -> None:
    with suppress(OSError):  # nobody is left to be told
        os.write(2, data)


def _wait_until_writable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()
