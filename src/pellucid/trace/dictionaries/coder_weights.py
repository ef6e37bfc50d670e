"""The contents of a file with a sparse coder: hooks, matrices, activation function and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.dictionaries.activations import FeatureActivation
from pellucid.trace.dictionaries.decoder_rows import DecoderRows

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


class Given(Struct, frozen=True):
    """Facts that the user states beside the files: hooks (None: not stated), and the factor of the inputs."""

    reads: str | None = None
    writes: str | None = None
    input_scale: float | None = None

    def hooks(
        self, path: Path, reads: str | None, writes: str | None, *, transcodes: bool = False
    ) -> tuple[str, str]:
        """The hooks that a coder reads and writes, as the user or the file states them.

        Raises:
            InvalidRequest: nobody states what the coder reads, or what a transcoder writes.
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
