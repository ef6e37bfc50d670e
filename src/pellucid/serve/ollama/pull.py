"""/api/pull: downloads a model and reports its progress."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import Any

from pellucid.serve.pool import ModelPool

EVERY = 0.2  # seconds between two lines


class _PullProgress:
    """A ``DownloadProgress`` that stores its last ``state``, which the event loop reads."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"status": "pulling manifest"}

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """Store the state. Called by the download thread."""
        digest = "sha256:" + hashlib.sha256(label.encode()).hexdigest()
        total = {} if total_bytes is None else {"total": total_bytes}
        self.state = {"status": f"pulling {label}", "digest": digest, **total, "completed": done_bytes}


async def pulling(models: ModelPool, name: str) -> AsyncGenerator[dict[str, Any], None]:
    """Progress lines of a download. ``digest``, the hash of a file's name, lets clients tell files apart."""
    progress = _PullProgress()
    work, sent = asyncio.ensure_future(models.pulled(name, progress)), None
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=EVERY)
            if (state := progress.state) is not sent and not work.done():
                sent = state
                yield state
        work.result()
        yield {"status": "success"}
    finally:
        work.cancel()
