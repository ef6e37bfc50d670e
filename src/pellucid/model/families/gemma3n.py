"""Gemma 3n, text (Gemma Team 2025).

It has several residual streams, a learned residual beside attention, per-layer embeddings, last layers that share the
keys and values of earlier layers, and sparse gates.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from pellucid.model.common_metadata import gguf_attention, gguf_vocabulary, rope_parameters, tied_head
from pellucid.model.config import Config
from pellucid.model.families.gemma4 import (
    GGUF_NAMES,
    NAMES,
    producers,
    shared_layers,
    with_shared,
    with_unused_keys,
)
from pellucid.model.family import Family
from pellucid.model.filled import Model, Slot
from pellucid.model.positions import Rotary
from pellucid.model.sliding_windows import except_every, sliding_layers
from pellucid.model.spec import (
    AltUp,
    Attention,
    Block,
    Embedding,
    FeedForward,
    Head,
    ModelSpec,
    Norm,
    PerLayer,
)
from pellucid.weights.checkpoint import Checkpoint

PATTERN = 5  # every fifth block has full attention
LOCAL_BASE, FULL_BASE = 10_000.0, 1_000_000.0
STREAMS, MOST_STREAMS = 4, 16
SPARSITY, SPARSE_LAYERS = 0.95, 10  # defaults: the first 10 layers are sparse if the model has more layers
RANK, CAP = 64, 30.0
_NAMES = NAMES | {
    "altup.router_norm": "altup.router_norm",
    "altup.router": "altup.modality_router",
    "altup.predict": "altup.prediction_coefs",
    "altup.correct": "altup.correction_coefs",
    "altup.scale.weight": "altup.correct_output_scale",
    "laurel.left": "laurel.linear_left",
    "laurel.right": "laurel.linear_right",
    "laurel.norm": "laurel.post_laurel_norm",
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
}


def _of_streams(streams: int, project: str, unembed: str) -> dict[str, str]:
    """The names of the projections of each stream except the first."""
    found = {}
    for stream in range(1, streams):
        found[f"model.altup.{stream}.project"] = project.format(stream - 1)
        found[f"model.altup.{stream}.unembed"] = unembed.format(stream - 1)
    return found


def _spec(
    name: str,
    context: int,
    vocabulary: tuple[int, int],
    width: int,
    attentions: list[Attention],
    feedforwards: list[FeedForward],
    dims: tuple[int, int],
    altup: AltUp,
    norm: Norm,
    head: Head,
) -> ModelSpec:
    """Create the spec.

    ``vocabulary`` is the number of rows of the embedding, and of the table of per-layer embeddings. ``dims`` is the
    width of per-layer embeddings, and the rank of the learned residual.
    """
    per_layer, rank = dims
    blocks = tuple(
        Block(attention, feedforward, norm, "sandwich", laurel=rank)
        for attention, feedforward in zip(attentions, feedforwards)
    )
    fewer = vocabulary[1] if vocabulary[1] < vocabulary[0] else 0
    return ModelSpec(
        "gemma3n",
        name,
        context,
        Embedding(vocabulary[0], width, scale=width**0.5),
        blocks,
        per_layer=PerLayer(per_layer, per_layer**0.5, width**-0.5, 2**-0.5, "gelu_tanh", fewer),
        altup=altup,
        final_norm=norm,
        head=head,
    )


def _altup(config: Config, count: str, active: str, *, scaled: bool) -> AltUp:
    """The streams, from the keys of their number (``count``) and of the active stream (``active``)."""
    streams = config.count(count, STREAMS, limit=MOST_STREAMS)
    which = config.amount(active)
    if which >= streams:
        raise config.wrong(active, f"is {which}; it must be below {config.name(count)} = {streams}")
    return AltUp(streams, which, scaled)


def _widths(config: Config, layers: int) -> list[int]:
    """The width of the feed-forward of each layer."""
    widths = config.by_layer("intermediate_size", layers)
    if not all(widths):
        raise config.wrong("intermediate_size", "must be above 0 in each layer")
    return widths


def _sparsities(config: Config, layers: int) -> list[float]:
    """The fraction of gate values that each layer cuts off."""
    usual = SPARSE_LAYERS if layers > SPARSE_LAYERS else 0
    default = (SPARSITY,) * usual + (0.0,) * (layers - usual)
    found = config.several("activation_sparsity_pattern", default)
    if any(one >= 1 for one in found):
        raise config.wrong("activation_sparsity_pattern", "must be parts from 0 to below 1")
    return list(found)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of Gemma3nForCausalLM."""
    config.one_of("hidden_activation", {"gelu_pytorch_tanh": "gelu_tanh"}, "gelu_pytorch_tanh")
    for key in ("query_pre_attn_scalar", "altup_lr_multiplier"):  # transformers does not use them
        config.number(key, 1.0)
    layers, width = config.count("num_hidden_layers", limit=1000), config.count("hidden_size")
    norm, head_dim = Norm("rms", config.number("rms_norm_eps", 1e-6)), config.count("head_dim", 256)
    base, scaling = rope_parameters(config, "full_attention", default=FULL_BASE)
    local, local_scaling = rope_parameters(config, "sliding_attention", "rope_local_base_freq", LOCAL_BASE)
    bias = config.flag("attention_bias", False)
    full = Attention(
        heads=config.count("num_attention_heads"),
        kv_heads=config.divisor("num_key_value_heads", "num_attention_heads"),
        head_dim=head_dim,
        scale=1.0,
        rotary=Rotary(base, head_dim, "half", scaling),
        qk_norm=norm,
        v_norm=replace(norm, weight=False),
        bias=bias,
        output_bias=bias,
    )
    rotary = Rotary(local, head_dim, "half", local_scaling)
    slides = replace(full, rotary=rotary, window=config.count("sliding_window"))
    sliding = sliding_layers(config, except_every(PATTERN, layers))
    shared = shared_layers(config, "num_kv_shared_layers", sliding)
    attentions = [
        with_shared(slides if one else full, producer)
        for one, producer in zip(sliding, producers(sliding, shared))
    ]
    altup = _altup(
        config, "altup_num_inputs", "altup_active_idx", scaled=config.flag("altup_correct_scale", True)
    )
    vocabulary = config.count("vocab_size")
    spec = _spec(
        checkpoint.path.name,
        config.count("max_position_embeddings"),
        (vocabulary, config.count("vocab_size_per_layer_input", vocabulary)),
        width,
        attentions,
        [
            FeedForward(one, "gelu_tanh", gated=True, sparsity=sparsity)
            for one, sparsity in zip(_widths(config, layers), _sparsities(config, layers))
        ],
        (config.count("hidden_size_per_layer_input"), config.count("laurel_rank")),
        altup,
        norm,
        Head(tied_head(checkpoint, config, default=True), config.cap("final_logit_softcapping", CAP)),
    )
    streams = _of_streams(altup.streams, "model.altup_projections.{}", "model.altup_unembed_projections.{}")
    names = (_NAMES | streams).found_in(checkpoint.tensors)
    model = with_unused_keys(spec, names, checkpoint.tensors, config.name("num_hidden_layers"))
    scales = [] if altup.scaled else [f"{names.prefix}.{i}.altup.correct_output_scale" for i in range(layers)]
    return replace(
        model, ignored=(*model.ignored, *(Slot(one) for one in scales if one in checkpoint.tensors))
    )


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``gemma3n.*`` metadata. The projections of all streams are one tensor."""
    own = config.under("gemma3n.")
    layers, width = own.count("block_count", limit=1000), own.count("embedding_length")
    norm = Norm("rms", own.number("attention.layer_norm_rms_epsilon"))
    full = replace(
        gguf_attention(checkpoint, own, "half"), scale=1.0, qk_norm=norm, v_norm=replace(norm, weight=False)
    )
    assert full.rotary is not None
    rotary = Rotary(own.number("rope.freq_base_swa", LOCAL_BASE, low=1.0), full.rotary.dims, "half")
    slides = replace(full, rotary=rotary, window=own.count("attention.sliding_window"))
    sliding = own.switches("attention.sliding_window_pattern", layers) or except_every(PATTERN, layers)
    shared = shared_layers(own, "attention.shared_kv_layers", sliding)
    altup = _altup(own, "altup.num_inputs", "altup.active_idx", scaled=True)
    laurel = checkpoint.tensors.get("blk.0.laurel_l.weight")
    vocabulary = gguf_vocabulary(checkpoint, own)
    spec = _spec(
        config.text("general.name", "gemma3n"),
        own.count("context_length"),
        (vocabulary, vocabulary),
        width,
        [
            with_shared(slides if one else full, producer)
            for one, producer in zip(sliding, producers(sliding, shared))
        ],
        [
            FeedForward(one, "gelu_tanh", gated=True, sparsity=sparsity)
            for one, sparsity in zip(
                own.by_layer("feed_forward_length", layers), _gguf_sparsities(own, layers)
            )
        ],
        (own.count("embedding_length_per_layer_input"), laurel.shape[0] if laurel and laurel.shape else RANK),
        altup,
        norm,
        Head("output.weight" not in checkpoint.tensors, own.number("final_logit_softcapping", CAP)),
    )
    names = _GGUF | _of_streams(altup.streams, "altup_proj", "altup_unembd_proj")
    model = with_unused_keys(spec, names, checkpoint.tensors, own.name("block_count"))
    slots = dict(model.slots)
    for stream in range(1, altup.streams):
        rows = ((stream - 1) * width, stream * width)
        for slot in (f"altup.{stream}.project.weight", f"altup.{stream}.unembed.weight"):
            slots[slot] = replace(model.sources(slot)[0], rows=rows)
    return replace(model, slots=slots)


def _gguf_sparsities(config: Config, layers: int) -> list[float]:
    """The fraction of gate values that each layer cuts off, from standard deviations (minus infinity: no sparsity)."""
    from statistics import NormalDist  # slow to import, and only this family needs it

    usual = SPARSE_LAYERS if layers > SPARSE_LAYERS else 0
    most = NormalDist().inv_cdf(SPARSITY)
    found = config.deviations("activation_sparsity_scale", layers) or [most] * usual + [-math.inf] * (
        layers - usual
    )
    return [0.0 if one == -math.inf else NormalDist().cdf(one) for one in found]


GEMMA3N = Family(
    "gemma3n",
    gguf={"gemma3n": from_gguf},
    safetensors={"gemma3n_text": from_config},
    keys={"pattern": "layer_types"},
    pattern=("sliding_attention", "full_attention"),
)
