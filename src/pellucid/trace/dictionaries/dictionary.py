"""`Dictionary`: features of a model's values, opened from files, and edits of features."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, InvalidRequest, brief
from pellucid.trace.dictionaries.coder_weights import (
    MOST_FEATURES,
    ArrayRows,
    CoderWeights,
    DictionaryFormat,
    Given,
    Relu,
    TopKActivation,
)
from pellucid.trace.dictionaries.sparse_coder import Change, ChangedFeatures, Reconstruction, SparseCoder
from pellucid.trace.edits import LARGEST, Edit, add, call
from pellucid.trace.traced_model import TracedModel
from pellucid.util.checks import real, whole
from pellucid.util.registry import discover

PLACE = Path("arrays")  # the name of the dictionary in messages


def _floats(name: str, values: NDArray[Any], shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    found = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(found).all():
        raise InvalidRequest(f"{name} of shape {found.shape}: has numbers that are not finite")
    fits = found.ndim == len(shape) and all(own == wanted for own, wanted in zip(found.shape, shape) if wanted)
    if not fits or not found.size:
        wanted = ", ".join("?" if length is None else f"{length:,}" for length in shape)
        raise InvalidRequest(f"{name} of shape {found.shape}: must have the shape ({wanted})")
    return found


MOST_CHANGED = 1024  # maximum number of features of an edit
Features = int | Sequence[int]


class Dictionary:
    """An SAE, a transcoder for one or each layer, a cross-layer transcoder, or a crosscoder, for one model.

        sae = Dictionary.open("gemma-scope/layer_12", llm)
        llm.generate(prompt, edits=sae.clamp(123, 40.0))

    ``coders`` has a `SparseCoder` for each layer. A feature is named by its number, and by its ``layer`` if there are
    several layers. Edits keep the error of the reconstruction: they add (f' - f) · vector to the values, so an
    unchanged feature changes no bit.
    """

    def __init__(self, path: Path, kind: str, coders: Sequence[SparseCoder]) -> None:
        self.path, self.kind = path, kind
        self.coders = {_layer(coder): coder for coder in coders}
        if len(self.coders) < len(coders):
            raise InvalidRequest(f"{path.name}: several of its coders read the same layer")

    def __repr__(self) -> str:
        coder = next(iter(self.coders.values()))
        layers = f"{len(self.coders)} layers of " if len(self.coders) > 1 else ""
        where = coder.reads.name if coder.is_autoencoder else f"{coder.reads.name} to {coder.writes[0].name}"
        return f"Dictionary({self.kind}, {layers}{coder.features:,} features, {coder.activation}, {where})"

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: TracedModel,
        *,
        reads: str | None = None,
        writes: str | None = None,
        input_scale: float | None = None,
    ) -> Dictionary:
        """Open the files at ``path``, a file or folder of SAELens, Gemma Scope, circuit-tracer or sparsify.

        ``reads`` and ``writes`` are the hooks of files that do not state them (params.npz of Gemma Scope), as points or
        in TransformerLens' names. ``input_scale`` is the factor of the inputs for SAELens' normalisation
        expected_average_only_in, which the file does not have.

        Raises:
            FileFormatError: a file is damaged or has another format.
            InvalidRequest: the dictionary is for another model, or a hook is not stated.
        """
        path = Path(path)
        if input_scale is not None:
            input_scale = real("input_scale", input_scale, 0.0, LARGEST, above=True)
        for form in formats().values():
            if (found := form.find(path)) is not None:
                kind, weights = form.read(found, Given(reads, writes, input_scale))
                return cls(path, kind, [SparseCoder(own, model) for own in weights])
        problem = f"no file of a dictionary is here; known are {', '.join(formats())}"
        raise FileFormatError(path, "dictionary", problem if path.exists() else f"there is nothing at {path}")

    @classmethod
    def from_arrays(
        cls,
        model: TracedModel,
        reads: str,
        encoder: NDArray[Any],
        decoder: NDArray[Any],
        *,
        encoder_bias: NDArray[Any] | None = None,
        decoder_bias: NDArray[Any] | None = None,
        centred: bool = False,
        writes: str | None = None,
        k: int | None = None,
    ) -> Dictionary:
        """A dictionary that you have trained: an SAE of the point ``reads``, or a transcoder from it to ``writes``.

        Args:
            encoder, decoder: (F, D) and (F, D'): a row for each feature.
            encoder_bias, decoder_bias: (F,) and (D',); by default 0.
            centred: the decoder's bias is subtracted from the input.
            k: the number of active features of each token (top-k). By default the activation is ReLU.

        Raises:
            InvalidRequest: a shape is wrong, a number is not finite, or the model lacks a point.
        """
        rows = _floats("encoder", encoder, (None, None))
        F, D = rows.shape
        if F != D and np.shape(decoder)[:1] == (D,):
            raise InvalidRequest(
                f"encoder of shape {rows.shape}: the decoder has {D:,} features, so the shape must be ({D:,}, ?): give "
                "its transpose"
            )
        vectors = _floats("decoder", decoder, (F, None))
        whole("features", F, 1, MOST_FEATURES)
        bias = np.zeros(vectors.shape[1]) if decoder_bias is None else decoder_bias
        bias = _floats("decoder_bias", bias, (vectors.shape[1],))
        if centred and len(bias) != D:
            raise InvalidRequest(f"centred: the bias has {len(bias):,} values, and the input {D:,}: they must be equal")
        made = CoderWeights(
            path=PLACE,
            reads=reads,
            writes=(writes or reads,),
            encoder=rows,
            encoder_bias=_floats("encoder_bias", np.zeros(F) if encoder_bias is None else encoder_bias, (F,)),
            decoder=ArrayRows(np.ascontiguousarray(vectors[:, None])),
            decoder_bias=bias,
            activation=Relu() if k is None else TopKActivation(whole("k", k, 1, F)),
            input_bias=bias if centred else None,
        )
        return cls(made.path, "transcoder" if writes else "SAE", [SparseCoder(made, model)])

    def coder(self, layer: int | None = None) -> SparseCoder:
        """The coder of a layer. Raises InvalidRequest if there is no such layer, or if there are several."""
        if layer is None and len(self.coders) == 1:
            return next(iter(self.coders.values()))
        if layer is None or layer not in self.coders:
            has = ", ".join(map(str, self.coders))
            raise InvalidRequest(f"layer={brief(layer)}: must be a layer of the dictionary: {brief(has)}")
        return self.coders[layer]

    def vectors(self, feature: Features, *, layer: int | None = None) -> NDArray[np.float32]:
        """The vectors that features write at an activation of 1: (n, O, D), for O points (``coder(layer).writes``).

        Raises: as ``clamp``.
        """
        coder = self.coder(layer)
        return coder.vectors(_numbers(coder, feature))

    def clamp(
        self, feature: Features, value: float, *, layer: int | None = None, tokens: str = ":", error: bool = True
    ) -> list[Edit]:
        """Set the activation of a feature, or of several, to ``value`` at the positions ``tokens``, such as "5:".

        With ``error=False`` the values lose the error of the reconstruction: they are replaced by it.

        Raises:
            InvalidRequest: there is no such feature or layer, or a number is out of range.
        """
        number = np.float32(real("value", value, -LARGEST, LARGEST))
        return self._changed(feature, lambda before: np.full_like(before, number), layer, tokens, error)

    def ablate(
        self, feature: Features, *, layer: int | None = None, tokens: str = ":", error: bool = True
    ) -> list[Edit]:
        """Set the activation of a feature, or of several, to 0. Arguments and errors are as in ``clamp``."""
        return self.clamp(feature, 0.0, layer=layer, tokens=tokens, error=error)

    def scale(
        self, feature: Features, factor: float, *, layer: int | None = None, tokens: str = ":", error: bool = True
    ) -> list[Edit]:
        """Multiply the activation of a feature, or of several. Arguments and errors are as in ``clamp``."""
        number = np.float32(real("factor", factor, -LARGEST, LARGEST))
        return self._changed(feature, lambda before: before * number, layer, tokens, error)

    def steer(self, feature: Features, amount: float, *, layer: int | None = None, tokens: str = ":") -> list[Edit]:
        """Add ``amount`` to the activation of a feature, or of several: ``amount`` times its vector is added.

        The edits are plain edits ``add``, which need no encoder, unless the dictionary normalises its inputs.

        Raises: as ``clamp``.
        """
        number = np.float32(real("amount", amount, -LARGEST, LARGEST))
        coder = self.coder(layer)
        if coder.rescales:
            return self._changed(feature, lambda before: before + number, layer, tokens, error=True)
        vectors = coder.vectors(_numbers(coder, feature)).sum(0)
        return [add(where.at(tokens), vector, float(number)) for where, vector in zip(coder.writes, vectors)]

    def reconstruct(self, *, layer: int | None = None, tokens: str = ":") -> list[Edit]:
        """Replace the values that the dictionary writes by their reconstruction, in one layer or in all.

        Raises:
            InvalidRequest: there is no such layer, or features of other layers write to it, too.
        """
        chosen = self.coders if layer is None else {_layer(self.coder(layer)): self.coder(layer)}
        if layer is not None and any(len(coder.writes) > 1 for coder in self.coders.values()):
            raise InvalidRequest(f"layer={layer}: its features write to several layers: leave layer out")
        return [self._edit(coder, Reconstruction(coder, self.others(coder)), tokens) for coder in chosen.values()]

    def others(self, coder: SparseCoder) -> list[tuple[SparseCoder, int]]:
        """The coders that write to the first output of ``coder``, too, with their outputs."""
        return [
            (other, other.writes.index(coder.writes[0]))
            for other in self.coders.values()
            if other is not coder and coder.writes[0] in other.writes
        ]

    def _changed(self, feature: Features, change: Change, layer: int | None, tokens: str, error: bool) -> list[Edit]:
        coder = self.coder(layer)
        changed = ChangedFeatures(coder, _numbers(coder, feature), change)
        if not error and coder.is_autoencoder and len(self.coders) == 1:
            return [self._edit(coder, Reconstruction(coder, (), changed), tokens)]
        edits = [] if error else self.reconstruct(layer=None if len(coder.writes) > 1 else layer, tokens=tokens)
        edits.append(self._edit(coder, changed.at(0), tokens))
        return edits + [
            call(where.at(tokens), changed.at(output))
            for output, where in enumerate(coder.writes)
            if output and changed.vectors[:, output].any()
        ]

    def _edit(self, coder: SparseCoder, function: Callable[..., Any], tokens: str) -> Edit:
        """The edit of the values that a coder writes first, by a function that needs its input."""
        reads = () if coder.is_autoencoder else (coder.reads.name,)
        return call(coder.writes[0].at(tokens), function, reads)


def is_dictionary(path: Path) -> bool:
    return any(form.find(path) is not None for form in formats().values())


@cache
def formats() -> dict[str, DictionaryFormat]:
    return discover("pellucid.trace.dictionaries.formats", DictionaryFormat, lambda form: (form.name,))


def _layer(coder: SparseCoder) -> int:
    """The number of the block that a coder reads; 0 outside of blocks."""
    parts = coder.reads.point.name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else 0


def _numbers(coder: SparseCoder, feature: Features) -> NDArray[np.int64]:
    given = list(feature) if isinstance(feature, (list, tuple, range, np.ndarray)) else [feature]
    if not 1 <= len(given) <= MOST_CHANGED or len(set(given)) < len(given):
        raise InvalidRequest(f"feature={brief(given)}: must be 1 to {MOST_CHANGED:,} different features")
    return np.array([whole("feature", one, 0, coder.features - 1) for one in given], np.int64)


# Dictionaries of a server by name: "NAME=PATH", "PATH", "FOLDER" of dictionaries, or "NAME=PATH,reads=HOOK".

NAME = re.compile(r"[\w][\w.-]{0,63}")
MOST = 256  # maximum number of dictionaries of a model


def named_dictionaries(given: Sequence[str], model: TracedModel) -> Mapping[str, Dictionary]:
    """Open dictionaries for a model.

    Raises:
        InvalidRequest: a name is wrong or given twice, there are too many, or a dictionary is for another model.
        FileFormatError: a file is damaged, or no dictionary is there.
    """
    opened = dict[str, Dictionary]()
    for text in given:
        path, *stated = re.split(r",(?=(?:reads|writes)=)", text)
        hooks = dict(one.split("=", 1) for one in stated)
        for name, one in _named(path):
            if not NAME.fullmatch(name) or name in opened or len(opened) >= MOST:
                reason = "is given twice" if name in opened else "must have letters, digits, _, - and . alone"
                if len(opened) >= MOST:
                    reason = f"is one too many: {MOST} dictionaries may be given"
                raise InvalidRequest(f"dictionaries={brief(text)}: the name {brief(name)} {reason}: give NAME=PATH")
            opened[name] = Dictionary.open(one, model, reads=hooks.get("reads"), writes=hooks.get("writes"))
    return opened


def _named(text: str) -> Iterator[tuple[str, Path]]:
    name, equals, path = text.partition("=")
    if equals:
        yield name, Path(path)
        return
    folder = Path(text)
    inside = sorted(one for one in folder.iterdir() if is_dictionary(one)) if folder.is_dir() else []
    if is_dictionary(folder) or not inside:
        yield folder.name.removesuffix(folder.suffix if folder.is_file() else ""), folder
    else:
        yield from ((one.stem if one.is_file() else one.name, one) for one in inside)
