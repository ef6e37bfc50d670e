"""circuit-tracer: a transcoder for each layer (``layer_0.safetensors``, …), or a cross-layer transcoder.

A cross-layer transcoder is a folder with ``W_enc_0.safetensors`` and ``W_dec_0.safetensors``, … ``config.yaml`` (or
``config.json``) states ``feature_input_hook`` and ``feature_output_hook``, without the block.

Source: https://github.com/safety-research/circuit-tracer, ``circuit_tracer/transcoder``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pellucid.errors import FileFormatError
from pellucid.trace.dictionaries.array_files import (
    SafetensorsArrays,
    StatedConfig,
    numbered_files,
    read_config,
    refuse_unused,
    take,
)
from pellucid.trace.dictionaries.coder_weights import (
    CoderWeights,
    DictionaryFormat,
    Given,
    JumpRelu,
    Relu,
    block_of_hook,
    coder_of,
    decoder_of,
)
from pellucid.weights.json_files import read_json

LAYER = re.compile(r"layer_(\d{1,6})\.safetensors")
ENCODER = "W_enc_0.safetensors"
INPUT, OUTPUT = "feature_input_hook", "feature_output_hook"
SET, CROSS_LAYER = "transcoder_set", "cross_layer_transcoder"


def find(path: Path) -> Path | None:
    if LAYER.fullmatch(path.name) and path.is_file():
        return path
    return path if any((path / name).is_file() for name in ("layer_0.safetensors", ENCODER)) else None


def read(path: Path, given: Given) -> tuple[str, Sequence[CoderWeights]]:
    one = LAYER.fullmatch(path.name) if path.is_file() else None
    folder = path.parent if one else path
    config = _config(folder)
    reads, writes = given.hooks(path, config.text(INPUT), config.text(OUTPUT), transcodes=True)
    crosses = not one and (folder / ENCODER).is_file()
    if one:
        coders = [_transcoder(path, int(one[1]), reads, writes)]
    elif crosses:
        count = len(numbered_files(folder, "W_enc_{}.safetensors"))
        coders = [_cross_layer(folder, layer, count, reads, writes) for layer in range(count)]
    else:
        files = numbered_files(folder, "layer_{}.safetensors")
        coders = [_transcoder(file, layer, reads, writes) for layer, file in enumerate(files)]
    _check(config, coders, CROSS_LAYER if crosses else SET, None if one else len(coders))
    return "cross-layer transcoder" if crosses else "transcoder", coders


def _check(config: StatedConfig, coders: Sequence[CoderWeights], kind: str, layers: int | None) -> None:
    config.check_is("model_kind", kind, known=(SET, CROSS_LAYER))
    for coder in coders:
        F, D = coder.encoder.shape
        config.check_sizes({"d_model": D, "d_in": D, "d_transcoder": F, "d_sae": F})
    listed = config.fields.get("transcoders")
    if layers is not None:
        config.check_sizes({"n_layers": layers, "num_layers": layers})
        if isinstance(listed, list) and len(listed) != layers:
            raise config.error(
                "transcoders", f" lists {len(listed):,} layers, and the folder has {layers:,}: add the other files"
            )


def _config(folder: Path) -> StatedConfig:
    if (folder / "config.yaml").exists():
        return StatedConfig(folder / "config.yaml", read_config(folder / "config.yaml"))
    where = folder / "config.json"
    return StatedConfig(where, read_json(where) if where.exists() else {})


def _hook(hook: str, layer: int) -> str:
    return hook if block_of_hook(hook) is not None else f"blocks.{layer}.{hook}"


def _transcoder(path: Path, layer: int, reads: str, writes: str) -> CoderWeights:
    file = SafetensorsArrays(path)
    encoder = take(file, "W_enc", (None, None))
    F, D = encoder.shape
    decoder, threshold = decoder_of(file, "W_dec", F, None), "activation_function.threshold"
    if "log_thresholds" in file.shapes:
        raise FileFormatError(path, "log_thresholds", "is not read; circuit-tracer does not read it either")
    activation = JumpRelu(take(file, threshold, (F,))) if threshold in file.shapes else Relu()
    skip = take(file, "W_skip", (decoder.shape[2], D)) if "W_skip" in file.shapes else None
    coder = coder_of(file, (_hook(reads, layer), (_hook(writes, layer),)), encoder, decoder, activation, skip=skip)
    refuse_unused(file, f"model_kind={SET}")
    return coder


def _cross_layer(folder: Path, layer: int, count: int, reads: str, writes: str) -> CoderWeights:
    file = SafetensorsArrays(folder / f"W_enc_{layer}.safetensors")
    encoder = take(file, f"W_enc_{layer}", (None, None))
    F = len(encoder)
    vectors = SafetensorsArrays(folder / f"W_dec_{layer}.safetensors")
    decoder, threshold = decoder_of(vectors, f"W_dec_{layer}", F, count - layer), f"threshold_{layer}"
    hooks = _hook(reads, layer), tuple(_hook(writes, later) for later in range(layer, count))
    activation = JumpRelu(take(file, threshold, (F,))) if threshold in file.shapes else Relu()
    coder = coder_of(file, hooks, encoder, decoder, activation, (f"b_enc_{layer}", f"b_dec_{layer}"))
    refuse_unused(file, f"model_kind={CROSS_LAYER}, layer {layer}")
    refuse_unused(vectors, f"model_kind={CROSS_LAYER}, layer {layer}")
    return coder


CIRCUIT_TRACER = DictionaryFormat("circuit-tracer", find, read)
