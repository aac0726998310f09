"""`python -m shim` is `navidrome-shim`."""

from __future__ import annotations

from shim.cli import main

if __name__ == "__main__":
    main()
