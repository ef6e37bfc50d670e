"""Locations of the values of Pellucid's hook points in transformers, family by family.

``FAMILIES`` has for each family the location of its blocks, the points outside of the blocks, and the points of a
block, by a module that only blocks with these points have. Most values are inputs or outputs of modules. Some are parts
of a matrix that transformers computes at once. Values with another form in Pellucid are converted here:

    bloom           transformers adds slope * j to the score of query i and key j, Pellucid -slope * (i - j).
    deepseek_v3     transformers moves rotated pairs from neighbours to halves, Pellucid leaves them in place. k_up
                    and latent_heads exist only in the absorbed form, computed from captured values and weights.
    falcon_h1       transformers multiplies inputs and keys by factors. Pellucid applies these factors later: its points
                    lack them, and scores and sums have them instead.
    qwen3_next      the DeltaNet's queries and keys are normalized for each value head. A key head has the values of its
                    first value head.
    falcon,         transformers adds attention and the other part of a block at once: attention.residual is computed
    falcon_h1       from captured values.

Some points have no counterpart. feedforward.residual equals the block's residual unless a norm follows (BERT); if it
is not in a golden, tests compare the two. Families with clipped values (MPT), query scales (Llama 4, Ministral 3),
sparse gates, AltUp, Laurel, per-layer vectors and scalars (Gemma 3n and 4), and norms around experts (Gemma 4) are not
in this file. The file is long because it is a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from trace_capture import Seen, Source, Tensor

Sources = Mapping[str, Source]


@dataclass(frozen=True)
class Places:
    """Locations of a family: its blocks, the points outside of blocks, and the points of a block by a module in it."""

    blocks: str
    outside: Sources
    inside: Mapping[str, Sources]


def each(names: str, source: Callable[[int], Source], prefix: str = "", suffix: str = "") -> dict[str, Source]:
    """Sources of several points. Each is made from the number of its point."""
    return {f"{prefix}{name}{suffix}": source(i) for i, name in enumerate(names.split())}


def total(*sources: str) -> Source:
    """Sum of several values."""
    return lambda seen, at: torch.stack([seen(one, at) for one in sources]).sum(0)


def part_of(source: str, sizes: Callable[[Any], list[int]], number: int) -> Source:
    """A part of a value's last dimension, whose sizes follow from the configuration."""
    return lambda seen, at: seen(source, at).split(sizes(seen.config), -1)[number]


def visible(logits: Tensor) -> Tensor:
    """Inputs of a softmax, with minus infinity where the mask has added the lowest number."""
    return logits.masked_fill(logits < torch.finfo(torch.float32).min / 2, -torch.inf)


def softmax_of(module: str) -> dict[str, Source]:
    """Scores and pattern of an attention module."""
    return {
        "attention.scores": lambda seen, at: visible(seen(f"<{module}:softmax", at)),
        "attention.pattern": f"{module}:softmax",
    }


