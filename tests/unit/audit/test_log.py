"""The log: one format for every source, and no way for a client to inject a line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator

import pytest
import structlog

from shim.audit.events import INSTANCE
from shim.audit.line_writer import LineWriter
from shim.audit.sinks.log import LogFormat, LogLevel, LogSink, configure_log
from shim.audit.trail import SinkClosed
from tests.support.audit_samples import access, request_decision

Read = Callable[[], str]
LIBRARIES = ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "httpcore", "asyncio")


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for name in (*LIBRARIES, "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger(name).propagate = True
    structlog.reset_defaults()


class Log:
    """A configured log and its output."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self.lines = LineWriter(self._writer, on_error=lambda _: None)

    def configure(self, log_format: LogFormat = "json", level: LogLevel = "info") -> LogSink:
        configure_log(self.lines, log_format=log_format, level=level)
        return LogSink(self.lines)

    def read(self) -> str:
        assert self.lines.flush(5.0)
        os.set_blocking(self._reader, False)
        try:
            return os.read(self._reader, 1 << 16).decode()
        except BlockingIOError:
            return ""

    def hang_up(self) -> None:
        os.close(self._reader)
        self._reader = -1

    def close(self) -> None:
        self.lines.close(5.0)
        os.close(self._writer)
        if self._reader >= 0:
            os.close(self._reader)


@pytest.fixture
def log() -> Iterator[Log]:
    one = Log()
    yield one
    one.close()


async def test_an_event_is_one_line_of_json_in_a_fixed_order(log: Log) -> None:
    event = request_decision(time=1_795_518_123.4567, claimed_user="ada")
    await log.configure().write([event])

    assert log.read() == (
        '{"kind":"request_decision","severity":"warning","time":"2026-11-24T11:02:03.456700Z",'
        f'"schema":1,"id":"{event.id}","instance":"{INSTANCE}","stream":"requests",'
        '"verdict":"stripped","reason":"untrusted_peer","status":200,"peer":"192.0.2.7",'
        '"peer_trusted":false,"client":"192.0.2.7","path_class":"public","request_id":"r1","count":1,'
        '"claimed_user":"ada","method":"GET","path":"/rest/ping",'
        '"removed_headers":["x-authentik-username"],"notes":[]}\n'
    )


async def test_a_summary_formats_its_times(log: Log) -> None:
    await log.configure().write([request_decision(time=0.0).summary(3, 1.5, many_peers=True)])

    line = json.loads(log.read())
    assert line["first_time"] == "1970-01-01T00:00:00.000000Z"
    assert line["last_time"] == line["time"] == "1970-01-01T00:00:01.500000Z"


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_a_client_can_neither_start_a_line_nor_send_terminal_escapes(
    log: Log, log_format: LogFormat
) -> None:
    event = request_decision(
        path="/x\n{}",
        claimed_user='ada\r\n{"kind":"forged"}\x1b[2J\x9b\u202e\u2028',
        notes=("a\nb", "\x1b]0;title\x07"),
    )

    await log.configure(log_format).write([event])

    written = log.read()
    assert written.endswith("\n")
    assert written[:-1].isprintable()
    if log_format == "json":
        assert json.loads(written)["claimed_user"] == event.claimed_user


async def test_the_console_shows_the_same_fields(log: Log) -> None:
    await log.configure("console").write([request_decision()])

    written = log.read()
    for part in ("request_decision", "warning", "reason=untrusted_peer", "peer=192.0.2.7"):
        assert part in written


@pytest.mark.parametrize(("terminal", "json_lines"), [(True, False), (False, True)])
async def test_auto_is_console_on_a_terminal_and_json_elsewhere(
    *, terminal: bool, json_lines: bool
) -> None:
    reader, writer = os.openpty() if terminal else os.pipe()
    lines = LineWriter(writer)
    try:
        configure_log(lines)
        await LogSink(lines).write([access()])
        assert lines.close(5.0)
        assert os.read(reader, 1 << 16).startswith(b'{"kind"') is json_lines
    finally:
        os.close(writer)
        os.close(reader)


async def test_lines_below_the_level_are_not_written(log: Log) -> None:
    sink = log.configure(level="warning")

    await sink.write([access(), request_decision()])
    logging.getLogger("uvicorn.error").info("quiet")

    assert [json.loads(line)["kind"] for line in log.read().splitlines()] == ["request_decision"]


def test_log_records_of_libraries_have_the_same_format(log: Log) -> None:
    log.configure()

    logging.getLogger("uvicorn.error").info("Uvicorn running on %s", "unix:/x\n")

    line = json.loads(log.read())
    assert list(line) == ["kind", "severity", "time", "logger", "message"]
    assert (line["kind"], line["severity"]) == ("log_message", "info")
    assert line["message"] == "Uvicorn running on unix:/x\n"
    assert line["logger"] == "uvicorn.error"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_client_data_in_a_librarys_record_is_escaped(log: Log, log_format: LogFormat) -> None:
    log.configure(log_format)

    logging.getLogger("uvicorn.error").warning("Invalid: %s", "\x1b[2J\nforged\u202e")

    written = log.read()
    assert "forged" in written
    assert written[:-1].isprintable()


def test_a_librarys_access_records_are_left_out_because_of_their_query(log: Log) -> None:
    log.configure(level="debug")

    logging.getLogger("uvicorn.access").info("GET /rest/ping?t=secret")
    logging.getLogger("httpx").info("HTTP Request: GET /rest/ping?t=secret")

    assert log.read() == ""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_is_written_without_values_of_variables(
    log: Log, log_format: LogFormat
) -> None:
    log.configure(log_format)
    password = "hunter2" + "hunter2"

    try:
        int(f"\x1b[2J{len(password)}")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")

    written = log.read()
    assert "ValueError" in written
    assert "\x1b" not in written
    assert password not in written
    if log_format == "json":
        assert written.count("\n") == 1


def test_a_record_that_cannot_be_formatted_does_no_harm(log: Log) -> None:
    log.configure()

    record = logging.LogRecord("some.library", logging.INFO, "", 0, "%d", ("no number",), None)

    handlers = logging.getLogger().handlers
    (ours,) = [one for one in handlers if type(one).__module__ == configure_log.__module__]
    ours.handle(record)

    assert json.loads(log.read())["kind"] == "log_record_unreadable"


def test_configuring_twice_writes_each_record_once(log: Log) -> None:
    log.configure()
    log.configure()

    logging.getLogger("uvicorn.error").warning("once")

    assert log.read().count("once") == 1


async def test_a_log_whose_reader_is_gone_is_closed(log: Log) -> None:
    sink = log.configure()
    log.hang_up()
    await sink.write([access()])
    await asyncio.to_thread(log.lines.flush, 5.0)

    with pytest.raises(SinkClosed):
        await sink.write([access()])


async def test_a_full_log_makes_the_trail_wait_without_loss(log: Log) -> None:
    log.lines = LineWriter(log.lines.descriptor, capacity=1)
    sink = log.configure()

    await asyncio.wait_for(sink.write([access(request_id=str(i)) for i in range(5)]), timeout=10.0)

    assert log.read().count("\n") == 5
    assert log.lines.dropped == 0
