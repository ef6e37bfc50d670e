"""What every format of dictionaries states of a coder: its activation, its hooks, and its arrays."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.plan.points import Point
from pellucid.trace.dictionaries.array_files import FLOATS, ArrayFile, SafetensorsArrays, check_shape, finite, take
from pellucid.trace.transformer_lens_names import hooks_of
from pellucid.weights.pack import decode_blocks, stored_as

# Activation functions of encoders, (n, F) → (n, F) float32, and the normalisation of their input.

Rows = NDArray[np.float32]


class FeatureActivation(ABC):
    """An activation function. ``by_feature``: each activation depends on the feature's own pre-activation alone."""

    name: str
    by_feature = True

    @abstractmethod
    def __call__(self, before: Rows) -> Rows: ...

    def of(self, features: NDArray[np.int64]) -> FeatureActivation:
        """The function for some ``features``. Only for functions ``by_feature``."""
        return self


class Relu(FeatureActivation):
    name = "ReLU"

    def __call__(self, before: Rows) -> Rows:
        return np.maximum(before, np.float32(0))


class JumpRelu(FeatureActivation):
    """max(x, 0) where x is above the ``threshold`` (F,) of its feature, and 0 elsewhere."""

    name = "JumpReLU"

    def __init__(self, threshold: Rows) -> None:
        self.threshold = threshold

    def __call__(self, before: Rows) -> Rows:
        return np.where(before > self.threshold, np.maximum(before, np.float32(0)), np.float32(0))

    def of(self, features: NDArray[np.int64]) -> FeatureActivation:
        return JumpRelu(self.threshold[features])


class Gated(FeatureActivation):
    """max(``scale`` · x + ``bias``, 0) where x + ``gate_bias`` is above 0, and 0 elsewhere; all are (F,)."""

    name = "gated"

    def __init__(self, scale: Rows, bias: Rows, gate_bias: Rows) -> None:
        self.scale, self.bias, self.gate_bias = scale, bias, gate_bias

    def __call__(self, before: Rows) -> Rows:
        magnitude = np.maximum(before * self.scale + self.bias, np.float32(0))
        return np.where(before + self.gate_bias > 0, magnitude, np.float32(0))

    def of(self, features: NDArray[np.int64]) -> FeatureActivation:
        return Gated(self.scale[features], self.bias[features], self.gate_bias[features])


class TopKActivation(FeatureActivation):
    """max(x, 0) of the ``k`` largest pre-activations of each row; the lowest feature first on ties.

    ``absolute``: the ``k`` largest magnitudes, which keep their sign.
    """

    name = "top-k"
    by_feature = False

    def __init__(self, k: int, *, absolute: bool = False) -> None:
        self.k, self.absolute = k, absolute

    def __call__(self, before: Rows) -> Rows:
        after = np.zeros_like(before)
        for row, out in zip(before, after):
            size = np.abs(row) if self.absolute else row
            least = np.partition(size, len(size) - self.k)[len(size) - self.k]
            above = np.flatnonzero(size > least)
            equal = np.flatnonzero(size == least)[: self.k - len(above)]
            for chosen in (above, equal):
                out[chosen] = row[chosen] if self.absolute else np.maximum(row[chosen], np.float32(0))
        return after


class GroupMax(FeatureActivation):
    """max(x, 0) of the largest pre-activation of each of ``k`` groups of F / k adjacent features."""

    name = "groupmax"
    by_feature = False

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, before: Rows) -> Rows:
        groups = np.maximum(before, np.float32(0)).reshape(len(before), self.k, -1)
        best = groups.argmax(-1)[:, :, None]
        after = np.zeros_like(groups)
        np.put_along_axis(after, best, np.take_along_axis(groups, best, -1), -1)
        return after.reshape(before.shape)


# Normalisation of an encoder's input. The reconstruction is scaled back; the vectors of features, too.

LAYER_NORM_EPS = 1e-5


class Normalized(NamedTuple):
    """Normalised ``rows`` (n, D); rows · ``scale`` + ``shift`` are the given rows. Both are (n, 1) float32."""

    rows: Rows
    scale: Rows
    shift: Rows


def _constant_norm(x: Rows) -> Normalized:
    wide = x.astype(np.float64)
    scale = np.sqrt((wide * wide).sum(-1, keepdims=True) / x.shape[-1])
    rows = np.divide(wide, scale, out=np.zeros_like(wide), where=scale > 0)
    return Normalized(rows.astype(np.float32), scale.astype(np.float32), np.zeros_like(scale, np.float32))


def _layer_norm(x: Rows) -> Normalized:
    """SAELens' layer norm: the standard deviation has D - 1 as its divisor, and 1e-5 is added to it."""
    wide = x.astype(np.float64)
    mean = wide.mean(-1, keepdims=True)
    deviation = np.sqrt(((wide - mean) ** 2).sum(-1, keepdims=True) / max(x.shape[-1] - 1, 1))
    rows = (wide - mean) / (deviation + LAYER_NORM_EPS)
    return Normalized(rows.astype(np.float32), deviation.astype(np.float32), mean.astype(np.float32))


