"""Gemma 3n, text (Gemma Team 2025).

It has several residual streams, a learned residual beside attention, per-layer embeddings and sparse gates. The last
layers share the keys and values of earlier layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families.gemma import TANH
from pellucid.model.families.gemma4 import GGUF_NAMES, NAMES, per_layer_embeddings, with_ignored_keys, with_shared_keys
from pellucid.model.metadata import SlidingWindows
from pellucid.model.spec import AltUp, FeedForward, ModelSpec, PerLayer
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint, Tensor

MAX_STREAMS = 16
SPARSITY, SPARSE_LAYERS = 0.95, 10  # defaults: the first 10 layers are sparse if the model has more layers
RANK, CAP, STREAMS = 64, 30.0, 4  # defaults


def _of_streams(project: str, unembed: str) -> dict[str, str]:
    """The tensor names of the projections of all streams except the first."""
    names = {}
    for stream in range(1, MAX_STREAMS):
        names[f"model.altup.{stream}.project"] = project.format(stream - 1)
        names[f"model.altup.{stream}.unembed"] = unembed.format(stream - 1)
    return names


_NAMES = NAMES | {
    "altup.router_norm": "altup.router_norm",
    "altup.router": "altup.modality_router",
    "altup.predict": "altup.prediction_coefs",
    "altup.correct": "altup.correction_coefs",
    "altup.scale.weight": "altup.correct_output_scale",
    "laurel.left": "laurel.linear_left",
    "laurel.right": "laurel.linear_right",
    "laurel.norm": "laurel.post_laurel_norm",
    **_of_streams("model.altup_projections.{}", "model.altup_unembed_projections.{}"),
}
_GGUF = GGUF_NAMES | {
    "altup.router_norm": "altup_router_norm",
    "altup.router": "altup_router",
    "altup.predict": "altup_predict_coef",
    "altup.correct": "altup_correct_coef",
    "altup.scale": "altup_correct_scale",
    "laurel.left": "laurel_l",
    "laurel.right": "laurel_r",
    "laurel.norm": "laurel_post_norm",
    **_of_streams("altup_proj", "altup_unembd_proj"),
}


def _altup(config: Config, count: str, active: str, *, scaled: bool) -> AltUp:
    """The streams. ``count`` is the key of the number of streams, ``active`` the key of the active stream."""
    streams = config.count(count, STREAMS, limit=MAX_STREAMS)
    which = config.optional_count(active)
    if which >= streams:
        raise config.error(active, f"is {which}; it must be below {config.name(count)} = {streams}")
    return AltUp(streams, which, scaled)


def _sparse_layers(layers: int) -> int:
    """The default number of first layers with sparse gates."""
    return SPARSE_LAYERS if layers > SPARSE_LAYERS else 0


def _sparsities(config: Config, layers: int) -> list[float]:
    """The fraction of gate values that each layer cuts off."""
    sparse = _sparse_layers(layers)
    sparsities = config.number_tuple("activation_sparsity_pattern", (SPARSITY,) * sparse + (0.0,) * (layers - sparse))
    if any(sparsity >= 1 for sparsity in sparsities):
        raise config.error("activation_sparsity_pattern", "must be a list of fractions from 0 to below 1")
    return list(sparsities)


def _gguf_sparsities(config: Config, layers: int) -> list[float]:
    """The fraction of gate values that each layer cuts off, from standard deviations (minus infinity: no sparsity)."""
    from statistics import NormalDist  # slow to import, and only this family needs it

    normal, sparse = NormalDist(), _sparse_layers(layers)
    default = [normal.inv_cdf(SPARSITY)] * sparse + [-math.inf] * (layers - sparse)
    deviations = config.deviations("activation_sparsity_scale", layers) or default
    return [0.0 if deviation == -math.inf else normal.cdf(deviation) for deviation in deviations]


def _changed(config: Config, spec: ModelSpec, sparsities: list[float], altup: AltUp, per_layer: PerLayer) -> ModelSpec:
    def sparse(layer: int, dense: FeedForward) -> FeedForward:
        return replace(dense, sparsity=sparsities[layer])

    assert spec.head is not None
    norm = replace(spec.blocks[0].norm, weight=False)
    return replace(
        spec.with_attention(scale=1.0, v_norm=norm).change_dense(sparse),
        embedding=replace(spec.embedding, scale=spec.embedding.width**0.5),
        head=replace(spec.head, softcap=config.optional_number("final_logit_softcapping", CAP)),
        per_layer=per_layer,
        altup=altup,
    )


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    for key in ("query_pre_attn_scalar", "altup_lr_multiplier"):  # transformers does not use them
        config.number(key, 1.0)
    scaled = config.flag("altup_correct_scale", True)
    altup = _altup(config, "altup_num_inputs", "altup_active_idx", scaled=scaled)
    width, rows = spec.embedding.width, spec.embedding.vocabulary
    stated = config.count("vocab_size_per_layer_input", rows)
    per_layer = per_layer_embeddings(config.count("hidden_size_per_layer_input"), width, stated if stated < rows else 0)
    spec = _changed(config, spec, _sparsities(config, len(spec.blocks)), altup, per_layer)
    spec = spec.with_blocks(laurel=config.count("laurel_rank"))
    return with_shared_keys(config, spec, "num_kv_shared_layers")


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    altup = _altup(config, "altup.num_inputs", "altup.active_idx", scaled=True)
    per_layer = per_layer_embeddings(config.count("embedding_length_per_layer_input"), spec.embedding.width)
    spec = _changed(config, spec, _gguf_sparsities(config, len(spec.blocks)), altup, per_layer)
    return with_shared_keys(config, spec, "attention.shared_kv_layers")


def _rank(tensors: Mapping[str, Tensor]) -> int:
    """The rank of the learned residual. GGUF has no key for it."""
    left = tensors.get("blk.0.laurel_l.weight")
    return left.shape[0] if left and left.shape else RANK


_DECODER = StandardDecoder(
    "gemma3n",
    model_type="gemma3n_text",
    base=1_000_000.0,
    head_norm=True,
    windows=SlidingWindows(period=5, own_positions=True, base=10_000.0, base_key="rope_local_base_freq"),
    activation="gelu_tanh",
    activations=TANH,
    width_by_layer=True,
    placement="sandwich",
    tied=True,
    keys={"activation": "hidden_activation", "feedforward_bias": "", "pattern": "layer_types"},
    defaults={"head_dim": 256, "kv_heads": 2},
    pattern=("sliding_attention", "full_attention"),
    names=_NAMES,
    gguf_names=_GGUF,
    config_change=_from_config,
    gguf_change=_from_gguf,
    gguf_tensors_change=lambda tensors, spec: spec.with_blocks(laurel=_rank(tensors)),
)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of Gemma3nForCausalLM. A scale of the active stream that is switched off is ignored."""
    tensors, names = checkpoint.tensors, _NAMES.found_in(checkpoint.tensors)
    model = with_ignored_keys(_DECODER.from_config(checkpoint, config), names, tensors)
    layers = range(len(model.spec.blocks))
    scales = [Slot(f"{names.prefix}.{layer}.altup.correct_output_scale") for layer in layers]
    if model.spec.altup and not model.spec.altup.scaled:
        model = replace(model, ignored=(*model.ignored, *(scale for scale in scales if scale.tensor in tensors)))
    return model


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``gemma3n.*`` metadata. The projections of all streams are one tensor."""
    model = with_ignored_keys(_DECODER.from_gguf(checkpoint, config), _GGUF, checkpoint.tensors)
    width, streams = model.spec.embedding.width, model.spec.altup.streams if model.spec.altup else 1
    slots = dict(model.slots)
    for stream in range(1, streams):
        for slot in (f"altup.{stream}.project.weight", f"altup.{stream}.unembed.weight"):
            slots[slot] = replace(model.sources(slot)[0], rows=((stream - 1) * width, stream * width))
    return replace(model, slots=slots)


GEMMA3N = replace(_DECODER.family(), gguf={"gemma3n": from_gguf}, safetensors={"gemma3n_text": from_config})
