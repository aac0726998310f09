"""The play: a scene is what somebody asks and what must be true then; `play` finds out whether it is.

Nothing here knows a particular scene (`play_scenes`) or how one is shown (`play_told`). What the shim
decided comes from the shim, what Navidrome saw from the stand-in; nothing is taken for granted.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from shim.demo.navidrome import StandIn
from shim.demo.outpost import COOKIE, OutpostUser
from shim.demo.sidecar import Decided, Unfollowed
from shim.demo.stage import USER_HEADER, Door, Stage
from shim.trust.reasons import Reason, outcome

Fields = tuple[tuple[str, str], ...]

_SECONDS: Final = 20.0
_CONFIG: Final = re.compile(r"window\.__APP_CONFIG__ = (\".*\")$", re.MULTILINE)
_TITLE: Final = re.compile(r"<title>(.*?)</title>")
_PARAGRAPH: Final = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_ENVELOPE: Final = frozenset({"status", "version", "type", "serverVersion", "openSubsonic"})


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    who: how the asker is called. address: where he asks from.
    door: where he sends it. signed_in: whose session at the provider he has, None for no session.
    form: what he enters in Navidrome's form of his own account, which sends the whole account; `{id}` in
        the target is its id.
    """

    who: str
    address: str
    door: Door
    target: str
    headers: Fields = ()
    signed_in: OutpostUser | None = None
    method: str = "GET"
    form: Fields = ()


@dataclass(frozen=True, slots=True)
class AccountState:
    """An account of Navidrome's: its display name, its e-mail, and whether it is an admin."""

    name: str
    email: str = ""
    is_admin: bool = False


Accounts = tuple[tuple[str, AccountState | None], ...]
"""Accounts by their user names; None for one that is not there."""


@dataclass(frozen=True, slots=True)
class Must:
    """What must be true of a scene.

    reason: the shim's, None where no shim is asked; its verdict belongs to it.
    navidrome: every field in which Navidrome sees an identity; None: the request never gets there.
    status, says, says_not: of the answer, as `Answer.told` puts it.
    accounts: what Navidrome has of these afterwards.
    """

    reason: Reason | None
    navidrome: Fields | None
    status: int
    says: tuple[str, ...] = ()
    says_not: tuple[str, ...] = ()
    accounts: Accounts = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene: its title, a sentence on why it is played, what is asked, and what must be true."""

    title: str
    tells: str
    ask: Ask
    must: Must


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `told` is what it says, in a form that can be read on a few lines."""

    status: int
    told: str


@dataclass(frozen=True, slots=True)
class Played:
    """What happened in a scene. `faults` is what was not as it must be, a sentence each.

    decided: None where no shim was asked. saw: as `Must.navidrome`.
    accounts: those that the scene names, as they are.
    """

    scene: Scene
    answer: Answer
    decided: Decided | None
    saw: Fields | None
    accounts: Accounts = ()
    faults: tuple[str, ...] = ()


async def play(stage: Stage, scenes: Iterable[Scene]) -> AsyncIterator[Played]:
    """Play scenes one after the other."""
    for scene in scenes:
        yield await _played(stage, scene)


async def _played(stage: Stage, scene: Scene) -> Played:
    ask, must = scene.ask, scene.must
    behind = stage.behind(ask.door)
    behind.seen.clear()
    decided = None
    target, body = _filled_in(behind, ask)
    asking = _ask(stage, replace(ask, target=target), body)
    try:
        if ask.door is Door.BARE_EDGE:
            answer = await asking
        else:
            answer, decided = await stage.shim.follow(asking)
    except (httpx.HTTPError, Unfollowed) as error:
        answer = Answer(0, f"none that can be told: {str(error) or type(error).__name__}")
    # The shim looks after Navidrome by itself, so not everything that it sees is the asker's.
    asked = (ask.method, target)
    saw = next((one for one in reversed(behind.seen) if (one.method, one.target) == asked), None)
    identity = None if saw is None else identity_fields(saw.headers)
    accounts = tuple((name, _account(behind, name)) for name, _ in must.accounts)
    played = Played(scene, answer, decided, identity, accounts)
    return replace(played, faults=tuple(faults(played)))


