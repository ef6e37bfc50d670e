"""The Jacobian lens: what the residual stream after a block is disposed to make the model say, now or later.

    lens = JacobianLens.fit(llm, texts)
    logit_lens(llm, "The capital of France is", transport=lens)

A vector after block l is moved to the space of the last block by the mean Jacobian J_l = E[∂h_last / ∂h_l] of the
blocks between, and then read by the model's own last norm and head (Gurnee et al. 2026, "Verbalizable Representations
Form a Global Workspace in Language Models").

The estimator is the same as in the reference code. For each number of the last residual stream, its gradients at all
positions of a text are summed, and averaged over the positions that they are taken at. The first 16 positions, which
hold attention sinks, and the last position are left out. The mean is taken over texts.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, InvalidRequest, brief
from pellucid.trace.backward.gradients import BackwardPass
from pellucid.trace.backward.reverse_walk import refuse_too_long, tape_bytes
from pellucid.trace.linear_probe import ENDINGS, read_vectors, write_vectors
from pellucid.trace.traced_model import TracedModel
from pellucid.util.checks import items, whole

# Reads tensors from files of ``torch.save``, without torch: a zip archive with a pickle and the bytes of each tensor.
#
# The pickle may build dictionaries, lists, numbers, texts and tensors, and nothing else: the few functions that it may
# name are replaced by our own, and all other names are refused. Nothing in the file is executed.

MOST_PICKLE = 1 << 24
DTYPES: Mapping[str, str] = {
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
}


class _Storage(NamedTuple):
    """The bytes of a tensor: the name of its member, the dtype, and the number of values."""

    key: str
    dtype: str
    size: int


class StoredTensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    shape = tuple(size)
    expected, strides = 1, list[int]()
    for length in reversed(shape):
        strides.insert(0, expected)
        expected *= length
    numbers = (offset, *shape)
    if not isinstance(storage, _Storage) or not all(type(one) is int and one >= 0 for one in numbers):
        raise pickle.UnpicklingError("a tensor is damaged")
    if any(own != wanted and length > 1 for own, wanted, length in zip(stride, strides, shape)):
        raise pickle.UnpicklingError("a tensor is not contiguous")
    if offset + expected > storage.size:
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return StoredTensor(storage, offset, shape)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"it names {brief(f'{module}.{name}')}, which tensors do not need")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or pid[1] not in DTYPES:
            raise pickle.UnpicklingError("a storage is damaged")
        _, kind, key, _, count = pid
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("a storage is damaged")
        return _Storage(key, DTYPES[kind], count)


class TorchArchive:
    """A file of ``torch.save``. ``value`` is the saved value, with ``StoredTensor`` in place of tensors. Raises
    FileFormatError if the file has another format, is damaged, or its pickle names something else than tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            pickles = [one for one in self._zip.infolist() if one.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE:
                raise FileFormatError(path, "data.pkl", "the archive must have one, of at most 16 MiB")
            self._folder = pickles[0].filename.removesuffix("data.pkl")
            self.value: Any = _Reader(io.BytesIO(self._zip.read(pickles[0]))).load()
        except (zipfile.BadZipFile, OSError) as error:
            raise FileFormatError(path, "file", "is no archive of torch.save") from error
        except FileFormatError:
            raise
        except Exception as error:  # a damaged pickle raises errors of many classes
            raise FileFormatError(path, "data.pkl", brief(str(error))) from error

    def values(self, tensor: StoredTensor) -> NDArray[np.float32]:
        """The values of a tensor as float32. Raises FileFormatError if the member is missing, compressed, or has
        another size.
        """
        name = f"{self._folder}data/{tensor.storage.key}"
        width = 8 if tensor.storage.dtype == "float64" else 4 if tensor.storage.dtype == "float32" else 2
        try:
            member = self._zip.getinfo(name)
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != width * tensor.storage.size:
                raise FileFormatError(self.path, name, f"must have {width * tensor.storage.size:,} bytes, uncompressed")
            raw = self._zip.read(member)
        except (KeyError, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            raise FileFormatError(self.path, name, "is missing or damaged") from error
        count = int(np.prod(tensor.shape, dtype=np.int64))
        part = raw[width * tensor.offset : width * (tensor.offset + count)]
        if tensor.storage.dtype == "bfloat16":
            wide = np.frombuffer(part, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(tensor.shape)
        kind = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}[tensor.storage.dtype]
        return np.frombuffer(part, kind).astype(np.float32).reshape(tensor.shape)


Matrix = NDArray[np.float32]
SKIPPED, LENGTH = 16, 128
"""Defaults of the reference code: positions that are left out at the start, and tokens of a text."""
BUDGET = 4 << 30
GRADIENT_BYTES = 1 << 26  # size of the gradients of one value for all numbers of a backward pass
MOST_BYTES = 64 << 30
PREFIX, TEXTS = "jacobian.", "pellucid.texts"
TORCH_ENDINGS = (".pt", ".pth")


class JacobianLens:
    """The mean Jacobians (D, D) from the residual stream after a block to the last, by the number of the block.

    ``texts`` is the number of texts that the means are taken over.
    """

    def __init__(self, jacobians: Mapping[int, Matrix], texts: int) -> None:
        if not jacobians:
            raise InvalidRequest("a Jacobian lens needs the matrix of at least one block")
        self.jacobians = dict(sorted(jacobians.items()))
        self.texts = texts

    def __repr__(self) -> str:
        blocks = f"blocks {min(self.jacobians)} to {max(self.jacobians)}"
        return f"JacobianLens({blocks}, width {self.width:,}, {self.texts:,} texts)"

    @property
    def blocks(self) -> Collection[int]:
        """The numbers of the blocks."""
        return self.jacobians.keys()

    @property
    def width(self) -> int:
        """D."""
        return len(next(iter(self.jacobians.values())))

    @classmethod
    def fit(
        cls,
        model: TracedModel,
        texts: Iterable[Any],
        *,
        layers: Sequence[int] | None = None,
        skip: int = SKIPPED,
        length: int = LENGTH,
        budget: int = BUDGET,
        told: Callable[[int], object] = lambda texts: None,
    ) -> JacobianLens:
        """Fit a lens on texts. The reference code suggests 100 to 1,000 texts of 128 tokens.

        A text takes as long as D backward passes of its ``length``.

        Args:
            texts: prompts. A text of fewer than ``skip`` + 2 tokens is left out.
            layers: the blocks; by default all blocks before the last.
            skip: number of first positions that are left out.
            length: maximum number of tokens that are read of a text.
            budget: limit of the bytes of recorded values.
            told: called with the number of finished texts.

        Raises:
            InvalidRequest: no text is long enough, an operation has no gradient, or there are several residual streams.
        """
        if model.spec.altup:
            raise InvalidRequest(
                f"the model has {model.spec.altup.streams} residual streams, and a Jacobian lens reads a single one: "
                "use gradients"
            )
        last = len(model.spec.blocks) - 1
        chosen = range(last) if layers is None else sorted({whole("layers", one, 0, last - 1) for one in layers})
        skip, length = whole("skip", skip, 0, 1 << 20), whole("length", length, 2, 1 << 20)
        names = {layer: f"blocks.{layer}.residual" for layer in chosen}
        points = model.points
        if not names or any(name not in points for name in (*names.values(), f"blocks.{last}.residual")):
            raise InvalidRequest("layers: the model has no residual stream between these blocks and its last block")
        backward = BackwardPass(
            model.plan_versions, [points[name] for name in names.values()], points[f"blocks.{last}.residual"]
        )
        sums, count = {layer: np.zeros((model.spec.embedding.width,) * 2) for layer in names}, 0
        for text in items("texts", texts):
            ids = model.inputs.prompt(text)[:length]
            if len(ids) < skip + 2:
                continue
            for layer, jacobian in _jacobians(model, backward, names, ids, skip, budget):
                sums[layer] += jacobian
            count += 1
            told(count)
        if not count:
            raise InvalidRequest(
                f"texts: no text has {skip + 2:,} tokens or more: give longer texts, or a smaller skip"
            )
        return cls({layer: (own / count).astype(np.float32) for layer, own in sums.items()}, count)

    @classmethod
    def merged(cls, lenses: Sequence[JacobianLens]) -> JacobianLens:
        """The lens of all texts of several lenses, which were fitted on different texts.

        Raises:
            InvalidRequest: the lenses have different blocks or widths.
        """
        if len({(one.width, tuple(one.jacobians)) for one in lenses}) != 1:
            raise InvalidRequest("lenses: they must have the same blocks and width")
        total = sum(one.texts for one in lenses)
        layers = lenses[0].jacobians
        means = {layer: sum(one.jacobians[layer] * (one.texts / total) for one in lenses) for layer in layers}
        return cls({layer: np.asarray(own, np.float32) for layer, own in means.items()}, total)

    @classmethod
    def open(cls, path: str | Path) -> JacobianLens:
        """Open a lens: a published file of the reference code (``lens.pt``), or a file of ``save``.

        Raises:
            FileFormatError: the file is damaged, or is no Jacobian lens.
            InvalidRequest: the ending is unknown.
        """
        path = Path(path)
        if path.suffix not in (*TORCH_ENDINGS, *ENDINGS):
            raise InvalidRequest(f"path={brief(str(path))}: must end with {', '.join(TORCH_ENDINGS)} or {ENDINGS[-1]}")
        found, texts = _opened_torch(path) if path.suffix in TORCH_ENDINGS else _opened_own(path)
        if len({own.shape for own in found.values()} | {own.shape[::-1] for own in found.values()}) != 1:
            raise FileFormatError(path, "J", "the matrices must be square, and have one size")
        if not all(np.isfinite(own).all() for own in found.values()):
            raise FileFormatError(path, "J", "has a value that is not finite")
        return cls(found, texts)

    def save(self, path: str | Path) -> None:
        """Write the lens to a safetensors file: the tensors "jacobian.0", … in float32.

        Raises:
            InvalidRequest: the file cannot be written.
        """
        arrays = {f"{PREFIX}{layer}": own for layer, own in self.jacobians.items()}
        write_vectors(path, arrays, {TEXTS: self.texts})

    def __call__(self, rows: Matrix, layer: int) -> Matrix:
        """Move vectors (n, D) after block ``layer`` to the space of the last block.

        Raises:
            InvalidRequest: the lens lacks the block, or has another width.
        """
        if layer not in self.jacobians or rows.shape[-1] != self.width:
            has = brief(", ".join(map(str, self.jacobians)))
            raise InvalidRequest(
                f"layer={layer}: vectors of {rows.shape[-1]:,} values; the lens has blocks {has} and vectors of "
                f"{self.width:,}"
            )
        return np.asarray(rows @ self.jacobians[layer].T, np.float32)

    def directions(self, layer: int, vectors: NDArray[np.floating[Any]]) -> Matrix:
        """The directions (n, D) after block ``layer`` that lead to the vectors (n, D) of the last block, to steer with.

        Raises: as ``__call__``.
        """
        self(np.zeros((1, np.shape(vectors)[-1]), np.float32), layer)
        return np.asarray(np.atleast_2d(vectors) @ self.jacobians[layer], np.float32)


def _jacobians(
    model: TracedModel, backward: BackwardPass, names: Mapping[int, str], ids: Sequence[int], skip: int, budget: int
) -> Iterable[tuple[int, NDArray[np.float64]]]:
    """The Jacobian of each block for one text: row d is the mean gradient of number d of the last stream."""
    T, D = len(ids), model.spec.embedding.width
    refuse_too_long(tape_bytes(backward.versions, backward.needs, T, 1), budget, T)
    tape, _ = model.taped(ids, backward.versions, backward.needs)
    used = np.arange(skip, T - 1)
    widest = max(backward.versions.width(version) for version in backward.needs.values)
    together = max(1, min(D, GRADIENT_BYTES // (4 * T * widest)))
    found = {layer: np.zeros((D, D)) for layer in names}
    for first in range(0, D, together):
        numbers = range(first, min(first + together, D))
        seeds = np.zeros((len(numbers), T, D), np.float32)
        for copy, number in enumerate(numbers):
            seeds[copy, used, number] = 1
        gradients = backward.run([tape] * len(numbers), seeds.reshape(-1, D), model.float_weights)
        for number, own in zip(numbers, gradients):
            for layer, name in names.items():
                found[layer][number] = own[name][used].mean(0, dtype=np.float64)
    return found.items()


def _opened_torch(path: Path) -> tuple[dict[int, Matrix], int]:
    archive = TorchArchive(path)
    value = archive.value
    stored = value.get("J") if isinstance(value, dict) else None
    if not isinstance(stored, dict) or not stored:
        raise FileFormatError(path, "J", "the file has no matrices of a Jacobian lens")
    for layer, tensor in stored.items():
        if type(layer) is not int or layer < 0 or not isinstance(tensor, StoredTensor) or len(tensor.shape) != 2:
            raise FileFormatError(path, "J", "must have a matrix for each block")
    texts = value.get("n_prompts")
    if type(texts) is not int or texts < 1:
        raise FileFormatError(path, "n_prompts", f"{brief(texts)}: must be a whole number from 1 on")
    return {layer: archive.values(tensor) for layer, tensor in stored.items()}, texts


def _opened_own(path: Path) -> tuple[dict[int, Matrix], int]:
    arrays, metadata = read_vectors(path, MOST_BYTES)
    found = dict[int, Matrix]()
    for name, own in arrays.items():
        layer = name.removeprefix(PREFIX)
        if layer == name or not layer.isdecimal() or own.ndim != 2:
            raise FileFormatError(path, name, f"is no matrix {PREFIX}N of a Jacobian lens")
        found[int(layer)] = own
    texts = str(metadata.get(TEXTS, ""))
    if not found or not texts.isdecimal() or not int(texts):
        raise FileFormatError(path, TEXTS, "the file has no matrices of a Jacobian lens, or no number of texts")
    return found, int(texts)
