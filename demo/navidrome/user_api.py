"""`/api/user…`: the account rules of Navidrome's `userRepository`, one function per call.

The requesting user and its rights are known here; the table and its quirks are in `accounts`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from demo.navidrome.accounts import (
    AUTOGEN_PREFIX,
    Account,
    AccountFields,
    library_json,
)
from demo.navidrome.goform import ZERO_TIME, Json, is_time, read_json
from demo.navidrome.listing import page_of
from demo.navidrome.request import Params, Request
from demo.navidrome.responses import Response, json_error, json_response, text_error
from demo.navidrome.songs import RELEASED
from demo.navidrome.state import State

_STRINGS = {
    "id": "id",
    "username": "user_name",
    "name": "name",
    "email": "email",
    "scrobblefilter": "scrobble_filter",
    "password": "password",
    "currentpassword": "current_password",
}
_TIMES = {
    "lastloginat": "last_login_at",
    "lastaccessat": "last_access_at",
    "createdat": "created_at",
    "updatedat": "",
}
_PREFIX_FILTERS = {"name": "name", "user_name": "user_name", "email": "email"}


def list_users(state: State, caller: Account, query: Params) -> Response:
    """`GET /api/user`. `userName` is not a filter, and is ignored."""
    if not caller.is_admin:
        return json_error(403, "Error reading user: Permission denied")
    accounts = list(state.accounts.by_id.values())
    if query.all("id"):
        accounts = [a for a in accounts if a.id in query.all("id")]
    if query.first("password"):
        accounts = []
    for parameter, attribute in _PREFIX_FILTERS.items():
        # SQL's LIKE, which is case-blind for ASCII.
        prefix = query.first(parameter).lower()
        accounts = [a for a in accounts if getattr(a, attribute).lower().startswith(prefix)]
    shown, total = page_of([state.accounts.as_json(a) for a in accounts], query)
    return json_response(shown, headers=[("X-Total-Count", str(total))])


def read_user(state: State, caller: Account, account_id: str) -> Response:
    """`GET /api/user/{id}`: the own one, or any for an admin."""
    if not caller.is_admin and caller.id != account_id:
        return json_error(403, f"Reading user(id:{account_id}): Permission denied")
    account = state.accounts.by_id.get(account_id)
    if account is None:
        return json_error(404, f"user(id:{account_id}) not found")
    return json_response(state.accounts.as_json(account))


async def create_user(state: State, caller: Account, request: Request) -> Response:
    """`POST /api/user`. Without a password the account has an empty one."""
    fields = _fields(await request.body.read())
    if fields is None:
        return json_error(422, "Invalid request payload")
    if not caller.is_admin:
        return json_error(403, "Saving user: Permission denied")
    invalid = _validation_error(state, fields)
    if invalid is not None:
        return invalid
    if state.options.name_race_probability:
        await pause_before_writing(state.options.name_race_probability)
        # Only the table's own constraint prevents two at once, and it is case-sensitive.
        if any(a.user_name == fields.user_name for a in state.accounts.by_id.values()):
            return _invalid("userName", "ra.validation.unique")
    return json_response({"id": state.accounts.put(fields).id})


async def pause_before_writing(seconds: float) -> None:
    """Let other requests run between the check of a name and its write."""
    await asyncio.sleep(seconds)


async def update_user(state: State, caller: Account, account_id: str, request: Request) -> Response:
    """`PUT /api/user/{id}`: every column is written, and an unknown id is created."""
    fields = _fields(await request.body.read(), whole=True)
    if fields is None:
        return json_error(422, "Invalid request payload")
    fields = replace(fields, id=account_id)
    if not caller.is_admin:
        if caller.id != account_id or not state.options.enable_user_editing:
            return json_error(403, "Updating user: Permission denied")
        fields = replace(fields, is_admin=False, user_name=caller.user_name)
    errors = _password_errors(fields, caller)
    if errors:
        return json_response({"errors": errors}, 400)
    invalid = _validation_error(state, fields)
    if invalid is not None:
        return invalid
    state.accounts.put(fields)
    return read_user(state, caller, account_id)


def delete_user(state: State, caller: Account, account_id: str) -> Response:
    """`DELETE /api/user/{id}`; a deleted one can be deleted again."""
    if not caller.is_admin:
        return json_error(403, f"Deleting user(id:{account_id}): Permission denied")
    state.delete_account(account_id)
    return json_response({})


def user_libraries(state: State, account_id: str) -> Response:
    """`GET /api/user/{id}/library`, for admins only (checked by the route)."""
    account = state.accounts.by_id.get(account_id)
    if account is None:
        return text_error(404, "User not found")
    libraries = state.accounts.libraries_for(account)
    listing: list[Json] = [library_shown(state, library.id) for library in libraries]
    # `json.Encoder` ends with a line feed, `json.Marshal` does not.
    return json_response(listing).followed_by(b"\n")


async def set_user_libraries(state: State, account_id: str, request: Request) -> Response:
    """`PUT /api/user/{id}/library`: not for admins, at least one, and each must exist."""
    ids = _library_ids(await request.body.read())
    if ids is None:
        return text_error(400, "Invalid request body")
    account = state.accounts.by_id.get(account_id)
    if account is None:
        return text_error(404, "User not found")
    if account.is_admin:
        return _forbidden("cannot manually assign libraries to admin users")
    if not ids:
        return _forbidden("at least one library must be assigned to non-admin users")
    known = {library.id for library in state.accounts.libraries}
    if len(known.intersection(ids)) != len(ids):  # a repeated one is invalid too
        return _forbidden("one or more library IDs are invalid")
    account.libraries = set(ids)
    return user_libraries(state, account_id)


def library_shown(state: State, library_id: int) -> dict[str, Json]:
    """A library with its statistics."""
    library = next(lib for lib in state.accounts.libraries if lib.id == library_id)
    songs = state.catalogue.within([library_id])
    totals: dict[str, Json] = {
        "totalSongs": len(songs),
        "totalAlbums": len({song.album_id for song in songs}),
        "totalArtists": len({song.artist_id for song in songs}),
        "totalFolders": 1,
        "totalFiles": len(songs),
        "totalSize": sum(song.tone.size for song in songs),
        "totalDuration": sum(song.tone.seconds for song in songs),
        "defaultNewUsers": library.default_new_users,
    }
    return library_json(library, scanned_at=RELEASED, totals=totals.items())


def _validation_error(state: State, fields: AccountFields) -> Response | None:
    if _taken(state, fields):
        return _invalid("userName", "ra.validation.unique")
    if not _is_filter(fields.scrobble_filter):
        return _invalid("scrobbleFilter", "resources.user.validation.invalidScrobbleFilter")
    return None


def _is_filter(text: str) -> bool:
    # The real one also checks the names of fields and operators.
    if not text:
        return True
    try:
        criteria = read_json(text.encode(), whole=True)
    except ValueError:
        return False
    if not isinstance(criteria, dict):
        return False
    groups = [criteria[name] for name in ("all", "any") if name in criteria]
    return len(groups) == 1 and isinstance(groups[0], list) and bool(groups[0])


def _taken(state: State, fields: AccountFields) -> bool:
    holder = state.accounts.find(fields.user_name)
    return holder is not None and holder.id != fields.id


def _password_errors(fields: AccountFields, caller: Account) -> dict[str, Json]:
    # `validatePasswordChange`: an admin sets another's freely; the own one requires the current
    # password, except where it was generated.
    if caller.is_admin and fields.id != caller.id:
        return {}
    errors: dict[str, Json] = {}
    if not fields.password:
        if not fields.current_password:
            return {}
        errors["password"] = "ra.validation.required"
    chosen = not caller.password.startswith(AUTOGEN_PREFIX)
    if chosen and fields.current_password != caller.password:
        errors["currentPassword"] = "ra.validation.passwordDoesNotMatch"
    elif chosen and not fields.current_password:
        errors["currentPassword"] = "ra.validation.required"
    return errors


def _invalid(field: str, reason: str) -> Response:
    return json_response({"errors": {field: reason}}, 400)


def _forbidden(reason: str) -> Response:
    return text_error(400, f"validation error: {reason}")


def _library_ids(body: bytes) -> list[int] | None:
    try:
        parsed = read_json(body)
    except ValueError:
        return None
    if parsed is None:
        return []
    ids = parsed.get("libraryIds") or [] if isinstance(parsed, dict) else None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        return None
    return ids


def _fields(body: bytes, *, whole: bool = False) -> AccountFields | None:
    """A body as Go decodes it: keys in any case, unknown ones ignored, `null` is no field; None if it
    is invalid."""
    try:
        parsed = read_json(body, whole=whole)
    except ValueError:
        return None
    if parsed is None:
        return AccountFields()
    if not isinstance(parsed, dict):
        return None
    texts: dict[str, str] = {}
    is_admin = False
    for key, value in parsed.items():
        lowered = key.lower()
        if value is None:
            continue
        if lowered in _STRINGS or lowered in _TIMES:
            if not isinstance(value, str) or (lowered in _TIMES and not is_time(value)):
                return None
            texts[_STRINGS.get(lowered) or _TIMES[lowered]] = value
        elif lowered == "isadmin":
            if not isinstance(value, bool):
                return None
            is_admin = value
    return AccountFields(
        id=texts.get("id", ""),
        user_name=texts.get("user_name", ""),
        name=texts.get("name", ""),
        email=texts.get("email", ""),
        is_admin=is_admin,
        last_login_at=texts.get("last_login_at"),
        last_access_at=texts.get("last_access_at"),
        created_at=texts.get("created_at", ZERO_TIME),
        scrobble_filter=texts.get("scrobble_filter", "").strip(),
        password=texts.get("password", ""),
        current_password=texts.get("current_password", ""),
    )
