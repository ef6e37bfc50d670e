"""A model that is divided into stages, in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pellucid
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.stage_server import StageServer, runner_of
from pellucid.cluster.staged_runner import StagedRunner
from pellucid.llm import LLM
from support.replicas import SECRET

PROMPT = "the cat sat on the mat, and "


@contextmanager
def stages(path: Path, count: int) -> Iterator[list[StageServer]]:
    """Serve all stages of a model but the last one, each in its own thread."""
    before = [pellucid.load(path, threads=1 + n % 2, make=runner_of(n, count)) for n in range(count - 1)]
    servers = [StageServer(llm.runner, ClusterSecret(SECRET)) for llm in before]
    serving = [threading.Thread(target=one.serve) for one in servers]
    for thread in serving:
        thread.start()
    try:
        yield servers
    finally:
        for server in servers:
            server.close()
        for thread in serving:
            thread.join()
        for one in before:
            one.close()


def staged(path: Path, addresses: Sequence[str], threads: int = 1) -> LLM:
    """Load the last stage of a model, which leads the stages at some addresses."""
    make = partial(StagedRunner, stages=addresses, secret=ClusterSecret(SECRET))
    return pellucid.load(path, threads=threads, make=make)
