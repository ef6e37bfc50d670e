"""pellucid batch IN OUT: answers a file of requests. pellucid record MODEL CORPUS: the activations of a corpus."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import OptionGroup, command
from pellucid.cli.options import EncoderLoading, Loading, VectorFolder, load, registered
from pellucid.cli.serving_options import CLUSTER, ClusterOptions, FixedCluster, Replicas
from pellucid.errors import InvalidRequest, brief
from pellucid.util.checks import whole

if TYPE_CHECKING:
    from pellucid.load_options import LoadOptions
    from pellucid.trace.dataset.activation_dataset import RecordedDataset
    from pellucid.trace.dataset.index import DatasetOptions
    from pellucid.util.text_file import TextFile

MAX_CONCURRENCY = 1024


@command("batch", renamed={"--together": "--concurrency"})
def batch_command(
    source: Path = common.argument("IN", "The requests, a JSON object in each line; - for standard input.", ...),
    target: Path = common.argument(
        "OUT", "The file of answers; - for standard output. An interrupted batch continues in its file.", ...
    ),
    model: str | None = common.text("MODEL", "The model for all requests. Default: the model that the requests name."),
    vectors: VectorFolder = None,
    concurrency: Any = common.count("Maximum requests that run at the same time.", 64),
    *,
    loading: Loading,
    cluster: FixedCluster,
) -> None:
    """Answer the requests of a file (chat completions, text completions, embeddings), several at a time."""
    from pellucid.runtime.memory import share_heaps
    from pellucid.serve.batch import Batch
    from pellucid.serve.batch_output import STANDARD, options_hash
    from pellucid.util.interpreter import collect_requests
    from pellucid.util.paths import output_lock

    share_heaps()
    collect_requests()
    replicas, control = cluster.checked(), registered(vectors)
    together = whole("concurrency", concurrency, 1, MAX_CONCURRENCY)
    with output_lock("OUT", target), Batch(source, target, model, together) as batch:
        if batch.total:
            named = model or batch.model
            batch.bind(_hash(named, loading), options_hash(loading, control.digest))
        if batch.lines and replicas is not None:
            with replicas.model(named, loading) as llm, common.progress() as bars:
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
    from pellucid.weights.manifest import model_hash

    with common.progress() as bars:
        opened = open_model(model, loading, progress=bars)
        try:
            return model_hash(opened.checkpoint, bars)
        finally:
            opened.checkpoint.close()


MEGABYTE = 1_000_000
PARTS = common.count("Parts that run at once on the cluster, in a folder that all machines share. Default: 1.", ...)
RecordingCluster = Annotated[
    ClusterOptions,
    OptionGroup(
        {"cluster": CLUSTER["cluster"], "replicas": Annotated[Any, PARTS], "replica_cpus": CLUSTER["replica_cpus"]}
    ),
]


@command("record")
def record_command(
    model: common.Model,
    corpus: str = common.argument(
        "CORPUS", "A file of texts (.txt, .jsonl, .csv, .parquet), or a folder of .txt and .md files.", ...
    ),
    points: list[str] | None = common.text(
        "POINT", "The points, such as 'blocks.*.residual' (pellucid points MODEL lists them). May be repeated."
    ),
    out: str | None = common.text("FOLDER", "The folder of the dataset. An interrupted run continues."),
    field: str | None = common.text("NAME", "The field or column of the texts in CORPUS. Default: text."),
    dtype: str = common.text("TYPE", "The type of the stored values: float32, float16 or bfloat16.", "float32"),
    format: str = common.text("FORMAT", "safetensors, or parquet (needs pip install pyarrow).", "safetensors"),
    shard_size: Any = common.count("Maximum megabytes of a file. Default: 256."),
    part: str | None = common.text(
        "I/N",
        "Compute the I-th of N parts. The parts may run on different machines; the run that finds all shards in "
        "the folder writes its index.",
    ),
    truncate: common.Truncate = False,
    *,
    cluster: RecordingCluster,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Record the values of points for all tokens of a corpus: a dataset of activations."""
    from pellucid.trace.dataset.index import MOST_SHARD, DatasetOptions
    from pellucid.util.text_file import TextFile

    if not points or out is None:
        raise InvalidRequest("record needs --points POINT and --out FOLDER. See pellucid record --help.")
    if shard_size is not None:
        shard_size = MEGABYTE * whole("shard_size", shard_size, 1, MOST_SHARD // MEGABYTE)
    machines = cluster.checked()
    if machines is not None and part is not None:
        raise InvalidRequest(f"part={brief(part)}: the cluster computes all parts: leave --part or --cluster out")
    options = DatasetOptions.of(dtype, format, truncate, shard_size, part)
    source = TextFile(Path(corpus), field)
    next(source.texts(), None)  # a file that cannot be read is an error before the model is loaded
    made = _recorded(model, loading, source, points, Path(out), options, machines)
    if json:
        common.print_json(_document(made, out))
    else:
        print(_sentences(made, out))


def _recorded(
    model: str,
    loading: LoadOptions,
    source: TextFile,
    points: list[str],
    out: Path,
    options: DatasetOptions,
    machines: Replicas | None,
) -> RecordedDataset:
    """Record the dataset here, or on the cluster if ``machines`` are given."""
    if machines is not None:
        with common.progress() as bars:
            return machines.record(model, loading, source, points, out, options, bars.recording_shards)
    from pellucid.trace.dataset.activation_dataset import record_dataset

    with load(model, loading) as llm, common.progress() as bars:
        return record_dataset(llm, source, points, out, options, bars)


def _document(made: RecordedDataset, out: str) -> dict[str, Any]:
    index = made.index
    return {
        "folder": out,
        "complete": index is not None,
        "rows": None if index is None else index.rows,
        "shards": None if index is None else len(index.shards),
        "bytes": None if index is None else sum(shard.bytes for shard in index.shards),
        "sha256": None if index is None else index.sha256,
        "computed": {"rows": made.rows, "shards": made.shards, "bytes": made.nbytes, "seconds": round(made.seconds, 3)},
    }


def _sentences(made: RecordedDataset, out: str) -> str:
    speed = ""
    if made.rows:
        rate = max(made.seconds, 1e-9)
        speed = f"; {made.rows / rate:,.0f} rows/s, {made.nbytes / rate / MEGABYTE:,.0f} MB/s"
    if made.index is None:
        return f"{made.shards:,} shards with {made.rows:,} rows{speed}. Shards of other parts are missing: {out}"
    index = made.index
    size = sum(shard.bytes for shard in index.shards) / MEGABYTE
    count = len(index.run["points"])
    points = f"{count:,} point{'' if count == 1 else 's'}"
    return f"{index.rows:,} rows of {points}, {size:,.1f} MB{speed}: {out}\nsha256 {index.sha256}"
