"""The static files of the pages: style sheet, scripts, icon.

A file's URL has a hash of its content, so that a browser may keep it for ever. All files are in memory, plain
and compressed, since they are few and small.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "static"
IMMUTABLE: Final = "private, max-age=31536000, immutable"

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file. `name` is the last part of its URL."""

    name: str
    media_type: str
    plain: bytes
    compressed: bytes


@cache
def assets() -> dict[str, Asset]:
    """Return the files by the names that the templates use, such as `console.css`."""
    return {
        path.name: _asset(path) for path in sorted(FOLDER.iterdir()) if path.suffix in _MEDIA_TYPES
    }


@cache
def asset_names() -> dict[str, str]:
    """Return the name in the URL of each file."""
    return {name: asset.name for name, asset in assets().items()}


def find_asset(name: str) -> Asset | None:
    """Return the file with this name in its URL."""
    return next((asset for asset in assets().values() if asset.name == name), None)


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:12]
    return Asset(
        f"{path.stem}.{digest}{path.suffix}",
        _MEDIA_TYPES[path.suffix],
        content,
        gzip.compress(content, 9, mtime=0),
    )
