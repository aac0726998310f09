"""Who runs a command, for the audit trail."""

from __future__ import annotations

import os
import pwd

from shim.audit.events import Operator


def command_operator() -> Operator:
    """Return the user of this process: `command:NAME`, or the user's number if it has no name. The variables
    of the environment do not count, because the user sets them."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return Operator(f"command:{name}", "command")
