"""The real Navidrome, where `NAVIDROME_BIN` names one:

started in its own folder, stopped by process id.

Its music is seven tones and a picture, created here; its log stays in the folder.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from demo.navidrome.media import Tone, cover
from tests.support.ports import free_port

_TITLES = {"Long": 300, **{f"Song {n}": 20 for n in range(1, 7)}}
_START_SECONDS = 30.0
_SCANNED = b"Scanner: Finished scanning all libraries"


@contextlib.contextmanager
def real_navidrome(
    binary: str, folder: Path, trusted_sources: str, **settings: str
) -> Iterator[int]:
    """Start a new server on a free port of 127.0.0.1 with its music scanned; returns the port.

    settings: more of Navidrome's variables, such as `ND_BASEURL`, or an `ND_ADDRESS` that is a Unix
    socket.
    """
    music = folder / "music"
    music.mkdir(parents=True)
    for title, seconds in _TITLES.items():
        tone = Tone(seconds, 400)
        (music / f"{title}.wav").write_bytes(tone.slice(0, tone.size))
    (music / "cover.jpg").write_bytes(cover(30_000, 600, 180))
    port = free_port()
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(folder),
        "ND_ADDRESS": "127.0.0.1",
        "ND_PORT": str(port),
        "ND_DATAFOLDER": str(folder / "data"),
        "ND_CACHEFOLDER": str(folder / "cache"),
        "ND_MUSICFOLDER": str(music),
        "ND_EXTAUTH_TRUSTEDSOURCES": trusted_sources,
        "ND_ENABLEINSIGHTSCOLLECTOR": "false",
        "ND_ENABLEEXTERNALSERVICES": "false",
        **settings,
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([binary], env=environment, stdout=log, stderr=log)
        try:
            address = environment["ND_ADDRESS"]
            where = address if address.startswith("unix:") else f"127.0.0.1:{port}"
            _wait_for(server, where, folder / "log")
            yield port
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(server: subprocess.Popen[bytes], where: str, log: Path) -> None:
    # A request over HTTP for the state of the scan would already create the first account.
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if _SCANNED in log.read_bytes() and _responds(where):
            return
        time.sleep(0.05)
    raise AssertionError(f"Navidrome did not start:\n{log.read_text('utf-8', 'replace')[-2000:]}")


def _responds(where: str) -> bool:
    """Whether Navidrome responds at `host:port` or `unix:/path`."""
    path = where.removeprefix("unix:")
    connection = http.client.HTTPConnection("localhost" if path != where else where, timeout=2)
    try:
        if path != where:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(2)
            connection.sock.connect(path)
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