def _filled_in(server: StandIn, ask: Ask) -> tuple[str, str]:
    """The target and the body of a request."""
    account = server.accounts.find(ask.signed_in.username) if ask.signed_in else None
    if not ask.form or account is None:
        return ask.target, ""
    record = server.accounts.json_of(account) | dict(ask.form)
    return ask.target.replace("{id}", account.id), json.dumps(record)


async def _ask(stage: Stage, ask: Ask, body: str) -> Answer:
    session = stage.outpost.admit(ask.signed_in) if ask.signed_in else None
    cookie = [("Cookie", f"{COOKIE}={session}")] if session else []
    transport = httpx.AsyncHTTPTransport(local_address=ask.address)
    async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=_SECONDS) as client:
        url = stage.url(ask.door) + ask.target
        headers = [*ask.headers, *cookie]
        return read_answer(await client.request(ask.method, url, headers=headers, content=body))


def faults(played: Played) -> Iterable[str]:
    """What was not as it must be."""
    must, decided, answer = played.scene.must, played.decided, played.answer
    if must.reason is not None and (decided is None or decided.reason is not must.reason):
        found = "nothing" if decided is None else f"{decided.verdict} ({decided.reason})"
        yield f"the shim decided {found}, not {must.reason}"
    elif decided and decided.verdict is not outcome(decided.reason, decided.path_class).verdict:
        yield f"the shim calls {decided.reason} {decided.verdict}"
    if played.saw != must.navidrome:
        yield f"Navidrome saw {_named(played.saw)}, not {_named(must.navidrome)}"
    if answer.status != must.status:
        yield f"the answer's status is {answer.status}, not {must.status}"
    yield from (
        f"the answer does not say {text!r}" for text in must.says if text not in answer.told
    )
    yield from (f"the answer says {text!r}" for text in must.says_not if text in answer.told)
    for (name, found_account), (_, wanted) in zip(played.accounts, must.accounts, strict=True):
        if found_account != wanted:
            yield f"the account {name} is {found_account}, not {wanted}"


def identity_fields(headers: Fields) -> Fields:
    """The fields in which Navidrome, or anything that folds names, could see an identity."""
    folded = ((name, value, re.sub(r"[^a-z0-9]", "-", name.lower())) for name, value in headers)
    return tuple(
        (name, value)
        for name, value, fold in folded
        if fold.startswith("x-authentik-") or fold == USER_HEADER.lower()
    )


def read_answer(response: httpx.Response) -> Answer:
    """An answer, put in words by its kind."""
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    match kind:
        case "application/json":
            told = _json_told(response.text)
        case "text/html":
            told = _page_told(response.text)
        case _ if kind.startswith("text/"):
            told = response.text
        case _:
            length = response.headers.get("Content-Range", f"{len(response.content)} bytes")
            told = f"{kind or 'no content'}: {length}, beginning {response.content[:4]!r}"
    return Answer(response.status_code, told)


def _json_told(text: str) -> str:
    try:
        value: Any = json.loads(text)
    except ValueError:
        return text
    envelope = value.get("subsonic-response") if isinstance(value, dict) else None
    if envelope is None:
        return json.dumps(value, ensure_ascii=False)
    if "error" in envelope:
        return f"Subsonic: error {envelope['error']['code']}, {envelope['error']['message']}"
    rest = {name: one for name, one in envelope.items() if name not in _ENVELOPE}
    said = f", {json.dumps(rest, ensure_ascii=False)}" if rest else ""
    return f"Subsonic: {envelope['status']}{said}"


def _page_told(page: str) -> str:
    title = _TITLE.search(page)
    told = f"page “{title.group(1)}”" if title else "a page"
    config = _CONFIG.search(page)
    if config is None:
        says = _PARAGRAPH.search(page)
        return f"{told}: {html.unescape(says.group(1))}" if says else told
    auth = json.loads(json.loads(config.group(1))).get("auth")
    if not auth:
        return f"{told}, nobody logged in"
    kind = "an admin" if auth["isAdmin"] else "a regular user"
    return f"{told}, logged in as {auth['username']} ({auth['name']}), {kind}"


def _account(server: StandIn, user_name: str) -> AccountState | None:
    account = server.accounts.find(user_name)
    if account is None:
        return None
    return AccountState(account.name, account.email, account.is_admin)


def _named(fields: Fields | None) -> str:
    if fields is None:
        return "no request"
    return ", ".join(f"{name}: {value}" for name, value in fields) or "no identity"
