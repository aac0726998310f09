"""Generate `.env.example` and `docs/settings.md` from the table in `shim.settings.model`.

`python -m shim.settings.reference env` prints the first, `… markdown` the second. A test compares the files
with them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby

from shim.settings import ALIASES, SETTINGS, Setting
from shim.settings.sources import FILE_SUFFIX


def env_example() -> str:
    """Return every setting, commented out, with its default, or else an example or nothing."""
    lines = [
        "# The settings of navidrome-shim with their defaults. Copy this file to .env, remove the # from the",
        "# lines that you change, and run `navidrome-shim check`. Environment variables override this file.",
        f"# To read a secret from a file, set NAME{FILE_SUFFIX}=/path. Times are seconds, sizes are bytes.",
        "# $ has no special meaning.",
    ]
    for section, settings in _sections():
        lines += ["", f"## {section}"]
        for each in settings:
            lines += ["", f"# {each.description}"]
            if each.example:
                lines.append(f"# Example: {each.name}={_quoted(each.example)}")
            lines.append(f"#{each.name}={_quoted(each.default or '')}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """Return the reference, with a table for each section."""
    lines = [
        "# Settings",
        "",
        "Set a setting as an environment variable or as a line in `.env`. The environment overrides `.env`.",
        f"To read a setting marked *secret* from a file, set `NAME{FILE_SUFFIX}` to its path.",
        "",
        "Times are seconds, sizes are bytes.",
        "",
        "The shim does not start with an unknown `SHIM_` name, an invalid value, or settings that contradict",
        "each other. It prints one line for each fault. Run `navidrome-shim check` to test your settings.",
        "",
        "If a setting is not set, the shim reads Navidrome's own variable instead:",
        "",
        *(f"- `{alias.name}` for `{_name(alias.field)}`" for alias in ALIASES),
        "",
        "If both are set, they must be equal. The shim never reads Navidrome's list of trusted sources,",
        "because it names the peers of Navidrome, not of the shim.",
    ]
    for section, settings in _sections():
        lines += ["", f"## {section}", "", "| name | default | meaning |", "|---|---|---|"]
        for each in settings:
            default = f"`{_cell(each.default)}`" if each.default else "none"
            secret = " *Secret.*" if each.secret else ""
            lines.append(f"| `{each.name}` | {default} | {_cell(each.description)}{secret} |")
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[tuple[str, list[Setting]]]:
    for section, settings in groupby(SETTINGS, key=lambda each: each.section):
        yield section, list(settings)


def _name(field: str) -> str:
    return next(each.name for each in SETTINGS if each.field == field)


def _quoted(text: str) -> str:
    """Return a value for a line of `.env`, quoted if a blank or a # would end it."""
    return f"'{text}'" if set(text) & set(" #\"'") else text


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    print({"env": env_example, "markdown": markdown}[sys.argv[1]](), end="")
