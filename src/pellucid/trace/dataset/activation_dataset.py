"""Reads an activation dataset: arrays by point, shuffled batches, and a dataset for PyTorch.

data = ActivationDataset.open("activations")
data["blocks.5.residual"][:1000]  # (1000, D), mapped into memory
for batch in data.batches("blocks.5.residual", size=4096, seed=0):
    ...
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, InvalidRequest, brief, one_line, reason, shown
from pellucid.model.spec import ModelSpec
from pellucid.plan.plan import Plan
from pellucid.runtime.cache_layout import LayerShape
from pellucid.trace.dataset.columns import POSITIONS, TEXTS, TOKEN_IDS, RecordedColumns, RowArray, recorded_columns
from pellucid.trace.dataset.index import (
    DatasetFolder,
    DatasetIndex,
    DatasetOptions,
    DatasetProgress,
    canonical,
    read_index,
    write_index,
)
from pellucid.trace.dataset.shard_file import (
    ParquetColumns,
    ShardLayout,
    ShardWriter,
    cannot_be_written,
    mapped,
    sha256_of,
    write_parquet,
)
from pellucid.trace.dataset.shard_recorder import Corpus, CorpusReader, DatasetModel, ShardRecorder, ShardTexts, Survey
from pellucid.trace.recorded_run import identity
from pellucid.util.checks import whole
from pellucid.util.interpreter import run_apart
from pellucid.util.paths import make_folder
from pellucid.weights.manifest import model_hash

# Records an activation dataset: divides a corpus into shards, and computes the shards that are missing.
#
# A row has the same bits whatever runs beside it, and the division depends on the texts alone. So the files have the
# same bytes for any number of threads, parts and machines, and after any interruption.


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


class ActivationDataset:
    """The values of points for the tokens of a corpus, read from a folder. ``len`` is the number of rows.

    ``data["blocks.5.residual"]`` is a ``RowArray`` (rows, ...). Row i belongs to the token ``token_ids[i]`` at position
    ``positions[i]`` of the text ``texts[i]``. The rows have the order of the corpus. Points with one value for each
    text have a row for each text.

    Attributes:
        path: the folder.
        index: the contents of the index.
    """

    def __init__(self, path: Path, index: DatasetIndex) -> None:
        self.path, self.index = path, index
        self._columns = {column.name: column for column in index.columns}
        self._starts = np.cumsum([0, *(shard.rows for shard in index.shards)])
        self._shard = cache(self._opened)

    @classmethod
    def open(cls, path: str | Path) -> ActivationDataset:
        """Open the dataset in a folder. Values are read when they are used.

        Raises:
            FileFormatError: the folder has no complete dataset, or its index or the size of a shard is wrong.
        """
        path = Path(path)
        index = read_index(path)
        for number, shard in enumerate(index.shards):
            try:
                size = (path / shard.file).stat().st_size
            except OSError as error:
                raise FileFormatError(path / shard.file, "file", f"cannot be read: {reason(error)}") from error
            if size != shard.bytes or (shard.file.endswith(".safetensors") and size != index.layout(number).nbytes):
                raise FileFormatError(
                    path / shard.file, "size", f"is {size:,} bytes, and the index says {shard.bytes:,}"
                )
        return cls(path, index)

    def __repr__(self) -> str:
        texts = self.index.run.get("corpus", {}).get("texts")
        path = one_line(str(self.path))
        return f"ActivationDataset({path!r}, {len(self):,} rows of {texts} texts, {len(self.points)} points)"

    def __reduce__(self) -> Any:
        return ActivationDataset.open, (self.path,)  # the processes of a DataLoader open the files themselves

    def __len__(self) -> int:
        return self.index.rows

    @property
    def points(self) -> dict[str, dict[str, Any]]:
        """The recorded points by name: shape of a row, type, meaning, and the selected part."""
        return dict(self.index.run["points"])

    @property
    def sha256(self) -> str:
        """The hash of the dataset. It covers all its bytes."""
        return self.index.sha256

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> RowArray:
        """The values of a point, (rows, ...). Raises InvalidRequest if the dataset does not have the point."""
        if name not in self._columns:
            known = ", ".join(shown(one) for one in list(self.points)[:5])
            raise InvalidRequest(f"point={brief(name)}: it is not in this dataset; it has {known} ...")
        return RowArray(self._columns[name], self._starts.tolist(), partial(self._values, name))

    @property
    def texts(self) -> RowArray:
        """The number of each row's text in the corpus, (rows,) int32."""
        return self[TEXTS]

    @property
    def positions(self) -> RowArray:
        """The position of each row's token in its text, (rows,) int32."""
        return self[POSITIONS]

    @property
    def token_ids(self) -> RowArray:
        """The id of each row's token, (rows,) int32."""
        return self[TOKEN_IDS]

    def _opened(self, number: int) -> Mapping[str, NDArray[Any]]:
        path, layout = self.path / self.index.shards[number].file, self.index.layout(number)
        return ParquetColumns(path, layout) if path.suffix == ".parquet" else mapped(path, layout)

    def _values(self, name: str, number: int) -> NDArray[Any]:
        return self._shard(number)[name]

    def rows_of(self, text: int) -> slice:
        """The rows of a text of the corpus. Raises InvalidRequest if the corpus does not have the text."""
        texts = int(self.index.run["corpus"]["texts"])
        text = whole("text", text, 0, texts - 1, "the corpus has no more texts")
        firsts = [shard.first_text for shard in self.index.shards]
        number = int(np.searchsorted(firsts, text, "right")) - 1
        own = np.asarray(self._values(TEXTS, number))
        start, stop = (int(np.searchsorted(own, text, side)) for side in ("left", "right"))
        before = int(self._starts[number])
        return slice(before + start, before + stop)

    def batches(self, *names: str, size: int = 1024, seed: int | None = None, epochs: int | None = 1) -> Iterator[Any]:
        """Yield batches of rows: an array (size, ...) of the named column, or a tuple of arrays for several names.

        Args:
            names: points, or "texts", "positions", "token_ids".
            size: rows of a batch. The last batch of an epoch may be smaller.
            seed: shuffles the rows. Each epoch has its own order, which depends on the seed alone. A permutation takes
                8 bytes for each row of the dataset. None: the order of the corpus.
            epochs: the number of times that all rows are read. None: without an end.

        Raises:
            InvalidRequest: a name is not in the dataset, or a number is out of range.
        """
        if not names:
            raise InvalidRequest("batches: no column is named: name a point of the dataset")
        size = whole("size", size, 1, 1 << 40)
        seed = None if seed is None else whole("seed", seed, 0, (1 << 63) - 1)
        epochs = None if epochs is None else whole("epochs", epochs, 1, 1 << 40)
        return self._batches([self[name] for name in names], size, seed, epochs)

    def _batches(self, columns: list[RowArray], size: int, seed: int | None, epochs: int | None) -> Iterator[Any]:
        for epoch in count() if epochs is None else range(epochs):
            order = None if seed is None else np.random.default_rng([seed, epoch]).permutation(len(self))
            for start in range(0, len(self), size):
                rows = slice(start, start + size) if order is None else order[start : start + size]
                arrays = tuple(column[rows] for column in columns)
                yield arrays[0] if len(arrays) == 1 else arrays

    def torch(self, *names: str) -> Any:
        """A ``torch.utils.data.Dataset`` of rows: a tensor of the named column, or a tuple of tensors.

        Tensors have the type on disk, also bfloat16.

        Raises:
            InvalidRequest: PyTorch is not installed, or a name is not in the dataset.
        """
        try:
            from pellucid.trace.dataset.torch_rows import TorchRows
        except ImportError:
            raise InvalidRequest("torch: is not installed: pip install torch, or use batches()") from None
        if not names:
            raise InvalidRequest("torch: no column is named: name a point of the dataset")
        for name in names:
            self[name]
        return TorchRows(self, names)

    def verify(self) -> None:
        """Compare the SHA-256 of all shards with the index. Raises FileFormatError if a shard has other bytes."""
        for shard in self.index.shards:
            try:
                digest = sha256_of(self.path / shard.file)
            except OSError as error:
                raise FileFormatError(self.path / shard.file, "file", f"cannot be read: {reason(error)}") from error
            if digest != shard.sha256:
                raise FileFormatError(
                    self.path / shard.file,
                    "sha256",
                    f"is {digest[:12]}…, and the index says {shown(shard.sha256)[:12]}…: the file is damaged",
                )
