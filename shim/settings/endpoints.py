"""Parse addresses: where the shim listens, where Navidrome listens, URLs and paths.

As in `shim.settings.parsers`, each parser returns a frozen value or raises ValueError.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from shim.settings.parsers import comma_list
from shim.trust.peers import parse_entry

_PORTS = {"http": 80, "https": 443}
_PORT = re.compile(r"[0-9]{1,5}")
# Unreserved characters, and others that all parsers read the same way (RFC 3986 §2.3, §3.3).
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*)*/?")
# `sun_path` has 108 bytes, the final zero included (unix(7)).
_UNIX_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A listening address: host and port (0: any free one), or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine can connect, as with a Unix socket."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Navidrome's address: `http` or `https` with host and port, or the path of a Unix socket (then `scheme`
    is `http` and `host` is `localhost`)."""

    scheme: str
    host: str
    port: int
    path: str | None = None

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Return host and port for a `Host` field, without the default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else f"{self.scheme}://{self.authority}"


def endpoint(text: str) -> Endpoint:
    """Parse `host:port`, `[v6]:port` or `unix:/path`."""
    if text.startswith("unix:"):
        return Endpoint(path=_unix_path(text))
    host, port = _host_and_port(text)
    if port is None or not host:
        raise ValueError("expected host:port, [v6]:port or unix:/path, such as 0.0.0.0:4534")
    return Endpoint(host, port)


def upstream(text: str) -> Upstream:
    """Parse `http://host[:port]`, `https://host[:port]` or `unix:/path`."""
    if text.startswith("unix:"):
        return Upstream("http", "localhost", 80, _unix_path(text))
    scheme, separator, remainder = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _PORTS:
        raise ValueError("expected http://host:port, https://host:port or unix:/path")
    if "@" in remainder:
        raise ValueError("expected an address without user and password")
    authority = remainder.removesuffix("/")
    if re.search(r"[/?#\\]", authority):
        raise ValueError("expected only host and port; set Navidrome's base path in SHIM_BASE_PATH")
    host, port = _host_and_port(authority)
    if port == 0 or not host:
        raise ValueError("expected a host, and a port from 1 to 65535")
    return Upstream(scheme, host, _PORTS[scheme] if port is None else port)


def base_path(text: str) -> str:
    """Parse Navidrome's base path. Return `/`, or a path with a slash at the start and none at the end."""
    if not text.startswith("/") or not _PLAIN_PATH.fullmatch(text):
        raise ValueError("expected a plain path that begins with one slash, such as / or /music")
    return text.rstrip("/") or "/"


def base_path_of_url(text: str) -> str:
    """Parse Navidrome's BaseURL, which is a path or a URL. Return its base path."""
    path = urlsplit(text).path if "://" in text else text
    return base_path("/" + path.removeprefix("/"))


def prefixes(text: str) -> tuple[str, ...]:
    """Parse path prefixes below the base path, comma-separated. Each begins with a slash."""
    paths = comma_list(text)
    for path in paths:
        if not path.startswith("/") or not _PLAIN_PATH.fullmatch(path):
            raise ValueError(
                f"expected plain paths that begin with one slash, such as /rest/; not {path!r}"
            )
    return paths


def web_address(text: str) -> str:
    """Parse an `https://` or `http://` URL without a password."""
    expected = "expected an address such as https://auth.example.org/path"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in _PORTS and parts.hostname and parts.port != 0
    except ValueError:
        raise ValueError(expected) from None
    if not usable or not text.isascii() or re.search(r"[\x00-\x20\x7f\"<>\\]", text):
        raise ValueError(expected)
    if "@" in parts.netloc:
        raise ValueError(f"{expected}, without user and password")
    return text


def public_address(text: str) -> str:
    """Parse the URL of the web app, without its last slash."""
    if "?" in text or "#" in text:
        raise ValueError("expected an address without ? and #")
    return web_address(text).rstrip("/")


def sign_in_address(text: str) -> str:
    """Parse a URL, or a path on the host of the request."""
    if "#" in text:  # the return URL would become part of the fragment, which no server gets
        raise ValueError("expected an address without a #")
    if not text.startswith("/"):
        return web_address(text)
    if text.startswith("//") or not text.isascii() or re.search(r"[\x00-\x20\x7f\"<>\\]", text):
        raise ValueError("expected a path that begins with one slash, or an https:// address")
    return text


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Split `host:port` or `[v6]:port`, both also without a port."""
    if text.startswith("["):
        host, bracket, remainder = text[1:].partition("]")
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(
                "expected an IPv6 address between the brackets, such as [::1]:4534"
            ) from None
        if not bracket or (remainder and not remainder.startswith(":")):
            raise ValueError("expected [v6]:port, such as [::1]:4534")
        return host, _port(remainder[1:]) if remainder else None
    host, colon, port = text.partition(":")
    if ":" in port:
        raise ValueError("expected brackets around an IPv6 address, such as [::1]:4534")
    if host:
        if "/" in host or host == "@":
            raise ValueError("expected a host and a port")
        try:
            parse_entry(host)
        except ValueError as error:
            raise ValueError(f"expected a host and a port; {host!r} is {error}") from None
    return host, _port(port) if colon else None


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise ValueError("expected a port from 0 to 65535")
    return int(text)


def _unix_path(text: str) -> str:
    path = text.removeprefix("unix:")
    if path.startswith("///"):  # unix:///run/shim.sock, as in other programs
        path = path[2:]
    if not path.startswith("/") or path.startswith("//") or path.endswith("/") or "\0" in path:
        raise ValueError("expected unix: and an absolute path, such as unix:/run/shim/shim.sock")
    if len(path.encode(errors="surrogateescape")) > _UNIX_PATH_BYTES:
        raise ValueError(
            f"expected a path of at most {_UNIX_PATH_BYTES} bytes, the limit of a Unix socket"
        )
    return path