NORMALIZATIONS: Mapping[str, Callable[[Rows], Normalized]] = {
    "constant_norm_rescale": _constant_norm,
    "layer_norm": _layer_norm,
}
"""Normalisations by their names in SAELens: to the norm √D, and to mean 0 and standard deviation 1."""


# Names of hooks in TransformerLens and of modules in transformers, as the points of a model.
#
# The names of TransformerLens are in ``trace/transformer_lens_names.py``. Files of dictionaries also name modules of
# transformers, and values that TransformerLens has before the weights of a norm, or as a copy for one reader.

NAME = re.compile(r"(?:(?:[a-z_]+\.)*(?:blocks|layers|h)\.(?P<block>\d{1,6}))?\.?(?P<value>.*)")
"""A name: a list of blocks with the number of a block, and the name of a value in the block."""
UNWEIGHTED = ".hook_normalized"
"""The end of a name of normalised values before the weights of the norm, which the point includes."""
OF_BLOCKS: Mapping[str, str] = {
    "hook_mlp_in": "hook_resid_mid",
    "mlp.hook_in": "ln2.hook_out",
    "ln2.hook_normalized": "ln2.hook_out",
    # Names of modules in transformers.
    "": "hook_resid_post",
    "output": "hook_resid_post",
    "self_attn": "attn.hook_out",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_attention_layernorm.output": "ln1_post.hook_out",
    "pre_feedforward_layernorm.output": "ln2.hook_out",
    "mlp.input": "ln2.hook_out",
    "mlp": "mlp.hook_out",
    "mlp.output": "mlp.hook_out",
    "post_feedforward_layernorm.output": "ln2_post.hook_out",
}
"""The hook of TransformerLens with the values of another name, in a block."""
OUTSIDE: Mapping[str, str] = {"embed_tokens": "hook_embed"}


class HookedPoint(Struct, frozen=True):
    """The point with a hook's values, or with the values of one ``head``.

    With ``norm``, the values of the point are divided by the weights of this slot.
    """

    point: Point
    head: int | None = None
    norm: str = ""

    @property
    def name(self) -> str:
        """The point, with the head in a bracket, as in a selection."""
        return self.point.name if self.head is None else f"{self.point.name}[heads={self.head}]"

    @property
    def width(self) -> int:
        return self.point.view.count if self.head is not None else math.prod(self.point.sizes)

    def at(self, tokens: str) -> str:
        """The selection of the values at the positions ``tokens``."""
        parts = [f"heads={self.head}"] * (self.head is not None) + [f"tokens={tokens}"] * (tokens != ":")
        return f"{self.point.name}[{'; '.join(parts)}]" if parts else self.point.name


def block_of_hook(hook: str) -> int | None:
    """The number of the block in the name of a hook; None if it names no block."""
    match = NAME.fullmatch(hook)
    return int(match["block"]) if match and match["block"] is not None else None


def point_of_hook(points: Mapping[str, Point], hook: str) -> HookedPoint:
    """The point of a hook, whose name may also be a point's own name; "hook_z[heads=3]" is one head. Raises
    InvalidRequest if the model does not have the hook, or the point is no vector.
    """
    name, bracket, head = hook.partition("[heads=")
    found = points.get(name)
    if found is None and (match := NAME.fullmatch(name)):
        block, value = match["block"], match["value"]
        wanted = OUTSIDE.get(value, value) if block is None else f"blocks.{int(block)}.{OF_BLOCKS.get(value, value)}"
        found = points.get(hooks_of(points).get(wanted, ""))
    if found is None:
        blocks = len({name.split(".")[1] for name in points if name.startswith("blocks.")})
        raise InvalidRequest(
            f"hook {brief(hook)}: the model has no such values; it has {blocks} blocks, and `pellucid points` lists all"
        )
    if found.kind != "value" or found.dtype != "float32" or found.rows == "sequences":
        raise InvalidRequest(f"hook {brief(hook)}: {found.name} is no vector of each token")
    number = int(head[:-1]) if bracket and head[:-1].isdecimal() else None
    if bracket and (number is None or number >= found.heads):
        raise InvalidRequest(f"hook {brief(hook)}: {found.name} has {found.heads} heads, numbered from 0")
    return HookedPoint(found, number, f"{found.name}.weight" if hook.endswith(UNWEIGHTED) else "")


# The contents of a file with a sparse coder: hooks, matrices, activation function, rows of the decoder.

IN_MEMORY = 1 << 29
"""Maximum bytes of a decoder that is kept in memory. Vectors of larger decoders are read from the file on demand."""


