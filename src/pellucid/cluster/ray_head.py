"""Ray's head: joining the cluster, and calls to the head.

If the head is down, calls to the head block until it is up again, so each call has its own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import ray

from pellucid.cluster.ray_actors import RECONNECTS
from pellucid.errors import InvalidRequest

T = TypeVar("T")
NAMESPACE = "pellucid"
REACHES = 5.0  # timeout in seconds for joining the cluster, and for calls to its head when the server ends
WAITS_FOR_HEAD = "3600"  # seconds until this process ends without Ray's head


def connect(address: str) -> None:
    """Join the Ray cluster at an address. "auto" joins this machine's cluster, or starts a local cluster if none runs.

    Raises:
        InvalidRequest: there is no cluster at the address, or this system cannot be part of one.
    """
    if sys.platform == "win32":
        raise InvalidRequest("a cluster needs Linux or macOS: Ray joins no machines on Windows; leave out --cluster")
    # For this process, and for Ray's processes if this call starts them.
    os.environ.setdefault(RECONNECTS, WAITS_FOR_HEAD)
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "auto":
            try:
                ray.init(address="auto", **options)
            except ConnectionError:
                ray.init(include_dashboard=False, **options)
        else:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), REACHES).close()  # Ray itself retries for a minute
            ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InvalidRequest(f"cluster={address!r}: no Ray cluster can be joined at this address: {first}") from None


async def ask_head(call: Callable[[], T]) -> T:
    """Call Ray's head in a new thread, and return the result. While the head is down, only this thread blocks.

    A thread pool would fill with blocked threads, and would delay the end of the server.

    Raises: any error of ``call``.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def end(setter: Callable[[Any], None], value: Any) -> None:
        if not result.done():
            setter(value)

    def run() -> None:
        try:
            outcome = result.set_result, call()
        except Exception as error:
            outcome = result.set_exception, error  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end, *outcome)

    threading.Thread(target=run, name="pellucid-ray", daemon=True).start()
    return await result
