"""A port for a program that will listen on it later, which nobody else is given until then."""

from __future__ import annotations

import socket


def reserve_port() -> socket.socket:
    """Return a socket that keeps a free port of this machine; the port is `getsockname()[1]`.

    While it is open, and does not listen, the kernel gives the port to nobody who asks for any; who asks for
    this one with SO_REUSEADDR, as servers do, gets it.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held
