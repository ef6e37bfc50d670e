"""A sparse coder from arrays that the user has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.dictionaries.activations import FeatureActivation, Relu, TopKActivation
from pellucid.trace.dictionaries.coder_weights import MOST_FEATURES, CoderWeights
from pellucid.trace.dictionaries.decoder_rows import ArrayRows
from pellucid.util.checks import whole

PLACE = Path("arrays")
"""The name of the dictionary in messages."""


def trained_coder(
    reads: str,
    writes: str,
    encoder: NDArray[Any],
    decoder: NDArray[Any],
    encoder_bias: NDArray[Any] | None,
    decoder_bias: NDArray[Any] | None,
    centred: bool,
    k: int | None,
) -> CoderWeights:
    """The coder of ``Dictionary.from_arrays``, whose arguments it has.

    Raises:
        InvalidRequest: a shape is wrong, or a number is not finite.
    """
    rows = _floats("encoder", encoder, (None, None))
    F, D = rows.shape
    if F != D and np.shape(decoder)[:1] == (D,):
        raise InvalidRequest(
            f"encoder of shape {rows.shape}: the decoder has {D:,} features, so the shape must be ({D:,}, ?): give its "
            "transpose"
        )
    vectors = _floats("decoder", decoder, (F, None))
    whole("features", F, 1, MOST_FEATURES)
    bias = np.zeros(vectors.shape[1]) if decoder_bias is None else decoder_bias
    bias = _floats("decoder_bias", bias, (vectors.shape[1],))
    if centred and len(bias) != D:
        raise InvalidRequest(
            f"centred: the bias has {len(bias):,} values, and the input {D:,}: they must be equal"
        )
    activation: FeatureActivation = Relu() if k is None else TopKActivation(whole("k", k, 1, F))
    return CoderWeights(
        path=PLACE,
        reads=reads,
        writes=(writes,),
        encoder=rows,
        encoder_bias=_floats("encoder_bias", np.zeros(F) if encoder_bias is None else encoder_bias, (F,)),
        decoder=ArrayRows(np.ascontiguousarray(vectors[:, None])),
        decoder_bias=bias,
        activation=activation,
        input_bias=bias if centred else None,
    )


def _floats(name: str, values: NDArray[Any], shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    found = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(found).all():
        raise InvalidRequest(f"{name} of shape {found.shape}: has numbers that are not finite")
    fits = found.ndim == len(shape) and all(
        own == wanted for own, wanted in zip(found.shape, shape) if wanted
    )
    if not fits or not found.size:
        wanted = ", ".join("?" if length is None else f"{length:,}" for length in shape)
        raise InvalidRequest(f"{name} of shape {found.shape}: must have the shape ({wanted})")
    return found
