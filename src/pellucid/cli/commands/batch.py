"""pellucid batch IN OUT: answers a file of requests in OpenAI's batch format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import Loading, load
from pellucid.cli.sampling_options import VectorFolder, registered
from pellucid.cli.serving_options import Cluster, ReplicaCount, ReplicaCpus, Replicas, StageCount
from pellucid.util.checks import whole

if TYPE_CHECKING:
    from pellucid.load_options import LoadOptions

MAX_CONCURRENCY = 1024


def command(
    source: Path = common.argument("IN", "The requests, a JSON object in each line; - for standard input.", ...),
    target: Path = common.argument(
        "OUT", "The file of answers; - for standard output. An interrupted batch continues in its file.", ...
    ),
    model: str | None = common.text("MODEL", "The model for all requests. Default: the model that the requests name."),
    vectors: VectorFolder = None,
    concurrency: Any = common.count("Maximum requests that run at the same time.", 64),
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
    from pellucid.serve.batch_output import STANDARD, options_hash
    from pellucid.util.interpreter import collect_requests
    from pellucid.util.paths import output_lock

    share_heaps()
    collect_requests()
    cluster_replicas = Replicas.of(cluster, replicas, None, replica_cpus, stages)
    control = registered(vectors)
    together = whole("concurrency", concurrency, 1, MAX_CONCURRENCY)
    with output_lock("OUT", target), Batch(source, target, model, together) as batch:
        if batch.total:
            named = model or batch.model
            batch.bind(_hash(named, loading), options_hash(loading, control.digest))
        if batch.lines and cluster_replicas is not None:
            with cluster_replicas.model(named, loading) as llm, common.progress() as bars:
                llm.vectors = control
                batch.run(llm, bars.answering)
        elif batch.lines:
            local = load(named, loading)
            local.vectors = control
            with common.progress() as bars:
                batch.run(local, bars.answering)
    failed = f", {batch.failed:,} of them with an error" if batch.failed else ""
    to_stdout = str(target) == STANDARD  # the summary must not mix with the answers
    print(
        f"{batch.answered:,} of {batch.total:,} requests answered{failed}" + ("" if to_stdout else f": {target}"),
        file=sys.stderr if to_stdout else sys.stdout,
    )


def _hash(model: str, loading: LoadOptions) -> str:
    """The hash of a model's files. A missing model is downloaded."""
    from pellucid.loading import open_model
    from pellucid.weights.model_hash import model_hash

    with common.progress() as bars:
        opened = open_model(model, loading, progress=bars)
        try:
            return model_hash(opened.checkpoint, bars)
        finally:
            opened.checkpoint.close()


COMMAND = Command("batch", command, renamed={"--together": "--concurrency"})
