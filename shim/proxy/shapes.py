"""Answers' heads by their shape: one strict expression for each, learned from heads that were read whole.

Between two answers of one route the values change and the names mostly do not. A shape holds the status
line, the names in their order, and every value that ends at this hop, to the letter; of the other values
only that they are values, and of the length that it is one. So a head that has a known shape is judged
by one expression instead of line by line, and comes to what `parse_response_head` would have made of it:
nothing of its values is remembered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shim.proxy.response import (
    LENGTH,
    BadAnswer,
    ResponseHead,
    parse_response_head,
    special_lines,
)

_MOST = 24
# When there are as many as that, one in this many unknown heads takes the place of the least used.
_REPLACING = 1024
_VALUE = rb"[\t -~\x80-\xff]*\r\n"
_LENGTH_VALUE = rb"[\t ]*([0-9]{1,18})[\t ]*\r\n"


@dataclass(slots=True)
class _Shape:
    """`kept` are the expression's groups that are forwarded, `length` the group of the length or 0;
    `framed` is the answer's length where there is no such group."""

    pattern: re.Pattern[bytes]
    kept: tuple[int, ...]
    length: int
    framed: int
    status: int
    persistent: bool


class AnswerShapes:
    """The shapes of one upstream's answers, the most used first. `longest`: bytes that a head may have,
    `most`: header lines."""

    __slots__ = ("_longest", "_most", "_seen", "_shapes", "_unknown")

    def __init__(self, longest: int, most: int) -> None:
        self._longest = longest
        self._most = most
        self._shapes: list[_Shape] = []
        self._seen: set[tuple[bytes, ...]] = set()
        self._unknown = 0

    def match(self, data: bytes) -> tuple[ResponseHead, int] | None:
        """The head at the beginning of `data` and where it ends, if it is whole and of a known shape."""
        for index, shape in enumerate(self._shapes):
            match = shape.pattern.match(data)
            if match is None or match.end() > self._longest:
                continue
            if index:
                self._shapes[index - 1 : index + 1] = shape, self._shapes[index - 1]
            lines = match[1] if len(shape.kept) == 1 else b"".join(match.group(*shape.kept))
            length = int(match[shape.length]) if shape.length else shape.framed
            return ResponseHead(shape.status, lines, length, shape.persistent, b""), match.end()
        return None

    def read(self, head: bytes) -> ResponseHead:
        """Read a head of no known shape, and know its shape when it comes again. Raises `BadAnswer`."""
        if head.count(b"\r\n") - 2 > self._most:
            raise BadAnswer(f"more than {self._most} header lines")
        answer = parse_response_head(head)
        if answer.status >= 200 and answer.status != 204 and not answer.upgrade:
            self._learn(head, answer)
        return answer

    def _learn(self, head: bytes, answer: ResponseHead) -> None:
        lines = head[:-4].split(b"\r\n")
        names = (lines[0], *(line.partition(b":")[0] for line in lines[1:]))
        if names not in self._seen:
            if len(self._seen) >= 8 * _MOST:
                self._seen.clear()
            self._seen.add(names)
            return
        self._unknown += 1
        if len(self._shapes) >= _MOST:
            if self._unknown % _REPLACING:
                return
            self._shapes.pop()
        shape = _shape_of(lines, answer)
        if shape is not None:
            self._shapes.append(shape)


def _shape_of(lines: list[bytes], answer: ResponseHead) -> _Shape | None:
    """The shape of a head, or None where it is not the sum of its lines: an old version's, or one in
    which `Connection` names a field."""
    special = {index: kind for kind, index, _ in special_lines(lines)}
    groups, kept, length = 0, [], 0
    pattern: list[bytes] = []
    expected: list[bytes] = []
    run = False  # whether a group of kept lines is open
    for index, line in enumerate(lines):
        name = line.partition(b":")[0]
        hop = index in special and special[index] != LENGTH
        if hop == run:
            pattern.append(b")" if run else b"(")
            run = not run
            if run:
                groups += 1
                kept.append(groups)
        if hop or not index:
            pattern.append(re.escape(line) + rb"\r\n")
        elif index in special:
            groups += 1
            length = groups
            pattern.append(re.escape(name) + b":" + _LENGTH_VALUE)
        else:
            pattern.append(re.escape(name) + b":" + _VALUE)
        if not hop:
            expected.append(line)
    pattern.append(rb")\r\n" if run else rb"\r\n")
    if b"\r\n".join((*expected, b"")) != answer.lines:
        return None
    framed = 0 if length else answer.length
    return _Shape(
        re.compile(b"".join(pattern)), tuple(kept), length, framed, answer.status, answer.persistent
    )
