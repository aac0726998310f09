"""uvicorn's HTTP protocol, made to treat the wire as Go's net/http does where tests can tell.

Headers are kept as they were spelt; an `Upgrade` that no route takes is passed over, so that what
follows the head is the next request (uvicorn would drop it).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from demo.navidrome.jellyfin import is_socket

EXTENSION: Final = "stand_in"


@dataclass(slots=True)
class WireDetails:
    """What an ASGI scope leaves out, given in `scope["extensions"]["stand_in"]`."""

    transport: asyncio.Transport
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Wire(HttpToolsProtocol):
    """One connection. `base_path` is where the WebSocket's route is looked for."""

    base_path: ClassVar[str] = ""

    def on_message_begin(self) -> None:
        """Start a request with room for its headers' spelling."""
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        self.details = WireDetails(self.transport)
        scope["extensions"] = {EXTENSION: self.details}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header as it came, blanks at the value's end aside (Go drops them)."""
        self.details.headers.append((name, value.strip(b" \t")))
        super().on_header(name, value)

    def _should_upgrade(self) -> bool:
        path = self.url.partition(b"?")[0].decode("latin-1")
        return is_socket(self.base_path, path) and super()._should_upgrade()

    def data_received(self, data: bytes) -> None:
        """Parse what came, going on behind the head of an upgrade that no route takes."""
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                data = data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError:
                self.send_400_response("400 Bad Request")
                return
            else:
                return


def wire_below(base_path: str) -> type[Wire]:
    """The protocol class for a server with that base path."""
    return type("Wire", (Wire,), {"base_path": base_path})
