"""`python -m shim` is `navidrome-shim`."""

from __future__ import annotations

import sys
from typing import cast

# Optional packages that other packages import if they are installed. With None, Python raises ImportError,
# which each of them expects.
_UNUSED_BY_SERVE = (
    "greenlet",  # 1 MB: SQLAlchemy's asyncio extension, and structlog for programs that use greenlets
    "httpx._main",  # 4 MB with rich: httpx's command
    "rich",  # structlog's tracebacks on a terminal
    "sniffio",  # httpcore looks for it on the whole path with each connection
)


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
