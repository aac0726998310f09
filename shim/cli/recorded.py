"""Run the work of a command that changes something: its events go to the audit trail and to stderr."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import typer

from shim.audit.admin_actions import AdminActions, NotStored
from shim.audit.line_writer import LineWriter
from shim.audit.sinks.log import LogSink, configure_log, log_event
from shim.audit.trail import Trail
from shim.cli.errors import print_error
from shim.settings import Settings

T = TypeVar("T")

# Time at the end for the events that wait, and while the trail can't be written.
_CLOSE_SECONDS = 5.0
_FAILING_SECONDS = 0.5


def run_recorded(
    settings: Settings,
    work: Callable[[Trail, AdminActions], Awaitable[T]],
    *expected: type[Exception],
) -> T:
    """Run `work` and return its result. If it raises one of `expected`, `StoreError` or `NotStored`, print
    the error and exit with 1."""
    # Import late: the database code is large, and few commands need it.
    from shim.audit.store.factory import build_store  # noqa: PLC0415
    from shim.store.errors import StoreError  # noqa: PLC0415

    errors: tuple[type[Exception], ...] = (StoreError, NotStored, *expected)
    writer = LineWriter(sys.stderr.fileno())
    configure_log(writer, log_format=settings.log_format, level=settings.log_level)

    async def run_with_trail() -> T:
        store = build_store(settings, log=log_event)
        log = LogSink(writer)
        trail = Trail((log,) if store is None else (log, store))
        trail.start()
        try:
            return await work(trail, AdminActions(store, trail.record))
        finally:
            # An event that could not be stored was waited for already.
            failing = store is not None and store.fault is not None
            await trail.close(_FAILING_SECONDS if failing else _CLOSE_SECONDS)
            if store is not None:
                await store.close()

    try:
        return asyncio.run(run_with_trail())
    except errors as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    finally:
        writer.close(2.0)
