"""The upstream of the benchmark: an nginx that returns Navidrome's responses as fast as possible.

Its responses have the fields of Navidrome's own (11 on a page of songs), and values in them that
differ from response to response, so that a proxy gains nothing by caching response heads.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.processes import find_binary, running
from tests.bench.scenarios import COVER_BYTES, TRACK_BYTES
from tests.support.ports import free_port

ECHO_PATH = "/api/bench-echo"

_CONFIG = """
{user}
daemon off;
pid {folder}/origin.pid;
error_log stderr error;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/origin-body;
    proxy_temp_path {folder}/origin-proxy;
    fastcgi_temp_path {folder}/origin-fastcgi;
    uwsgi_temp_path {folder}/origin-uwsgi;
    scgi_temp_path {folder}/origin-scgi;
    sendfile on;
    tcp_nopush on;
    etag off;
    open_file_cache max=16 inactive=600s;
    open_file_cache_valid 600s;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    absolute_redirect off;
    types {{ image/webp webp; audio/flac flac; }}
    default_type application/json;

    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {folder}/files;
        set $unique $msec-$connection-$connection_requests;

        location = /api/song {{
            add_header Permissions-Policy "autoplay=(), camera=(), microphone=(), usb=()";
            add_header Referrer-Policy same-origin;
            add_header Set-Cookie "X-ND-Client-Unique-Id=$unique; Path=/; HttpOnly; Secure; SameSite=Strict";
            add_header Vary Origin;
            add_header X-Content-Type-Options nosniff;
            add_header X-Total-Count $connection_requests;
            return 200 '{song}';
        }}
        location = /api/cover {{
            add_header Cache-Control "public, max-age=315360000";
            add_header Vary Origin;
            add_header X-Content-Type-Options nosniff;
            add_header X-Frame-Options DENY;
            add_header ETag '"$unique"';
            try_files /cover.webp =404;
        }}
        location = /api/track {{
            add_header Vary Origin;
            add_header X-Content-Type-Options nosniff;
            add_header X-Content-Duration "300.$connection_requests";
            add_header Set-Cookie "nd-player-6c697374=$unique; Path=/; HttpOnly; SameSite=Strict";
            try_files /track.flac =404;
        }}
        location = /keys.json {{ }}
        location = {echo} {{
            return 200 '{{"user": "$http_remote_user", "for": "$http_x_forwarded_for"}}';
        }}

        # Accounts are those of the stand-in Navidrome, so that provisioning does what it does.
        location ~ ^/(api/user|api/library|api/config|auth/|rest/ping) {{
            proxy_pass http://127.0.0.1:{accounts};
            proxy_set_header Host $host;
        }}
        location = /ping {{ return 200 '.'; }}
        location = /app/ {{ return 200 '<!DOCTYPE html>'; }}
        location / {{ return 302 /app/; }}
    }}
}}
"""

_SONG = json.dumps(
    [
        {
            "id": "6c1f0a52e7d94b3f8a60",
            "title": "A Song of Some Length",
            "album": "The Album",
            "artist": "The Artist",
            "albumId": "al-17f3a9",
            "trackNumber": 7,
            "year": 1997,
            "size": 36078730,
            "suffix": "flac",
            "duration": 300.5,
            "bitRate": 960,
            "genre": "Ambient",
            "createdAt": "2026-08-21T10:00:00Z",
            "starred": False,
            "playCount": 12,
        }
    ],
    separators=(",", ":"),
)


@contextmanager
def origin(folder: Path, cores: frozenset[int]) -> Iterator[int]:
    """Runs it and returns its port on 127.0.0.1."""
    nginx = find_binary("nginx", "the Debian package nginx")
    port, accounts = free_port(), free_port()
    _write_files(folder / "files")
    config = folder / "origin.conf"
    config.write_text(
        _CONFIG.format(
            user="user root;" if os.geteuid() == 0 else "",
            folder=folder,
            port=port,
            accounts=accounts,
            song=_SONG,
            echo=ECHO_PATH,
        )
    )
    standin = (sys.executable, "-m", "demo.navidrome", f"127.0.0.1:{accounts}", "127.0.0.1/32")
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = (nginx, "-p", str(folder), "-e", "stderr", "-c", str(config))
    with (
        running("accounts", standin, folder=folder, env=env, cores=cores) as navidrome,
        running("origin", command, folder=folder, cores=cores) as process,
    ):
        navidrome.wait_for_port(accounts)
        process.wait_for_port(port)
        yield port


def _write_files(files: Path) -> None:
    files.mkdir()
    (files / "cover.webp").write_bytes(os.urandom(COVER_BYTES))
    with (files / "track.flac").open("wb") as track:
        for _ in range(TRACK_BYTES // 1_000_000):
            track.write(os.urandom(1_000_000))
