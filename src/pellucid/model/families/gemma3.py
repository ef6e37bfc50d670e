"""Gemma 3, text (Gemma Team 2025): sandwich RMS norms, query and key norms, five sliding blocks per full block.

Sliding blocks have the rotary base 10,000, full blocks have the base in the file. The embedding is scaled by sqrt(D).
Norms multiply by 1 + w: GGUF files store 1 + w, safetensors store w.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.common_metadata import (
    except_every,
    gguf_attention,
    gguf_vocabulary,
    rope_parameters,
    tied_head,
)
from pellucid.model.config import Config
from pellucid.model.family import Family
from pellucid.model.filled import Model
from pellucid.model.positions import Rotary
from pellucid.model.spec import Attention, Block, Embedding, FeedForward, Head, ModelSpec, Norm
from pellucid.model.tensor_names import GGUF, TRANSFORMERS_SANDWICH
from pellucid.weights.checkpoint import Checkpoint

PATTERN = 6  # every sixth block has full attention
LOCAL_BASE, FULL_BASE = 10_000.0, 1_000_000.0
# Defaults of transformers, which config.json of the 4B model leaves out.
HEADS, KV_HEADS, CONTEXT, VOCABULARY = 8, 4, 131_072, 262_208


def _spec(name: str, context: int, vocabulary: int, width: int, blocks: list[Block], head: Head) -> ModelSpec:
    embedding = Embedding(vocabulary, width, scale=width**0.5)
    return ModelSpec("gemma3", name, context, embedding, tuple(blocks), final_norm=blocks[0].norm, head=head)


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``gemma3.*`` metadata."""
    gemma = config.under("gemma3.")
    norm = Norm("rms", gemma.number("attention.layer_norm_rms_epsilon"))
    full = gguf_attention(checkpoint, gemma, "half")
    layers, width = gemma.count("block_count", limit=1000), gemma.count("embedding_length")
    if layers == 62:  # 27B scales by D / H instead of K, according to its report; its GGUF does not state it
        full = replace(full, scale=(width / full.heads) ** -0.5)
    full = replace(full, qk_norm=norm, softcap=gemma.cap("attn_logit_softcapping"))
    local = gemma.number(
        "rope.freq_base_swa", gemma.number("rope.local.freq_base", LOCAL_BASE, low=1.0), low=1.0
    )
    gemma.agreed("rope.freq_base_swa", gemma, "rope.local.freq_base")
    assert full.rotary is not None
    gemma.agreed("rope.global.freq_base", gemma, "rope.freq_base")
    base = gemma.number("rope.global.freq_base", full.rotary.base, low=1.0)
    rotary = replace(full.rotary, base=base)
    if rotary.scaling and rotary.scaling.kind == "linear":  # the file states the scaled context
        rotary = replace(rotary, scaling=replace(rotary.scaling, trained_context=0))
    full = replace(full, rotary=rotary)
    rotary = Rotary(local, rotary.dims, "half")  # scaling applies to full blocks only, as in llama.cpp
    sliding = replace(full, rotary=rotary, window=gemma.count("attention.sliding_window"))
    feedforward = FeedForward(gemma.count("feed_forward_length"), "gelu_tanh", gated=True)
    pattern = gemma.count("attention.sliding_window_pattern", PATTERN)
    blocks = [
        Block(sliding if slides else full, feedforward, norm, "sandwich")
        for slides in except_every(pattern, layers)
    ]
    vocabulary = gguf_vocabulary(checkpoint, gemma)
    head = Head("output.weight" not in checkpoint.tensors, gemma.cap("final_logit_softcapping"))
    spec = _spec(
        config.text("general.name", "gemma3"), gemma.count("context_length"), vocabulary, width, blocks, head
    )
    return Model(spec, GGUF.slots(spec), gemma.name("block_count"))


def _is_sliding(config: Config, layers: int) -> list[bool]:
    """True for each layer with a sliding window, from ``layer_types`` or else from the older pattern."""
    pattern = config.count("sliding_window_pattern", PATTERN)
    by_pattern = except_every(pattern, layers)
    kinds = config.each("layer_types", {"sliding_attention": True, "full_attention": False}, layers)
    if kinds is None:
        return by_pattern
    if config.has("sliding_window_pattern") and kinds != by_pattern:
        raise config.wrong(
            "sliding_window_pattern", f"is {pattern}, but layer_types has another one: remove one of the two"
        )
    return kinds


def _kv_heads(config: Config) -> int:
    """G, a divisor of H."""
    if config.has("num_attention_heads"):
        return config.divisor("num_key_value_heads", "num_attention_heads", KV_HEADS)
    value = config.count("num_key_value_heads", KV_HEADS)
    if HEADS % value:
        raise config.wrong(
            "num_key_value_heads", f"is {value}, which does not divide the usual {HEADS} heads"
        )
    return int(value)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of Gemma3ForCausalLM."""
    for key in ("hidden_activation", "hidden_act"):
        config.one_of(key, {"gelu_pytorch_tanh": "gelu_tanh"}, "gelu_pytorch_tanh")
    layers, width = config.count("num_hidden_layers", limit=1000), config.count("hidden_size")
    norm, head_dim = Norm("rms", config.number("rms_norm_eps", 1e-6)), config.count("head_dim", 256)
    bias = config.flag("attention_bias", False)
    base, scaling = rope_parameters(config, "full_attention", default=FULL_BASE)
    local, local_scaling = rope_parameters(config, "sliding_attention", "rope_local_base_freq", LOCAL_BASE)
    full = Attention(
        heads=config.count("num_attention_heads", HEADS),
        kv_heads=_kv_heads(config),
        head_dim=head_dim,
        scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        rotary=Rotary(base, head_dim, "half", scaling),
        qk_norm=norm,
        softcap=config.cap("attn_logit_softcapping"),
        bias=bias,
        output_bias=bias,
    )
    rotary = Rotary(local, head_dim, "half", local_scaling)
    sliding = replace(full, rotary=rotary, window=config.count("sliding_window"))
    feedforward = FeedForward(config.count("intermediate_size"), "gelu_tanh", gated=True)
    blocks = [
        Block(sliding if s else full, feedforward, norm, "sandwich") for s in _is_sliding(config, layers)
    ]
    head = Head(tied_head(checkpoint, config, default=True), config.cap("final_logit_softcapping"))
    context, vocabulary = (
        config.count("max_position_embeddings", CONTEXT),
        config.count("vocab_size", VOCABULARY),
    )
    spec = _spec(checkpoint.path.name, context, vocabulary, width, blocks, head)
    names = replace(TRANSFORMERS_SANDWICH, norm_plus=1.0).found_in(checkpoint.tensors)
    return Model(spec, names.slots(spec), config.name("num_hidden_layers"))


GEMMA3 = Family(
    "gemma3",
    gguf={"gemma3": from_gguf},
    safetensors={"gemma3_text": from_config},
)
