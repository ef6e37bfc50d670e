"""Records an activation dataset on a Ray cluster: each task records a part, in a folder that all machines share.

A part is the same as ``pellucid record --part``. Ray starts a task again if its machine is lost; the task then computes
only the shards that are missing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from msgspec import Struct
from msgspec.structs import replace

from pellucid.cluster.ray_actors import connect
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.load_options import LoadOptions
from pellucid.loading import load_model, open_model
from pellucid.trace.dataset.activation_dataset import RecordedDataset, record_dataset
from pellucid.trace.dataset.index import DatasetOptions, NoProgress, read_index, shards_in
from pellucid.util.text_file import TextFile

POLL = 0.5  # seconds between two looks at the folder
RETRIES = 10  # times that Ray starts a task again


class DatasetJob(Struct, frozen=True):
    """A dataset to record: the model's ``source``, and paths that lead to the same files on all machines.

    ``field`` is the field of the texts (None: "text"). Each part runs on ``cpus`` cores.
    """

    source: str
    load: LoadOptions
    corpus: Path
    field: str | None
    points: tuple[str, ...]
    out: Path
    options: DatasetOptions
    parts: int
    cpus: int


def record_on_cluster(job: DatasetJob, address: str, progress: Callable[[int, int], object]) -> RecordedDataset:
    """Record a dataset in ``job.parts`` parts on the cluster at an address. ``progress`` gets numbers of shards.

    Raises:
        InvalidRequest: there is no cluster at the address, or the machines do not share the folder.
        PellucidError: the error of a part.
    """
    begun = time.perf_counter()
    found = open_model(job.source, job.load)  # an unknown model is refused here
    found.checkpoint.close()
    # All machines need the same context, whatever memory is free on them.
    job = replace(job, load=replace(job.load, context=found.inputs.context))
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints the loss of a process to standard output
        connect(address)
        try:
            made = _parts(job, progress)
        finally:
            ray.shutdown()
    return _joined(job, made, time.perf_counter() - begun)


def _parts(job: DatasetJob, progress: Callable[[int, int], object]) -> list[RecordedDataset]:
    """Run all parts as tasks of Ray."""
    task = ray.remote(num_cpus=job.cpus, max_retries=RETRIES)(record_part)
    waiting = [task.remote(job, number) for number in range(1, job.parts + 1)]
    made = list[RecordedDataset]()
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=POLL)
            made += [_result(one) for one in ready]
            progress(*shards_in(job.out))
    finally:
        for one in waiting:
            ray.cancel(one, force=True)
    return made


def record_part(job: DatasetJob, number: int) -> RecordedDataset:
    """Record a part, in a process of Ray."""
    options = job.options._replace(part=(number, job.parts))
    with load_model(job.source, replace(job.load, threads=job.load.threads or job.cpus)) as llm:
        corpus = TextFile(job.corpus, job.field)
        return record_dataset(llm, corpus, job.points, job.out, options, NoProgress())


def _result(reference: Any) -> RecordedDataset:
    try:
        found: RecordedDataset = ray.get(reference)
        return found
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PellucidError):
            raise error.cause from None
        raise
    except ray.exceptions.WorkerCrashedError:
        raise InvalidRequest(
            f"a part was lost {RETRIES} times with its machine: run the same command again to continue"
        ) from None


def _joined(job: DatasetJob, made: Sequence[RecordedDataset], seconds: float) -> RecordedDataset:
    """The result of all parts."""
    if not any(one.index for one in made):
        raise InvalidRequest(
            f"out={str(job.out)!r}: no machine has all shards in this folder: name a folder that all machines share, "
            "or copy the shards to one folder and run the command without --cluster"
        )
    rows, nbytes = sum(one.rows for one in made), sum(one.nbytes for one in made)
    return RecordedDataset(read_index(job.out), sum(one.shards for one in made), rows, nbytes, seconds)
