"""End the process when memory is exhausted, so that its supervisor restarts it.

Nothing restarts a task, a thread or an event loop callback that a MemoryError interrupts, so the process
would continue without serving requests. The store is a database, so it is consistent at any moment.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h
_MESSAGE = b"navidrome-shim: out of memory; the process ends, to be started again\n"


def end_process_on_memory_error(loop: asyncio.AbstractEventLoop) -> None:
    """End the process at the first unhandled MemoryError in this loop or in a thread."""
    thread_hook = threading.excepthook

    def in_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), MemoryError):
            _end()
        loop.default_exception_handler(context)

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        if issubclass(arguments.exc_type, MemoryError):
            _end()
        thread_hook(arguments)

    loop.set_exception_handler(in_loop)
    threading.excepthook = in_thread


def _end() -> None:
    os.write(2, _MESSAGE)  # logging would allocate
    os._exit(EXIT_STATUS)
