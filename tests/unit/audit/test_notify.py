"""Notifications: selection, escaping in the reader's program, and failing services."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shim.audit.coalesce import Coalescer
from shim.audit.digest import Digest, Message
from shim.audit.errors import SinkError
from shim.audit.events import Severity, UpstreamDown
from shim.audit.events.provisioning import AccountCreated, AccountDeniedEvent
from shim.audit.events.schema import kinds
from shim.audit.sinks import notify
from shim.audit.sinks.notify import (
    MAX_VALUE,
    NotifySink,
    check_kinds,
    describe,
    disarm,
    load_targets,
)
from shim.audit.trail import Trail
from shim.health import State
from shim.settings import load
from tests.support.audit_samples import request_decision
from tests.support.socket_ends import until

# Apprise imports a module that Python 3.13 removed.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

TOKEN = "s3cretTokenOfTheService"


@dataclass
class Service:
    """An HTTP service that responds with `status`. `received` are the JSON bodies."""

    server: ThreadingHTTPServer
    status: int = 200
    received: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"json://user:{TOKEN}@127.0.0.1:{self.server.server_port}/{TOKEN}"


@pytest.fixture
def service() -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service_.received.append(body)
            self.send_response(service_.status)
            self.end_headers()
            self.wfile.write(f"echo of {self.path}".encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service_ = Service(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield service_
    server.shutdown()
    server.server_close()
    thread.join()


class MemorySink:
    """A target that records its messages, and fails while it has faults left; `blocked` makes it wait."""

    label = "1 (memory)"

    def __init__(self, *faults: str) -> None:
        self.messages: list[Message] = []
        self.faults = list(faults)
        self.attempts = 0
        self.open = threading.Event()
        self.open.set()

    def send(self, message: Message) -> str | None:
        self.open.wait(10)
        self.attempts += 1
        if self.faults:
            return self.faults.pop(0)
        self.messages.append(message)
        return None


def created(account: str = "ada") -> AccountCreated:
    return AccountCreated(
        time=1_000.0, account=account, trigger="request", navidrome_id="id1", admin=False
    )


def sink_to(
    *targets: Any, kinds: tuple[str, ...] = ("account_created",), **changes: Any
) -> NotifySink:
    values: dict[str, Any] = {"least": Severity.ERROR, "digest": Digest(collect=0), **changes}
    return NotifySink(targets, kinds, values["least"], values["digest"])


async def test_chosen_kinds_and_severe_events_are_sent_and_no_others() -> None:
    target = MemorySink()
    sink = sink_to(target)
    down = UpstreamDown(time=1_000.0, upstream="http://navidrome", detail="refused")
    await sink.write([created(), down, request_decision()])
    await sink.close()
    assert sorted(message.kind for message in target.messages) == [
        "account_created",
        "upstream_down",
    ]


async def test_without_a_minimum_severity_only_the_kinds_are_sent() -> None:
    target = MemorySink()
    sink = sink_to(target, least=None)
    await sink.write([created(), UpstreamDown(time=1_000.0, upstream="x", detail="refused")])
    await sink.close()
    assert [message.kind for message in target.messages] == ["account_created"]


async def test_a_message_arrives_as_plain_text(service: Service) -> None:
    sink = sink_to(*load_targets([service.url]))
    await sink.write([created()])
    await sink.close()
    (received,) = service.received
    assert received["title"] == "navidrome-shim: account_created"
    assert received["type"] == "info"
    body = received["message"]
    assert body.startswith("1970-01-01T00:16:40.000000Z instance=")
    assert body.endswith("trigger=request, navidrome_id=id1, admin=False, account=ada")
    assert sink.check().state is State.OK


async def test_a_flood_does_not_suppress_a_new_account_even_while_the_service_hangs() -> None:
    target = MemorySink()
    target.open.clear()
    sink = sink_to(target, kinds=("account_created", "request_decision"))
    trail = Trail([sink], Coalescer(burst=100_000), capacity=256)
    trail.start()
    for number in range(100):
        for _ in range(200):
            trail.record(request_decision(path=f"/{number}"))
        await until(lambda: not any(trail.queued().values()))
    trail.record(created())
    await until(lambda: not any(trail.queued().values()))
    target.open.set()
    await trail.close()
    assert trail.dropped() == {"notify": 0}
    sent = {message.kind: message for message in target.messages}
    assert sent["account_created"].lines[0].endswith("account=ada")
    floods = [message for message in target.messages if message.kind == "request_decision"]
    assert len(floods) <= 5


async def test_a_failed_message_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "RETRY_SECONDS", 0.01)
    target, healthy = MemorySink("no route", "no route"), MemorySink()
    sink = sink_to(target, healthy)
    await sink.write([created()])
    await until(lambda: target.messages != [])
    assert target.attempts == 3
    assert len(healthy.messages) == 1, "a target does not get the message of another one again"
    assert sink.check().state is State.OK
    await sink.close()


async def test_a_failing_target_is_a_warning_with_a_remedy() -> None:
    target = MemorySink("no route")
    sink = sink_to(target)
    await sink.write([created()])
    await until(lambda: sink.check().state is State.WARNING)
    check = sink.check()
    assert check.detail == "1 (memory): no route (1 messages wait, 0 were dropped)"
    assert check.remedy is not None and "notify test" in check.remedy
    await sink.close()
    assert len(target.messages) == 1


async def test_messages_for_an_unreachable_target_are_bounded() -> None:
    target = MemorySink(*["no route"] * 1000)
    sink = sink_to(target, digest=Digest(collect=0, burst=1000))
    for number in range(30):
        await sink.write([created(f"user{number}")])
        await asyncio.sleep(0.002)
    await until(lambda: "20 messages wait" in sink.check().detail)
    assert "were dropped" in sink.check().detail
    target.faults.clear()
    await sink.close()
    assert len(target.messages) == 20
    assert target.messages[-1].lines[0].endswith("account=user29"), "the newest are kept"


@pytest.mark.parametrize("status", [401, 500])
async def test_the_reason_of_a_failure_has_no_secret(
    service: Service,
    status: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.status = status
    (target,) = load_targets([service.url])
    fault = target.send(Message("test", Severity.INFO, 1, ("x",)))
    assert fault is not None and str(status) in fault
    printed = capfd.readouterr()
    for text in (fault, target.label, printed.out, printed.err, caplog.text):
        assert TOKEN not in text
    assert target.label == "1 (json)"


def test_an_unreachable_service_is_reported_without_its_address() -> None:
    (target,) = load_targets([f"json://{TOKEN}:9/{TOKEN}"])
    fault = target.send(Message("test", Severity.INFO, 1, ("x",)))
    assert fault is not None and "onnection" in fault
    assert TOKEN.lower() not in fault.lower()


@pytest.mark.parametrize("url", ["nosuch://" + TOKEN, "discord://" + TOKEN])
def test_an_invalid_apprise_url_is_an_error_without_its_secret(url: str) -> None:
    with pytest.raises(SinkError) as raised:
        load_targets(["json://127.0.0.1", url])
    assert "entry 2" in str(raised.value)
    assert TOKEN not in str(raised.value)


def test_an_unknown_kind_is_an_error_that_lists_the_kinds() -> None:
    with pytest.raises(SinkError, match=r"no event has the kind acount_created.*account_created"):
        check_kinds(["acount_created"])
    check_kinds(each.kind for each in kinds())


def test_the_default_kinds_exist() -> None:
    chosen = load({}).notify_kinds
    assert "account_created" in chosen and "admin_action" in chosen
    check_kinds(chosen)


ATTACKS = {
    "a link": ("https://evil.example/x", "https(:)//evil(.)example/x"),
    "a bare host": ("evil.example", "evil(.)example"),
    "a host with another dot": ("evil\u3002example\uff0ecom", "evil(.)example(.)com"),
    "a mention": ("@everyone <@123> <!channel>", "(at)everyone ((at)123) (!channel)"),
    "markup": ("[x](mailto:a)`y`", "(x)(mailto :a)'y'"),
    "HTML": ("<img src=x>", "(img src=x)"),
    "a new line": ("a\nb\r", r"a\u000ab\u000d"),
    "a terminal's escape": ("\x1b[31m", r"\u001b(31m"),
    "a direction": ("a\u202eb", r"a\u202eb"),
}


@pytest.mark.parametrize(("text", "shown"), ATTACKS.values(), ids=ATTACKS)
def test_an_attackers_text_is_disarmed(text: str, shown: str) -> None:
    assert disarm(text) == shown


@pytest.mark.parametrize("text", ["192.0.2.7", "2001:db8::1", "0.1.0", "console:ada", "/rest/ping"])
def test_ordinary_values_are_not_changed(text: str) -> None:
    assert disarm(text) == text


@pytest.mark.parametrize("text", ["x" * 500, "@" * 500, "\x00" * 500, "😀" * 255])
def test_a_value_is_clipped(text: str) -> None:
    assert len(disarm(text)) == MAX_VALUE


def test_every_value_of_an_event_is_disarmed() -> None:
    evil = "https://evil.example/@everyone\n"
    event = AccountDeniedEvent(
        time=1.0,
        reason="group_not_allowed",
        detail=evil,
        user=evil,
        uid=evil,
        groups=(evil, evil),
        request_id="r1",
        peer="192.0.2.1",
    )
    line = describe(event)
    assert line.count("https(:)//evil(.)example/(at)everyone") == 5
    assert "://" not in line and "@" not in line and "\n" not in line