def angles(module: str, kind: str = "", repeated: int = 2) -> Source:
    """Cosines and sines of each pair, from the call for a kind of layers. Most families store each value twice."""

    def of(seen: Seen, at: str) -> Tensor:
        calls = seen.arguments[module]
        mine = [i for i, (args, kwargs) in enumerate(calls) if not kind or kind in (*args[2:], *kwargs.values())]
        found = [seen(f"{module}#{part}", call=mine[-1]) for part in (0, 1)]
        return torch.cat([one[..., : one.shape[-1] // repeated] for one in found], -1)

    return of


def around(**others: Source) -> dict[str, Source]:
    """Points outside of the blocks of most decoders. ``__`` in a name stands for a dot."""
    return {
        "embed": "model.embed_tokens",
        "position.angles": angles("model.rotary_emb"),
        "norm": "model.norm",
        "project.logits": "#logits",
        **{name.replace("__", "."): source for name, source in others.items()},
    }


def attention(
    at: str = "self_attn", norm: str = "input_layernorm", then: str = "post_attention_layernorm"
) -> dict[str, Source]:
    """Attention of most decoders. ``then`` is the module that reads the residual stream after attention."""
    return {
        **({"attention.norm": norm} if norm else {}),
        **{f"attention.{name}": f"{at}.{name}_proj" for name in "qkv"},
        **each("q k", lambda i: f"{at}:apply_rotary_pos_emb#{i}", "attention.", "_rotary"),
        **softmax_of(at),
        "attention.heads": f"<{at}.o_proj",
        "attention.output": f"{at}.o_proj",
        "attention.residual": f"<{then}",
    }


def feedforward(at: str = "mlp", norm: str = "post_attention_layernorm") -> dict[str, Source]:
    """A gated feed-forward of most decoders."""
    return {**({"feedforward.norm": norm} if norm else {}), **gated(at, "feedforward", "output")}


def gated(at: str, to: str, down: str) -> dict[str, Source]:
    return {
        f"{to}.gate": f"{at}.gate_proj",
        f"{to}.up": f"{at}.up_proj",
        f"{to}.hidden": f"<{at}.down_proj",
        f"{to}.{down}": f"{at}.down_proj",
    }


def plain(at: str, up: str, down: str) -> dict[str, Source]:
    """A feed-forward without gate."""
    return {"feedforward.up": f"{at}.{up}", "feedforward.hidden": f"<{at}.{down}", "feedforward.output": f"{at}.{down}"}


def mixture(at: str = "mlp", router: str = "gate") -> dict[str, Source]:
    """A router that returns its scores, the weights of the chosen experts, and the experts."""
    return {
        "feedforward.norm": "post_attention_layernorm",
        **each("router expert_weights experts", lambda i: f"{at}.{router}#{i}", "feedforward."),
        "feedforward.experts.output": experts_apart(f"{at}.experts"),
        "feedforward.output": at,
    }


def experts_apart(at: str) -> Source:
    """Output of each chosen expert, (T, C, D): the experts run again with a single choice per token, of weight 1."""

    def source(seen: Seen, block: str) -> Tensor:
        run = seen.module(f"{block}.{at}")
        (x, chosen, weights), _ = seen.arguments[f"{block}.{at}"][-1]
        alone = torch.ones_like(weights[:, :1])
        return torch.stack([run(x, chosen[:, i : i + 1], alone) for i in range(chosen.shape[1])], 1)

    return source


AFTER: Sources = {"residual": ""}
HEAD_NORMS: Sources = {f"attention.{name}_norm": f"self_attn.{name}_norm" for name in "qk"}
DENSE: Sources = {**attention(), **feedforward(), **AFTER}
SANDWICH: Sources = {
    **attention(then="pre_feedforward_layernorm"),
    "attention.post_norm": "post_attention_layernorm",
    **feedforward(norm="pre_feedforward_layernorm"),
    "feedforward.post_norm": "post_feedforward_layernorm",
    **AFTER,
}
OUTPUT_NORMS: Sources = {
    **attention(norm="", then="mlp"),
    **HEAD_NORMS,
    "attention.post_norm": "post_attention_layernorm",
    **feedforward(norm=""),
    "feedforward.post_norm": "post_feedforward_layernorm",
    **AFTER,
}

# GPT-2, Bloom, Falcon: queries, keys and values are one matrix.
GPT2: Sources = {
    "attention.norm": "ln_1",
    **each("q k v", lambda i: part_of("attn.c_attn", lambda config: 3 * [config.n_embd], i), "attention."),
    **softmax_of("attn"),
    "attention.heads": "<attn.c_proj",
    "attention.output": "attn.c_proj",
    "attention.residual": "<ln_2",
    "feedforward.norm": "ln_2",
    **plain("mlp", "c_fc", "c_proj"),
    **AFTER,
}


def _bloom(number: int) -> Source:
    """(T, H, 3, K): queries, keys and values."""
    fused = "self_attention.query_key_value"
    return lambda seen, at: seen(fused, at).unflatten(-1, (seen.config.n_head, 3, -1))[..., number, :]


def _bloom_scores(seen: Seen, at: str) -> Tensor:
    """Without slope * i; ALiBi's values are (H, 1, T')."""
    biases = seen.given(f"{at}.self_attention", "alibi")
    return visible(seen("<self_attention:softmax", at)) - biases.transpose(-1, -2)


BLOOM: Sources = {
    "attention.norm": "input_layernorm",
    **each("q k v", _bloom, "attention."),
    **softmax_of("self_attention"),
    "attention.scores": _bloom_scores,
    "attention.heads": "<self_attention.dense",
    "attention.output": "self_attention.dense",
    "attention.residual": "<post_attention_layernorm",
    "feedforward.norm": "post_attention_layernorm",
    **plain("mlp", "dense_h_to_4h", "dense_4h_to_h"),
    **AFTER,
}


def _falcon_values(seen: Seen, at: str) -> Tensor:
    """(T, (H + 2) * K): H queries, a key and a value."""
    return seen("self_attention.query_key_value", at)[..., -seen.config.head_dim :]


FALCON: Sources = {
    "attention.norm": "input_layernorm",
    **each("q k", lambda i: f"<self_attention:apply_rotary_pos_emb#{i}", "attention."),
    "attention.v": _falcon_values,
    **each("q k", lambda i: f"self_attention:apply_rotary_pos_emb#{i}", "attention.", "_rotary"),
    **softmax_of("self_attention"),
    "attention.heads": "<self_attention.dense",
    "attention.output": "self_attention.dense",
    "attention.residual": total("<", "self_attention.dense"),
    **plain("mlp", "dense_h_to_4h", "dense_4h_to_h"),
    **AFTER,
}


# GPT-OSS: the last score of a row is the attention sink.
def _before_the_sink(seen: Seen, at: str) -> Tensor:
    (args, _) = seen.arguments[f"{at}.self_attn:cat"][-1]
    return visible(args[0][0])


GPT_OSS: Sources = {
    **attention(),
    "attention.scores": _before_the_sink,
    "attention.pattern": lambda seen, at: seen("self_attn:softmax", at)[..., :-1],
    **mixture(router="router"),
    **AFTER,
}


# Qwen 3 Next: gated attention and Gated DeltaNets.
def _query_or_gate(number: int) -> Source:
    """(T, H, 2, K): queries and gates."""

    def of(seen: Seen, at: str) -> Tensor:
        return seen("self_attn.q_proj", at).unflatten(-1, (-1, 2, seen.config.head_dim))[..., number, :]

    return of


def _delta_projection(number: int) -> Source:
    """Parts of two matrices, in the order of transformers' layer."""

    def of(seen: Seen, at: str) -> Tensor:
        net = f"{at}.linear_attn"
        projected = seen(f"{net}.in_proj_qkvz"), seen(f"{net}.in_proj_ba")
        return seen.module(net).fix_query_key_value_ordering(*projected)[number]

    return of


def _convolved(net: str, sizes: Callable[[Any], list[int]], number: int) -> Source:
    """A part of the convolution's channels, (channels, T)."""

    def of(seen: Seen, at: str) -> Tensor:
        parts = seen(f"{net}:causal_conv1d_fn", at).split(sizes(seen.module(f"{at}.{net}")), 1)
        return parts[number].transpose(1, 2)

    return of


def _unit_vectors(number: int) -> Source:
    """Queries (including the scale of the scores) or keys: (H, T, K), H value heads."""

    def of(seen: Seen, at: str) -> Tensor:
        config = seen.config
        found = seen("linear_attn:l2norm", at, call=number)
        found = found[:, :: config.linear_num_value_heads // config.linear_num_key_heads]
        return found if number else found * config.linear_key_head_dim**-0.5

    return of


_RULE = "linear_attn:torch_chunk_gated_delta_rule"
DELTA_NET: Sources = {
    "recurrent.norm": "input_layernorm",
    **each("q k v gate beta step", _delta_projection, "recurrent."),
    **each(
        "q k v",
        lambda i: _convolved("linear_attn", lambda net: [net.key_dim, net.key_dim, net.value_dim], i),
        "recurrent.",
        "_conv",
    ),
    "recurrent.beta_sigmoid": lambda seen, at: seen.given(f"{at}.{_RULE}", "beta"),
    "recurrent.step_softplus": "linear_attn:softplus",
    "recurrent.decay": lambda seen, at: seen.given(f"{at}.{_RULE}", "g").exp(),
    **each("q k", _unit_vectors, "recurrent.", "_norm"),
    "recurrent.scan": _RULE,
    "recurrent.head_norm": "<linear_attn.norm:mul",
    "recurrent.gated": "<linear_attn.out_proj",
    "recurrent.output": "linear_attn.out_proj",
    "recurrent.residual": "<post_attention_layernorm",
}
GATED_ATTENTION: Sources = {
    **attention(),
    **HEAD_NORMS,
    "attention.q": _query_or_gate(0),
    "attention.heads": "self_attn:eager_attention_forward",
    "attention.gate": _query_or_gate(1),
    "attention.gated": "<self_attn.o_proj",
}
SHARED: Sources = {
    **mixture(),
    **gated("mlp.shared_expert", "feedforward.shared", "down"),
    "feedforward.shared_gate": "mlp.shared_expert_gate",
}


# Mamba-2: Granite's hybrids and Falcon-H1.
def _mamba_part(number: int, factors: bool) -> Source:
    """A part of the projection. Falcon-H1 multiplies the input and the parts by factors."""

    def of(seen: Seen, at: str) -> Tensor:
        net, made = seen.module(f"{at}.mamba"), seen("mamba.in_proj", at)
        if hasattr(net, "mup_vector"):
            made = made * net.mup_vector if factors else made / net.ssm_in_multiplier
        groups = net.n_groups * net.ssm_state_size
        sizes = [net.intermediate_size, net.intermediate_size, groups, groups, net.num_heads]
        return made.split(sizes, -1)[number]

    return of


def _mamba_sizes(net: Any) -> list[int]:
    return [net.intermediate_size, *[net.n_groups * net.ssm_state_size] * 2]


def _mamba_decay(seen: Seen, at: str) -> Tensor:
    return (seen("<mamba:mamba2_chunk_scan#2", at) * seen("mamba:softplus", at)).exp()


_PARTS = "gate x b c step"
MAMBA: Sources = {
    **each(_PARTS, lambda i: _mamba_part(i, factors=False), "recurrent."),
    **each("x b c", lambda i: _convolved("mamba", _mamba_sizes, i), "recurrent.", "_conv"),
    "recurrent.step_softplus": "mamba:softplus",
    "recurrent.decay": _mamba_decay,
    "recurrent.scan": "mamba:mamba2_chunk_scan",
    "recurrent.output": "mamba.out_proj",
}


def _halves(config: Any) -> list[int]:
    return 2 * [config.shared_intermediate_size]


GRANITE_MAMBA: Sources = {
    **MAMBA,
    "recurrent.norm": "input_layernorm",
    "recurrent.gated": lambda seen, at: seen("mamba.norm:mul", at, call=0),  # the gated norm begins with the gate
    "recurrent.output_norm": "mamba.norm",
    "recurrent.residual": "<post_attention_layernorm",
}
GRANITE_ATTENTION: Sources = {  # without positions
    point: source for point, source in attention().items() if not point.endswith("_rotary")
}
GRANITE_SHARED: Sources = {
    **mixture("block_sparse_moe", "router"),
    **each("gate up", lambda i: part_of("shared_mlp.input_linear", _halves, i), "feedforward.shared."),
    "feedforward.shared.hidden": "<shared_mlp.output_linear",
    "feedforward.shared.down": "shared_mlp.output_linear",
    "feedforward.output": total("block_sparse_moe", "shared_mlp"),
}


def _unscaled(source: str, *factors: str) -> Source:
    """A value without factors of the configuration."""

    def of(seen: Seen, at: str) -> Tensor:
        found = seen(source, at)
        for factor in factors:
            found = found / getattr(seen.config, factor)
        return found

    return of


def _falcon_h1_residual(seen: Seen, at: str) -> Tensor:
    return seen("<", at) + seen("self_attn", at) * seen.config.attention_out_multiplier


def _falcon_h1_gate(seen: Seen, at: str) -> Tensor:
    return seen("feed_forward.gate_proj", at) * seen.config.mlp_multipliers[0]


_IN, _ROTATED = "attention_in_multiplier", "self_attn:apply_rotary_pos_emb"
FALCON_H1: Sources = {
    **attention(),
    **{f"attention.{name}": _unscaled(f"self_attn.{name}_proj", _IN) for name in "qkv"},
    "attention.q_rotary": _unscaled(f"{_ROTATED}#0", _IN),
    "attention.k_rotary": _unscaled(f"{_ROTATED}#1", _IN, "key_multiplier"),
    "attention.heads": _unscaled("<self_attn.o_proj", _IN),
    "attention.output": _unscaled("self_attn.o_proj", _IN),
    "attention.residual": _falcon_h1_residual,
    **MAMBA,
    **each(_PARTS, lambda i: _mamba_part(i, factors=True), "recurrent.", "_scale"),
    "recurrent.output_norm": "<mamba.norm:mul",  # the gated norm ends with the gate
    "recurrent.gated": "<mamba.out_proj",
    "recurrent.residual": "<pre_ff_layernorm",
    **feedforward("feed_forward", "pre_ff_layernorm"),
    "feedforward.gate_scale": _falcon_h1_gate,
    **AFTER,
}


# LFM2: short convolutions.
def _by_token(source: str) -> Source:
    """A value (channels, T) as (T, channels)."""
    return lambda seen, at: seen(source, at).transpose(1, 2)


LFM2: Sources = {
    "recurrent.norm": "operator_norm",
    **each("b c x", lambda i: part_of("conv.in_proj", lambda config: 3 * [config.hidden_size], i), "recurrent."),
    "recurrent.product": _by_token("<conv:causal_conv1d_fn"),
    "recurrent.conv": _by_token("conv:causal_conv1d_fn"),
    "recurrent.gated": "<conv.out_proj",
    "recurrent.output": "conv.out_proj",
    "recurrent.residual": "<ffn_norm",
    "feedforward.norm": "ffn_norm",
    "feedforward.gate": "feed_forward.w1",
    "feedforward.up": "feed_forward.w3",
    "feedforward.hidden": "<feed_forward.w2",
    "feedforward.output": "feed_forward.w2",
    **AFTER,
}


# DeepSeek V3: latent attention.
def _latent_queries(number: int) -> Source:
    """Plain part (0) or rotary part (1) of each head's queries, before the rotation."""

    def of(seen: Seen, at: str) -> Tensor:
        config = seen.config
        made = seen("self_attn.q_b_proj" if config.q_lora_rank else "self_attn.q_proj", at)
        sizes = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        return made.unflatten(-1, (config.num_attention_heads, -1)).split(sizes, -1)[number]

    return of


def _latent_sizes(config: Any) -> list[int]:
    return [config.kv_lora_rank, config.qk_rope_head_dim]


def _neighbours(number: int) -> Source:
    """Rotated queries (0) or keys (1), with adjacent pairs."""

    def of(seen: Seen, at: str) -> Tensor:
        halves = seen(f"self_attn:apply_rotary_pos_emb_interleave#{number}", at).chunk(2, -1)
        return torch.stack(halves, -1).flatten(-2)

    return of


def _latent_query(seen: Seen, at: str) -> Tensor:
    """Plain queries of each head times its key matrix (H, K, rank)."""
    config, weights = seen.config, seen.module(f"{at}.self_attn.kv_b_proj").weight
    of_keys = weights.unflatten(0, (config.num_attention_heads, -1))[:, : config.qk_nope_head_dim]
    return torch.einsum("bthk,hkr->bthr", _latent_queries(0)(seen, at), of_keys)


def _latent_heads(seen: Seen, at: str) -> Tensor:
    pattern, latent = seen("self_attn:softmax", at), seen("self_attn.kv_a_layernorm", at)
    return torch.einsum("bhts,bsr->bthr", pattern, latent)


LATENT: Sources = {
    "attention.norm": "input_layernorm",
    "attention.q": _latent_queries(0),
    "attention.q_rotary_input": _latent_queries(1),
    **each("latent k_rotary_input", lambda i: part_of("self_attn.kv_a_proj_with_mqa", _latent_sizes, i), "attention."),
    "attention.latent_norm": "self_attn.kv_a_layernorm",
    **each("q k", _neighbours, "attention.", "_rotary"),
    "attention.k_up": _latent_query,
    **softmax_of("self_attn"),
    "attention.latent_heads": _latent_heads,
    "attention.heads": "<self_attn.o_proj",
    "attention.output": "self_attn.o_proj",
    "attention.residual": "<post_attention_layernorm",
}
LOW_RANK_QUERIES: Sources = {
    "attention.q_down": "self_attn.q_a_proj",
    "attention.q_down_norm": "self_attn.q_a_layernorm",
}

# BERT: norms after the sums.
BERT: Sources = {
    **{f"attention.{name[0]}": f"attention.self.{name}" for name in ("query", "key", "value")},
    **softmax_of("attention.self"),
    "attention.heads": "<attention.output.dense",
    "attention.output": "attention.output.dense",
    "attention.residual": "<attention.output.LayerNorm",
    "attention.norm": "attention.output.LayerNorm",
    "feedforward.up": "intermediate.dense",
    "feedforward.hidden": "intermediate",
    "feedforward.output": "output.dense",
    "feedforward.residual": "<output.LayerNorm",
    "feedforward.norm": "output.LayerNorm",
    "residual": "",
}

LAYERS, H = "model.layers", "transformer.h"
FIRST: Source = "<model.layers.0"
"""The embedding with its factor."""
FAMILIES: Mapping[str, Places] = {
    "llama": Places(LAYERS, around(), {"": DENSE}),
    "qwen2": Places(LAYERS, around(), {"": DENSE}),
    "gemma2": Places(LAYERS, around(embed=FIRST), {"": SANDWICH}),
    "gemma3": Places(
        LAYERS,
        {
            "embed": FIRST,
            "position.angles.0": angles("model.rotary_emb", "sliding_attention"),
            "position.angles.1": angles("model.rotary_emb", "full_attention"),
            "norm": "model.norm",
            "project.logits": "#logits",
        },
        {"": {**SANDWICH, **HEAD_NORMS}},
    ),
    "gpt2": Places(
        H,
        {
            "embed": "transformer.wte",
            "position": "<transformer.h.0",
            "norm": "transformer.ln_f",
            "project.logits": "#logits",
        },
        {"": GPT2},
    ),
    "bloom": Places(
        H,
        {
            "embed": "transformer.word_embeddings",
            "embed.norm": "transformer.word_embeddings_layernorm",
            "norm": "transformer.ln_f",
            "project.logits": "#logits",
        },
        {"": BLOOM},
    ),
    "olmo2": Places(LAYERS, around(), {"": OUTPUT_NORMS}),
    "falcon": Places(
        H,
        {
            "embed": "transformer.word_embeddings",
            "position.angles": angles("transformer.rotary_emb"),
            "norm": "transformer.ln_f",
            "project.logits": "#logits",
        },
        {"": FALCON},
    ),
    "qwen2_moe": Places(LAYERS, around(), {"": {**attention(), **SHARED, **AFTER}}),
    "gpt_oss": Places(LAYERS, around(position__angles=angles("model.rotary_emb", repeated=1)), {"": GPT_OSS}),
    "qwen3_next": Places(
        LAYERS,
        around(),
        {
            "linear_attn": DELTA_NET,
            "self_attn": GATED_ATTENTION,
            "mlp.gate": SHARED,
            "mlp.gate_proj": feedforward(),
            "": AFTER,
        },
    ),
    "granitemoehybrid": Places(
        LAYERS,
        {name: source for name, source in around(embed=FIRST).items() if name != "position.angles"},
        {"mamba": GRANITE_MAMBA, "self_attn": GRANITE_ATTENTION, "": {**GRANITE_SHARED, **AFTER}},
    ),
    "falcon_h1": Places(LAYERS, around(embed=FIRST, norm="model.final_layernorm"), {"": FALCON_H1}),
    "lfm2": Places(LAYERS, around(norm="model.embedding_norm"), {"conv": LFM2, "": AFTER}),
    "deepseek_v3": Places(
        LAYERS,
        around(),
        {
            "": {**LATENT, **AFTER},
            "self_attn.q_a_proj": LOW_RANK_QUERIES,
            "mlp.gate": {**mixture(), **gated("mlp.shared_experts", "feedforward.shared", "down")},
            "mlp.gate_proj": feedforward(),
        },
    ),
    "bert": Places(
        "encoder.layer",
        {
            "embed": "embeddings.word_embeddings",
            "embed.types": total("embeddings.word_embeddings", "embeddings.token_type_embeddings"),
            "position": "<embeddings.LayerNorm",
            "embed.norm": "embeddings.LayerNorm",
            "pool": lambda seen, at: seen("#last_hidden_state").mean(1),
            "normalize": lambda seen, at: torch.nn.functional.normalize(seen("#last_hidden_state").mean(1), dim=-1),
        },
        {"": BERT},
    ),
}
