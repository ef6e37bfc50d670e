"""SAELens and EleutherAI's sparsify: folders with ``cfg.json`` and a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, InvalidRequest, brief
from pellucid.trace.dictionaries.array_files import SafetensorsArrays, StatedConfig, file_named, refuse_unused, take
from pellucid.trace.dictionaries.coder_weights import (
    NORMALIZATIONS,
    CoderWeights,
    DecoderRows,
    DictionaryFormat,
    FeatureActivation,
    Gated,
    Given,
    GroupMax,
    JumpRelu,
    Relu,
    ScaledRows,
    TopKActivation,
    block_of_hook,
    coder_of,
    decoder_of,
)
from pellucid.util.probabilities import exponentials
from pellucid.weights.json_files import read_json

# SAELens: a folder with ``cfg.json`` and ``sae_weights.safetensors``. Architectures of version 6, and files before it.
#
# Source: https://github.com/decoderesearch/SAELens, ``sae_lens/saes`` and ``sae_lens/loading``.

CONFIG = "cfg.json"
THRESHOLD = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder", "batchtopk", "matryoshka_batchtopk")
PLAIN = ("standard", "transcoder", "skip_transcoder")
TOP_K = ("topk", "abstopk")
ARCHITECTURES = (*PLAIN, *THRESHOLD, *TOP_K, "gated")
RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Fields of files before version 6, by their later names."""
OF_METADATA = (
    "sae_lens_version",
    *(
        f"{name}{end}"
        for name in ("hook_name", "hf_hook_name", "hook_layer", "hook_head_index")
        for end in ("", "_out")
    ),
)
"""Fields that version 6 has in ``metadata``."""
LARGEST_LOGARITHM = 80
NORM_BLOCK = 4096  # number of vectors whose norms are computed at once


def read(path: Path, given: Given) -> tuple[str, Sequence[CoderWeights]]:
    where = path.parent / CONFIG
    config, file = current(where, read_json(where)), SafetensorsArrays(path)
    architecture: Any = config.fields.get("architecture")
    if architecture not in ARCHITECTURES:
        raise config.error("architecture", f" is not read; known are {', '.join(ARCHITECTURES)}")
    transcodes = architecture.endswith("transcoder")
    reads, writes = given.hooks(where, *_hooks(config, given, transcodes), transcodes=transcodes)
    encoder = np.ascontiguousarray(take(file, "W_enc", (None, None)).T)
    F, D = encoder.shape
    decoder = decoder_of(file, "W_dec", F, None)
    if not transcodes and decoder.shape[2] != D:
        raise FileFormatError(path, "W_dec", f"has vectors of {decoder.shape[2]:,} values; W_enc reads {D:,}")
    config.check_sizes({"d_in": D, "d_sae": F, "d_out": decoder.shape[2]})
    decoder_bias = take(file, "b_dec", (decoder.shape[2],))
    bias = np.zeros(F, np.float32) if architecture == "gated" else take(file, "b_enc", (F,))
    finetuned = config.flag("finetuning_scaling_factor")
    if not np.allclose(take(file, "scaling_factor", (F,), missing=None if finetuned else 1.0), 1):
        raise FileFormatError(path, "scaling_factor", "finetuned scaling factors are not read")
    if config.flag("rescale_acts_by_decoder_norm"):
        norms = _norms(path, decoder)
        encoder *= norms[:, None]
        bias, decoder = bias * norms, ScaledRows(decoder, (1 / norms).astype(np.float32))
    normalization, scale = _normalization(config, given)
    if scale is not None:
        encoder, decoder_bias = encoder * scale, decoder_bias / scale
        decoder = ScaledRows(decoder, (1 / np.full(F, scale)).astype(np.float32))
    subtracted = config.flag("apply_b_dec_to_input", not transcodes)
    if subtracted and transcodes:
        raise config.error(
            "apply_b_dec_to_input", f" contradicts architecture={architecture}: a transcoder has no input bias"
        )
    skip = take(file, "W_skip", (decoder.shape[2], D)) if "skip" in architecture else None
    coder = CoderWeights(
        path=path,
        reads=reads,
        writes=(writes,),
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation=_activation(config, file, F),
        input_bias=decoder_bias if subtracted else None,
        skip=skip,
        normalization=normalization,
    )
    refuse_unused(file, f"architecture={architecture} ({CONFIG})")
    return "transcoder" if transcodes else "SAE", [coder]


def current(where: Path, stated: Mapping[str, Any]) -> StatedConfig:
    """A configuration with the fields of version 6, and with the hooks of ``metadata`` beside the others. Raises
    FileFormatError if a field has two values.
    """
    metadata, flat = stated.get("metadata"), dict(stated)
    if isinstance(metadata, dict):
        for name in OF_METADATA:
            _state(where, flat, name, metadata.get(name), f"metadata.{name}")
    version = str(flat.get("sae_lens_version") or "").partition(".")[0]
    if version.isdecimal() and int(version) >= 6:
        return StatedConfig(where, flat)
    for name, later in RENAMED.items():
        _state(where, flat, later, flat.pop(name, None), name)
    if flat.get("architecture") is None:
        flat["architecture"] = "standard"
    if flat.get("activation_fn") == "topk":
        flat["architecture"] = "topk"
        if isinstance(more := flat.get("activation_fn_kwargs"), dict):
            _state(where, flat, "k", more.get("k"), "activation_fn_kwargs.k")
    if isinstance(flat.get("normalize_activations"), bool):
        flat["normalize_activations"] = "expected_average_only_in" if flat["normalize_activations"] else "none"
    return StatedConfig(where, flat)


