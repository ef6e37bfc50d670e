"""SAELens: a folder with ``cfg.json`` and ``sae_weights.safetensors``. Architectures of version 6, and files before it.

Source: https://github.com/decoderesearch/SAELens, ``sae_lens/saes`` and ``sae_lens/loading``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.errors.messages import brief
from pellucid.trace.dictionaries.activations import FeatureActivation, Gated, JumpRelu, Relu, TopKActivation
from pellucid.trace.dictionaries.array_files import SafetensorsArrays, take
from pellucid.trace.dictionaries.coder_weights import (
    CoderWeights,
    DictionaryFormat,
    Given,
    chosen_k,
    stated_text,
)
from pellucid.trace.dictionaries.decoder_rows import DecoderRows, ScaledRows, decoder_of
from pellucid.trace.dictionaries.normalization import NORMALIZATIONS
from pellucid.util.probabilities import exponentials
from pellucid.weights.json_files import read_json

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
THRESHOLD = (
    "jumprelu",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
    "batchtopk",
    "matryoshka_batchtopk",
)
PLAIN = ("standard", "transcoder", "skip_transcoder")
ARCHITECTURES = (*PLAIN, *THRESHOLD, "topk", "abstopk", "gated")
RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Fields of files before version 6, by their later names."""
LARGEST_LOGARITHM = 80
NORM_BLOCK = 4096
"""Number of vectors whose norms are computed at once."""


def find(path: Path) -> Path | None:
    """The weights in a folder or at a path."""
    file = path if path.name == WEIGHTS else path / WEIGHTS
    return file if file.is_file() else None


def read(path: Path, given: Given) -> tuple[str, Sequence[CoderWeights]]:
    """Read an SAE or a transcoder. Raises FileFormatError or InvalidRequest, in one line, if it cannot be used."""
    where = path.parent / CONFIG
    config, file = current(read_json(where)), SafetensorsArrays(path)
    architecture = config.get("architecture")
    if architecture not in ARCHITECTURES:
        raise FileFormatError(
            where, "architecture", f"{brief(architecture)} is not read; known are {', '.join(ARCHITECTURES)}"
        )
    transcodes = architecture.endswith("transcoder")
    reads, writes = given.hooks(where, *_hooks(where, config))
    encoder = np.ascontiguousarray(take(file, "W_enc", (None, None)).T)
    F, D = encoder.shape
    decoder = decoder_of(file, "W_dec", F, None)
    if not transcodes and decoder.shape[2] != D:
        raise FileFormatError(path, "W_dec", f"has vectors of {decoder.shape[2]:,} values; W_enc reads {D:,}")
    decoder_bias = take(file, "b_dec", (decoder.shape[2],))
    bias = np.zeros(F, np.float32) if architecture == "gated" else take(file, "b_enc", (F,))
    if not np.allclose(take(file, "scaling_factor", (F,), missing=1.0), 1):
        raise FileFormatError(path, "scaling_factor", "finetuned scaling factors are not read")
    if config.get("rescale_acts_by_decoder_norm") is True:
        norms = _norms(path, decoder)
        encoder *= norms[:, None]
        bias, decoder = bias * norms, ScaledRows(decoder, (1 / norms).astype(np.float32))
    normalization, scale = _normalization(where, config, given)
    if scale is not None:
        encoder, decoder_bias = encoder * scale, decoder_bias / scale
        decoder = ScaledRows(decoder, (1 / np.full(F, scale)).astype(np.float32))
    subtracted = bool(config.get("apply_b_dec_to_input", True)) and not transcodes
    skip = take(file, "W_skip", (decoder.shape[2], D)) if "skip" in architecture else None
    coder = CoderWeights(
        path=path,
        reads=reads,
        writes=(writes,),
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation=_activation(where, config, file, F),
        input_bias=decoder_bias if subtracted else None,
        skip=skip,
        normalization=normalization,
    )
    return "transcoder" if transcodes else "SAE", [coder]


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the fields of version 6, and with the fields of ``metadata`` beside the others."""
    metadata = config.get("metadata")
    flat = {**config, **(metadata if isinstance(metadata, dict) else {})}
    version = str(flat.get("sae_lens_version") or "").partition(".")[0]
    if version.isdecimal() and int(version) >= 6:
        return flat
    flat = {RENAMED.get(name, name): value for name, value in flat.items()}
    flat.setdefault("architecture", "standard")
    more = flat.get("activation_fn_kwargs")
    if flat.get("activation_fn") == "topk" and isinstance(more, dict):
        flat |= {"architecture": "topk", "k": more.get("k")}
    if isinstance(flat.get("normalize_activations"), bool):
        flat["normalize_activations"] = (
            "expected_average_only_in" if flat["normalize_activations"] else "none"
        )
    return flat


def _normalization(where: Path, config: Mapping[str, Any], given: Given) -> tuple[str, np.float32 | None]:
    """The name of the normalisation, and a constant factor of the inputs."""
    name = config.get("normalize_activations") or "none"
    if name == "expected_average_only_in":
        if given.input_scale is None:
            raise InvalidRequest(
                f"{CONFIG}: normalize_activations={name}: the file does not have the factor of the inputs: give "
                "input_scale=, or save the SAE with its factor folded in"
            )
        return "none", np.float32(given.input_scale)
    if name != "none" and name not in NORMALIZATIONS:
        known = ", ".join(["none", "expected_average_only_in", *NORMALIZATIONS])
        raise FileFormatError(where, "normalize_activations", f"{brief(name)}; known are {known}")
    return name, None


def _hooks(where: Path, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The hooks that the file states. The names of modules in transformers are more exact, where they are given."""
    reads = stated_text(where, config, "hf_hook_name") or stated_text(where, config, "hook_name")
    writes = stated_text(where, config, "hf_hook_name_out") or stated_text(where, config, "hook_name_out")
    head = config.get("hook_head_index")
    return f"{reads}[heads={head}]" if reads and head is not None else reads, writes


