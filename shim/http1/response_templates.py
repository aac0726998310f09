"""Cache the shape of response heads as one strict regular expression per shape.

The responses of one route differ in their values and mostly share their header names. A template holds
the status line, the names in order and every hop-by-hop value literally. For the other values it only
requires valid characters, and for the length a number. A head that matches a template is parsed by one
expression instead of line by line, with the same result as `parse_response_head`. Templates are learned
from heads that `parse_response_head` accepted. The other values are not stored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shim.http1.response_head import (
    LENGTH,
    InvalidResponse,
    ResponseHead,
    parse_response_head,
    special_lines,
)

_MAX_TEMPLATES = 24
# If the cache is full, one in this many unknown heads replaces the least used template.
_REPLACE_EVERY = 1024
_VALUE = rb"[\t -~\x80-\xff]*\r\n"
_LENGTH_VALUE = rb"[\t ]*([0-9]{1,18})[\t ]*\r\n"


@dataclass(slots=True, eq=False)
class _Template:
    """One compiled shape of a response head.

    `forwarded`: the groups of the expression that are forwarded. `length`: the group of the length, or 0.
    `fixed_length`: the length of the body if there is no such group.
    """

    pattern: re.Pattern[bytes]
    forwarded: tuple[int, ...]
    length: int
    fixed_length: int
    status: int
    persistent: bool


class ResponseTemplateCache:
    """The templates of one upstream, the most used first.

    `max_bytes`: maximum size of a head in bytes. `max_lines`: maximum number of header lines.
    """

    __slots__ = ("_max_bytes", "_max_lines", "_seen", "_templates", "_unknown")

    def __init__(self, max_bytes: int, max_lines: int) -> None:
        self._max_bytes = max_bytes
        self._max_lines = max_lines
        self._templates: list[_Template] = []
        self._seen: set[tuple[bytes, ...]] = set()
        self._unknown = 0

    def match(self, data: bytes) -> tuple[ResponseHead, int] | None:
        """Return the head at the beginning of `data` and its end, if it is complete and matches a
        template.
        """
        templates = self._templates
        for template in templates:
            match = template.pattern.match(data)
            if match is not None:
                break
        else:
            return None
        end = match.end()
        if end > self._max_bytes:
            return None
        if template is not templates[0]:
            self._move_up(template)
        lines = (
            match[1] if len(template.forwarded) == 1 else b"".join(match.group(*template.forwarded))
        )
        length = int(match[template.length]) if template.length else template.fixed_length
        return ResponseHead(template.status, lines, length, template.persistent, b""), end

    def _move_up(self, template: _Template) -> None:
        at = self._templates.index(template)
        self._templates[at - 1 : at + 1] = template, self._templates[at - 1]

    def read(self, head: bytes) -> ResponseHead:
        """Parse a head that matches no template, and learn its shape for later responses.

        Raises `InvalidResponse`.
        """
        if head.count(b"\r\n") - 2 > self._max_lines:
            raise InvalidResponse(f"more than {self._max_lines} header lines")
        response = parse_response_head(head)
        if response.status >= 200 and response.status != 204 and not response.upgrade:
            self._learn(head, response)
        return response

    def _learn(self, head: bytes, response: ResponseHead) -> None:
        lines = head[:-4].split(b"\r\n")
        names = (lines[0], *(line.partition(b":")[0] for line in lines[1:]))
        if names not in self._seen:
            if len(self._seen) >= 8 * _MAX_TEMPLATES:
                self._seen.clear()
            self._seen.add(names)
            return
        self._unknown += 1
        if len(self._templates) >= _MAX_TEMPLATES:
            if self._unknown % _REPLACE_EVERY:
                return
            self._templates.pop()
        template = _build_template(lines, response)
        if template is not None:
            self._templates.append(template)


def _build_template(lines: list[bytes], response: ResponseHead) -> _Template | None:
    """Build the template of a head.

    Returns None if the forwarded lines are not those of the head, for example for HTTP/1.0 or if
    `Connection` lists a field.
    """
    special = {index: kind for kind, index, _ in special_lines(lines)}
    groups, forwarded, length = 0, [], 0
    pattern: list[bytes] = []
    expected: list[bytes] = []
    run = False  # whether a group of forwarded lines is open
    for index, line in enumerate(lines):
        name = line.partition(b":")[0]
        hop = index in special and special[index] != LENGTH
        if hop == run:
            pattern.append(b")" if run else b"(")
            run = not run
            if run:
                groups += 1
                forwarded.append(groups)
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
    if b"\r\n".join((*expected, b"")) != response.lines:
        return None
    fixed_length = 0 if length else response.length
    return _Template(
        re.compile(b"".join(pattern)),
        tuple(forwarded),
        length,
        fixed_length,
        response.status,
        response.persistent,
    )
