"""Telling systemd how a service fares: the protocol of sd_notify(3), one datagram of lines."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


def notify(*lines: str, environ: Mapping[str, str] = os.environ) -> None:
    """Sends ``READY=1`` and the like to whoever ``NOTIFY_SOCKET`` names; nothing happens where nobody asked for it, or
    where it cannot be told: that is no reason to fail."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto("\n".join(lines).encode(), name)
    except OSError:
        pass


def ready(status: str) -> None:
    """The service answers."""
    notify("READY=1", f"STATUS={status}")


def status(text: str) -> None:
    """What the service does now, in one line for people."""
    notify(f"STATUS={text}")


def reloading() -> None:
    """The service reads its configuration anew; :func:`ready` ends that."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    """The service ends."""
    notify("STOPPING=1")
