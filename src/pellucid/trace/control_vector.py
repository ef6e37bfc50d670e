"""Control vectors, which steer what a model writes, and the registered vectors and probes that requests name.

    vector = ControlVector.contrast(llm, ["I am delighted", ...], ["I am annoyed", ...])
    llm.generate(prompt, edits=vector.edits(1.5))
    vector.save("happy.gguf")                    # llama.cpp, llama-server and repeng read the same file
    ControlVector.open("happy.gguf")

A control vector has directions that are added to the residual stream. It equals ``add`` edits of
``blocks.N.residual``. ``direction.N`` of a file is added after block N, counted from 0 (``llama_adapter_cvec::apply``
in llama.cpp's src/llama-adapter.cpp); llama.cpp has no direction for block 0.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, InvalidRequest, brief, reason, shown
from pellucid.plan.points import Point
from pellucid.trace.edits import Edit, add, listed
from pellucid.trace.linear_probe import ENDINGS, LinearProbe, check_ending, listed_probes, read_vectors, write_vectors
from pellucid.util.checks import real, whole

if TYPE_CHECKING:
    from pellucid.trace.traced_model import TracedModel

ARCHITECTURE = "controlvector"  # the ``general.architecture`` of a GGUF file with a control vector
DIRECTION = re.compile(r"direction\.(\d{1,5})")
MAX_SCALE = 1000.0
MAX_LAYERS = 1 << 16
TOGETHER = 32  # number of prompts whose values ``contrast`` records in one trace


@dataclass(frozen=True, eq=False, repr=False)
class ControlVector:
    """A direction (D,) float32 for each of some blocks: ``directions[5]`` is added to ``blocks.5.residual``.

    ``model`` is the family of the model that the directions belong to, as a hint.

    Raises:
        InvalidRequest: there are no directions, their widths differ, or a value is not finite.
    """

    directions: Mapping[int, NDArray[np.float32]]
    model: str = ""

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            own = {
                whole("layer", layer, 0, MAX_LAYERS): np.asarray(values, np.float32)
                for layer, values in sorted(self.directions.items())
            }
        if not own:
            raise InvalidRequest("directions={}: a control vector needs a direction for a layer")
        shapes = {values.shape for values in own.values()}
        if len(shapes) > 1 or any(len(shape) != 1 or not shape[0] for shape in shapes):
            raise InvalidRequest(f"directions have the shapes {sorted(shapes)}: all must be (D,)")
        if not all(np.isfinite(values).all() for values in own.values()):
            raise InvalidRequest("a direction has a value that is not finite (NaN, or too large for float32)")
        object.__setattr__(self, "directions", own)

    def __repr__(self) -> str:
        layers = list(self.directions)
        return f"ControlVector({len(layers)} layers from {layers[0]} to {layers[-1]}, width {self.width})"

    @property
    def width(self) -> int:
        """The width D of the residual stream."""
        return len(next(iter(self.directions.values())))

    def __mul__(self, scale: float) -> ControlVector:
        number = np.float32(real("scale", scale, -MAX_SCALE, MAX_SCALE))
        with np.errstate(over="ignore"):
            return ControlVector({n: number * values for n, values in self.directions.items()}, self.model)

    __rmul__ = __mul__

    def __add__(self, other: ControlVector) -> ControlVector:
        """The sum of two vectors, as llama.cpp adds several vectors before it applies them."""
        if not isinstance(other, ControlVector):
            return NotImplemented
        if self.width != other.width:
            raise InvalidRequest(f"control vectors of widths {self.width:,} and {other.width:,} cannot be added")
        total = dict(self.directions)
        for layer, values in other.directions.items():
            total[layer] = total[layer] + values if layer in total else values
        return ControlVector(total, self.model or other.model)

    def only(self, layers: Collection[int]) -> ControlVector:
        """The directions of some layers. Raises InvalidRequest if the vector has none of the layers."""
        own = {layer: values for layer, values in self.directions.items() if layer in layers}
        if not own:
            raise InvalidRequest(f"layers={brief(layers)}: the vector has the layers {list(self.directions)}")
        return ControlVector(own, self.model)

    def edits(self, scale: float = 1.0, *, tokens: str = ":") -> list[Edit]:
        """Edits that add ``scale`` times the directions, at all positions, or at ``tokens`` such as "generated"."""
        scaled = self if scale == 1 else self * scale
        where = "" if tokens == ":" else f"[tokens={tokens}]"
        return [add(f"blocks.{layer}.residual{where}", d) for layer, d in scaled.directions.items()]

    def check_fits(self, points: Mapping[str, Point]) -> None:
        """Raise InvalidRequest if a model with these points has another width, or lacks a layer."""
        for layer in self.directions:
            if (point := points.get(f"blocks.{layer}.residual")) is None:
                raise InvalidRequest(f"the vector has a direction for layer {layer}, which the model does not have")
            if point.view.count != self.width:
                raise InvalidRequest(f"the vector has width {self.width:,}, and the model has {point.view.count:,}")

    @classmethod
    def open(cls, path: str | Path) -> ControlVector:
        """Read a file: llama.cpp's GGUF, or safetensors with the same tensors ``direction.N``.

        Raises:
            FileFormatError: the file is damaged, or holds something else.
            InvalidRequest: the file's name ends with neither ``.gguf`` nor ``.safetensors``.
        """
        file = read_vectors(path)
        if (kind := file.metadata.get("general.architecture")) is None:
            raise FileFormatError(path, "general.architecture", "is missing: the file holds no control vector")
        if kind != ARCHITECTURE:
            raise FileFormatError(path, "general.architecture", f"is {brief(kind)}, not {ARCHITECTURE!r}")
        directions, first = dict[int, NDArray[np.float32]](), int(Path(path).suffix == ".gguf")
        for name, values in file.arrays.items():
            match, field = DIRECTION.fullmatch(name), f"tensor {shown(name)}"
            if not match or int(match[1]) < first:
                raise FileFormatError(path, field, f"is not direction.N for a layer from {first} on")
            directions[int(match[1])] = values
        try:
            return cls(directions, str(file.metadata.get(f"{ARCHITECTURE}.model_hint", "")))
        except InvalidRequest as error:
            raise FileFormatError(path, "tensors", str(error)) from None

    def save(self, path: str | Path) -> None:
        """Write the vector to a file that ends with ``.gguf`` (as llama.cpp reads it) or ``.safetensors``.

        Raises:
            InvalidRequest: the file cannot be written, or GGUF is to hold a direction for layer 0.
        """
        check_ending(Path(path))
        if Path(path).suffix == ".gguf" and 0 in self.directions:
            raise InvalidRequest(
                f"path={brief(str(path))}: GGUF has no direction for layer 0: leave it out, or write .safetensors"
            )
        metadata = {
            "general.architecture": ARCHITECTURE,
            f"{ARCHITECTURE}.model_hint": self.model,
            f"{ARCHITECTURE}.layer_count": len(self.directions),
        }
        arrays = {f"direction.{layer}": values for layer, values in self.directions.items()}
        write_vectors(path, arrays, metadata)

    @classmethod
    def contrast(
        cls,
        llm: TracedModel,
        positive: Sequence[Any],
        negative: Sequence[Any],
        *,
        method: Literal["mean", "pca"] = "mean",
        layers: Collection[int] | None = None,
    ) -> ControlVector:
        """Make a vector from pairs of prompts that differ in one property: ``positive[i]`` has it, ``negative[i]`` not.

        The values are the residual stream at the last token of each prompt. With scale 1, the vector moves the stream
        by the mean difference between positive and negative prompts. (Vectors of repeng and llama-cvector-generator
        have length 1, so that their scales are other numbers.)

        Args:
            llm: a model that generates.
            positive: prompts, as ``LLM.generate`` takes them: texts, lists of messages, or token ids.
            negative: as many prompts.
            method: "mean": the mean of the differences. "pca": their first principal direction, not centred, with the
                length of the mean difference along it; it disregards variation that differs from pair to pair.
            layers: the blocks. By default all except the first, as in llama.cpp.

        Raises:
            InvalidRequest: there are no pairs, a layer does not exist, or the prompts of all pairs are equal.
        """
        if method not in ("mean", "pca"):
            raise InvalidRequest(f"method={brief(method)}: must be mean or pca")
        if isinstance(positive, str) or isinstance(negative, str) or len(positive) != len(negative):
            raise InvalidRequest("positive and negative must be two lists of as many prompts")
        if not len(positive):
            raise InvalidRequest("positive has no prompts: give pairs of prompts")
        count = len(llm.spec.blocks)
        chosen = list(range(min(1, count - 1), count)) if layers is None else sorted(layers)
        differences = _last_values(llm, positive, chosen) - _last_values(llm, negative, chosen)
        directions = {}
        for layer, rows in zip(chosen, differences):
            direction = rows.mean(0) if method == "mean" else _principal(rows)
            if not direction.any():
                raise InvalidRequest(f"layer {layer}: positive and negative prompts do not differ: give other prompts")
            directions[layer] = direction.astype(np.float32)
        return cls(directions, llm.spec.family)


def total(vectors: Sequence[tuple[float, ControlVector]]) -> ControlVector:
    (scale, first), *others = vectors
    result = first * scale
    for scale, vector in others:
        result = result + vector * scale
    return result


def _last_values(llm: TracedModel, prompts: Sequence[Any], layers: Sequence[int]) -> NDArray[np.float64]:
    """The residual stream at the last token of each prompt, (layers, N, D)."""
    from pellucid.trace.traced_model import NEXT_TOKEN

    names = [f"blocks.{layer}.residual" for layer in layers]
    rows = list[list[NDArray[np.float32]]]()
    for first in range(0, len(prompts), TOGETHER):
        with llm.trace(*(f"{name}[tokens=-1]" for name in names)) as trace:
            llm.generate(list(prompts[first : first + TOGETHER]), **NEXT_TOKEN)
        rows += [[sequence[name][0] for name in names] for sequence in trace.sequences]
    return np.asarray(rows, np.float64).swapaxes(0, 1)


def _principal(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first principal direction (D,) of rows (N, D), times the mean of the rows along it."""
    # The eigenvectors of the small matrix (N, N) give the direction: N is below D.
    _, vectors = np.linalg.eigh(rows @ rows.T)
    direction = vectors[:, -1] @ rows
    length = np.linalg.norm(direction)
    unit = direction / length if length else direction
    return np.asarray(unit * (rows.mean(0) @ unit))


