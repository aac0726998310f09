"""The scenes, in the order in which they are played. Each is plain data; `play` has what they mean."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final
from urllib.parse import urlencode

from demo.environment import (
    ALICE,
    BERT,
    CARLA,
    CLAIM,
    DIRK,
    HOME,
    NEIGHBOUR,
    OUTSIDER,
    PASSWORD,
    PHONE,
    SHARE_ID,
    SUPPORT_CONTACT,
    USER_HEADER,
    EntryPoint,
)
from demo.navidrome.songs import Catalogue
from demo.scenario import AccountState, Expectation, Fields, RequestSpec, Step
from shim.trust.reasons import Reason

_SONG: Final = Catalogue().songs[1]
_CLAIMS_ADMIN: Final = ((CLAIM, "admin"),)
_NO_IDENTITY: Final[Fields] = ()
_PROMOTED: Final = replace(CARLA, groups=(*CARLA.groups, "admins"))
_RENAMED: Final = replace(
    _PROMOTED, username="carla.novak", name="Carla Novak", email="carla.novak@example.org"
)


def app_call(name: str, **parameters: str) -> str:
    """The target of a Subsonic call as an app of Alice's makes it, with her password's token."""
    salt = "c19b2d"
    token = hashlib.md5((PASSWORD + salt).encode(), usedforsecurity=False).hexdigest()
    parameters_sent = {
        "u": ALICE.username,
        "t": token,
        "s": salt,
        "v": "1.16.1",
        "c": "app",
        "f": "json",
    }
    return f"/rest/{name}?{urlencode(parameters_sent | parameters)}"


TAKEOVER: Final = "/rest/getUsers?v=1.16.1&c=curl&f=json"

STEPS: Final = (
    Step(
        "Without the shim: a stranger is the admin",
        "The usual guide leaves /rest/ open at the edge, since apps cannot sign in on a page. "
        "Navidrome trusts the edge's address, so one header is enough.",
        RequestSpec("a stranger", OUTSIDER, EntryPoint.BARE_EDGE, TAKEOVER, _CLAIMS_ADMIN),
        Expectation(
            None,
            _CLAIMS_ADMIN,
            200,
            contains=("Subsonic: ok", '"username": "admin"', '"adminRole": true'),
        ),
    ),
    Step(
        "With the shim: the same request is nobody's",
        "The edge authenticates nobody on /rest/, so no identity counts there, whoever sends it.",
        RequestSpec("a stranger", OUTSIDER, EntryPoint.EDGE, TAKEOVER, _CLAIMS_ADMIN),
        Expectation(
            Reason.PUBLIC_PATH, _NO_IDENTITY, 200, contains=("error",), excludes=("admin",)
        ),
    ),
    Step(
        "Alice opens the web app",
        "The edge has asked the provider who she is, speaks from an address on the whitelist, and "
        "brings the provider's token. Her account existed before the shim: it is linked to her by its "
        "name, and keeps its password, so her apps go on.",
        RequestSpec("Alice's browser", HOME, EntryPoint.EDGE, "/app/", signed_in=ALICE),
        Expectation(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "alice"),),
            200,
            contains=("logged in as alice (Alice Ämmer)",),
            accounts=(("alice", AccountState(ALICE.name, ALICE.email)),),
        ),
    ),
    Step(
        "Her browser asks the API",
        "Navidrome is told one user header and none of the provider's.",
        RequestSpec(
            "Alice's browser", HOME, EntryPoint.EDGE, "/api/song?_start=0&_end=1", signed_in=ALICE
        ),
        Expectation(
            Reason.VERIFIED_JWT, ((USER_HEADER, "alice"),), 200, contains=('"title": "Long"',)
        ),
    ),
    Step(
        "Somebody on the same network goes past the edge",
        "His address is not on the whitelist: what he claims is removed.",
        RequestSpec("a neighbour", NEIGHBOUR, EntryPoint.SHIM, "/api/user", _CLAIMS_ADMIN),
        Expectation(Reason.UNTRUSTED_PEER, _NO_IDENTITY, 401, contains=("Not authenticated",)),
    ),
    Step(
        "He names Navidrome's own user header",
        "The shim alone sets that header; from outside it never passes.",
        RequestSpec("a neighbour", NEIGHBOUR, EntryPoint.SHIM, "/app/", ((USER_HEADER, "admin"),)),
        Expectation(Reason.UNTRUSTED_PEER, _NO_IDENTITY, 200, contains=("nobody logged in",)),
    ),
    Step(
        "A signed-in user would like to be the admin",
        "Edges own headers by their exact name. An alias passes them, and some servers fold it "
        "to the real one: the shim refuses it.",
        RequestSpec(
            "Bert's browser",
            HOME,
            EntryPoint.EDGE,
            "/api/user",
            (("X_authentik_username", "admin"),),
            BERT,
        ),
        Expectation(Reason.HEADER_ALIAS, None, 400),
    ),
    Step(
        "Somebody opens a share link",
        "It is for people without an account.",
        RequestSpec("a friend", OUTSIDER, EntryPoint.EDGE, f"/share/{SHARE_ID}"),
        Expectation(Reason.NO_IDENTITY, _NO_IDENTITY, 200, contains=("nobody logged in",)),
    ),
    Step(
        "A share link is no way to an account either",
        "Navidrome makes an account for any name that it is told on a share page, and hands out "
        "its token.",
        RequestSpec(
            "a stranger", OUTSIDER, EntryPoint.EDGE, f"/share/{SHARE_ID}", ((CLAIM, "mallory"),)
        ),
        Expectation(
            Reason.PUBLIC_PATH,
            _NO_IDENTITY,
            200,
            contains=("nobody logged in",),
            accounts=(("mallory", None),),
        ),
    ),
    Step(
        "Alice's phone logs in with her Subsonic password",
        "Apps prove by themselves who they are, and pass as before.",
        RequestSpec("a music app", PHONE, EntryPoint.EDGE, app_call("ping")),
        Expectation(Reason.NO_IDENTITY, _NO_IDENTITY, 200, contains=("Subsonic: ok",)),
    ),
    Step(
        "… loads a cover …",
        "Bytes pass as Navidrome sends them.",
        RequestSpec(
            "a music app",
            PHONE,
            EntryPoint.EDGE,
            app_call("getCoverArt", id=f"al-{_SONG.album_id}_0"),
        ),
        Expectation(
            Reason.NO_IDENTITY,
            _NO_IDENTITY,
            200,
            contains=("image/jpeg: 30000 bytes", r"b'\xff\xd8"),
        ),
    ),
    Step(
        "… and plays a song",
        "The first bytes, asked for as players do.",
        RequestSpec(
            "a music app",
            PHONE,
            EntryPoint.EDGE,
            app_call("stream", id=_SONG.id),
            (("Range", "bytes=0-65535"),),
        ),
        Expectation(Reason.NO_IDENTITY, _NO_IDENTITY, 206, contains=("bytes 0-65535/", "b'RIFF'")),
    ),
    Step(
        "Carla comes for the first time",
        "Her account is made before Navidrome hears of her: as the provider calls her, with an "
        "e-mail, and with a password that nobody knows.",
        RequestSpec("Carla's browser", HOME, EntryPoint.EDGE, "/app/", signed_in=CARLA),
        Expectation(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "carla.berg"),),
            200,
            contains=("logged in as carla.berg (Carla Berg), a regular user",),
            accounts=(("carla.berg", AccountState(CARLA.name, CARLA.email)),),
        ),
    ),
    Step(
        "She chooses a password for her apps",
        "In Navidrome's own form, with Current Password left empty: the shim marks a generated password "
        "as Navidrome marks its own.",
        RequestSpec(
            "Carla's browser",
            HOME,
            EntryPoint.EDGE,
            "/api/user/{id}",
            signed_in=CARLA,
            method="PUT",
            form=(("password", PASSWORD),),
        ),
        Expectation(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "carla.berg"),),
            200,
            contains=('"userName": "carla.berg"',),
            accounts=(("carla.berg", AccountState(CARLA.name, CARLA.email)),),
        ),
    ),
    Step(
        "Dirk is in no group that may in",
        "The provider knows him, Navidrome never hears of him. The page says whom to ask.",
        RequestSpec("Dirk's browser", HOME, EntryPoint.EDGE, "/app/", signed_in=DIRK),
        Expectation(
            Reason.GROUP_NOT_ALLOWED,
            None,
            403,
            contains=("not in a group that may use", SUPPORT_CONTACT),
            accounts=(("dirk", None),),
        ),
    ),
    Step(
        "The provider puts Carla among the admins",
        "Her rights follow at her next request.",
        RequestSpec("Carla's browser", HOME, EntryPoint.EDGE, "/app/", signed_in=_PROMOTED),
        Expectation(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "carla.berg"),),
            200,
            contains=("logged in as carla.berg (Carla Berg), an admin",),
            accounts=(("carla.berg", AccountState(CARLA.name, CARLA.email, is_admin=True)),),
        ),
    ),
    Step(
        "Carla has a new name",
        "The uid is hers still, and the provider's token vouches for it: her account is renamed, and "
        "nobody else gets the old name for as long as a token of it may live.",
        RequestSpec("Carla's browser", HOME, EntryPoint.EDGE, "/app/", signed_in=_RENAMED),
        Expectation(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "carla.novak"),),
            200,
            contains=("logged in as carla.novak (Carla Novak), an admin",),
            accounts=(
                ("carla.berg", None),
                ("carla.novak", AccountState(_RENAMED.name, _RENAMED.email, is_admin=True)),
            ),
        ),
    ),
)
