"""The recorded exchanges, replayed to a server; each response is compared with the recorded one.

Names in braces are placeholders for values of the recording; each is bound where it first appears
and must have the same value from there on. The tables at the head of this file list where a server
may differ from the recording, and why.
"""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORDING = Path(__file__).with_name("navidrome-0.63.json")

LIBRARY_TOTALS = {
    # Totals of the music: the recording had FLAC files with tags, the tests have tones.
    "totalSongs",
    "totalAlbums",
    "totalArtists",
    "totalFolders",
    "totalFiles",
    "totalSize",
    "totalDuration",
}
OF_THE_INSTALLATION = {
    # The location of the music, and the version of a build.
    "path",
    "serverVersion",
}
LITERALS = {
    # Literal values of the recording's music and build, and their placeholders.
    "3607873": "{stream_size}",
    "audio/flac": "{stream_type}",
    '"c45ff91782f1ba42.300.false.q75"': "{cover_tag}",
    # Within XML, which `OF_THE_INSTALLATION` does not cover.
    'serverVersion="dev"': 'serverVersion="{server_version}"',
}
BODY_OF_THE_INSTALLATION = re.compile(r"/app|/share/\{share_id\}|/rest/getCoverArt")
"""Bodies whose length depends on the build of the web app, or on the picture."""

FORMS = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)",
    "token": r"[\w-]+\.[\w-]+\.[\w-]+",
    "salt": r"[0-9a-f]{6}",
    "subsonic_token": r"[0-9a-f]{32}",
    "share_id": r"[0-9A-Za-z]{10}",
    "server_version": r'[^"]+',
    "stream_size": r"\d+",
    "stream_type": r"audio/[a-z-]+",
    "cover_tag": r'"[0-9a-f]{16}\.300\.false\.q75"',
}
ID = r"[0-9A-Za-z]{22}"
NEW_EACH_TIME = {"time", "token", "salt", "subsonic_token"}
BUFFERED = 2048
"""Bytes that Go's net/http gives a length; a longer response is chunked."""

_NAMED = re.compile(rf"\{{(\w+)\}}|(?<![0-9A-Za-z])({ID})(?![0-9A-Za-z])")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the recorded response."""

    number: int
    description: str
    request: dict[str, Any]
    recorded_response: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Received:
    """A server's response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


