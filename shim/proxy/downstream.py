"""One connection from the edge: it reads requests, has them decided, and sends them on.

The class that uvicorn is given as its HTTP protocol, in four layers, each a file: the socket
(`connection`), the shim's own answers (`telling`), the exchange with Navidrome (`exchange`), and here the
heads and what is decided on them. One request is under way at a time; what a client sends ahead is kept up
to a bound, then reading pauses. The phases of a request:

    HEAD ──▶ KEYS ──▶ ACCOUNT ──▶ CONNECTION ──▶ EXCHANGE ──▶ HEAD
      │        │         │            │             ├──▶ TUNNEL
      └────────┴─────────┴────────────┴─────────────┴──▶ CLOSING
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from shim.proxy.connection import Phase
from shim.proxy.exchange import ExchangingConnection
from shim.proxy.gate import Account, Asker, Refusal
from shim.proxy.plane import NEVER
from shim.proxy.upstream import Upstream
from shim.trust.decide import Decision
from shim.trust.reasons import PathClass, Reason, Verdict
from shim.trust.refusal import Refused
from shim.trust.remember import RememberedDecisions, Standing

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_BARE_LF = re.compile(rb"(?<!\r)\n")
# Members of an enumeration are dear to look up; what a request passes has them at hand.
_HEAD, _EXCHANGE, _CLOSING = Phase.HEAD, Phase.EXCHANGE, Phase.CLOSING
_AUTHENTICATED, _STRIPPED, _REJECTED = Verdict.AUTHENTICATED, Verdict.STRIPPED, Verdict.REJECTED
_OWN = PathClass.OWN
_UNKNOWN_KEY = Reason.JWT_UNKNOWN_KEY


class Downstream(ExchangingConnection):
    """A client's connection, whole."""

    __slots__ = ("_decisions", "_future", "_keys_future", "_searched", "_standing")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._searched = 0
        self._decisions: RememberedDecisions | None = None
        self._standing: Standing
        self._future: asyncio.Future[Account | Refusal] | None = None
        self._keys_future: asyncio.Future[None] | None = None

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is _HEAD:
            if self.write_paused:
                self._keep(data)
            elif self._kept or not self._serve_whole(data):
                self._kept += data
                self._serve()
        elif phase is _EXCHANGE and not self.request_sent:
            self._upload(data)
        elif phase is Phase.TUNNEL:
            assert self._upstream is not None
            self._upstream.write(data)
        elif phase is not _CLOSING:
            self._keep(data)

    def eof_received(self) -> bool:
        # Whoever ends their side while an answer is pending has left: RFC 9112 §9.6 lets a server say so.
        phase = self._phase
        if phase is _EXCHANGE and self._answer_begun:
            self.abort()
            return False
        if phase is Phase.TUNNEL and self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            upstream.leave()
        self._abandon()
        if phase is not _CLOSING:
            self._linger()
        if phase is not Phase.TUNNEL:
            self._phase = _CLOSING
        return False

    def expired(self) -> None:
        """The deadline of the phase has passed."""
        self.deadline = NEVER
        match self._phase:
            case Phase.HEAD if self._kept:
                self._unread(Reason.HEAD_TIMEOUT, "no whole head")
            case Phase.HEAD:
                self._leave()
            case Phase.EXCHANGE if not self.request_sent and not self._read_paused:
                self.failed("body_timeout", 408)
            case Phase.EXCHANGE:
                self.failed("answer_timeout", 504)
            case Phase.KEYS:
                self._count(self._decision)
            case Phase.ACCOUNT:
                self.failed("account_timeout", 503)
            case Phase.CONNECTION:
                self.failed("connect_timeout", 504)
            case _ if self._transport.get_write_buffer_size():
                self.abort()
            case _:
                self._transport.abort()

    # heads

    def _serve(self) -> None:
        """Read the heads that are kept, one after the other, as long as nothing is under way."""
        while self._phase is _HEAD and self._kept and not self.write_paused:
            end = self._kept.find(b"\r\n\r\n", self._searched)
            if end < 0:
                if not self._searched:
                    self.deadline = self._plane.now + self._plane.limits.head_timeout
                if _BARE_LF.search(self._kept, self._searched):
                    # Whoever takes it for a line end waits for an answer to a head that is none here.
                    self._unread(Reason.MALFORMED_HEAD, "a line of the head ends in LF alone")
                    return
                self._searched = max(1, len(self._kept) - 3)
                if self._searched > self._plane.limits.header_bytes:
                    self._too_large()
                return
            data = bytes(self._kept[: end + 4])
            del self._kept[: end + 4]
            if end > self._plane.limits.header_bytes:
                self._too_large()
                return
            self._searched = 0
            self._judge(self._decide(data), data)

    def _decide(self, head: bytes) -> Decision:
        """Have a whole head decided, its empty line included."""
        line, _, block = head[:-2].partition(b"\r\n")
        plane = self._plane
        return plane.decisions.decide(line, block, self._stand(), None, plane.time)

    def _serve_whole(self, data: bytes) -> bool:
        """Serve `data` at once if it is one whole head and nothing else, as most requests come."""
        if not data.endswith(b"\r\n\r\n"):
            return False
        decisions = self._plane.decisions
        standing = self._standing if self._decisions is decisions else self._stand()
        at = data.find(b"\r\n")
        block_text = data[at + 2 : -2]
        block = decisions.recall(block_text, standing)
        if len(data) - 4 > self._plane.limits.header_bytes:
            return False
        decision = decisions.decide(data[:at], block_text, standing, block, self._plane.time)
        if decision.outcome.verdict is _REJECTED and b"\r\n\r\n" in data[at:-2]:
            # It was more than one head: a block that is read has no empty line in it.
            return False
        self._judge(decision, data)
        return True

    def _judge(self, decision: Decision, head: bytes, *, waited: bool = False) -> None:
        """Do what was decided on this head; `waited`: the keys were fetched for it already."""
        plane = self._plane
        outcome = decision.outcome
        self._decision = decision
        self._user_name = None
        self._request_id = ""
        if plane.observer.wants_access:
            self._started, self._sent = asyncio.get_running_loop().time(), 0
        verdict = outcome.verdict
        if verdict is _REJECTED:
            if outcome.reason is not _UNKNOWN_KEY or waited or not self._ask_keys(head):
                self._count(decision)
            return
        line = decision.line
        assert line is not None
        self._retried = False
        self._answer_begun = False
        self.request_sent = False
        self.keep_alive = self.keep_alive and decision.keep_alive
        self.old = line.version == 10
        self.bodiless = line.method == b"HEAD"
        self.upgrading = decision.upgrade
        if verdict is _AUTHENTICATED and plane.gate is not None:
            identity = decision.identity
            assert identity is not None
            account = plane.gate.known(identity)
            if account is not None:
                self._user_name = account.user_name
                if decision.tokens:
                    self._bind_tokens(account)
            elif (
                outcome.path_class is not _OWN
            ):  # what is shown there has to be seen without Navidrome
                self._ask_gate()
                return
        elif decision.tokens:
            self._bind_tokens(None)
        plane.counters.requests[outcome.index] += 1
        if verdict is _STRIPPED:
            plane.observer.judged(decision, self._identify())
        self._connect()

    def _stand(self) -> Standing:
        """Where the connection stands under the policy in force."""
        decisions = self._plane.decisions
        if self._decisions is not decisions:
            scheme = b"https" if self._transport.get_extra_info("sslcontext") else b"http"
            self._decisions = decisions
            self._standing = decisions.standing(self._peer, scheme)
        return self._standing

    def _too_large(self) -> None:
        limit = self._plane.limits.header_bytes
        self._unread(Reason.HEAD_TOO_LARGE, f"the head has more than {limit} bytes")

    def _unread(self, reason: Reason, detail: str) -> None:
        """Refuse a request whose head is not looked at."""
        self._request_id = ""
        self._started = asyncio.get_running_loop().time()
        self._count(self._plane.decisions.refuse(reason, detail, self._stand()))

    # keys

    def _ask_keys(self, head: bytes) -> bool:
        """Have the key set fetched anew for the token of this head. Whether that is waited for."""
        keys = self._plane.keys
        future = None if keys is None else keys.want()
        if future is None:
            return False
        self._phase = Phase.KEYS
        self.deadline = self._plane.now + self._plane.limits.answer_timeout
        self._keys_future = future
        future.add_done_callback(lambda done: self._keys_fetched(done, head))
        return True

    def _keys_fetched(self, future: asyncio.Future[None], head: bytes) -> None:
        if future is not self._keys_future or self._phase is not Phase.KEYS:
            return
        self._keys_future = None
        self._phase = _HEAD
        self._judge(self._decide(head), head, waited=True)

    # tokens of Navidrome's own

    def _bind_tokens(self, account: Account | None) -> None:
        """Let no Navidrome token pass that names another account; without provisioning no account is
        known by its id, so none passes. Where nobody is named, it passes and is told of."""
        decision = self._decision
        if decision.identity is not None:
            name = decision.identity.username.encode() if account is None else account.user_name
            self._decision = decision.bound(name, None if account is None else account.id)
            if self._decision is decision:
                return
        self._plane.observer.tokens_seen(self._decision, self._identify())

    # accounts

    def _ask_gate(self) -> None:
        plane, identity = self._plane, self._decision.identity
        assert plane.gate is not None and identity is not None
        self._phase = Phase.ACCOUNT
        self.deadline = plane.now + plane.limits.answer_timeout
        verified = self._decision.outcome.reason is Reason.VERIFIED_JWT
        asker = Asker(self._standing.source.peer.text, self._identify(), verified)
        self._future = plane.gate.ensure(identity, asker)
        self._future.add_done_callback(self._account_ready)

    def _account_ready(self, future: asyncio.Future[Account | Refusal]) -> None:
        # The connection may have gone meanwhile, or carry another request by now.
        if future is not self._future or self._phase is not Phase.ACCOUNT:
            return
        self._future = None
        if future.cancelled():
            self.failed("account_unavailable", 503)
            return
        answer = future.result()
        decision = self._decision
        if isinstance(answer, Refusal):
            self._refuse(Refused(answer.reason, answer.detail), answer.retry_after)
            return
        if self._user_name is None:
            self._plane.counters.requests[decision.outcome.index] += 1
        self._user_name = answer.user_name
        if decision.tokens:
            self._bind_tokens(answer)
        self._connect()

    def _reconsider(self, upstream: Upstream) -> bool:
        # Navidrome may have become another one, with no users, while the connection was waited for.
        gate, identity = self._plane.gate, self._decision.identity
        if gate is None or identity is None or self._user_name is None:
            return False
        if gate.known(identity) is not None:
            return False
        self._phase = Phase.ACCOUNT
        # Not at once: it would be the next waiting client's turn to think again, within this one's.
        asyncio.get_running_loop().call_soon(self._pool().release, upstream)
        self._ask_gate()
        return True

    def _unauthorised(self) -> None:
        # From its API, to a request that named an account: that one may not be there any more.
        plane, decision = self._plane, self._decision
        gate, identity, line = plane.gate, decision.identity, decision.line
        if gate is None or identity is None or line is None or self._user_name is None:
            return
        if line.path.startswith(plane.decisions.policy.paths.base + b"api/"):
            gate.doubt(identity)

    def _abandon(self) -> None:
        super()._abandon()
        future, self._future = self._future, None
        if future is not None:
            future.cancel()
        keys, self._keys_future = self._keys_future, None
        if keys is not None:
            keys.cancel()
