"""One HTTP exchange with Navidrome: over TCP, TLS or a Unix socket, bounded in time and size.

Gives the status and the body; what they mean is the API's business. Redirects are not followed, the
machine's proxy settings do not count, and nothing is tried twice.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace

import httpx

from shim.navidrome.breaker import Breaker
from shim.navidrome.errors import ResponseTooLarge, Unavailable
from shim.settings import Settings, Upstream

MAX_RESPONSE = 4 << 20
# At one time; the pool's own queue is slow where it is long, so there is one before it.
_CALLS = 8


@dataclass(frozen=True, slots=True)
class Response:
    """What came back. `data` is the JSON of a 200, where JSON was asked for."""

    status: int
    headers: httpx.Headers
    body: bytes
    data: object = None


class Transport:
    """Speaks to Navidrome at `upstream`, below `base_path`. `timeout`, in seconds, is for a whole
    exchange; `tls` is what its certificate is verified with, None for the system's authorities."""

    def __init__(
        self,
        upstream: Upstream,
        base_path: str = "/",
        *,
        tls: ssl.SSLContext | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._base = f"{upstream.scheme}://{upstream.authority}{base_path.rstrip('/')}"
        self._timeout = timeout
        self.breaker = Breaker()
        self._calls = asyncio.Semaphore(_CALLS)
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=upstream.path,
                verify=tls or _default_tls(upstream),
                limits=httpx.Limits(max_connections=_CALLS, keepalive_expiry=20),
            ),
            timeout=timeout,
            headers={"Accept-Encoding": "identity"},
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str | bytes] | None = None,
        query: Mapping[str, str] | None = None,
        body: object = None,
        page: bool = False,
    ) -> Response:
        """Send one request, `body` as JSON. A 200 has to be JSON, but where a `page` is asked for.

        Raises `Unavailable` where no response came, or none that an API gives: 5xx, a redirect, no JSON; and
        `ResponseTooLarge` for a response of more than `MAX_RESPONSE` bytes.
        """
        async with self._calls:
            loop = asyncio.get_running_loop()
            wait = self.breaker.wait(loop.time())
            if wait > 0:
                message = "Navidrome failed several times in a row, and is left alone for a moment"
                raise Unavailable(message, retry_after=wait, sent=False)
            try:
                response = await self._send(method, path, headers or {}, query or {}, body)
                if response.status == 200 and not page:
                    response = replace(response, data=_json(response, f"{method} {path}"))
            except Unavailable:
                self.breaker.failed(loop.time())
                raise
            except ResponseTooLarge:
                self.breaker.succeeded()
                raise
            except BaseException:
                self.breaker.cancelled()
                raise
            self.breaker.succeeded()
            return response

    async def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str | bytes],
        query: Mapping[str, str],
        body: object,
    ) -> Response:
        encoded = [(name.encode(), _bytes(value)) for name, value in headers.items()]
        call = f"{method} {path}"
        try:
            async with asyncio.timeout(self._timeout):
                request = self._client.build_request(
                    method, self._base + path, headers=encoded, params=query or None, json=body
                )
                response = await self._client.send(request, stream=True)
                try:
                    content = await _read(response, call)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise Unavailable(f"{call}: no response within {self._timeout:g} s") from None
        except httpx.ConnectError as error:
            raise Unavailable(f"{call}: not reached: {error}", sent=False) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Unavailable(f"{call}: {type(error).__name__}: {error}") from None
        if response.status_code >= 500 or response.status_code in range(300, 400):
            raise Unavailable(
                f"{call}: Navidrome answered {response.status_code}: {body_excerpt(content)}"
            )
        return Response(response.status_code, response.headers, content)


def body_excerpt(body: bytes) -> str:
    """What a response's body says, in at most 200 printable characters."""
    text = body[:400].decode("utf-8", "replace")
    text = "".join(c if c.isprintable() else " " for c in text).strip()
    return text if len(text) <= 200 else text[:199] + "…"


def upstream_tls(settings: Settings) -> ssl.SSLContext | None:
    """Build what Navidrome's certificate is verified with; None where it speaks plain HTTP. Raises OSError
    for a file that has no certificate."""
    if not settings.upstream.tls:
        return None
    ca = settings.upstream_ca
    return ssl.create_default_context(cafile=None if ca is None else str(ca))


def _default_tls(upstream: Upstream) -> ssl.SSLContext:
    """The system's authorities; without TLS a context that is never used, since loading them takes 1 MB."""
    if upstream.tls:
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _json(response: Response, call: str) -> object:
    try:
        found: object = json.loads(response.body)
    except (ValueError, RecursionError):
        kind = body_excerpt(response.headers.get("Content-Type", "no type").encode())
        message = (
            f"{call}: Navidrome answered with {kind} that is no JSON: {body_excerpt(response.body)}"
        )
        raise Unavailable(message) from None
    return found


async def _read(response: httpx.Response, call: str) -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > MAX_RESPONSE:
            raise ResponseTooLarge(f"{call}: the response has more than {MAX_RESPONSE} bytes")
    return bytes(content)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
