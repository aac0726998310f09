"""A client that writes bytes and reads responses strictly by RFC 9112 §6.3."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.raw_connection import RawConnection


@dataclass(frozen=True, slots=True)
class Response:
    """A response as received. `fields` are name (lower case) and value, in order."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes
    head: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]

    def get(self, name: str) -> str | None:
        found = self.all(name)
        assert len(found) < 2, f"{name} came {len(found)} times"
        return found[0] if found else None


class Client(RawConnection):
    """The client's end of a connection."""

    async def request(
        self, head: str | bytes, body: bytes = b"", *, method: str = "GET"
    ) -> Response:
        """Send a request in one write and read its response."""
        await self.send((head.encode() if isinstance(head, str) else head) + body)
        return await self.read_response(method)

    async def read_response(self, method: str = "GET") -> Response:
        """Read one response. Raises EOFError or ConnectionError if it is truncated."""
        status, fields, head = await self.read_response_head()
        named = dict(fields)
        assert not ("content-length" in named and "transfer-encoding" in named)
        if method == "HEAD" or status < 200 or status in {204, 304}:
            body = b""
        elif "transfer-encoding" in named:
            assert named["transfer-encoding"] == "chunked"
            body = await self.chunks()
        elif "content-length" in named:
            body = await self.read_exactly(int(named["content-length"]))
        else:
            body = await self.read_to_end()
        return Response(status, fields, body, head)

    async def read_response_head(self) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
        head = await self.read_until(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1.1 "), first
        pairs = (line.split(": ", 1) for line in lines)
        return int(first[9:12]), tuple((name.lower(), value) for name, value in pairs), head


def get(target: str = "/", *lines: str, host: str = "music.test") -> str:
    return build_request("GET", target, *lines, host=host)


def build_request(method: str, target: str, *lines: str, host: str = "music.test") -> str:
    return "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", ""))
