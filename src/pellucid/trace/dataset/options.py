"""The options of an activation dataset, and the progress of its recording."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.trace.dataset.columns import DTYPES
from pellucid.trace.dataset.index import FORMATS
from pellucid.trace.dataset.parquet_shard import check_parquet
from pellucid.util.checks import boolean, whole
from pellucid.weights.sources.source import DownloadProgress

SHARD_BYTES = 256_000_000
"""The usual size of a shard, in bytes."""
LEAST_SHARD, MOST_SHARD = 1 << 10, 1 << 40
MOST_PARTS = 100_000


class DatasetProgress(DownloadProgress, Protocol):
    """Receives the progress of a recording. ``update`` reports the hashing of the model's files."""

    def surveying(self, texts: int) -> object:
        """``texts`` texts were counted."""
        ...

    def recording(self, done: int, total: int) -> object:
        """``done`` of ``total`` rows were written."""
        ...


class NoProgress:
    """A ``DatasetProgress`` that shows nothing."""

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """As in ``DownloadProgress``."""

    def surveying(self, texts: int) -> None:
        """As in ``DatasetProgress``."""

    def recording(self, done: int, total: int) -> None:
        """As in ``DatasetProgress``."""


class DatasetOptions(NamedTuple):
    """Options of ``LLM.record_dataset``. ``part`` (number, count) selects the shards that this process computes."""

    dtype: str
    format: str
    truncate: bool
    shard_bytes: int
    part: tuple[int, int]

    @classmethod
    def of(
        cls,
        dtype: str = "float32",
        format: str = "safetensors",
        truncate: bool = False,
        shard_bytes: int | None = None,
        part: str | None = None,
    ) -> DatasetOptions:
        """Check the options. ``part`` is a text such as "2/8" (None: all shards), ``shard_bytes`` None the usual size.

        Raises:
            InvalidRequest: an option is out of range, or pyarrow is missing.
        """
        if dtype not in DTYPES:
            raise InvalidRequest(f"dtype={brief(dtype)}: must be one of {', '.join(DTYPES)}")
        if format not in FORMATS:
            raise InvalidRequest(f"format={brief(format)}: must be one of {', '.join(FORMATS)}")
        if format == "parquet":
            check_parquet(dtype)
        size = whole(
            "shard_bytes", SHARD_BYTES if shard_bytes is None else shard_bytes, LEAST_SHARD, MOST_SHARD
        )
        return cls(dtype, format, boolean("truncate", truncate), size, _part_of(part))


def _part_of(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    number, slash, count = text.partition("/") if isinstance(text, str) else ("", "", "")
    if not (slash and number.isdecimal() and count.isdecimal() and len(text) < 20):
        raise InvalidRequest(
            f"part={brief(text)}: must be the number of a part and the number of parts, such as 2/8"
        )
    of = whole("part", int(count), 1, MOST_PARTS)
    return whole("part", int(number), 1, of, f"there are {of:,} parts"), of
