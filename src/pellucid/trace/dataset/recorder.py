"""Records an activation dataset: divides a corpus into shards, and computes the shards that are missing.

A row has the same bits whatever runs beside it, and the division depends on the texts alone. So the files have the same
bytes for any number of threads, parts and machines, and after any interruption.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief, one_line
from pellucid.model.spec import ModelSpec
from pellucid.plan.plan import Plan
from pellucid.runtime.cache_layout import LayerShape
from pellucid.trace.dataset.columns import RecordedColumns, recorded_columns
from pellucid.trace.dataset.index import (
    DatasetFolder,
    DatasetIndex,
    DatasetOptions,
    DatasetProgress,
    canonical,
    write_index,
)
from pellucid.trace.dataset.shard_file import ShardLayout, ShardWriter, cannot_be_written, write_parquet
from pellucid.trace.dataset.shard_recorder import Corpus, CorpusReader, DatasetModel, ShardRecorder, ShardTexts, Survey
from pellucid.trace.recorded_run import identity
from pellucid.util.interpreter import run_apart
from pellucid.util.paths import make_folder
from pellucid.weights.model_hash import model_hash


class RecordedDataset(Struct, frozen=True):
    """The result of a recording: the ``index``, or None while shards of other parts are missing.

    ``shards`` and ``rows`` are the numbers of shards and rows that this process computed in ``seconds``; ``nbytes`` is
    the size of the rows.
    """

    index: DatasetIndex | None
    shards: int
    rows: int
    nbytes: int
    seconds: float


def record_dataset(
    model: DatasetModel,
    corpus: Corpus,
    points: Sequence[str],
    out: Path,
    options: DatasetOptions,
    progress: DatasetProgress,
) -> RecordedDataset:
    """Record ``points`` for all texts of a corpus in the folder ``out`` (``LLM.record_dataset``).

    Shards that are in the folder are not computed again. The index is written when all shards are there.

    Raises: as ``LLM.record_dataset``.
    """
    spec = model.model.spec
    columns = columns_of(model, points, options.dtype)
    reader = CorpusReader(
        corpus,
        partial(model.inputs.document, truncate=options.truncate),
        columns.tokens,
        model.tokenizer.piece,
        per_text=columns.rows == "texts",
    )
    survey = reader.survey(progress.surveying)
    run = _run(model, spec, columns, survey, options, model_hash(model.checkpoint, progress))
    shards = survey.shards(columns.row_bytes, options.shard_bytes)
    text = canonical(run)
    with _folder(out, options.part):
        folder = DatasetFolder(out, run, [len(shard.rows) for shard in shards])
        number, count = options.part
        missing = [one for one in shards[number - 1 :: count] if one.number not in folder.finished]
        sizes = [ShardLayout(columns.columns, len(one.rows), text).nbytes for one in missing]
        _check_disk(out, sizes, options.format)
        total = done = sum(len(one.rows) for one in shards[number - 1 :: count])
        done -= sum(len(one.rows) for one in missing)

        def opened(shard: ShardTexts) -> ShardWriter:
            layout = ShardLayout(columns.columns, len(shard.rows), text)
            convert = partial(write_parquet, layout=layout, run=text) if options.format == "parquet" else None
            return ShardWriter(folder.path(shard.number), layout, convert)

        def recorded(check: Callable[[], None]) -> dict[int, str]:
            def written(rows: int) -> None:
                nonlocal done
                check()
                done += rows
                progress.recording(done, total)

            recorder = ShardRecorder(model, columns, opened, written)
            return recorder.run(reader.texts([one.texts for one in missing]), missing)

        begun = time.perf_counter()
        progress.recording(done, total)
        hashes = run_apart(recorded)
        seconds = time.perf_counter() - begun
        index = _write_index(out, folder, columns, shards, hashes, f"{number}-of-{count}")
    rows = sum(len(one.rows) for one in missing)
    return RecordedDataset(index, len(missing), rows, rows * columns.row_bytes, seconds)


def columns_of(model: DatasetModel, points: Sequence[str], dtype: str) -> RecordedColumns:
    """The columns of a dataset of a model. Raises InvalidRequest as ``recorded_columns``, and for an
    encoder-decoder.
    """
    spec = model.model.spec
    if spec.encoder is not None:
        raise InvalidRequest(
            f"{spec.name}: datasets of encoder-decoders are not implemented: record a trace of each source"
        )
    columns = recorded_columns(model.points, points, dtype)
    for part in columns.selected:
        if part.point.rows == "outputs" and spec.pooling is not None:
            raise InvalidRequest(
                f"point={brief(part.name)}: this model computes it only for the tokens that it pools: record another "
                "point, such as blocks.-1.residual"
            )
    return columns


def _run(
    model: DatasetModel, spec: ModelSpec, columns: RecordedColumns, survey: Survey, options: DatasetOptions, sha256: str
) -> dict[str, Any]:
    """The facts that determine the bytes of a dataset."""
    return {
        "model": {
            **identity(spec),
            "sha256": sha256,
            "task": spec.task,
            "adapter": spec.adapter,
            **_numerics(model.plan),
        },
        "corpus": {"texts": len(survey.rows), "tokens": sum(survey.tokens), "sha256": survey.sha256},
        "points": columns.described(),
        "rows": columns.rows,
        "dtype": options.dtype,
        "format": options.format,
        "shard_bytes": options.shard_bytes,
    }


def _numerics(plan: Plan) -> dict[str, Any]:
    """The numbers that a plan computes with: bits of activations, types of keys and values, and its constants.

    The constants are here because some rotary frequencies depend on the context.
    """
    bits = {buffer.activation_bits for buffer in plan.buffers.values()} - {0}
    constants = canonical({name: list(values) for name, values in plan.constants.items()})
    return {
        "activation_bits": sorted(bits),
        "kv_cache": sorted({layer.kv_dtype for layer in plan.layers if isinstance(layer, LayerShape)}),
        "constants": hashlib.sha256(constants.encode()).hexdigest(),
    }


@contextlib.contextmanager
def _folder(out: Path, part: tuple[int, int]) -> Iterator[None]:
    """Make the folder, and hold a lock, so that no other process writes the same shards. Raises InvalidRequest if the
    folder cannot be written, or another process records this part.
    """
    from filelock import FileLock, Timeout

    number, count = part
    lock = FileLock(out / f".part-{number}-of-{count}.lock")
    try:
        make_folder(out)
        lock.acquire(timeout=0)
    except Timeout:
        raise InvalidRequest(
            f"out={brief(str(out))}: another process records part {number}/{count} in this folder: wait for it, or "
            "name another folder"
        ) from None
    except OSError as error:
        raise cannot_be_written(out, error) from error
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)


def _check_disk(out: Path, sizes: Sequence[int], format: str) -> None:
    """Refuse a dataset that does not fit on the disk. A shard in Parquet is also a safetensors file for a moment."""
    needed = sum(sizes) + (2 * max(sizes, default=0) if format == "parquet" else 0)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise InvalidRequest(
            f"out={one_line(str(out))}: the dataset needs {needed / 1e9:,.3f} GB, and {free / 1e9:,.3f} GB are free: "
            "name a folder on a larger disk, or record fewer points, dims or tokens, or dtype float16"
        )


def _write_index(
    out: Path,
    folder: DatasetFolder,
    columns: RecordedColumns,
    shards: Sequence[ShardTexts],
    hashes: dict[int, str],
    writer: str,
) -> DatasetIndex | None:
    if not all(folder.path(shard.number).is_file() for shard in shards):
        return None
    try:
        index = folder.index(columns.columns, [shard.texts.start for shard in shards], hashes)
        write_index(out, index, writer)
    except OSError as error:
        raise cannot_be_written(out, error) from error
    return index
