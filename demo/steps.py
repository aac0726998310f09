"""The steps of the demo's scenario, in order, as plain data."""

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
    LOCAL_CLIENT,
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
    """Return the target of a Subsonic call of Alice's app, with the token of her password."""
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
        "Without the shim: an attacker is the admin",
        "Most guides leave /rest/ open at the edge, because apps cannot sign in on a web page. "
        "Navidrome trusts the edge's address, so one header is enough.",
        RequestSpec("an attacker", OUTSIDER, EntryPoint.EDGE_WITHOUT_SHIM, TAKEOVER, _CLAIMS_ADMIN),
        Expectation(
            None,
            _CLAIMS_ADMIN,
            200,
            contains=("Subsonic: ok", '"username": "admin"', '"adminRole": true'),
        ),
    ),
    Step(
        "With the shim: the same request has no identity",
        "The edge does not authenticate /rest/, so no identity counts there.",
        RequestSpec("an attacker", OUTSIDER, EntryPoint.EDGE, TAKEOVER, _CLAIMS_ADMIN),
        Expectation(
            Reason.PUBLIC_PATH, _NO_IDENTITY, 200, contains=("error",), excludes=("admin",)
        ),
    ),
    Step(
        "Alice opens the web app",
        "The edge has authenticated her at the provider, connects from an address on the whitelist, "
        "and sends the provider's token. Her account existed before the shim: it is linked by its name "
        "and keeps its password, so her apps continue to work.",
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
        "Her browser calls the API",
        "Navidrome gets one user header and no header of the provider.",
        RequestSpec(
            "Alice's browser", HOME, EntryPoint.EDGE, "/api/song?_start=0&_end=1", signed_in=ALICE
        ),
        Expectation(
            Reason.VERIFIED_JWT, ((USER_HEADER, "alice"),), 200, contains=('"title": "Long"',)
        ),
    ),
    Step(
        "A neighbor on the same network bypasses the edge",
        "The neighbor's address is not on the whitelist, so the shim removes the identity.",
        RequestSpec("a neighbor", LOCAL_CLIENT, EntryPoint.SHIM, "/api/user", _CLAIMS_ADMIN),
        Expectation(Reason.UNTRUSTED_PEER, _NO_IDENTITY, 401, contains=("Not authenticated",)),
    ),
    Step(
        "The neighbor sends Navidrome's own user header",
        "Only the shim sets this header. It removes the client's.",
        RequestSpec(
            "a neighbor", LOCAL_CLIENT, EntryPoint.SHIM, "/app/", ((USER_HEADER, "admin"),)
        ),
        Expectation(Reason.UNTRUSTED_PEER, _NO_IDENTITY, 200, contains=("no user logged in",)),
    ),
    Step(
        "A signed-in user tries to become the admin",
        "An edge sets headers by their exact name and forwards an alias. Some servers treat an alias "
        "as the header itself, so the shim rejects it.",
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
        "A friend opens a shared link",
        "Shared links are for visitors without an account.",
        RequestSpec("a friend", OUTSIDER, EntryPoint.EDGE, f"/share/{SHARE_ID}"),
        Expectation(Reason.NO_IDENTITY, _NO_IDENTITY, 200, contains=("no user logged in",)),
    ),
    Step(
        "A shared link creates no account",
        "On a share page Navidrome creates an account for any name in the user header, and returns "
        "its token. The shim sends no name there.",
        RequestSpec(
            "an attacker", OUTSIDER, EntryPoint.EDGE, f"/share/{SHARE_ID}", ((CLAIM, "mallory"),)
        ),
        Expectation(
            Reason.PUBLIC_PATH,
            _NO_IDENTITY,
            200,
            contains=("no user logged in",),
            accounts=(("mallory", None),),
        ),
    ),
    Step(
        "Alice's phone signs in with her Subsonic password",
        "Apps authenticate themselves at Navidrome, as before.",
        RequestSpec("a music app", PHONE, EntryPoint.EDGE, app_call("ping")),
        Expectation(Reason.NO_IDENTITY, _NO_IDENTITY, 200, contains=("Subsonic: ok",)),
    ),
    Step(
        "… loads a cover …",
        "The shim forwards Navidrome's bytes unchanged.",
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
        "Players request a song in ranges.",
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
        "Carla visits for the first time",
        "The shim creates her account first, with name and e-mail from the provider and a random "
        "password. Then it forwards her request.",
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
        "She sets a password for her apps",
        "In Navidrome's own form, with Current Password left empty. The shim marks a generated password "
        "as Navidrome does.",
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
        "Dirk is in no allowed group",
        "The provider authenticates him, but Navidrome gets no request. The page has the contact.",
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
        "The provider makes Carla an admin",
        "Her rights change with her next request.",
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
        "The provider renames Carla",
        "Her uid is the same, and the provider's token proves it. So the shim renames her account, and "
        "holds the old name until tokens with that name have expired.",
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
