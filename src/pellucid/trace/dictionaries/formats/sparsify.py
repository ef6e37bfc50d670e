"""EleutherAI's sparsify: a folder, named after its hook, with ``cfg.json`` and ``sae.safetensors``.

Source: https://github.com/EleutherAI/sparsify, class ``SparseCoder``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pellucid.trace.dictionaries.array_files import SafetensorsArrays, StatedConfig, refuse_unused, take
from pellucid.trace.dictionaries.coder_weights import (
    CoderWeights,
    DictionaryFormat,
    Given,
    GroupMax,
    TopKActivation,
    decoder_of,
)
from pellucid.weights.json_files import read_json

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"


def find(path: Path) -> Path | None:
    file = path if path.name == WEIGHTS else path / WEIGHTS
    return file if file.is_file() else None


def read(path: Path, given: Given) -> tuple[str, Sequence[CoderWeights]]:
    where, file = path.parent / CONFIG, SafetensorsArrays(path)
    config = StatedConfig(where, read_json(where))
    encoder = take(file, "encoder.weight", (None, None))
    F, D = encoder.shape
    decoder = decoder_of(file, "W_dec", F, None)
    width = decoder.shape[2]
    config.check_sizes({"d_in": D})
    if config.fields.get("num_latents"):  # 0: expansion_factor counts; otherwise it is not used
        config.check_sizes({"num_latents": F})
    elif F % D == 0:
        config.check_sizes({"expansion_factor": F // D})
    kind, k = config.fields.get("activation", "topk"), config.k(F)
    if kind not in ("topk", "groupmax") or (kind == "groupmax" and F % k):
        raise config.error("activation", f" with k={k} of {F:,} features is not read")
    transcodes = config.flag("transcode")
    name = path.parent.name
    reads, writes = given.hooks(path, f"{name}.input" if transcodes and name.endswith("mlp") else name, name)
    if config.flag("signed"):
        raise config.error("signed", ": signed activations are not read")
    coder = CoderWeights(
        path=path,
        reads=reads,
        writes=(writes,),
        encoder=encoder,
        encoder_bias=take(file, "encoder.bias", (F,)),
        decoder=decoder,
        decoder_bias=take(file, "b_dec", (width,)),
        activation=TopKActivation(k) if kind == "topk" else GroupMax(k),
        input_bias=None if transcodes else np.asarray(take(file, "b_dec", (D,))),
        skip=take(file, "W_skip", (width, D)) if config.flag("skip_connection") else None,
    )
    refuse_unused(file, f"skip_connection={config.flag('skip_connection')} ({CONFIG})")
    return "transcoder" if transcodes else "SAE", [coder]


SPARSIFY = DictionaryFormat("sparsify", find, read)