# The control vectors and probes of a folder, which requests name: ``steer={"calm": 1.5}``, ``probes=["toxicity"]``.
#
#     llm.vectors = RegisteredVectors.open("vectors")     # calm.gguf, toxicity.safetensors, ...
#     llm.generate(prompt, steer={"calm": 1.5, "french": -0.5}, probes=["toxicity"])
#
# A name is the name of a file without its ending.

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
MAX_FILES = 10_000
MAX_STEERED = 16  # maximum number of control vectors of a request


class Control(NamedTuple):
    edits: list[Edit]
    probes: list[LinearProbe]


@dataclass(frozen=True)
class RegisteredVectors:
    """Control vectors and probes by name. ``guards`` are limits of probes that end the texts of all requests."""

    vectors: Mapping[str, ControlVector] = field(default_factory=dict)
    probes: Mapping[str, LinearProbe] = field(default_factory=dict)
    guards: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path) -> RegisteredVectors:
        """Read all files of a folder that end with ``.gguf`` or ``.safetensors``.

        Raises:
            FileFormatError: a file is damaged.
            InvalidRequest: the folder cannot be read or has no such file, two files have one name, or a name has other
                characters than letters, digits, ``.``, ``_`` and ``-``.
        """
        folder = Path(folder)
        try:
            files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS)
        except OSError as error:
            raise InvalidRequest(f"vectors={brief(str(folder))}: cannot be read: {reason(error)}") from error
        if not 1 <= len(files) <= MAX_FILES:
            raise InvalidRequest(
                f"vectors={brief(str(folder))}: has {len(files):,} files that end with {' or '.join(ENDINGS)}; it must "
                f"have 1 to {MAX_FILES:,}"
            )
        vectors, probes = dict[str, ControlVector](), dict[str, LinearProbe]()
        for path in files:
            if not NAME.fullmatch(path.stem):
                raise InvalidRequest(
                    f"{brief(path.name)}: a name has letters, digits, '.', '_' and '-': rename the file"
                )
            if path.stem in vectors.keys() | probes.keys():
                raise InvalidRequest(f"{brief(path.name)}: two files are called {path.stem}: rename one of them")
            if path.suffix == ".gguf" or "general.architecture" in read_vectors(path).metadata:
                vectors[path.stem] = ControlVector.open(path)
            else:
                probes[path.stem] = LinearProbe.open(path)
        return cls(vectors, probes)

    def guarded(self, limits: Mapping[str, float]) -> RegisteredVectors:
        """These vectors and probes, with limits of probes for all requests.

        Raises:
            InvalidRequest: no probe has the name, or a limit is out of range.
        """
        for name, above in limits.items():
            _registered("guard", name, self.probes, "probes").stopping(above)
        return replace(self, guards=dict(limits))

    @property
    def digest(self) -> str:
        """A hash of all names and values; "" if nothing is registered."""
        if not self.vectors and not self.probes:
            return ""
        found = hashlib.sha256()
        for name, vector in sorted(self.vectors.items()):
            found.update(repr((name, list(vector.directions))).encode())
            found.update(b"".join(values.tobytes() for values in vector.directions.values()))
        for name, probe in sorted(self.probes.items()):
            found.update(repr((name, probe.point, probe.bias, probe.sigmoid)).encode() + probe.weights.tobytes())
        found.update(repr(sorted(self.guards.items())).encode() if self.guards else b"")
        return found.hexdigest()

    def taken_from(self, options: dict[str, Any], points: Callable[[], Mapping[str, Point]]) -> Control:
        """The edits and probes of a request. Removes ``edits``, ``steer`` and ``probes`` from its options.

        Raises:
            InvalidRequest: a name is unknown (the message lists the registered names), a vector does not fit the
                model, or a number is out of range.
        """
        edits, steer, probes = (options.pop(name, None) for name in ("edits", "steer", "probes"))
        own = [] if edits is None else listed(edits)
        if steer:
            own = [*own, *self._steering(steer, points()).edits()]
        named = [] if probes is None else listed_probes(self._named(probes))
        return Control(own, self._guarded(named))

    def _guarded(self, probes: Sequence[LinearProbe]) -> list[LinearProbe]:
        """The probes of a request and the guards. Of two limits of a probe the lower applies."""
        found = {probe.name: probe for probe in probes}
        for name, above in self.guards.items():
            own = found.get(name, self.probes[name])
            found[name] = own.stopping(above if own.stop_above is None else min(above, own.stop_above))
        return list(found.values())

    def _steering(self, steer: Any, points: Mapping[str, Point]) -> ControlVector:
        if not isinstance(steer, Mapping):
            raise InvalidRequest(f"steer={brief(steer)}: must be an object of names and scales")
        if len(steer) > MAX_STEERED:
            raise InvalidRequest(f"steer has {len(steer):,} vectors; the limit is {MAX_STEERED}")
        parts = list[tuple[float, ControlVector]]()
        for name, scale in steer.items():
            vector = _registered("steer", name, self.vectors, "control vectors")
            try:
                vector.check_fits(points)
            except InvalidRequest as error:
                raise InvalidRequest(f"steer.{name}: {error}") from None
            parts.append((real(f"steer.{name}", scale, -MAX_SCALE, MAX_SCALE), vector))
        return total(parts)

    def _named(self, probes: Any) -> Any:
        if isinstance(probes, Mapping):
            return [self._limited(name, limits) for name, limits in probes.items()]
        if not isinstance(probes, (list, tuple)):
            return probes
        return [
            _registered("probes", probe, self.probes, "probes") if isinstance(probe, str) else probe for probe in probes
        ]

    def _limited(self, name: Any, limits: Any) -> LinearProbe:
        probe: LinearProbe = _registered("probes", name, self.probes, "probes")
        limits = {} if limits is None else limits
        if not isinstance(limits, Mapping) or not limits.keys() <= {"stop_above"}:
            raise InvalidRequest(f"probes.{name}={brief(limits)}: must be an object with stop_above, or empty")
        above = limits.get("stop_above")
        return probe if above is None else probe.stopping(above)


NO_VECTORS = RegisteredVectors()


def _registered(option: str, name: Any, known: Mapping[str, Any], kind: str) -> Any:
    found = known.get(name) if isinstance(name, str) else None
    if found is None:
        some = ", ".join(list(known)[:20]) + (f" and {len(known) - 20:,} more" if len(known) > 20 else "")
        has = f"the registered {kind} are {some}" if known else f"no {kind} are registered (--vectors FOLDER)"
        raise InvalidRequest(f"{option}={brief(name)}: {has}")
    return found
