"""The way from this process to a Ray cluster."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lion_fast.errors import UserError

_CONNECT_SECONDS = 5.0
# How a client of HTTP/2 begins (RFC 9113, 3.4), with no settings; its server begins with settings.
_HTTP2_SETTINGS = b"\x04"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)


def connect(address: str) -> tuple[Any, bool]:
    """Return the module ray, connected, and whether that was done here and now.

    Raises UserError where no cluster answers at `address`, as `ray_pool` takes it.
    """
    check_answers(address)
    # Nothing is reported to anyone, and `Slot` itself hides the GPUs that are not a run's.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return ray, False
    try:
        with _terminate_handler_kept():
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({' '.join(str(error).split())[:200]}): start one"
            " with `ray start --head`, or take --ray local"
        ) from None
    return ray, True


def check_answers(address: str) -> None:
    """Raise UserError at once where no gRPC server listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    found = b""
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(_HTTP2_GREETING)
            found = connection.recv(9)
        obstacle = "something else listens there"
    except (OSError, OverflowError) as error:
        obstacle = str(error)
    if found[3:4] != _HTTP2_SETTINGS:
        raise UserError(
            f"no Ray cluster answers at {address} ({obstacle}): start one with `ray start --head`,"
            " or take --ray local"
        )


@contextmanager
def _terminate_handler_kept() -> Iterator[None]:
    """Let SIGTERM mean inside and afterwards what it did: Ray sets a handler of its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
