"""Options of control vectors: of commands that generate, as in llama.cpp, and of servers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import common
from pellucid.errors import InvalidRequest

if TYPE_CHECKING:
    from pellucid.llm import LLM
    from pellucid.trace.control_vector import ControlVector
    from pellucid.trace.registered_vectors import RegisteredVectors

VectorFolder = Annotated[
    str | None,
    common.text(
        "FOLDER",
        "Control vectors (.gguf, .safetensors) and probes (.safetensors) that requests name in the fields steer and "
        "probes.",
    ),
]


Guards = Annotated[
    list[str] | None,
    typer.Option(
        help="End every text before a token whose score by a probe of --vectors is above a limit; may be repeated.",
        metavar="NAME:LIMIT",
    ),
]


@dataclass(frozen=True)
class ControlOptions:
    """Control vectors of a command that generates. Several vectors are added up."""

    control_vector: Annotated[
        list[str] | None,
        typer.Option(
            help="Steer the model with a control vector (.gguf of llama.cpp or repeng, .safetensors), times a scale; "
            "may be repeated.",
            metavar="FILE[:SCALE]",
        ),
    ] = None
    control_vector_layer_range: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="First and last layer of the control vectors. Default: all layers.", metavar="START END"
        ),
    ] = None

    def vector(self) -> ControlVector | None:
        """The sum of the vectors, None without vectors.

        Raises:
            FileFormatError: a file is damaged.
            InvalidRequest: a scale is no number, or no vector has a layer of the range.
        """
        layers = self.control_vector_layer_range
        if not self.control_vector:
            if layers is not None:
                raise InvalidRequest("--control-vector-layer-range: add --control-vector FILE")
            return None
        from pellucid.trace.control_vector import ControlVector, total

        given = [part for text in self.control_vector for part in _parts(text)]
        vector = total([(scale, ControlVector.open(path)) for path, scale in given])
        return vector if layers is None else vector.only(range(layers[0], layers[1] + 1))


def steered(options: Mapping[str, Any], vector: ControlVector | None, llm: LLM) -> dict[str, Any]:
    """Options of a request with the edits of a control vector.

    Raises:
        InvalidRequest: the vector belongs to another model.
    """
    if vector is None:
        return dict(options)
    try:
        vector.check_fits(llm.points)
    except InvalidRequest as error:
        raise InvalidRequest(f"--control-vector: {error}") from None
    return {**options, "edits": vector.edits()}


def registered(folder: str | None, guards: list[str] | None = None) -> RegisteredVectors:
    """The control vectors and probes of ``--vectors``, with the limits of ``--guard``.

    Raises:
        InvalidRequest: a guard names no registered probe, or its limit is no number; and as ``RegisteredVectors.open``.
    """
    from pellucid.trace.registered_vectors import NO_VECTORS, RegisteredVectors

    known, limits = NO_VECTORS if folder is None else RegisteredVectors.open(folder), dict[str, float]()
    for text in guards or ():
        name, _, limit = text.rpartition(":")
        try:
            limits[name] = float(limit)
        except ValueError:
            raise InvalidRequest(
                f"--guard {common.visible(text)}: must be NAME:LIMIT, such as toxicity:0.9"
            ) from None
    return known.guarded(limits) if limits else known


def _parts(text: str) -> list[tuple[str, float]]:
    """The files and scales of ``FILE[:SCALE]``, or of a list of them with commas, as llama.cpp takes it."""
    if os.path.exists(text):
        return [(text, 1.0)]
    return [_scaled(part) for part in text.split(",")]


def _scaled(text: str) -> tuple[str, float]:
    path, colon, scale = text.rpartition(":")
    if not colon or os.path.exists(text):
        return text, 1.0
    try:
        return path, float(scale)
    except ValueError:
        if os.path.exists(path):
            raise InvalidRequest(
                f"--control-vector {common.visible(text)}: {common.visible(scale)} is no scale"
            ) from None
        return text, 1.0  # a colon in the name of a file
