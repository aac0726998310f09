"""Read the pages of the documentation: links, headings, code blocks and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Without the changelog, which may name settings that were removed.
PAGES = (
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "deploy").rglob("*.md")),
)
SHELLS = ("sh", "bash")

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_PROGRAM = "navidrome-shim"
_IMAGE = "navidrome-auth-shim"
# Options of `docker compose` and `docker run` that take a value.
_WITH_VALUE = {
    "--entrypoint",
    "--env",
    "--env-file",
    "--file",
    "--name",
    "--network",
    "--user",
    "--volume",
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block: its language, its text, and the line of the page where it begins."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the fenced code blocks of a page."""
    text = page.read_text()
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """Return the page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def inline_code(page: Path) -> list[str]:
    """Return the texts between backticks, with line breaks as blanks."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def block_commands(page: Path) -> list[list[str]]:
    """Return the words of each command in the page's shell blocks."""
    return [words for b in blocks(page) if b.language in SHELLS for words in _commands(b.text)]


def inline_commands(page: Path) -> list[list[str]]:
    """Return the words of each command between the page's backticks."""
    codes = [code for code in inline_code(page) if not code.startswith("-")]
    return [words for code in codes for words in _commands(code)]


def shim_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments that a command gives to the shim, None if it does not run the shim."""
    if not words:
        return None
    if words[:2] == ["docker", "compose"]:
        rest = _after_options(words[2:])
        if rest[:1] == ["exec"]:
            return shim_arguments(_after_options(rest[1:])[1:])
        return None
    if words[:2] == ["docker", "run"]:
        rest = _after_options(words[2:])
        return rest[1:] if rest[:1] == [_IMAGE] and "--entrypoint" not in words else None
    if words[0] == "kubectl":
        return shim_arguments(words[words.index("--") + 1 :]) if "--" in words else None
    return words[1:] if Path(words[0]).name == _PROGRAM else None


def _after_options(words: list[str]) -> list[str]:
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] in _WITH_VALUE else 1
    return words[at:]


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command: a line, or several with a backslash or an open quote between them."""
    pending = ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        lexer = shlex.shlex(pending, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # an open quote
            pending += "\n"
            continue
        pending = ""
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                yield command
                command = []
            else:
                command.append(word)
