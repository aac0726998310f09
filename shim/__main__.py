"""`python -m shim` is `navidrome-shim`."""

from __future__ import annotations

import sys
from typing import cast

# httpx and structlog import these if they are installed, for output that the serving process does not use.
# They are installed for the commands and take 4 MB. With None, Python raises ImportError, which both packages
# expect.
_UNUSED_BY_SERVE = ("rich", "httpx._main")


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["health"] and not {"-h", "--help"} & set(sys.argv):
        # Asked every half minute: it loads none of the other commands' code.
        from shim.cli.health import health  # noqa: PLC0415

        sys.exit(health(sys.argv[2:]))
    if sys.argv[1:] == ["serve"]:
        # It runs for months: what parses command lines costs 2 MB.
        modules = cast("dict[str, object]", sys.modules)
        modules.update(dict.fromkeys(_UNUSED_BY_SERVE))
        from shim.cli.serve import serve  # noqa: PLC0415

        serve()
        return
    from shim.cli.main import main as cli  # noqa: PLC0415

    cli()


if __name__ == "__main__":
    main()
