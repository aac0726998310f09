"""`navidrome-shim health`: check that the shim on this machine is up.

Imports little, because a container runs it every half minute. Reads SHIM_CONTROL_LISTEN from the environment
or the settings file, without loading the settings.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from shim.health import DEFAULT_CONTROL_LISTEN

_SECONDS = 4.0
_LINE = re.compile(r"^\s*(?:export\s+)?(SHIM_CONTROL_\w+)\s*=\s*(.*?)\s*$", re.MULTILINE)
_LOOPBACK_FOR_WILDCARD = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def health(arguments: Sequence[str], env_file: Path | None = None) -> int:
    """Return exit code 0 if the control plane returns 200, else 1. `--ready` requests /readyz. `env_file` is
    read instead of `.env`, and must exist."""
    try:
        variables = {**_file_variables(env_file), **os.environ}
    except OSError as error:
        sys.stderr.write(f"navidrome-shim: {env_file} can't be read: {error.strerror}\n")
        return 1
    try:
        path = "/readyz" if "--ready" in arguments else "/healthz"
        status = _probe(variables, path)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"navidrome-shim: no connection to the control plane: {error}\n")
        return 1
    if status != 200:
        sys.stderr.write(f"navidrome-shim: {path} returned {status}\n")
        return 1
    return 0


def _file_variables(env_file: Path | None) -> dict[str, str]:
    try:
        text = (env_file or Path(".env")).read_text("utf-8-sig")
    except OSError:
        if env_file is not None:
            raise
        return {}
    return {name: value.strip("\"'") for name, value in _LINE.findall(text)}


def _probe(variables: Mapping[str, str], path: str) -> int:
    listen = variables.get("SHIM_CONTROL_LISTEN", "").strip() or DEFAULT_CONTROL_LISTEN
    token = variables.get("SHIM_CONTROL_TOKEN", "")
    file = variables.get("SHIM_CONTROL_TOKEN_FILE", "")
    if not token and file and path == "/readyz":
        token = Path(file).read_text("utf-8").rstrip("\r\n")
    with _connect(listen) as connection:
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        if token:
            lines.append(f"Authorization: Bearer {token}")
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = b""
        while b"\r\n" not in head and (data := connection.recv(4096)):
            head += data
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise ValueError("the response is not HTTP")
    return int(words[1])


def _connect(listen: str) -> socket.socket:
    if listen.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_SECONDS)
        connection.connect(listen.removeprefix("unix:"))
        return connection
    host, _, port = listen.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    return socket.create_connection((_LOOPBACK_FOR_WILDCARD.get(host, host), int(port)), _SECONDS)
