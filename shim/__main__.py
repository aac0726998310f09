"""`python -m shim` is `navidrome-shim`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["health"] and not {"-h", "--help"} & set(sys.argv):
        # Asked every half minute: it loads none of the other commands' code.
        from shim.cli.health import health  # noqa: PLC0415

        sys.exit(health(sys.argv[2:]))
    if sys.argv[1:] == ["serve"]:
        # It runs for months: what parses command lines costs 2 MB.
        from shim.cli.serve import serve  # noqa: PLC0415

        serve()
        return
    from shim.cli.main import main as cli  # noqa: PLC0415

    cli()


if __name__ == "__main__":
    main()