def _state(where: Path, fields: dict[str, Any], name: str, value: Any, stated_as: str) -> None:
    """Add a value that is stated under another name, if it is not null."""
    if value is None:
        return
    if fields.get(name) not in (None, value):
        problem = f"{brief(value)} contradicts {name}, which is {brief(fields[name])}: remove one of the two"
        raise FileFormatError(where, stated_as, problem)
    fields[name] = value


def _normalization(config: StatedConfig, given: Given) -> tuple[str, np.float32 | None]:
    name: Any = config.fields.get("normalize_activations") or "none"
    if name == "expected_average_only_in":
        if given.input_scale is None:
            raise InvalidRequest(
                f"{CONFIG}: normalize_activations={name}: the file does not have the factor of the inputs: give "
                "input_scale=, or save the SAE with its factor folded in"
            )
        return "none", np.float32(given.input_scale)
    if name != "none" and name not in NORMALIZATIONS:
        known = ", ".join(["none", "expected_average_only_in", *NORMALIZATIONS])
        raise config.error("normalize_activations", f"; known are {known}")
    return name, None


def _hooks(config: StatedConfig, given: Given, transcodes: bool) -> tuple[str | None, str | None]:
    """The hooks that the file states. The names of modules in transformers are more exact, where they are given."""
    reads = _hook(config, "", given.reads)
    if not transcodes:
        plain, out = config.text("hook_name"), config.text("hook_name_out")
        if out not in (None, plain) and not given.writes:
            raise config.error(
                "hook_name_out",
                f" contradicts architecture={config.fields['architecture']}, which writes to hook_name={brief(plain)}: "
                "correct one of them, or give writes=",
            )
        return reads, None
    return reads, _hook(config, "_out", given.writes)


def _hook(config: StatedConfig, end: str, given: str | None) -> str | None:
    """The hook that the file states, unless one is given. Its fields have the same ``end``."""
    if given:
        return None
    plain, module = config.text(f"hook_name{end}"), config.text(f"hf_hook_name{end}")
    block = block_of_hook(plain or module or "")
    if block is not None and config.fields.get(f"hook_layer{end}") not in (None, block):
        raise config.error(
            f"hook_layer{end}",
            f" contradicts the hook {brief(plain or module)}: correct one of them, or give "
            f"{'writes' if end else 'reads'}=",
        )
    # The values before block 5 are the output of block 4.
    if plain and module and not plain.endswith("hook_resid_pre") and block_of_hook(module) not in (None, block):
        raise config.error(
            f"hf_hook_name{end}",
            f" contradicts hook_name{end}, which is {brief(plain)}: correct one of them, or give "
            f"{'writes' if end else 'reads'}=",
        )
    hook, head = module or plain, config.fields.get(f"hook_head_index{end}")
    return f"{hook}[heads={head}]" if hook and head is not None else hook


def _activation(config: StatedConfig, file: SafetensorsArrays, F: int) -> FeatureActivation:
    architecture = config.fields["architecture"]
    if config.fields.get("activation_fn") not in (None, "relu", architecture):
        raise config.error("activation_fn", f" is not read with architecture={architecture}; known are relu and topk")
    if architecture in TOP_K:
        return TopKActivation(config.k(F), absolute=architecture == "abstopk")
    if architecture == "gated":
        return Gated(_exponentials(file, "r_mag", F), take(file, "b_mag", (F,)), take(file, "b_gate", (F,)))
    if architecture in THRESHOLD:
        return JumpRelu(_threshold(file, F))
    if config.fields.get("k") is not None:
        raise config.error("k", f" contradicts architecture={architecture}, which has no k: set topk, or remove k")
    return Relu()


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
    F = decoder.shape[0]
    blocks = (decoder.rows(np.arange(at, min(at + NORM_BLOCK, F))) for at in range(0, F, NORM_BLOCK))
    norms = np.concatenate([np.sqrt((one.astype(np.float64) ** 2).sum((1, 2))) for one in blocks])
    if not norms.all():
        raise FileFormatError(path, "W_dec", "has a vector of zeros, and rescale_acts_by_decoder_norm divides by it")
    return norms.astype(np.float32)


SAELENS = DictionaryFormat("SAELens", partial(file_named, ("sae_weights.safetensors",)), read)


# EleutherAI's sparsify: a folder, named after its hook, with ``cfg.json`` and ``sae.safetensors``.
#
# Source: https://github.com/EleutherAI/sparsify, class ``SparseCoder``.


def read_sparsify(path: Path, given: Given) -> tuple[str, Sequence[CoderWeights]]:
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
    coder = coder_of(
        file,
        (reads, (writes,)),
        encoder,
        decoder,
        TopKActivation(k) if kind == "topk" else GroupMax(k),
        ("encoder.bias", "b_dec"),
        input_bias=None if transcodes else np.asarray(take(file, "b_dec", (D,))),
        skip=take(file, "W_skip", (width, D)) if config.flag("skip_connection") else None,
    )
    refuse_unused(file, f"skip_connection={config.flag('skip_connection')} ({CONFIG})")
    return "transcoder" if transcodes else "SAE", [coder]


SPARSIFY = DictionaryFormat("sparsify", partial(file_named, ("sae.safetensors",)), read_sparsify)
