"""`python -m demo.navidrome [LISTEN [TRUSTED [BASE_PATH]]]`: a stand-in to try by hand.

Prints its address on one line, and runs until it is interrupted.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from demo.navidrome import StandIn, StandInOptions


async def _serve_until_signal(listen: str, trusted: str, base_path: str) -> None:
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leaving.set)
    stand_in = StandIn(StandInOptions(trusted_sources=trusted, base_path=base_path))
    await stand_in.start(listen)
    sys.stdout.write(f"{stand_in.listen}\n")
    sys.stdout.flush()
    await leaving.wait()
    await stand_in.stop()


given = [*sys.argv[1:], "", "", ""]
asyncio.run(_serve_until_signal(given[0] or "127.0.0.1:4533", given[1] or "127.0.0.1/32", given[2]))
