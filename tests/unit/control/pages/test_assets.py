"""The static files: vendored files are unchanged, and every file can be cached indefinitely."""

from __future__ import annotations

import gzip
import hashlib
import re

from shim.control.pages.assets import FOLDER, assets, find_asset


def _sums() -> dict[str, str]:
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    return {
        name: digest
        for digest, name in (line.split("  ") for line in lines if not line.startswith("#"))
    }


def test_vendored_files_have_the_recorded_hash_and_their_licence() -> None:
    sums = _sums()
    assert set(sums) == {path.name for path in FOLDER.glob("htmx*")}
    assert any(name.endswith("LICENSE.txt") for name in sums)
    for name, digest in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_the_version_in_the_name_of_htmx_is_that_of_the_file() -> None:
    (path,) = FOLDER.glob("htmx*.js")
    version = path.name.removeprefix("htmx-").removesuffix(".min.js")
    assert f'version="{version}"' in path.read_text() or f"version:{version!r}" in path.read_text()


def test_the_name_of_a_file_has_the_hash_of_its_content() -> None:
    names = {name: asset.name for name, asset in assets().items()}
    assert {"console.css", "console.js", "icon.svg"} <= names.keys()
    for name, asset in assets().items():
        digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
        assert digest[:12] in asset.name
        assert find_asset(asset.name) is asset
        assert gzip.decompress(asset.compressed) == asset.plain


def test_a_name_without_its_hash_is_not_found() -> None:
    assert find_asset("console.css") is None
    assert find_asset("../assets.py") is None


def test_the_style_sheet_and_the_scripts_load_nothing_from_elsewhere() -> None:
    for name in ("console.css", "console.js"):
        text = (FOLDER / name).read_text()
        assert not re.search(r"https?://|@import|url\(", text), name
