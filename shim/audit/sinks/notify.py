"""Notifications: messages about chosen events to chat, mail or push services, sent by Apprise.

`write` only collects, so no service can fill this sink's queue in the trail. A thread sends. Every value in a
message is text of an attacker: it is clipped, and nothing in it is a link or mentions anybody.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote

import structlog
from structlog.typing import FilteringBoundLogger

from shim.audit.digest import Digest, Message
from shim.audit.errors import SinkError
from shim.audit.events import CoalescedEvent, Event, Severity, to_record
from shim.audit.events.schema import kinds
from shim.audit.sanitize import clip, escape
from shim.health import Check, State

if TYPE_CHECKING:
    from apprise import Apprise, NotifyBase, NotifyLogEntry

    from shim.settings import Settings

MAX_VALUE: Final = 100
RETRY_SECONDS = 60.0
CLOSE_SECONDS = 3.0
# The number of messages that are kept for a target that can't be reached.
_MAX_UNSENT = 20
# A part of a URL that is shorter is not masked in an error.
_SHORTEST_SECRET = 4

_SCHEME = re.compile(r"(?i)\b(?:mailto|tel|sms|sip|xmpp|matrix|magnet|javascript|data)(?=:)")
# A dot in a host name, also in the forms that browsers read as one, but not one in a number.
_HOST_DOT = re.compile(r"(?<=\w)[.\u3002\uff0e\uff61](?=[^\W\d_])")
# Fields of every record that say nothing to a reader of the message.
_OMITTED = ("kind", "severity", "time", "schema", "id", "stream", "first_time", "last_time")
_MARKUP_REPLACEMENTS = str.maketrans(
    {"@": "(at)", "<": "(", ">": ")", "[": "(", "]": ")", "`": "'"}
)


def disarm(text: str) -> str:
    """Return the text as one line of at most `MAX_VALUE` characters in which no service finds a link, a
    mention or markup."""
    text = _HOST_DOT.sub(
        "(.)", escape(text).replace("://", "(:)//").translate(_MARKUP_REPLACEMENTS)
    )
    return clip(_SCHEME.sub(r"\g<0> ", text), MAX_VALUE)


def describe(event: Event) -> str:
    """Return the event as one line of plain text."""
    record = to_record(event)
    values = (
        f"{name}={disarm(', '.join(value) if isinstance(value, list) else str(value))}"
        for name, value in record.items()
        if name not in _OMITTED and value not in ("", [])
    )
    return f"{record['time']} {', '.join(values)}"


class Target(Protocol):
    """A service that gets messages. `label` names it without a secret."""

    @property
    def label(self) -> str: ...

    def send(self, message: Message) -> str | None:
        """Send the message; may block for some seconds. Return the error, None if it was sent. Does not
        raise."""


class AppriseTarget:
    """The service at an Apprise URL."""

    def __init__(self, number: int, url: str, apprise: Apprise) -> None:
        """`apprise` has this URL alone; `number` is its place in the setting."""
        self.label = f"{number} ({url.partition('://')[0].lower()})"
        self._apprise = apprise
        self._secrets = _parts(url)

    def send(self, message: Message) -> str | None:
        """Send the message, as `Target.send` does."""
        errors: list[str] = []

        def note(entry: NotifyLogEntry, _service: NotifyBase | None) -> None:
            errors.append(entry.message)

        try:
            sent = self._apprise.notify(
                body=message.body,
                title=message.title,
                notify_type=_apprise_type(message.severity),
                body_format="text",
                log_callback=note,
                log_level=logging.WARNING,
            )
        except Exception as error:  # noqa: BLE001 - a plugin may raise any exception
            return self._masked(repr(error))
        return None if sent else self._masked("; ".join(errors) or "the service did not accept it")

    def _masked(self, text: str) -> str:
        for part in self._secrets:
            text = text.replace(part, "***")
        return clip(escape(text))


def load_targets(urls: Sequence[str]) -> tuple[AppriseTarget, ...]:
    """Return the targets of `SHIM_NOTIFY_URLS`. Raises `SinkError`. Takes some seconds and 45 MB: call it
    only if there are URLs, and before requests are served."""
    try:
        import apprise  # noqa: PLC0415 - an extra
    except ImportError:
        raise SinkError(
            "SHIM_NOTIFY_URLS needs Apprise: install requirements/notify.txt, or the extra `notify`"
        ) from None
    # Its messages may contain a service's response; the reason of a failure is reported by `AppriseTarget`.
    logging.getLogger("apprise").propagate = False
    asset = apprise.AppriseAsset(async_mode=False, secure_logging=True)
    targets = []
    for number, url in enumerate(urls, 1):
        one = apprise.Apprise(asset=asset)
        if not one.add(url):
            raise SinkError(
                f"SHIM_NOTIFY_URLS: entry {number} ({url.partition('://')[0]}://…) is not an Apprise URL. "
                "Apprise's documentation has the form for each service"
            )
        targets.append(AppriseTarget(number, url, one))
    return tuple(targets)


def check_kinds(chosen: Iterable[str]) -> None:
    """Raise `SinkError` for a kind in `SHIM_NOTIFY_KINDS` that no event has."""
    known = [each.kind for each in kinds()]
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise SinkError(
            f"SHIM_NOTIFY_KINDS: no event has the kind {disarm(unknown[0])}. The kinds are: "
            f"{', '.join(known)}"
        )


@dataclass(slots=True)
class _Outbox:
    """The messages that a target is yet to get. `fault`: error of the last attempt, None after a success."""

    target: Target
    unsent: deque[Message] = field(default_factory=deque)
    fault: str | None = None
    retry_at: float = 0.0
    sent: int = 0
    dropped: int = 0


class NotifySink:
    """Sends messages about the events whose kind is in `kinds`, or whose severity is at least `min_severity`,
    None for the kinds alone. `clock`: monotonic seconds."""

    name = "notify"

    def __init__(
        self,
        targets: Sequence[Target],
        kinds: Collection[str],
        min_severity: Severity | None,
        digest: Digest | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outboxes = tuple(map(_Outbox, targets))
        self._kinds = frozenset(kinds)
        self._least = min_severity
        self._digest = digest or Digest()
        self._clock = clock
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    async def write(self, events: Sequence[Event]) -> None:
        """Collect the chosen events, without waiting for a service."""
        chosen = [event for event in events if self._is_chosen(event)]
        if not chosen:
            return
        with self._changed:
            for event in chosen:
                count = event.count if isinstance(event, CoalescedEvent) else 1
                self._digest.add(event.kind, event.severity, count, describe(event), self._clock())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shim-notify", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    async def close(self) -> None:
        """Send what is collected, for at most `CLOSE_SECONDS`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            await asyncio.to_thread(self._ended.wait, CLOSE_SECONDS)

    @property
    def summary(self) -> str:
        """The names of the targets, and how to try them."""
        labels = ", ".join(outbox.target.label for outbox in self._outboxes)
        return f"services: {labels}. `navidrome-shim notify test` sends each a message"

    def check(self) -> Check:
        """Return whether every target got its messages, for `/readyz`."""
        faults = [
            f"{outbox.target.label}: {outbox.fault} ({len(outbox.unsent)} messages wait, "
            f"{outbox.dropped} were dropped)"
            for outbox in self._outboxes
            if outbox.fault is not None
        ]
        if faults:
            return Check(
                "notifications",
                State.WARNING,
                "; ".join(faults),
                "Check SHIM_NOTIFY_URLS and the service, then run `navidrome-shim notify test`.",
            )
        sent = sum(outbox.sent for outbox in self._outboxes)
        return Check("notifications", State.OK, f"{sent} sent since the start")

    def _is_chosen(self, event: Event) -> bool:
        return event.kind in self._kinds or (
            self._least is not None and event.severity >= self._least
        )

    # in the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._closing:
                    self._changed.wait(self._pause())
                now, closing = self._clock(), self._closing
                messages = self._digest.drain(now) if closing else self._digest.due(now)
            for outbox in self._outboxes:
                self._queue(outbox, messages)
                if outbox.unsent and (closing or now >= outbox.retry_at):
                    self._send(outbox)
            if closing:
                self._ended.set()
                return

    def _pause(self) -> float | None:
        """Return the seconds until there is something to send, None if there is nothing."""
        now = self._clock()
        waits = [max(0.0, outbox.retry_at - now) for outbox in self._outboxes if outbox.unsent]
        due = self._digest.next_due(now)
        if due is not None:
            waits.append(due)
        return min(waits) if waits else None

    def _queue(self, outbox: _Outbox, messages: Iterable[Message]) -> None:
        for message in messages:
            if len(outbox.unsent) >= _MAX_UNSENT:
                outbox.unsent.popleft()
                outbox.dropped += 1
            outbox.unsent.append(message)

    def _send(self, outbox: _Outbox) -> None:
        """Send a target's messages, the oldest first, until one fails."""
        while outbox.unsent:
            fault = outbox.target.send(outbox.unsent[0])
            if fault is not None:
                if outbox.fault is None:
                    _log().warning("notification_failed", target=outbox.target.label, detail=fault)
                outbox.fault, outbox.retry_at = fault, self._clock() + RETRY_SECONDS
                return
            outbox.unsent.popleft()
            outbox.sent += 1
            if outbox.fault is not None:
                outbox.fault = None
                _log().info("notification_sent_again", target=outbox.target.label)


def configured_targets(settings: Settings) -> tuple[AppriseTarget, ...]:
    """Return the targets of these settings, after a check of the kinds. Raises `SinkError`."""
    check_kinds(settings.notify_kinds)
    return load_targets([url.get_secret_value() for url in settings.notify_urls])


def build(settings: Settings) -> NotifySink:
    """Return the sink for these settings. Raises `SinkError`."""
    targets, min_severity = configured_targets(settings), settings.notify_severity
    return NotifySink(
        targets,
        settings.notify_kinds,
        None if min_severity == "none" else Severity[min_severity.upper()],
    )


def _apprise_type(severity: Severity) -> str:
    if severity >= Severity.ERROR:
        return "failure"
    return "warning" if severity >= Severity.WARNING else "info"


def _parts(url: str) -> tuple[str, ...]:
    """Return each part of the URL after its scheme that may be a secret, the longest first."""
    parts = set(re.split(r"[/:@?&=,#]+", url.partition("://")[2]))
    parts |= set(map(unquote, parts))
    return tuple(sorted((part for part in parts if len(part) >= _SHORTEST_SECRET), key=len)[::-1])


def _log() -> FilteringBoundLogger:
    log: FilteringBoundLogger = structlog.get_logger()
    return log
