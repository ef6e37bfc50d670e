"""Linear probes, a score for each token (weights·x + bias), and the files of probes and control vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, InvalidRequest, brief, reason, shown
from pellucid.plan.points import Point
from pellucid.trace.selection import Selection, select
from pellucid.util.checks import boolean, real, text
from pellucid.weights.checkpoint import ModelFile, Tensor
from pellucid.weights.gguf import open_gguf
from pellucid.weights.safetensors import read_table
from pellucid.weights.written import write_gguf, write_safetensors, written_floats

# Reads and writes the small files of control vectors and probes: float arrays with metadata, in GGUF or safetensors.
#
# The files are not trusted: lengths, types and shapes are checked, and a file holds no code.

MAX_BYTES = 1 << 30  # of a control vector or probe
DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
ENDINGS = (".gguf", ".safetensors")


class StoredVectors(NamedTuple):
    arrays: dict[str, NDArray[np.float32]]
    metadata: Mapping[str, Any]


def read_vectors(path: str | Path, most: int = MAX_BYTES) -> StoredVectors:
    """Read a file with at most ``most`` bytes of tensors. Its ending is ``.gguf`` or ``.safetensors``.

    Raises:
        FileFormatError: the file is damaged or too large, or an array does not hold finite floats.
        InvalidRequest: the ending is another.
    """
    path = Path(path)
    check_ending(path)
    if path.suffix == ".gguf":
        with open_gguf(path) as checkpoint:
            arrays = {
                name: _floats(path, tensor, checkpoint.data(name).tobytes())
                for name, tensor in _bounded(path, checkpoint.tensors, most).items()
            }
            return StoredVectors(arrays, dict(checkpoint.metadata))
    file = ModelFile(path)
    try:
        table, metadata = read_table(path, file)
        arrays = {
            name: _floats(path, tensor, file.read(tensor.offset, tensor.nbytes))
            for name, tensor in _bounded(path, table, most).items()
        }
    finally:
        file.close()
    return StoredVectors(arrays, metadata if isinstance(metadata, dict) else {})


def write_vectors(path: str | Path, arrays: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, Any]) -> None:
    """Write float32 arrays to a file, which must end with ``.gguf`` or ``.safetensors``. Raises InvalidRequest if the
    file cannot be written, or the ending is another.
    """
    path = Path(path)
    check_ending(path)
    tensors = {name: written_floats(values) for name, values in arrays.items()}
    try:
        if path.suffix == ".gguf":
            write_gguf(path, metadata, tensors)
        else:
            write_safetensors(path, tensors, {name: str(value) for name, value in metadata.items()})
    except OSError as error:
        raise InvalidRequest(f"path={brief(str(path))}: cannot be written: {reason(error)}") from error


def check_ending(path: Path) -> None:
    if path.suffix not in ENDINGS:
        raise InvalidRequest(f"path={brief(str(path))}: must end with {' or '.join(ENDINGS)}")


def _bounded(path: Path, tensors: Mapping[str, Tensor], most: int) -> Mapping[str, Tensor]:
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > most:
        raise FileFormatError(path, "file", f"has {size:,} bytes of tensors; the limit is {most:,}")
    return tensors


def _floats(path: Path, tensor: Tensor, raw: bytes) -> NDArray[np.float32]:
    field = f"tensor {shown(tensor.name)}"
    if (kind := DTYPES.get(tensor.format)) is None:
        raise FileFormatError(path, field, f"is {tensor.format}; it must be one of {', '.join(DTYPES)}")
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = np.frombuffer(raw, kind).astype(np.float32).reshape(tensor.shape)
    if not np.isfinite(values).all():
        raise FileFormatError(path, field, "has a value that is not finite (NaN, or too large for float32)")
    return values


# Linear probes: a score for each token, weights·x + bias of a value x of the model, through a sigmoid if it has one.
#
#     probe = LinearProbe("toxicity", "blocks.12.residual", weights, bias=-1.2, sigmoid=True)
#     made = llm.generate(prompt, probes=[probe])
#     made.probe_scores["toxicity"]                # a score for each generated token
#     llm.generate(prompt, probes=[probe.stopping(0.9)])
#
# A file is safetensors with the tensors ``weights`` (D,) and ``bias`` (1 number; missing: 0), and the metadata
# ``point`` ("blocks.12.residual") and ``sigmoid`` ("true" or "false").

MAX_PROBES = 64  # maximum number of probes of a request
MAX_NAME = 100  # characters
LARGEST = 1e30


@dataclass(frozen=True, eq=False, repr=False)
class LinearProbe:
    """A probe called ``name``: the score of x is ``weights``·x + ``bias``, and its sigmoid if ``sigmoid`` is True.

    x is the value of ``point`` at one position, such as "blocks.12.residual" or
    "blocks.5.attention.heads[heads=3]", as one vector. The score of a generated token is the score at the position
    that predicts it: what the model had read before the token. If it is above ``stop_above`` (None:
    no limit), the text ends before this token, with the finish reason "probe".

    Raises:
        InvalidRequest: the name or the point is not a text, or a number is not finite.
    """

    name: str
    point: str
    weights: NDArray[np.float32]
    bias: float = 0.0
    sigmoid: bool = False
    stop_above: float | None = None

    def __post_init__(self) -> None:
        if not text("name", self.name, MAX_NAME).isprintable():
            raise InvalidRequest(f"name={brief(self.name)}: must be a name of printable characters")
        text("point", self.point)
        values = np.asarray(self.weights, np.float32).reshape(-1)
        if not values.size or not np.isfinite(values).all():
            raise InvalidRequest(f"probe {brief(self.name)}: weights must be finite numbers")
        object.__setattr__(self, "weights", values)
        object.__setattr__(self, "bias", real("bias", self.bias, -LARGEST, LARGEST))
        boolean("sigmoid", self.sigmoid)
        if self.stop_above is not None:
            object.__setattr__(self, "stop_above", real("stop_above", self.stop_above, -LARGEST, LARGEST))

    def __repr__(self) -> str:
        return f"LinearProbe({self.name!r}, {self.point!r}, width {np.size(self.weights)})"

    def stopping(self, above: float) -> LinearProbe:
        """This probe, with a limit that ends the text."""
        return replace(self, stop_above=above)

    def score(self, values: NDArray[np.float32]) -> float:
        """The score of one value (D,). Its bits depend on neither the processor nor the batch."""
        # Products of two float32 are exact in float64, and NumPy adds in the same order on all processors.
        total = float(np.add.reduce(values.astype(np.float64) * self.weights)) + self.bias
        if not self.sigmoid:
            return total
        return 1 / (1 + math.exp(-total)) if total > -700 else 0.0

    def part(self, points: Mapping[str, Point]) -> Selection:
        """The part of a point that the probe reads, at the positions that predict generated tokens.

        Raises:
            InvalidRequest: the model has no such point, or its values have another width.
        """
        name, bracket, rest = self.point.partition("[")
        chosen = f"{name}[{rest[:-1]}; tokens=-1:]" if bracket else f"{name}[tokens=-1:]"
        found = select(points, [chosen])
        if len(found) != 1:
            raise InvalidRequest(f"probe {self.name}: {brief(self.point)} is {len(found)} points: name one")
        part = found[0]
        point = part.point
        if point.kind != "value" or point.rows != "tokens" or point.dtype != "float32" or point.of_source:
            raise InvalidRequest(
                f"probe {self.name}: {part.name} has no float32 vector for each token: choose another point"
            )
        width = len(part.heads) * (point.view.count if part.dims is None else len(part.dims))
        if width != np.size(self.weights):
            raise InvalidRequest(
                f"probe {self.name}: {brief(self.point)} has width {width:,} in this model, and the weights have "
                f"{np.size(self.weights):,}"
            )
        return part

    @classmethod
    def open(cls, path: str | Path) -> LinearProbe:
        """Read a probe from a safetensors file. Its name is the file's name.

        Raises:
            FileFormatError: the file is damaged, or holds something else.
        """
        file = read_vectors(path)
        point, sigmoid = file.metadata.get("point"), file.metadata.get("sigmoid", "false")
        if not isinstance(point, str) or not point:
            raise FileFormatError(path, "metadata", "has no point, such as blocks.12.residual")
        if sigmoid not in ("true", "false"):
            raise FileFormatError(path, "metadata", f"sigmoid={brief(sigmoid)}: must be true or false")
        if unknown := sorted(file.arrays.keys() - {"weights", "bias"}):
            raise FileFormatError(path, f"tensor {brief(unknown[0])}", "is neither weights nor bias")
        weights, bias = file.arrays.get("weights"), file.arrays.get("bias", np.zeros(1, np.float32))
        if weights is None or bias.size != 1:
            raise FileFormatError(path, "tensors", "must be weights, and a bias of one number")
        try:
            return cls(Path(path).stem, point, weights, float(bias.reshape(-1)[0]), sigmoid == "true")
        except InvalidRequest as error:
            raise FileFormatError(path, "tensors", str(error)) from None

    def save(self, path: str | Path) -> None:
        """Write the probe to a safetensors file, without its limit. Raises InvalidRequest if this fails."""
        if Path(path).suffix != ".safetensors":
            raise InvalidRequest(f"path={brief(str(path))}: must end with .safetensors")
        arrays = {"weights": np.asarray(self.weights, np.float32), "bias": np.array([self.bias], np.float32)}
        write_vectors(path, arrays, {"point": self.point, "sigmoid": str(self.sigmoid).lower()})


def listed_probes(probes: Any) -> list[LinearProbe]:
    """A request's probes as a list. Raises InvalidRequest if ``probes`` is not a list of probes with different names,
    or has too many.
    """
    if not isinstance(probes, (list, tuple)) or not all(isinstance(one, LinearProbe) for one in probes):
        raise InvalidRequest(
            f"probes={brief(probes)}: must be a list of probes: registered names, or pellucid.trace.LinearProbe"
        )
    if len(probes) > MAX_PROBES:
        raise InvalidRequest(f"probes has {len(probes):,} probes; the limit is {MAX_PROBES}")
    names: Sequence[str] = [one.name for one in probes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidRequest(f"probes: two are called {brief(twice)}: give each another name")
    return list(probes)
