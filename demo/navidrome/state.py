"""The state of a stand-in, and the authentication of requests by it.

The parts of the state are independent of each other; the routes find them here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from demo.navidrome.accounts import AUTOGEN_PREFIX, Account, AccountFields, Accounts
from demo.navidrome.goform import new_id
from demo.navidrome.login_limit import LoginLimit
from demo.navidrome.options import StandInOptions
from demo.navidrome.request import Request
from demo.navidrome.songs import Catalogue
from demo.navidrome.tokens import Claims, Tokens, carried_token


@dataclass(frozen=True, slots=True)
class Share:
    """A public share of songs."""

    id: str
    resource_ids: str
    description: str
    downloadable: bool
    owner_id: str


@dataclass(frozen=True, slots=True)
class Playlist:
    """A playlist; two of one name are two."""

    id: str
    name: str
    song_ids: tuple[str, ...]
    owner_id: str


@dataclass(slots=True)
class State:
    """A stand-in's state.

    players: (account id, client, user agent) to the id in its cookie.
    listeners: one queue for each open event stream.
    closing: set when the stand-in stops; every endless response ends then.
    """

    options: StandInOptions
    clock: Callable[[], float]
    accounts: Accounts
    tokens: Tokens
    shares_key: Tokens
    logins: LoginLimit
    catalogue: Catalogue = field(default_factory=Catalogue)
    shares: dict[str, Share] = field(default_factory=dict)
    playlists: dict[str, Playlist] = field(default_factory=dict)
    scrobbles: list[str] = field(default_factory=list)
    players: dict[tuple[str, str, str], str] = field(default_factory=dict)
    listeners: set[asyncio.Queue[bytes]] = field(default_factory=set)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def empty(cls, options: StandInOptions, clock: Callable[[], float] = time.time) -> State:
        """A new server: no accounts, the default music."""
        return cls(
            options=options,
            clock=clock,
            accounts=Accounts(options.libraries, clock),
            tokens=Tokens(options.session_timeout, clock),
            shares_key=Tokens(options.session_timeout, clock),
            logins=LoginLimit(options.login_limit, options.login_window, clock),
        )

    def header_user(self, request: Request) -> str:
        """The name in the user header, "" if the peer is untrusted (`UsernameFromExtAuthHeader`)."""
        return request.header(self.options.user_header) if request.trusted else ""

    def session(self, request: Request) -> Claims | None:
        """The claims of a request's token, if it is valid."""
        token = carried_token(request)
        return self.tokens.read(token) if token else None

    def delete_account(self, account_id: str) -> None:
        """Delete an account with its playlists, shares and players; a missing one is no error."""
        self.accounts.delete(account_id)
        self.playlists = {k: p for k, p in self.playlists.items() if p.owner_id != account_id}
        self.shares = {k: s for k, s in self.shares.items() if s.owner_id != account_id}
        self.players = {k: p for k, p in self.players.items() if k[0] != account_id}

    def player(self, account: Account, request: Request, client: str) -> str:
        """The player id of an account with this client: the same each time (`players.Register`)."""
        key = (account.id, client, request.header("User-Agent"))
        return self.players.setdefault(key, new_id())

    def log_in_by_header(self, request: Request) -> Account | None:
        """Log the header's user in, creating the account if there is none (`handleLoginFromHeaders`).

        The first account of an empty server becomes admin.
        """
        name = self.header_user(request)
        if not name:
            return None
        account = self.accounts.find(name)
        if account is None:
            account = self.accounts.put(
                AccountFields(
                    user_name=name,
                    name=name,
                    password=AUTOGEN_PREFIX + new_id(),
                    is_admin=not self.accounts.by_id,
                )
            )
        self.accounts.log_in(account)
        return account
