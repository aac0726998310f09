"""`python -m tests.support.provisioning_load ROUND`: a shim that is busy with accounts until it is killed.

It provisions users, renames half of them and changes their groups, all concurrently, and prints
when it has begun.
"""

from __future__ import annotations

import asyncio
import os
import sys

from shim.provisioning.factory import build_accounts
from shim.proxy.gate import RequestInfo
from shim.settings import load
from shim.store.database import Database
from shim.trust.identity import Identity

USER_COUNT = 12


def identities(at: int) -> list[Identity]:
    """The identities of this round: every user, some with a new name, some in other groups."""
    return [
        Identity(
            f"person{number}-{at if number % 2 else 0}",
            f"Person {number} in round {at}",
            f"p{number}@example.com",
            ("admins",) if (number + at) % 3 == 0 else (),
            f"uid-{number}",
        )
        for number in range(USER_COUNT)
    ]


async def main(at: int) -> None:
    settings = load(os.environ)
    database = Database(settings.database_url.get_secret_value())
    accounts = build_accounts(settings, lambda event: None, database)  # noqa: ARG005
    await accounts.gate.start()
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    request_info = RequestInfo("192.0.2.1", "r", verified=True)
    await asyncio.gather(*(accounts.gate.ensure(one, request_info) for one in identities(at)))
    sys.stdout.write("done\n")
    sys.stdout.flush()
    await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
