"""Who runs a command, for the audit trail, and what it prints of a recorded action."""

from __future__ import annotations

import os
import pwd
from typing import TypeVar

from shim.audit.events import Operator
from shim.audit.performing import Performed
from shim.cli.errors import print_error

T = TypeVar("T")


def command_operator() -> Operator:
    """Return the user of this process: `command:NAME`, or the user's number if it has no name. The variables
    of the environment do not count, because the user sets them."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return Operator(f"command:{name}", "command")


def report(done: Performed[T]) -> T:
    """Return what an action returned; print a note on it."""
    if done.note is not None:
        print_error(f"navidrome-shim: {done.note}")
    return done.value