def _activation(where: Path, config: Mapping[str, Any], file: SafetensorsArrays, F: int) -> FeatureActivation:
    architecture = config["architecture"]
    if architecture in ("topk", "abstopk"):
        return TopKActivation(chosen_k(where, config, F), absolute=architecture == "abstopk")
    if architecture == "gated":
        return Gated(_exponentials(file, "r_mag", F), take(file, "b_mag", (F,)), take(file, "b_gate", (F,)))
    if architecture not in THRESHOLD:
        if (name := config.get("activation_fn", "relu")) not in ("relu", None):
            raise FileFormatError(
                where, "activation_fn", f"{brief(name)} is not read; known are relu and topk"
            )
        return Relu()
    return JumpRelu(_threshold(file, F))


def _threshold(file: SafetensorsArrays, F: int) -> NDArray[np.float32]:
    """The thresholds (F,): stored, as logarithms, or one number that training with batch top-k has found."""
    if "log_threshold" in file.shapes:
        return _exponentials(file, "log_threshold", F)
    if "topk_threshold" in file.shapes:
        return np.full(F, take(file, "topk_threshold", ()), np.float32)
    threshold: NDArray[np.float32] = take(file, "threshold", (F,))
    return threshold


def _exponentials(file: SafetensorsArrays, name: str, F: int) -> NDArray[np.float32]:
    """e^x of an array (F,), with the same bits on all processors."""
    values = take(file, name, (F,))
    if np.abs(values).max() > LARGEST_LOGARITHM:
        raise FileFormatError(file.path, name, f"has a logarithm beyond ±{LARGEST_LOGARITHM}")
    return exponentials(values).astype(np.float32)


def _norms(path: Path, decoder: DecoderRows) -> NDArray[np.float32]:
    """The norms (F,) of the vectors of features."""
    F = decoder.shape[0]
    blocks = (decoder.rows(np.arange(at, min(at + NORM_BLOCK, F))) for at in range(0, F, NORM_BLOCK))
    norms = np.concatenate([np.sqrt((one.astype(np.float64) ** 2).sum((1, 2))) for one in blocks])
    if not norms.all():
        raise FileFormatError(
            path, "W_dec", "has a vector of zeros, and rescale_acts_by_decoder_norm divides by it"
        )
    return norms.astype(np.float32)


SAELENS = DictionaryFormat("SAELens", find, read)
