"""Print an error. Imports little, because `serve` holds what it imports as long as it runs."""

from __future__ import annotations

import sys

from shim.audit.sanitize import escape


def print_error(sentence: str) -> None:
    """Write one sentence to stderr, with controls and escape sequences escaped."""
    sys.stderr.write("\n".join(map(escape, sentence.split("\n"))) + "\n")
    sys.stderr.flush()
