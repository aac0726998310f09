"""The settings written out for people: `.env.example` and the reference of the documentation.

Everything is taken from the table in `shim.settings.model`. `python -m shim.settings.reference env` prints
the first, `… markdown` the second; a test holds the files in the tree to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby

from shim.settings import ALIASES, SETTINGS, Setting
from shim.settings.sources import FILE_SUFFIX


def env_example() -> str:
    """Every setting, commented out, with its default; what has none shows an example or nothing."""
    lines = [
        "# The settings of navidrome-shim, each with its default. Copy this file to .env, take the # from",
        "# the lines that you change, and see with `navidrome-shim check` what comes of it. The",
        "# environment wins over this file. A secret can also be the content of a file:",
        f"# NAME{FILE_SUFFIX}=/path. Times are seconds, sizes are bytes. $ stands for itself.",
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
    """The reference: a table for each section."""
    lines = [
        "# Settings",
        "",
        "Each is an environment variable, or a line in `.env`; the environment wins. Those marked",
        f"*secret* can also be the content of a file that `NAME{FILE_SUFFIX}` names. Times are seconds,",
        "sizes are bytes. An unknown `SHIM_` name, a value that cannot be read and values that",
        "contradict each other stop the start, one line for each.",
        "",
        "Some settings are read from Navidrome's own variables too, where ours is not set:",
        "",
        *(f"- `{alias.name}` for `{_name(alias.field)}`" for alias in ALIASES),
        "",
        "Both set and differing is a fault. Navidrome's list of trusted sources is never read: it names who",
        "may speak to Navidrome, which is the shim, not who may speak to the shim.",
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
    """A value as a line of `.env` has it: quoted where a blank or a # would end it."""
    return f"'{text}'" if set(text) & set(" #\"'") else text


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    print({"env": env_example, "markdown": markdown}[sys.argv[1]](), end="")
