"""Connections between the processes of a run. They show within seconds that a process has died.

A collective operation notices a dead process only while it waits for it, and NCCL not even then. The first process may buy completions
for hours without a collective operation. So each other process keeps a connection to the first process open. When one of the two dies,
the kernel closes the connection. When a machine is gone, keepalive ends the connection after a minute.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable

_PATIENCE_S = 120.0  # until all processes are connected
_GRACE_S = 3.0  # in which most collective operations fail by themselves, with a better message
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}  # seconds, seconds, tries; Linux's names


class Lifeline:
    """This process's end of the connections. When another process has died, it prints a message and ends this process.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        host: Address of the first process's machine; None if all processes are on one machine.
        share: Broadcasts the first process's text to all processes; the others pass None.
    """

    def __init__(self, rank: int, size: int, host: str | None, share: Callable[[str | None], str | None]) -> None:
        self._rank, self._size = rank, size
        self._leaving = False
        self._open: list[socket.socket] = []
        if rank == 0:
            with socket.create_server(("" if host else "127.0.0.1", 0)) as server:
                server.settimeout(_PATIENCE_S)
                token = secrets.token_hex(8)
                share(f"{server.getsockname()[1]} {token}")
                while len(self._open) < size - 1:
                    connection, _ = server.accept()
                    greeting = _read_line(connection)
                    if greeting.startswith(token):
                        self._watch(connection, int(greeting.split()[1]))
        else:
            port, _, token = (share(None) or "").partition(" ")
            connection = socket.create_connection((host or "127.0.0.1", int(port)), timeout=_PATIENCE_S)
            connection.sendall(f"{token} {rank}\n".encode())
            self._watch(connection, 0)

    def _watch(self, connection: socket.socket, other_rank: int) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._open.append(connection)
        threading.Thread(target=self._wait, args=(connection, other_rank), daemon=True).start()

    def _wait(self, connection: socket.socket, other_rank: int) -> None:
        with contextlib.suppress(OSError):
            connection.recv(1)  # returns when the connection ends, because nothing is ever sent
        time.sleep(_GRACE_S)
        if not self._leaving:
            message = f"rank {self._rank}: rank {other_rank} of {self._size} has ended; the same command continues"
            print(message, file=sys.stderr, flush=True)
            os._exit(1)

    def leave(self) -> None:
        """Ignore the end of other processes from now on, because the run is over for this process."""
        self._leaving = True

    def close(self) -> None:
        """Close the connections."""
        for connection in self._open:
            connection.close()


def _read_line(connection: socket.socket) -> str:
    connection.settimeout(_PATIENCE_S)
    data = b""
    while not data.endswith(b"\n") and len(data) < 64 and (part := connection.recv(64)):
        data += part
    return data.decode("ascii", "replace")
