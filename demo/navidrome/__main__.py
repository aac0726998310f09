"""`python -m demo.navidrome [LISTEN [TRUSTED [BASE_PATH]]]`: a stand-in to try by hand.

Prints its address on one line, and runs until it is interrupted.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from demo.navidrome import StandIn, StandInOptions


async def _serve_until_signal(listen: str, trusted: str, base_path: str) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    stand_in = StandIn(StandInOptions(trusted_sources=trusted, base_path=base_path))
    await stand_in.start(listen)
    sys.stdout.write(f"{stand_in.listen}\n")
    sys.stdout.flush()
    await stopping.wait()
    await stand_in.stop()


arguments = [*sys.argv[1:], "", "", ""]
asyncio.run(
    _serve_until_signal(
        arguments[0] or "127.0.0.1:4533", arguments[1] or "127.0.0.1/32", arguments[2]
    )
)
