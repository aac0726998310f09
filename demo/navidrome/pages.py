"""The pages: `/app/…`, which logs the header's user in, and `/share/…`, which is public.

Both carry `window.__APP_CONFIG__`, a JSON text within a JavaScript string, with `auth` in it where
a header named a user. Any request for a page creates the account, whatever the method.
"""

from __future__ import annotations

from typing import Final

from demo.navidrome.goform import Json, json_bytes
from demo.navidrome.login_api import login_data
from demo.navidrome.media import cover
from demo.navidrome.ranges import serve_tone
from demo.navidrome.request import Request
from demo.navidrome.responses import Response, not_found, text_error
from demo.navidrome.songs import Song
from demo.navidrome.state import Share, State
from demo.navidrome.tokens import Claims

_PAGE_HEADERS: Final = (
    ("Cache-Control", "no-store, no-cache, must-revalidate"),
    ("Content-Type", "text/html"),
)
_ASSETS: Final = {
    "sw.js": ("text/javascript; charset=utf-8", b"self.addEventListener('fetch', () => {})\n"),
    "manifest.webmanifest": ("application/manifest+json", b'{"name":"Navidrome"}\n'),
    "robots.txt": ("text/plain; charset=utf-8", b"User-agent: *\nDisallow: /"),
}
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <meta name="description" content="Navidrome Music Server - stand-in" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <link rel="manifest" href="./manifest.webmanifest" />
    <title>Navidrome (stand-in)</title>
    <style>
      body { background: #121212; color: #ddd; font: 16px/1.5 sans-serif; margin: 4rem auto;
             max-width: 38rem; padding: 0 1rem; }
      h1 { color: #90caf9; font-weight: 500; }
      code { background: #222; border-radius: 3px; padding: 0.1em 0.3em; }
      dt { color: #999; float: left; width: 8rem; }
    </style>
    <script>
      window.__APP_CONFIG__ = %(config)s
    </script>
    <script>
      window.__SHARE_INFO__ = %(share)s
    </script>
  </head>
  <body>
    <noscript>You need to enable JavaScript to run this app.</noscript>
    <h1>Navidrome (stand-in)</h1>
    <p id="who">No user is logged in: no user header came from a trusted address. A real Navidrome
    shows its login form here.</p>
    <dl id="root"></dl>
    <script>
      const auth = JSON.parse(window.__APP_CONFIG__).auth
      if (auth) {
        document.getElementById('who').textContent =
          'Logged in by the user header. This is whom Navidrome takes the request for:'
        for (const [name, value] of Object.entries({
          'User name': auth.username, 'Name': auth.name, 'Admin': auth.isAdmin ? 'yes' : 'no',
          'Account': auth.id,
        })) {
          const term = document.createElement('dt')
          const shown = document.createElement('dd')
          term.textContent = name
          shown.textContent = value
          document.getElementById('root').append(term, shown)
        }
      }
    </script>
  </body>
</html>
"""


def app(state: State, request: Request) -> Response:
    """`/app` and its sub-paths: the page, its assets, 404."""
    name = request.path.removeprefix("/")
    return _page(state, request) if not name else asset(name) or not_found()


def asset(name: str) -> Response | None:
    """A file of the web app."""
    found = _ASSETS.get(name)
    if found is None:
        return None
    length = ("Content-Length", str(len(found[1])))
    return Response(200, (("Accept-Ranges", "bytes"), length, ("Content-Type", found[0])), found[1])


def share(state: State, request: Request) -> Response:
    """`/share/…`: a share's page, its images, streams and downloads, and the app's own assets."""
    match request.path.removeprefix("/").split("/"):
        case ["img", token]:
            return _share_image(state, token)
        case ["s", token]:
            return _share_stream(state, request, token)
        case ["d", share_id]:
            return _share_download(state, request, share_id)
        case [""]:
            return text_error(400, "missing parameter: ':id'")
        case [share_id, "m3u"] if share_id not in state.shares:
            return text_error(404, "Share not found")
        case [name]:
            return asset(name) or _share_page(state, request, name)
    return not_found()


def _share_page(state: State, request: Request, share_id: str) -> Response:
    found = state.shares.get(share_id)
    if found is None:
        return text_error(404, "Share not found")
    tracks: list[Json] = [
        {
            "id": state.shares_key.refresh(Claims(song.id, 0, found.id, is_admin=False)),
            "title": song.title,
            "artist": song.artist,
            "album": song.album,
            "duration": song.tone.seconds,
        }
        for song in _shared(state, found)
    ]
    info: dict[str, Json] = {
        "id": found.id,
        "description": found.description,
        "downloadable": found.downloadable,
        "tracks": tracks,
    }
    return _page(state, request, info)


def _shared(state: State, found: Share) -> list[Song]:
    return [s for each in found.resource_ids.split(",") for s in state.catalogue.by_id(each)]


def _share_image(state: State, token: str) -> Response:
    claims = state.shares_key.read(token)
    if claims is None:
        return text_error(400, "invalid request")
    image = cover(state.options.cover_bytes, 300, 96)
    headers = (("Cache-Control", "public, no-cache"), ("Content-Type", "image/jpeg"))
    return Response(200, headers, image)


def _share_stream(state: State, request: Request, token: str) -> Response:
    claims = state.shares_key.read(token)
    if claims is None:
        return text_error(400, "invalid request")
    found = state.shares.get(claims.user_id)
    if found is None:
        return text_error(404, "Share not found")
    songs = [song for song in _shared(state, found) if song.id == claims.subject]
    return serve_tone(request, songs[0].tone) if songs else text_error(404, "not found")


def _share_download(state: State, request: Request, share_id: str) -> Response:
    found = state.shares.get(share_id)
    if found is None:
        return text_error(404, "Share not found")
    if not found.downloadable:
        return text_error(403, "This share is not downloadable")
    return serve_tone(request, _shared(state, found)[0].tone)


def _page(state: State, request: Request, shared: Json = None) -> Response:
    config: dict[str, Json] = {
        "version": "dev",
        "firstTime": not state.accounts.by_id,
        "variousArtistsId": "63sqASlAfjbGMuLP4JhnZU",
        "baseURL": state.options.base_path,
        "enableDownloads": True,
        "enableSharing": True,
        "enableUserEditing": state.options.enable_user_editing,
        "extAuthLogoutURL": "",
        "losslessFormats": "WAV,FLAC",
    }
    account = state.log_in_by_header(request)
    if account is not None:
        config["auth"] = login_data(account)
    text = _PAGE % {
        "config": _javascript(config),
        "share": _javascript(shared) if shared is not None else '""',
    }
    return Response(200, _PAGE_HEADERS, text.encode())


def _javascript(value: Json) -> str:
    # A JSON text as a JavaScript string, safe within a script element.
    return json_bytes(json_bytes(value).decode()).decode()