class DecoderRows(Protocol):
    """The vectors of features. ``shape`` is (F, O, D)."""

    shape: tuple[int, int, int]

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some features, (n, O, D). Raises FileFormatError if the file changed or has NaN."""


class ArrayRows:
    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values
        self.shape: tuple[int, int, int] = values.shape

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._values[features]


class FileRows:
    """A decoder in a safetensors file, (F, O', D). The outputs before ``first`` are left out."""

    def __init__(self, file: SafetensorsArrays, name: str, first: int) -> None:
        F, outputs, D = file.shapes[name]
        self.shape = (F, outputs - first, D)
        self._file, self._name, self._first = file, name, first
        self._form, (_, blocks, block_bytes) = stored_as(file.tensor(name))
        self._row_bytes = blocks * block_bytes

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
        _, outputs, D = self.shape
        raw = np.empty((len(features), outputs * self._row_bytes), np.uint8)
        for number, out in zip(features.tolist(), raw):
            start = (number * (self._first + outputs) + self._first) * self._row_bytes
            self._file.checkpoint.read(self._name, start, out)
        blocks = raw.reshape(len(features) * outputs, -1, self._form.block_bytes)
        values = decode_blocks(self._form, blocks).reshape(len(features), outputs, D)
        return finite(self._file.path, self._name, values)


class ScaledRows:
    """The vectors of ``decoder``, each multiplied by the factor of its feature in ``factors`` (F,)."""

    def __init__(self, decoder: DecoderRows, factors: NDArray[np.float32]) -> None:
        self._decoder, self._factors, self.shape = decoder, factors, decoder.shape

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._decoder.rows(features) * self._factors[features, None, None]


def decoder_of(file: SafetensorsArrays, name: str, F: int, outputs: int | None, first: int = 0) -> DecoderRows:
    """The decoder in an array (F, D), or (F, O', D) with ``outputs`` O'. Outputs before ``first`` are left out. Raises
    FileFormatError if the array is missing, has another shape, or has NaN or infinite values.
    """
    shape = (F, None) if outputs is None else (F, outputs, None)
    check_shape(file, name, shape)
    if 4 * math.prod(file.shapes[name]) > IN_MEMORY and len(shape) == 3 and file.tensor(name).format in FLOATS:
        return FileRows(file, name, first)
    return ArrayRows(np.ascontiguousarray(take(file, name, shape).reshape(F, outputs or 1, -1)[:, first:]))


Values = NDArray[np.float32]
MOST_FEATURES = 1 << 24


class CoderWeights(Struct, frozen=True, kw_only=True):
    """A sparse coder: activations of F features from a vector (D,), and a reconstruction from the activations.

        before = (normalised x - input_bias) · encoderᵀ + encoder_bias          (F,)
        output j = activation(before) · decoder[:, j] + decoder_bias + skip · x (the last two: j = 0 only)

    It ``reads`` the values of one hook, and ``writes`` values of a hook for each output of the decoder. The first is
    the hook that it reads in an SAE. ``normalization`` is a name in ``NORMALIZATIONS`` or "none".
    """

    path: Path
    reads: str
    writes: tuple[str, ...]
    encoder: Values
    encoder_bias: Values
    decoder: DecoderRows
    decoder_bias: Values
    activation: FeatureActivation
    input_bias: Values | None = None
    skip: Values | None = None
    normalization: str = "none"


def coder_of(
    file: ArrayFile,
    hooks: tuple[str, tuple[str, ...]],
    encoder: Values,
    decoder: DecoderRows,
    activation: FeatureActivation,
    biases: tuple[str, str] = ("b_enc", "b_dec"),
    **more: Any,
) -> CoderWeights:
    """A coder that reads and writes ``hooks``, with the arrays ``biases`` of its file. ``more`` are further fields."""
    return CoderWeights(
        path=file.path,
        reads=hooks[0],
        writes=hooks[1],
        encoder=encoder,
        encoder_bias=take(file, biases[0], (len(encoder),)),
        decoder=decoder,
        decoder_bias=take(file, biases[1], (decoder.shape[2],)),
        activation=activation,
        **more,
    )


class Given(Struct, frozen=True):
    """Facts that the user states beside the files: hooks (None: not stated), and the factor of the inputs."""

    reads: str | None = None
    writes: str | None = None
    input_scale: float | None = None

    def hooks(self, path: Path, reads: str | None, writes: str | None, *, transcodes: bool = False) -> tuple[str, str]:
        """The hooks that a coder reads and writes, as the user or the file states them. Raises InvalidRequest if nobody
        states what the coder reads, or what a transcoder writes.
        """
        reads = self.reads or reads
        if not reads:
            raise InvalidRequest(
                f"{path.name}: the file does not say which values it reads: give reads='blocks.5.hook_resid_post' or "
                "another hook or point, and for a transcoder also writes="
            )
        writes = self.writes or writes
        if transcodes and not writes:
            raise InvalidRequest(
                f"{path.name}: the file does not say which values the transcoder writes: give "
                "writes='blocks.5.hook_mlp_out' or another hook or point"
            )
        return reads, writes or reads


class DictionaryFormat(Struct, frozen=True):
    """A format of files. ``find`` returns the main file of a dictionary in a file or folder of this format, or None.

    ``read`` returns its kind ("SAE", "transcoder", …) and its coders.
    """

    name: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path, Given], tuple[str, Sequence[CoderWeights]]]
