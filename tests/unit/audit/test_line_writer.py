"""Writing lines to a pipe: without blocking, and with every loss counted."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from shim.audit.line_writer import LineWriter

PAGE = 4096


@dataclass
class Pipe:
    reader: int
    writer: int
    errors: list[str] = field(default_factory=list)
    error_reported: threading.Event = field(default_factory=threading.Event)

    def report_error(self, text: str) -> None:
        self.errors.append(text)
        self.error_reported.set()

    def read(self, until: bytes) -> bytes:
        data = b""
        for _ in range(1000):
            if until in data:
                break
            data += os.read(self.reader, 1 << 16)
        return data

    def hang_up(self) -> None:
        with suppress(OSError):
            os.close(self.reader)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE)
    one = Pipe(reader, writer)
    yield one
    one.hang_up()
    os.close(writer)


def overfill(lines: LineWriter) -> None:
    """Put lines, each larger than the pipe, until some were dropped."""
    for _ in range(100):
        lines.put("x" * PAGE)
    assert lines.dropped > 50


def test_lines_arrive_complete_and_in_order(pipe: Pipe) -> None:
    lines = LineWriter(pipe.writer)

    assert all(lines.put(f"line {i} é") for i in range(20))

    assert lines.close(5.0)
    assert pipe.read(b"line 19").decode().splitlines() == [f"line {i} é" for i in range(20)]
    assert lines.dropped == 0


def test_a_pipe_that_is_not_read_blocks_nothing_and_dropped_lines_are_counted(pipe: Pipe) -> None:
    lines = LineWriter(pipe.writer, capacity=3)
    dropped_counts: list[int] = []
    again = threading.Event()

    def report(count: int) -> None:
        dropped_counts.append(count)
        again.set()

    lines.on_dropped(report)
    overfill(lines)
    dropped = lines.dropped

    thread = threading.Thread(target=pipe.read, args=(b"the end",), daemon=True)
    thread.start()
    assert again.wait(10.0)
    assert dropped_counts == [dropped]
    assert lines.put("the end")
    thread.join(10.0)
    assert lines.close(5.0)


def test_a_stuck_pipe_does_not_block_shutdown(pipe: Pipe) -> None:
    lines = LineWriter(pipe.writer, capacity=3, on_error=pipe.report_error)
    overfill(lines)

    assert not lines.close(0.01)

    assert "lines were lost" in pipe.errors[0]
    assert not lines.put("after the end")
    pipe.hang_up()
    assert lines.flush(5.0)


def test_a_closed_pipe_is_reported_once_and_later_lines_are_counted(pipe: Pipe) -> None:
    lines = LineWriter(pipe.writer, on_error=pipe.report_error)
    pipe.hang_up()

    lines.put("nobody reads this")
    assert pipe.error_reported.wait(5.0)
    assert lines.flush(5.0)

    assert lines.broken
    assert not lines.put("nor this")
    assert lines.dropped == 2
    assert len(pipe.errors) == 1
    lines.close(1.0)


def test_a_full_disk_is_reported_and_writing_is_retried() -> None:
    reported = threading.Event()
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        lines = LineWriter(descriptor, on_error=lambda _: reported.set())
        assert lines.put("no space")
        assert reported.wait(5.0)
        assert lines.flush(5.0)
        assert not lines.broken
        assert lines.put("no space still")
        assert lines.flush(5.0)
        assert lines.dropped == 2
        lines.close(1.0)
    finally:
        os.close(descriptor)


def test_a_descriptor_that_became_non_blocking_loses_no_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    lines = LineWriter(pipe.writer)
    sent = [f"{i:04d}" + "x" * 1000 for i in range(50)]

    assert all(lines.put(line) for line in sent)

    assert pipe.read(b"0049" + b"x" * 1000 + b"\n").decode().splitlines() == sent
    assert lines.close(5.0)
