"""The log: one line per event, the same shape for our events and for the libraries' own.

JSON for machines, columns for a terminal. In both, whatever a client sent is escaped: no value can end
a line, begin another one, or speak to the terminal. Nothing here waits for whoever reads the lines.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Sequence
from typing import Literal, TypeAlias

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from shim.audit.events import Event, event_fields
from shim.audit.line_writer import LineWriter
from shim.audit.sanitize import escape, timestamp
from shim.audit.trail import SinkClosed

LogFormat: TypeAlias = Literal["auto", "json", "console"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

# Their lines on each request would repeat ours, and hold the queries that ours leave out.
_SILENT = ("uvicorn.access",)
_QUIET = ("httpx", "httpcore", "asyncio", "alembic", "sqlalchemy")


def configure_log(
    writer: LineWriter, *, log_format: LogFormat = "auto", level: LogLevel = "info"
) -> None:
    """Send structlog's and the standard library's records to `lines`, from now on.

    `auto` is `json`, but `console` on a terminal. uvicorn has to be given `log_config=None`.
    """
    console = log_format == "console" or (log_format == "auto" and os.isatty(writer.descriptor))
    render = _console(writer.descriptor) if console else _json
    threshold = logging.getLevelNamesMapping()[level.upper()]
    tail: list[Processor] = [structlog.processors.format_exc_info, _in_order, render]
    structlog.configure(
        processors=[structlog.processors.add_log_level, _stamp, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _LineLogger(writer),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            _stamp,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
    )
    _redirect_standard_logging(_LineWriterHandler(writer, formatter), threshold)
    writer.on_dropped(lambda count: _logger().warning("log_lines_dropped", count=count))


class LogSink:
    """Writes events to the log, which has to be configured. A line that finds no room waits, and the
    trail with it."""

    name = "log"

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self._log = _logger().bind()

    async def write(self, events: Sequence[Event]) -> None:
        """Write the events in their order. Raises `SinkGone` if nobody reads them any more."""
        for number, event in enumerate(events, 1):
            while self._writer.full and not self._writer.broken:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # a thread makes the room
            if self._writer.broken:
                raise SinkClosed("nobody reads the log any more")
            self._log.log(
                event.severity, event.event, timestamp=timestamp(event.time), **_readable(event)
            )
            if number % 8 == 0:
                await asyncio.sleep(0)  # so that no request waits for more lines than these

    async def close(self) -> None:
        """Wait until the lines are out; `Lines.close` is for whoever opened them."""
        await asyncio.to_thread(self._writer.flush, 2.0)


def _logger() -> FilteringBoundLogger:
    log: FilteringBoundLogger = structlog.get_logger()
    return log


def _readable(event: Event) -> dict[str, object]:
    values: dict[str, object] = dict(event_fields(event))
    for name in ("first_time", "last_time"):
        value = values.get(name)
        if isinstance(value, float):
            values[name] = timestamp(value)
    return values


def _stamp(_logger: WrappedLogger, _method: str, values: EventDict) -> EventDict:
    if "timestamp" not in values:
        record = values.get("_record")
        values["timestamp"] = timestamp(
            record.created if isinstance(record, logging.LogRecord) else time.time()
        )
    return values


def _in_order(_logger: WrappedLogger, _method: str, values: EventDict) -> EventDict:
    head = {name: values.pop(name) for name in ("event", "level", "timestamp")}
    return {**head, **values}


def _json(_logger: WrappedLogger, _method: str, values: EventDict) -> str:
    # What json leaves as it is stands inside strings, where `\uXXXX` says the same.
    return escape(json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=repr))


def _console(descriptor: int) -> Processor:
    renderer = structlog.dev.ConsoleRenderer(
        colors=os.isatty(descriptor) and "NO_COLOR" not in os.environ,
        # Without the locals, which hold whatever they hold.
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
    )

    def render(logger: WrappedLogger, method: str, values: EventDict) -> str:
        for name, value in values.items():
            text = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            if isinstance(text, str):
                values[name] = escape(text, allowed="\n" if name == "exception" else "")
        return str(renderer(logger, method, values))

    return render


class _LineLogger:
    """What structlog hands a rendered line to."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def msg(self, line: str) -> None:
        self._writer.put(line)

    debug = info = warning = error = critical = msg


class _LineWriterHandler(logging.Handler):
    """Hands records of the standard library to `lines`."""

    def __init__(self, writer: LineWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(self.format(record))
        except Exception:  # noqa: BLE001 - a library's record that can't be formatted
            self._writer.put(
                f'{{"event":"log_record_unreadable","logger":{json.dumps(record.name)}}}'
            )


def _redirect_standard_logging(handler: logging.Handler, threshold: int) -> None:
    root = logging.getLogger()
    for previous in root.handlers[:]:
        if isinstance(previous, _LineWriterHandler):
            root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(threshold)
    for name in ("uvicorn", "uvicorn.error", *_SILENT):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name not in _SILENT
        logger.setLevel(logging.NOTSET)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