@dataclass(slots=True)
class Replayer:
    """A replay to one server, and the values of its placeholders so far.

    differences: descriptions of responses that were not the recorded ones.
    """

    host: str
    port: int
    names: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    last_login: str = ""
    differences: list[str] = field(default_factory=list)
    _varies: bool = False

    def replay(self, exchange: Exchange) -> None:
        """Send one request and compare the response."""
        received = self._send(exchange.request)
        before = len(self.differences)
        self._compare(exchange, received)
        self._store_placeholders(exchange, received)
        self.differences[before:] = [
            f"#{exchange.number} {exchange.description}: {difference}"
            for difference in self.differences[before:]
        ]

    def _send(self, request: dict[str, Any]) -> Received:
        connection = http.client.HTTPConnection(
            self.host, self.port, timeout=10, source_address=(request["source"], 0)
        )
        body = request.get("body")
        raw = body if isinstance(body, str) else json.dumps(body) if body is not None else ""
        content = self._substituted(raw, request).encode()
        headers = request.get("headers") or []
        try:
            connection.putrequest(
                request["method"],
                self._substituted(request["path"], request),
                skip_host=True,
                skip_accept_encoding=True,
            )
            connection.putheader("Host", "music.example.com")
            connection.putheader("User-Agent", "contract")
            for name, value in headers:
                connection.putheader(name, self._substituted(value, request))
            if body is not None:
                if not any(name == "Content-Type" for name, _ in headers):
                    connection.putheader("Content-Type", "application/json")
                connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content or None)
            response = connection.getresponse()
            return Received(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def _substituted(self, text: str, request: dict[str, Any]) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name == "time":
                return "2026-01-02T03:04:05Z"
            if name == "token":
                # The recording names every session token {token}. It is the token of the account
                # that the request names, else of the last login.
                user = re.search(r"[?&]u=([^&]+)", request["path"])
                return self.tokens[user[1] if user else self.last_login]
            return self.names[name]

        return re.sub(r"\{(\w+)\}", value, text)

    def _store_placeholders(self, exchange: Exchange, received: Received) -> None:
        recorded = exchange.recorded_response.get("json")
        if isinstance(recorded, dict) and "token" in recorded:
            payload = json.loads(received.body)
            self.last_login = payload["username"]
            self.tokens[self.last_login] = payload["token"]
        if exchange.request["path"].startswith("/api/song?") and "song_id" not in self.names:
            self.names["song_id"] = json.loads(received.body)[0]["id"]

    def _compare(self, exchange: Exchange, received: Received) -> None:
        recorded = exchange.recorded_response
        self._varies = False
        self._expect("status", recorded["status"], received.status)
        if "json" in recorded:
            try:
                shown: object = json.loads(received.body)
            except ValueError:
                self.differences.append(f"no JSON: {received.body[:200]!r}")
                return
            self._value("body", recorded["json"], shown)
        elif "text" in recorded:
            self._text("body", recorded["text"], received.body.decode("utf-8", "replace"))
        else:
            self._length(exchange, recorded["body_length"], len(received.body))
        self._headers(recorded["headers"], received)

    def _headers(self, recorded: list[list[str]], received: Received) -> None:
        for name, value in recorded:
            shown = received.header(name)
            if name in {"content-length", "transfer-encoding"} and self._varies:
                continue
            if not shown:
                self.differences.append(f"header {name} is missing; recorded: {value}")
                continue
            self._text(f"header {name}", value, shown[0])
        if self._varies:
            chunked = received.header("transfer-encoding") == ["chunked"]
            length = len(received.body)
            if chunked != (length > BUFFERED) or (
                not chunked and received.header("content-length") != [str(length)]
            ):
                self.differences.append(f"framing of {length} bytes: {received.headers}")

    def _length(self, exchange: Exchange, recorded: int, shown: int) -> None:
        if BODY_OF_THE_INSTALLATION.match(exchange.request["path"]):
            if shown == 0:
                self.differences.append("an empty body")
            return
        self._text("body length", str(recorded), str(shown))

    def _value(self, where: str, recorded: object, shown: object) -> None:
        if isinstance(recorded, dict) and isinstance(shown, dict):
            open_ended = "..." in recorded
            self._varies = self._varies or open_ended
            wanted = {key: value for key, value in recorded.items() if key != "..."}
            if not open_ended or not wanted.keys() <= shown.keys():
                self._expect(f"{where} keys", sorted(wanted), sorted(shown))
            for key in wanted.keys() & shown.keys():
                self._member(f"{where}.{key}", key, wanted[key], shown[key])
        elif isinstance(recorded, list) and isinstance(shown, list):
            self._expect(f"{where} length", len(recorded), len(shown))
            if where == "body":
                recorded, shown = self._aligned(recorded), self._aligned(shown)
            for index, (one, other) in enumerate(zip(recorded, shown, strict=False)):
                self._value(f"{where}[{index}]", one, other)
        elif isinstance(recorded, str) and isinstance(shown, str):
            self._text(where, recorded, shown)
        else:
            self._expect(where, recorded, shown)

    def _aligned(self, rows: list[Any]) -> list[Any]:
        # A list without _sort has no order: the real server orders it by its ids, which are random.
        return sorted(rows, key=lambda row: str(row.get("userName", "")))

    def _member(self, where: str, key: str, recorded: object, shown: object) -> None:
        if key in LIBRARY_TOTALS and recorded:
            self._varies = True
            if not isinstance(shown, int | float) or not shown:
                self._expect(where, recorded, shown)
        elif key in OF_THE_INSTALLATION:
            self._varies = self._varies or recorded != shown
            self._expect(where, type(recorded), type(shown))
        else:
            self._value(where, recorded, shown)

    def _text(self, where: str, recorded: str, shown: str) -> None:
        for literal, name in LITERALS.items():
            recorded = recorded.replace(literal, name)
        names: list[str] = []
        pattern = ""
        at = 0
        for found in _NAMED.finditer(recorded):
            name = found[1] or found[2]
            pattern += re.escape(recorded[at : found.start()])
            if name in self.names:
                pattern += re.escape(self.names[name])
            else:
                pattern += f"({FORMS.get(name, ID)})"
                names.append(name)
            at = found.end()
        rest = recorded[at:]
        pattern += re.escape(rest.removesuffix("…")) + (r"(?s:.*)" if rest.endswith("…") else "")
        matched = re.fullmatch(pattern, shown)
        if matched is None:
            self.differences.append(f"{where}: recorded {recorded!r}, got {shown!r}")
            return
        self._varies = (
            self._varies or not {"time", "server_version"}.isdisjoint(names) or rest.endswith("…")
        )
        for name, value in zip(names, matched.groups(), strict=True):
            if name not in NEW_EACH_TIME:
                self.names[name] = value

    def _expect(self, where: str, recorded: object, shown: object) -> None:
        if recorded != shown:
            self.differences.append(f"{where}: recorded {recorded!r}, got {shown!r}")


def recorded_exchanges() -> list[Exchange]:
    """The recorded exchanges, in order."""
    recording = json.loads(RECORDING.read_text("utf-8"))
    return [
        Exchange(number, each["description"], each["request"], each["response"])
        for number, each in enumerate(recording["exchanges"])
    ]
