"""One HTTP exchange with Navidrome over TCP, TLS or a Unix socket, with limits in time and size.

Returns status and body; the API interprets them. It follows no redirects, ignores the machine's proxy
settings, and retries nothing.
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
# Concurrent requests. The pool's own queue is slow when it is long, so there is a semaphore before it.
_CALLS = 8


class CertificateAuthorityError(OSError):
    """The CA of Navidrome's certificate cannot be used."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response. `data` is the JSON of a 200, if JSON was requested."""

    status: int
    headers: httpx.Headers
    body: bytes
    data: object = None


class Transport:
    """Sends requests to Navidrome at `upstream`, below `base_path`. `timeout`, in seconds, is for a complete
    exchange. `tls` verifies Navidrome's certificate, None for the system's CAs."""

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
                verify=tls or default_tls(upstream),
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
        """Send one request, `body` as JSON. A 200 must be JSON, unless `page` is set.

        Raises `Unavailable` without a response, or for a response that is not from the API: 5xx, a redirect,
        no JSON. Raises `ResponseTooLarge` for more than `MAX_RESPONSE` bytes.
        """
        async with self._calls:
            loop = asyncio.get_running_loop()
            wait = self.breaker.wait(loop.time())
            if wait > 0:
                message = "Navidrome failed several times in a row; the next call waits a moment"
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
                f"{call}: Navidrome returned {response.status_code}: {body_excerpt(content)}"
            )
        return Response(response.status_code, response.headers, content)


def body_excerpt(body: bytes) -> str:
    """Return at most 200 printable characters of a response body."""
    text = body[:400].decode("utf-8", "replace")
    text = "".join(c if c.isprintable() else " " for c in text).strip()
    return text if len(text) <= 200 else text[:199] + "…"


def upstream_tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context for Navidrome's certificate, None for plain HTTP. Raises
    `CertificateAuthorityError`. It takes 1 MB and some milliseconds, so build it once."""
    if not settings.upstream.tls:
        return None
    ca = settings.upstream_ca
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as error:
        raise CertificateAuthorityError(
            f"SHIM_UPSTREAM_CA={ca} contains no certificate: {error.strerror or error}. Use a PEM file with "
            "the CA of Navidrome's certificate."
        ) from None


def default_tls(upstream: Upstream) -> ssl.SSLContext:
    """Return a context with the system's CAs; without TLS one that is never used, since CAs take 1 MB."""
    if upstream.tls:
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _json(response: Response, call: str) -> object:
    try:
        found: object = json.loads(response.body)
    except (ValueError, RecursionError):
        kind = body_excerpt(response.headers.get("Content-Type", "no type").encode())
        message = (
            f"{call}: Navidrome returned {kind} instead of JSON: {body_excerpt(response.body)}"
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
