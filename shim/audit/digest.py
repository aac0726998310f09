"""Collect events into messages: one message per kind of event, with a rate limit for each kind.

Pure: the caller passes the time, and nothing is sent here. A flood of one kind of event neither delays nor
hides events of another kind. Memory is bounded by the number of kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from shim.audit.events import Severity
from shim.audit.sanitize import clip

_MAX_LINE = 400


@dataclass(frozen=True, slots=True)
class Message:
    """One message about `count` events of a kind. `severity` is the greatest of theirs."""

    kind: str
    severity: Severity
    count: int
    lines: tuple[str, ...]

    @property
    def title(self) -> str:
        """The subject, in plain text."""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"navidrome-shim: {self.kind}{times}"

    @property
    def body(self) -> str:
        """One line for each event, and the number of events without one."""
        remaining = self.count - len(self.lines)
        return "\n".join((*self.lines, f"and {remaining} more") if remaining > 0 else self.lines)


class Digest:
    """Collects events by kind.

    `lines`: number of events of one message that have a line; the others are counted. `collect`: seconds from
    the first event of a message until it is due. `burst`: number of messages of one kind that may follow each
    other; after that, one in `interval` seconds.
    """

    def __init__(
        self, *, lines: int = 5, collect: float = 5.0, burst: int = 5, interval: float = 600.0
    ) -> None:
        self._lines = lines
        self._collect = collect
        self._burst = burst
        self._interval = interval
        self._kinds: dict[str, _Kind] = {}

    def add(self, kind: str, severity: Severity, count: int, line: str, now: float) -> None:
        """Add an event that stands for `count` ones. `now` is in seconds of a monotonic clock."""
        pending = self._kinds.get(kind)
        if pending is None:
            pending = self._kinds[kind] = _Kind(self._burst, now)
        if not pending.count:
            pending.since = now
        if len(pending.lines) < self._lines:
            pending.lines.append(clip(line, _MAX_LINE))
        pending.count += count
        pending.severity = max(pending.severity, severity)

    def due(self, now: float) -> list[Message]:
        """Remove and return the messages that may be sent now."""
        return list(self._take(now, self._collect))

    def drain(self, now: float) -> list[Message]:
        """Remove and return the messages that the rate limit allows now, without the wait for more events."""
        return list(self._take(now, 0.0))

    def next_due(self, now: float) -> float | None:
        """Return the seconds until the next message is due, None if there is none."""
        waits = [
            max(
                pending.since + self._collect - now,
                0.0
                if self._available_tokens(pending, now) >= 1
                else self._seconds_until_token(pending, now),
            )
            for pending in self._kinds.values()
            if pending.count
        ]
        return max(0.0, min(waits)) if waits else None

    def _take(self, now: float, collect: float) -> Iterator[Message]:
        for kind, pending in self._kinds.items():
            if not pending.count or pending.since + collect > now:
                continue
            tokens = self._available_tokens(pending, now)
            if tokens < 1:
                continue
            yield Message(kind, pending.severity, pending.count, tuple(pending.lines))
            self._kinds[kind] = _Kind(tokens - 1, now)

    def _available_tokens(self, pending: _Kind, now: float) -> float:
        """Return the number of messages of this kind that the rate limit allows now."""
        return min(self._burst, pending.tokens + (now - pending.tokens_at) / self._interval)

    def _seconds_until_token(self, pending: _Kind, now: float) -> float:
        return (1 - self._available_tokens(pending, now)) * self._interval


@dataclass(slots=True)
class _Kind:
    """The events of one kind since its last message. `tokens` is the content of the token bucket, in
    messages, at the time `tokens_at`."""

    tokens: float
    tokens_at: float
    since: float = 0.0
    count: int = 0
    severity: Severity = Severity.DEBUG
    lines: list[str] = field(default_factory=list)
