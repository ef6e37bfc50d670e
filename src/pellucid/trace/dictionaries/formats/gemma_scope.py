"""Gemma Scope: ``params.npz`` with JumpReLU SAEs and transcoders of Gemma 2. The file does not state its hook.

Source: https://huggingface.co/google/gemma-scope, and SAELens' ``gemma_2_sae_huggingface_loader``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pellucid.errors import FileFormatError
from pellucid.trace.dictionaries.activations import JumpRelu
from pellucid.trace.dictionaries.array_files import NpzArrays, refuse_unused, take
from pellucid.trace.dictionaries.coder_weights import CoderWeights, DictionaryFormat, Given
from pellucid.trace.dictionaries.decoder_rows import ArrayRows

FILE = "params.npz"


def find(path: Path) -> Path | None:
    """An npz file, or ``params.npz`` in a folder."""
    file = path if path.suffix == ".npz" else path / FILE
    return file if file.is_file() else None


def read(path: Path, given: Given) -> tuple[str, Sequence[CoderWeights]]:
    """Read an SAE or a transcoder. Raises FileFormatError or InvalidRequest, in one line, if it cannot be used."""
    file = NpzArrays(path)
    reads, writes = given.hooks(path, None, None)
    upper = {name: f"W_{name[2:]}" for name in file.shapes if name.startswith("w_")}
    names = {upper.get(name, name): name for name in file.shapes}
    encoder = np.ascontiguousarray(take(file, names.get("W_enc", "W_enc"), (None, None)).T)
    F = len(encoder)
    vectors = np.ascontiguousarray(take(file, names.get("W_dec", "W_dec"), (F, None)))
    if not np.allclose(take(file, "scaling_factor", (F,), missing=1.0), 1):
        raise FileFormatError(path, "scaling_factor", "finetuned scaling factors are not read")
    coder = CoderWeights(
        path=path,
        reads=reads,
        writes=(writes,),
        encoder=encoder,
        encoder_bias=take(file, "b_enc", (F,)),
        decoder=ArrayRows(vectors.reshape(F, 1, -1)),
        decoder_bias=take(file, "b_dec", (vectors.shape[1],)),
        activation=JumpRelu(take(file, "threshold", (F,))),
    )
    refuse_unused(file, "JumpReLU, the activation of Gemma Scope")
    return "SAE" if reads == writes else "transcoder", [coder]


GEMMA_SCOPE = DictionaryFormat("Gemma Scope", find, read)
