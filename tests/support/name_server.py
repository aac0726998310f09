"""A DNS server whose responses the test sets, and a namespace in which it is the only one.

It implements as much of RFC 1035 as getaddrinfo needs: one question, addresses of both families,
NXDOMAIN, or no response.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "127.0.0.153"
_TYPES = {1: 4, 28: 6}


class NameServer:
    """`records` has the addresses by name; a missing name does not exist. While `silent`, it sends
    no response.
    """

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.silent = False

    def respond(self, question: bytes) -> bytes | None:
        """The response to one datagram."""
        if self.silent:
            return None
        (number,) = struct.unpack_from(">H", question)
        labels, at = [], 12
        while (length := question[at]) > 0:
            labels.append(question[at + 1 : at + 1 + length].decode().lower())
            at += length + 1
        (kind,) = struct.unpack_from(">H", question, at + 1)
        echoed = question[12 : at + 5]
        addresses = self.records.get(".".join(labels))
        if addresses is None:
            return struct.pack(">HHHHHH", number, 0x8183, 1, 0, 0, 0) + echoed
        matching = [
            address
            for address in map(ipaddress.ip_address, addresses)
            if address.version == _TYPES.get(kind)
        ]
        records = b"".join(
            struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(address.packed)) + address.packed
            for address in matching
        )
        return struct.pack(">HHHHHH", number, 0x8180, 1, len(matching), 0, 0) + echoed + records


@contextmanager
def name_server() -> Iterator[NameServer]:
    """Listen on port 53 of an address of its own.

    Raises PermissionError without the privilege to do so.
    """
    server = NameServer()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind((ADDRESS, 53))
        listening.settimeout(0.1)
        stopping = threading.Event()

        def serve() -> None:
            while not stopping.is_set():
                try:
                    question, client = listening.recvfrom(512)
                except TimeoutError:
                    continue
                reply = server.respond(question)
                if reply is not None:
                    listening.sendto(reply, client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            stopping.set()
            thread.join()


def resolver_namespace(folder: Path) -> tuple[str, ...]:
    """The command prefix that makes this the only DNS server for a command; None where that can't
    be done here.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return ()
    for name, text in (
        ("resolv.conf", f"nameserver {ADDRESS}\noptions timeout:1 attempts:1\n"),
        ("nsswitch.conf", "hosts: dns\n"),
    ):
        (folder / name).write_text(text)
    binds = " && ".join(
        f"mount --bind {folder / name} /etc/{name}" for name in ("resolv.conf", "nsswitch.conf")
    )
    return ("unshare", "--mount", "sh", "-c", f'{binds} && exec "$@"', "sh")
