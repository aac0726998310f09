"""uvicorn's HTTP protocol with the behaviour of Go's net/http, where tests can see a difference.

Headers keep their spelling; an `Upgrade` that no route accepts is ignored, so that the data after
the head is the next request (uvicorn would drop it).
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
    """Data that an ASGI scope lacks, in `scope["extensions"]["stand_in"]`."""

    transport: asyncio.Transport
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Wire(HttpToolsProtocol):
    """One connection. `base_path` is the prefix of the WebSocket's route."""

    base_path: ClassVar[str] = ""

    def on_message_begin(self) -> None:
        """Start a request with storage for its headers' spelling."""
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        self.details = WireDetails(self.transport)
        scope["extensions"] = {EXTENSION: self.details}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header as received, without blanks around the value (Go drops them)."""
        self.details.headers.append((name, value.strip(b" \t")))
        super().on_header(name, value)

    def _should_upgrade(self) -> bool:
        path = self.url.partition(b"?")[0].decode("latin-1")
        return is_socket(self.base_path, path) and super()._should_upgrade()

    def data_received(self, data: bytes) -> None:
        """Parse received data, continuing after the head of an upgrade that no route accepts."""
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
