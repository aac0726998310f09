"""The scenes, in the order in which they are played. Each is plain data; `play` has what they mean."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final
from urllib.parse import urlencode

from shim.demo.navidrome.songs import Catalogue
from shim.demo.play import AccountState, Ask, Fields, Must, Scene
from shim.demo.stage import (
    ALICE,
    BERT,
    CARLA,
    CLAIM,
    CONTACT,
    DIRK,
    HOME,
    NEIGHBOUR,
    PASSWORD,
    PHONE,
    SHARE_ID,
    STRANGER,
    USER_HEADER,
    Door,
)
from shim.trust.reasons import Reason

_SONG: Final = Catalogue().songs[1]
_CLAIMS_ADMIN: Final = ((CLAIM, "admin"),)
_NOBODY: Final[Fields] = ()
_PROMOTED: Final = replace(CARLA, groups=(*CARLA.groups, "admins"))
_RENAMED: Final = replace(
    _PROMOTED, username="carla.novak", name="Carla Novak", email="carla.novak@example.org"
)


def app_call(name: str, **parameters: str) -> str:
    """The target of a Subsonic call as an app of Alice's makes it, with her password's token."""
    salt = "c19b2d"
    token = hashlib.md5((PASSWORD + salt).encode(), usedforsecurity=False).hexdigest()
    told = {"u": ALICE.username, "t": token, "s": salt, "v": "1.16.1", "c": "app", "f": "json"}
    return f"/rest/{name}?{urlencode(told | parameters)}"


TAKEOVER: Final = "/rest/getUsers?v=1.16.1&c=curl&f=json"

SCENES: Final = (
    Scene(
        "Without the shim: a stranger is the admin",
        "The usual guide leaves /rest/ open at the edge, since apps cannot sign in on a page. "
        "Navidrome trusts the edge's address, so one header is enough.",
        Ask("a stranger", STRANGER, Door.BARE_EDGE, TAKEOVER, _CLAIMS_ADMIN),
        Must(
            None,
            _CLAIMS_ADMIN,
            200,
            says=("Subsonic: ok", '"username": "admin"', '"adminRole": true'),
        ),
    ),
    Scene(
        "With the shim: the same request is nobody's",
        "The edge authenticates nobody on /rest/, so no identity counts there, whoever sends it.",
        Ask("a stranger", STRANGER, Door.EDGE, TAKEOVER, _CLAIMS_ADMIN),
        Must(Reason.PUBLIC_PATH, _NOBODY, 200, says=("error",), says_not=("admin",)),
    ),
    Scene(
        "Alice opens the web app",
        "The edge has asked the provider who she is, speaks from an address on the whitelist, and "
        "brings the provider's token. Her account existed before the shim: it is linked to her by its "
        "name, and keeps its password, so her apps go on.",
        Ask("Alice's browser", HOME, Door.EDGE, "/app/", signed_in=ALICE),
        Must(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "alice"),),
            200,
            says=("logged in as alice (Alice Ämmer)",),
            accounts=(("alice", AccountState(ALICE.name, ALICE.email)),),
        ),
    ),
    Scene(
        "Her browser asks the API",
        "Navidrome is told one user header and none of the provider's.",
        Ask("Alice's browser", HOME, Door.EDGE, "/api/song?_start=0&_end=1", signed_in=ALICE),
        Must(Reason.VERIFIED_JWT, ((USER_HEADER, "alice"),), 200, says=('"title": "Long"',)),
    ),
    Scene(
        "Somebody on the same network goes past the edge",
        "His address is not on the whitelist: what he claims is removed.",
        Ask("a neighbour", NEIGHBOUR, Door.SHIM, "/api/user", _CLAIMS_ADMIN),
        Must(Reason.UNLISTED_PEER, _NOBODY, 401, says=("Not authenticated",)),
    ),
    Scene(
        "He names Navidrome's own user header",
        "The shim alone sets that header; from outside it never passes.",
        Ask("a neighbour", NEIGHBOUR, Door.SHIM, "/app/", ((USER_HEADER, "admin"),)),
        Must(Reason.UNLISTED_PEER, _NOBODY, 200, says=("nobody logged in",)),
    ),
    Scene(
        "A signed-in user would like to be the admin",
        "Edges own headers by their exact name. An alias passes them, and some servers fold it "
        "to the real one: the shim refuses it.",
        Ask(
            "Bert's browser",
            HOME,
            Door.EDGE,
            "/api/user",
            (("X_authentik_username", "admin"),),
            BERT,
        ),
        Must(Reason.HEADER_ALIAS, None, 400),
    ),
    Scene(
        "Somebody opens a share link",
        "It is for people without an account.",
        Ask("a friend", STRANGER, Door.EDGE, f"/share/{SHARE_ID}"),
        Must(Reason.NO_IDENTITY, _NOBODY, 200, says=("nobody logged in",)),
    ),
    Scene(
        "A share link is no way to an account either",
        "Navidrome makes an account for any name that it is told on a share page, and hands out "
        "its token.",
        Ask("a stranger", STRANGER, Door.EDGE, f"/share/{SHARE_ID}", ((CLAIM, "mallory"),)),
        Must(
            Reason.PUBLIC_PATH,
            _NOBODY,
            200,
            says=("nobody logged in",),
            accounts=(("mallory", None),),
        ),
    ),
    Scene(
        "Alice's phone logs in with her Subsonic password",
        "Apps prove by themselves who they are, and pass as before.",
        Ask("a music app", PHONE, Door.EDGE, app_call("ping")),
        Must(Reason.NO_IDENTITY, _NOBODY, 200, says=("Subsonic: ok",)),
    ),
    Scene(
        "… loads a cover …",
        "Bytes pass as Navidrome sends them.",
        Ask("a music app", PHONE, Door.EDGE, app_call("getCoverArt", id=f"al-{_SONG.album_id}_0")),
        Must(Reason.NO_IDENTITY, _NOBODY, 200, says=("image/jpeg: 30000 bytes", r"b'\xff\xd8")),
    ),
    Scene(
        "… and plays a song",
        "The first bytes, asked for as players do.",
        Ask(
            "a music app",
            PHONE,
            Door.EDGE,
            app_call("stream", id=_SONG.id),
            (("Range", "bytes=0-65535"),),
        ),
        Must(Reason.NO_IDENTITY, _NOBODY, 206, says=("bytes 0-65535/", "b'RIFF'")),
    ),
    Scene(
        "Carla comes for the first time",
        "Her account is made before Navidrome hears of her: as the provider calls her, with an "
        "e-mail, and with a password that nobody knows.",
        Ask("Carla's browser", HOME, Door.EDGE, "/app/", signed_in=CARLA),
        Must(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "carla.berg"),),
            200,
            says=("logged in as carla.berg (Carla Berg), a regular user",),
            accounts=(("carla.berg", AccountState(CARLA.name, CARLA.email)),),
        ),
    ),
    Scene(
        "She chooses a password for her apps",
        "In Navidrome's own form, with Current Password left empty: the shim marks a generated password "
        "as Navidrome marks its own.",
        Ask(
            "Carla's browser",
            HOME,
            Door.EDGE,
            "/api/user/{id}",
            signed_in=CARLA,
            method="PUT",
            form=(("password", PASSWORD),),
        ),
        Must(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "carla.berg"),),
            200,
            says=('"userName": "carla.berg"',),
            accounts=(("carla.berg", AccountState(CARLA.name, CARLA.email)),),
        ),
    ),
    Scene(
        "Dirk is in no group that may in",
        "The provider knows him, Navidrome never hears of him. The page says whom to ask.",
        Ask("Dirk's browser", HOME, Door.EDGE, "/app/", signed_in=DIRK),
        Must(
            Reason.GROUP_NOT_ALLOWED,
            None,
            403,
            says=("not in a group that may use", CONTACT),
            accounts=(("dirk", None),),
        ),
    ),
    Scene(
        "The provider puts Carla among the admins",
        "Her rights follow at her next request.",
        Ask("Carla's browser", HOME, Door.EDGE, "/app/", signed_in=_PROMOTED),
        Must(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "carla.berg"),),
            200,
            says=("logged in as carla.berg (Carla Berg), an admin",),
            accounts=(("carla.berg", AccountState(CARLA.name, CARLA.email, is_admin=True)),),
        ),
    ),
    Scene(
        "Carla has a new name",
        "The uid is hers still, and the provider's token vouches for it: her account is renamed, and "
        "nobody else gets the old name for as long as a token of it may live.",
        Ask("Carla's browser", HOME, Door.EDGE, "/app/", signed_in=_RENAMED),
        Must(
            Reason.VERIFIED_JWT,
            ((USER_HEADER, "carla.novak"),),
            200,
            says=("logged in as carla.novak (Carla Novak), an admin",),
            accounts=(
                ("carla.berg", None),
                ("carla.novak", AccountState(_RENAMED.name, _RENAMED.email, is_admin=True)),
            ),
        ),
    ),
)
