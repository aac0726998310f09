"""A process without memory exits; any other error leaves it running."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shim.app.out_of_memory import EXIT_STATUS

_SCRIPT = """
import asyncio, threading, uvloop
from shim.app.out_of_memory import end_process_on_memory_error

class Failing(asyncio.Protocol):
    def data_received(self, data):
        raise {error}

def fail():
    raise {error}

async def task():
    raise {error}

async def main():
    loop = asyncio.get_running_loop()
    end_process_on_memory_error(loop)
    {where}
    await asyncio.sleep(0.2)
    print("alive")

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""
_CONNECT = """server = await loop.create_server(Failing, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"x")"""
_PLACES = {
    "callback": "loop.call_soon(fail)",
    "connection": _CONNECT,
    "task": "asyncio.create_task(task())",
    "thread": "threading.Thread(target=fail).start()",
}


@pytest.mark.parametrize("place", _PLACES)
@pytest.mark.parametrize(("error", "status"), [("MemoryError()", EXIT_STATUS), ("OSError()", 0)])
def test_a_memory_error_ends_the_process(place: str, error: str, status: int) -> None:
    script = _SCRIPT.format(error=error, where=_PLACES[place])
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == status, ended.stderr
    assert ("out of memory" in ended.stderr, ended.stdout) == (
        (True, "") if status else (False, "alive\n")
    )
