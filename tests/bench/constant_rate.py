"""A flood at a constant rate, from its own process.

`python -m tests.bench.constant_rate PORT RATE CONNECTIONS ALGORITHM` sends until its standard input ends,
and then prints the responses in one line of JSON. wrk has no rate: it sends as fast as it gets
responses, which measures something else.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.forged_tokens import Forger
from tests.bench.load import LoadFailed


@dataclass(slots=True)
class FloodResult:
    """The result: responses by their status, and the seconds in which they came.

    Filled in at the end.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0


@contextmanager
def constant_rate_flood(
    forger: Forger, port: int, rate: int, connections: int, cores: frozenset[int]
) -> Iterator[FloodResult]:
    """Sends to 127.0.0.1:`port` while the block runs. Raises LoadFailed if it ended by itself."""
    flood_result = FloodResult()
    command = [
        sys.executable,
        "-m",
        "tests.bench.constant_rate",
        str(port),
        str(rate),
        str(connections),
    ]
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
        process = subprocess.Popen(
            [*command, forger.algorithm],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    finally:
        os.sched_setaffinity(0, before)
    try:
        yield flood_result
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise LoadFailed(f"the flood ended with {process.returncode}")
    report = json.loads(output)
    flood_result.statuses = {int(status): count for status, count in report["statuses"].items()}
    flood_result.seconds = report["seconds"]


class _Flood:
    """One request in progress on each connection."""

    def __init__(self, port: int, connections: int, forger: Forger) -> None:
        self._port = port
        self._requests = forger.requests()
        self._idle = [self._connect() for _ in range(connections)]
        self._busy: set[socket.socket] = set()
        self.statuses: Counter[int] = Counter()

    def run(self, rate: int) -> float:
        """Until standard input ends; returns the seconds that it took."""
        start = time.perf_counter()
        sent = 0
        while True:
            due = int((time.perf_counter() - start) * rate) - sent
            for _ in range(min(due, len(self._idle))):
                connection = self._idle.pop()
                connection.sendall(next(self._requests))
                self._busy.add(connection)
                sent += 1
            # If no connection is idle, wait for a response, else for the next request's time.
            rest = max(0.0, start + (sent + 1) / rate - time.perf_counter())
            waited: list[int | socket.socket] = [0, *self._busy]
            ready, _, _ = select.select(waited, [], [], rest if self._idle else 1.0)
            if 0 in ready:
                return time.perf_counter() - start
            for connection in self._busy.intersection(ready):
                self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        response = connection.recv(65536)
        self._busy.discard(connection)
        self.statuses[int(response[9:12] or 0)] += 1
        if not response or b"Connection: close" in response:
            connection.close()
            connection = self._connect()
        self._idle.append(connection)

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=5)


def main() -> None:
    # On the load's core the measured client and the origin have priority, or their waiting would be
    # measured.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    port, rate, connections, algorithm = sys.argv[1:]
    flood = _Flood(int(port), int(connections), Forger(algorithm))
    seconds = flood.run(int(rate))
    print(json.dumps({"statuses": flood.statuses, "seconds": seconds}))


if __name__ == "__main__":
    main()
