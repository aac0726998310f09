"""The log: one line per event, with the record that the audit trail has, and one per record of a library.

JSON for programs, columns for a terminal. Every line has `kind`, `severity` and `time`. Both forms escape
values from clients: no value can end a line, begin a new one, or control the terminal. The event loop never
waits for the reader of the log.
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

from shim.audit.events import Event, to_record
from shim.audit.line_writer import LineWriter
from shim.audit.sanitize import escape, timestamp
from shim.audit.trail import SinkClosed

LogFormat: TypeAlias = Literal["auto", "json", "console"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

# Their lines would repeat ours for each request, and contain the queries that ours omit.
_SILENT = ("uvicorn.access",)
# Fields that say nothing to a reader of the terminal.
_HIDDEN = ("schema", "instance", "stream")
_QUIET = ("httpx", "httpcore", "asyncio", "alembic", "sqlalchemy")


def configure_log(
    writer: LineWriter, *, log_format: LogFormat = "auto", level: LogLevel = "info"
) -> None:
    """Send the records of structlog and of the standard library to `writer`.

    `auto` is `console` on a terminal, else `json`. uvicorn needs `log_config=None`.
    """
    console = log_format == "console" or (log_format == "auto" and os.isatty(writer.descriptor))
    render = _console(writer.descriptor) if console else _json
    threshold = logging.getLevelNamesMapping()[level.upper()]
    tail: list[Processor] = [structlog.processors.format_exc_info, _as_record, render]
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
    writer.on_dropped(lambda count: _logger().warning("log_lines_dropped", dropped=count))


class LogSink:
    """Writes events to the log, which must be configured. If there is no room for a line, it waits, and the
    trail with it."""

    name = "log"

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self._log = _logger().bind()

    async def write(self, events: Sequence[Event]) -> None:
        """Write the events in order. Raises `SinkClosed` if the log can never be written again."""
        for number, event in enumerate(events, 1):
            while self._writer.full and not self._writer.broken:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # a thread makes room
            if self._writer.broken:
                raise SinkClosed("the reader of the log has closed it")
            _write_event(self._log, event)
            if number % 8 == 0:
                await asyncio.sleep(0)  # so that no request waits for more than eight lines

    async def close(self) -> None:
        """Wait until the lines are written. The owner of the `LineWriter` closes it."""
        await asyncio.to_thread(self._writer.flush, 2.0)


def log_event(event: Event) -> None:
    """Write an event to the log at once, for events that no trail passes. Drops it if there is no room."""
    _write_event(_logger(), event)


def _write_event(log: FilteringBoundLogger, event: Event) -> None:
    log.log(event.severity, event.kind, **to_record(event))


def _logger() -> FilteringBoundLogger:
    log: FilteringBoundLogger = structlog.get_logger()
    return log


def _stamp(_logger: WrappedLogger, _method: str, values: EventDict) -> EventDict:
    if "time" not in values:
        record = values.get("_record")
        values["time"] = timestamp(
            record.created if isinstance(record, logging.LogRecord) else time.time()
        )
    return values


def _as_record(_logger: WrappedLogger, _method: str, values: EventDict) -> EventDict:
    """Return the values with the names and the order of an event's record. `values` is an event's record
    already, or the record of a library with its text in `message`."""
    text, level = values.pop("event"), values.pop("level")
    if "kind" in values:
        return values
    head = {"severity": "error" if level == "critical" else level, "time": values.pop("time")}
    if "logger" in values:
        return {"kind": "log_message", **head, **values, "message": text}
    return {"kind": text, **head, **values}


def _json(_logger: WrappedLogger, _method: str, values: EventDict) -> str:
    # What json does not escape is inside strings, where `\uXXXX` is equivalent.
    return escape(json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=repr))


def _console(descriptor: int) -> Processor:
    renderer = structlog.dev.ConsoleRenderer(
        colors=os.isatty(descriptor) and "NO_COLOR" not in os.environ,
        # Without local variables, which may contain secrets.
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
    )

    def render(logger: WrappedLogger, method: str, values: EventDict) -> str:
        kind = values.pop("kind")
        ordered: EventDict = {
            "event": values.pop("message", kind),
            "level": values.pop("severity"),
            "timestamp": values.pop("time"),
        }
        for name, value in values.items():
            if name not in _HIDDEN:
                ordered[name] = ", ".join(value) if isinstance(value, list) else value
        for name, value in ordered.items():
            if isinstance(value, str):
                ordered[name] = escape(value, allowed="\n" if name == "exception" else "")
        return str(renderer(logger, method, ordered))

    return render


class _LineLogger:
    """Receives the rendered lines of structlog."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def msg(self, line: str) -> None:
        self._writer.put(line)

    debug = info = warning = error = critical = msg


class _LineWriterHandler(logging.Handler):
    """Passes records of the standard library to the writer."""

    def __init__(self, writer: LineWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(self.format(record))
        except Exception:  # noqa: BLE001 - a library's record that cannot be formatted
            self._writer.put(
                f'{{"kind":"log_record_unreadable","severity":"warning","time":"{timestamp(record.created)}",'
                f'"logger":{json.dumps(record.name)}}}'
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
