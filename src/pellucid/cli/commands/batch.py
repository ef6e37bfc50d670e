"""pellucid batch IN OUT: answers a file of requests in OpenAI's batch format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pellucid.cli import common
from pellucid.cli.cluster_options import Cluster, ReplicaCount, ReplicaCpus, Replicas, StageCount
from pellucid.cli.command import Command
from pellucid.cli.loading import Loading, load

MAX_CONCURRENCY = 1024


def command(
    source: Annotated[Path, common.argument("IN", "The requests, a JSON object in each line.")],
    target: Annotated[
        Path, common.argument("OUT", "The file of responses. An interrupted batch continues in this file.")
    ],
    model: Annotated[
        str | None,
        common.text("MODEL", "The model for all requests. Default: the model that the requests name."),
    ] = None,
    concurrency: Annotated[Any, common.count("Maximum requests that run at the same time.")] = 64,
    *,
    loading: Loading,
    cluster: Cluster = None,
    replicas: ReplicaCount = None,
    replica_cpus: ReplicaCpus = None,
    stages: StageCount = None,
) -> None:
    """Answer the requests of a file (chat completions, text completions, embeddings), several at a time."""
    from pellucid.runtime.memory import share_heaps
    from pellucid.serve.batch import Batch
    from pellucid.util.checks import whole
    from pellucid.util.garbage_collection import collect_requests

    share_heaps()
    collect_requests()
    cluster_replicas = Replicas.of(cluster, replicas, None, replica_cpus, stages)
    batch = Batch(source, target, model, whole("concurrency", concurrency, 1, MAX_CONCURRENCY))
    if batch.lines and cluster_replicas is not None:
        with cluster_replicas.model(model or batch.model, loading) as llm, common.progress() as bars:
            batch.run(llm, bars.answering)
    elif batch.lines:
        local = load(model or batch.model, loading)
        with common.progress() as bars:
            batch.run(local, bars.answering)
    failed = f", {batch.failed:,} of them with an error" if batch.failed else ""
    print(f"{batch.answered:,} of {batch.total:,} requests answered{failed}: {target}")


COMMAND = Command("batch", command, renamed={"--together": "--concurrency"})
