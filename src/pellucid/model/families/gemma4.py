"""Gemma 4, text (Gemma Team 2026).

It is Gemma 3 with wider heads in full layers, per-layer embeddings, and a scalar that multiplies the output of each
block. The last layers share the keys and values of earlier layers. Some models have experts beside the dense
feed-forward, with their own norms.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.families.gemma import check_activation
from pellucid.model.family import Family
from pellucid.model.metadata import (
    GGUF_PATTERN,
    GGUF_WINDOW,
    even,
    except_every,
    frequency_factors,
    gguf_vocabulary,
    sliding_layers,
)
from pellucid.model.outputs import Head
from pellucid.model.positions import Rotary
from pellucid.model.spec import Attention, Block, Embedding, FeedForward, Mixture, ModelSpec, Norm, PerLayer, Router
from pellucid.model.standard_decoder import tied_head
from pellucid.model.standard_mixture import MAX_EXPERTS, FeedForwards, limit_experts
from pellucid.model.tensor_names import GGUF, TRANSFORMERS_SANDWICH, TensorNames
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

# Defaults: every sixth block has full attention, with heads of this width.
PATTERN, GLOBAL_HEAD_DIM = 6, 512
LOCAL_BASE, FULL_BASE, ROTATED = 10_000.0, 1_000_000.0, 0.25
EXPERT_KEYS = ("num_experts", "top_k_experts", "moe_intermediate_size")
GGUF_EXPERT_KEYS = ("expert_count", "expert_used_count", "expert_feed_forward_length")
SHARED = "num_kv_shared_layers"
STILL = 1e30  # divisor of the frequencies of pairs that are not rotated
NAMES = TRANSFORMERS_SANDWICH | {
    "model.per_layer.embed": "model.embed_tokens_per_layer",
    "model.per_layer.project": "model.per_layer_model_projection",
    "model.per_layer.norm": "model.per_layer_projection_norm",
    "per_layer.gate": "per_layer_input_gate",
    "per_layer.project": "per_layer_projection",
    "per_layer.norm": "post_per_layer_input_norm",
    "scalar.weight": "layer_scalar",
    "feedforward.router": "router.proj",
    "feedforward.router_norm.weight": "router.scale",
    "feedforward.expert_scale.weight": "router.per_expert_scale",
    "feedforward.experts_norm": "pre_feedforward_layernorm_2",
    "feedforward.experts.gate,up.weight": "experts.gate_up_proj",
    "feedforward.experts.down.weight": "experts.down_proj",
    "feedforward.experts_post_norm": "post_feedforward_layernorm_2",
    "feedforward.shared.gate": "mlp.gate_proj",
    "feedforward.shared.up": "mlp.up_proj",
    "feedforward.shared.down": "mlp.down_proj",
    "feedforward.shared_post_norm": "post_feedforward_layernorm_1",
}
GGUF_NAMES = GGUF | {
    "model.per_layer.embed": "per_layer_token_embd",
    "model.per_layer.project": "per_layer_model_proj",
    "model.per_layer.norm": "per_layer_proj_norm",
    "per_layer.gate": "inp_gate",
    "per_layer.project": "proj",
    "per_layer.norm": "post_norm",
    "scalar": "layer_output_scale",
    "feedforward.router_norm.weight": "ffn_gate_inp.scale",
    "feedforward.expert_scale.weight": "ffn_down_exps.scale",
    "feedforward.experts_norm": "pre_ffw_norm_2",
    "feedforward.experts.gate,up": "ffn_gate_up_exps",
    "feedforward.experts_post_norm": "post_ffw_norm_2",
    "feedforward.shared.gate": "ffn_gate",
    "feedforward.shared.up": "ffn_up",
    "feedforward.shared.down": "ffn_down",
    "feedforward.shared_post_norm": "post_ffw_norm_1",
}
_GGUF_APART = GGUF_NAMES | {"feedforward.experts.gate": "ffn_gate_exps", "feedforward.experts.up": "ffn_up_exps"}


def _proportional(base: float, head_dim: int, rotated: float) -> Rotary:
    """Partial rotary positions: the first pairs have the frequencies of a full rotation, the others are not rotated."""
    pairs = head_dim // 2
    turning = int(rotated * head_dim // 2)
    factors = (1.0,) * turning + (STILL,) * (pairs - turning)
    return Rotary(base, head_dim, "half", factors=factors if turning < pairs else ())


def with_shared_keys(config: Config, spec: ModelSpec, key: str) -> ModelSpec:
    """Let the last layers share keys and values with the last earlier layer of the same kind (sliding or full).

    ``key`` is the metadata key of the number of layers that share.
    """
    sliding = [bool(attention.window) for attention in spec.attentions]
    shared, layers = config.optional_count(key), len(sliding)
    first = layers - shared
    if first < 1 or set(sliding[:first]) != set(sliding):
        raise config.error(
            key, f"is {shared} of {layers} layers: at least one layer of each kind must have its own keys"
        )
    producers = {kind: layer for layer, kind in enumerate(sliding[:first])}

    def change(layer: int, attention: Attention) -> Attention:
        if layer < first:
            return attention
        return replace(attention, shared=producers[sliding[layer]], v_norm=None, keys_as_values=False)

    return spec.change_attention(change)


def with_ignored_keys(model: Model, names: TensorNames, tensors: Container[str]) -> Model:
    """Ignore the key and value projections in the file for layers that use the keys and values of earlier layers."""
    every = names.slots(model.spec.with_attention(shared=None))
    unused = [source for slot, source in every.items() if slot not in model.slots]
    ignored = (source for source in unused if isinstance(source, Slot) and source.tensor in tensors)
    return replace(model, ignored=tuple(ignored))


def per_layer_embeddings(width: int, model_width: int, vocabulary: int = 0) -> PerLayer:
    """Per-layer embeddings of ``width``, scaled as in Gemma."""
    return PerLayer(width, width**0.5, model_width**-0.5, 2**-0.5, "gelu_tanh", vocabulary)


def _spec(
    name: str,
    context: int,
    vocabulary: int,
    width: int,
    attentions: list[Attention],
    feedforwards: FeedForwards,
    per_layer: int,
    norm: Norm,
    head: Head,
) -> ModelSpec:
    blocks = (
        Block(attention, feedforward, norm, "sandwich", scalar=True)
        for attention, feedforward in zip(attentions, feedforwards)
    )
    return ModelSpec(
        "gemma4",
        name,
        context,
        Embedding(vocabulary, width, scale=width**0.5),
        tuple(blocks),
        per_layer=per_layer_embeddings(per_layer, width) if per_layer else None,
        final_norm=norm,
        head=head,
    )


def _feedforwards(widths: list[int], experts: Mixture | None) -> FeedForwards:
    """The feed-forward of each layer. If there are experts, the dense feed-forward becomes their shared expert."""
    dense = [FeedForward(width, "gelu_tanh", gated=True) for width in widths]
    return [replace(experts, shared=feedforward) for feedforward in dense] if experts else [*dense]


def _experts(config: Config, keys: tuple[str, str, str], layers: int, width: int, norm: Norm) -> Mixture:
    """The experts. ``keys`` are the keys of three numbers: experts, chosen experts, and the width of an expert."""
    count = config.count(keys[0], limit=MAX_EXPERTS)
    limit_experts(config, keys[0], count, layers)
    chosen, expert_width = config.count(keys[1], limit=count), config.count(keys[2])
    router = Router(count, chosen, normalize=True, output_scale=width**-0.5, expert_scale=True)
    return Mixture(router, FeedForward(expert_width, "gelu_tanh", gated=True), norms=norm)


def _attention(heads: int, kv_heads: int, head_dim: int, norm: Norm) -> Attention:
    return Attention(heads, kv_heads, head_dim, 1.0, qk_norm=norm, v_norm=replace(norm, weight=False))


def _overrides(config: Config, sliding: list[bool]) -> Mapping[str, int]:
    """The values of ``per_layer_config`` for full layers. All full layers must have the same values."""
    table = config.table("per_layer_config")
    is_sliding = {str(layer): slides for layer, slides in enumerate(sliding)}
    # transformers writes the number of layer 5 as "05".
    numbers = {layer: layer.lstrip("0") or layer[:1] for layer in table.values}
    for layer, number in numbers.items():
        if is_sliding.get(number, not number.isdecimal()):
            raise config.error(
                "per_layer_config", f"has an entry {layer!r:.20}; it must be the number of a layer with full attention"
            )
    if len(set(numbers.values())) != len(numbers):
        raise config.error("per_layer_config", "has two entries for a layer: remove one of the two")
    keys_of = {number: layer for layer, number in numbers.items()}
    values = []
    for number in (number for number, slides in is_sliding.items() if not slides):
        entry = table.table(keys_of.get(number, number))
        keys = filter(entry.has, ("head_dim", "num_key_value_heads"))
        values.append({key: int(entry.count(key)) for key in keys})
    if any(value != values[0] for value in values):
        raise config.error("per_layer_config", "differs between layers with full attention; it must be equal")
    return values[0] if values else {}


def _rope(config: Config, kind: str, head_dim: int) -> Rotary:
    """The rotary positions of a kind of layers. Gemma's defaults apply only if the file has no ``rope_parameters``."""
    tables = config.table("rope_parameters")
    table, absent = tables.table(kind), not tables.values and kind == "full_attention"
    kinds = {"default": False, "proportional": True}
    proportional = table.choice("rope_type", kinds, "proportional" if absent else "default")
    base = table.number("rope_theta", FULL_BASE if absent else LOCAL_BASE, low=1.0)
    if proportional:
        return _proportional(
            base, head_dim, table.number("partial_rotary_factor", ROTATED if absent else 1.0, high=1.0)
        )
    table.refuse("partial_rotary_factor", 1)
    return Rotary(base, head_dim, "half")


def _attentions(config: Config, sliding: list[bool], norm: Norm) -> tuple[Attention, Attention]:
    """The attention of full layers and the attention of sliding layers."""
    heads, head_dim = config.count("num_attention_heads"), even(config, "head_dim", config.count("head_dim"))
    kv_heads = config.divisor("num_key_value_heads", "num_attention_heads")
    overrides = _overrides(config, sliding)
    same = config.flag("attention_k_eq_v", False)
    full_dim, full_kv = head_dim, kv_heads
    if not config.has("per_layer_config"):  # older files
        full_dim = config.count("global_head_dim", GLOBAL_HEAD_DIM)
        stated = config.count("num_global_key_value_heads", kv_heads)
        full_kv = stated if same else kv_heads
    full_dim = even(config, "global_head_dim", overrides.get("head_dim", full_dim))
    full_kv = overrides.get("num_key_value_heads", full_kv)
    if heads % full_kv:
        raise config.error("num_global_key_value_heads", f"is {full_kv}, which does not divide {heads}")
    bias = config.flag("attention_bias", False)
    local = replace(
        _attention(heads, kv_heads, head_dim, norm),
        rotary=_rope(config, "sliding_attention", head_dim),
        window=config.count("sliding_window"),
        bias=bias,
        output_bias=bias,
    )
    full = replace(
        _attention(heads, full_kv, full_dim, norm),
        rotary=_rope(config, "full_attention", full_dim),
        keys_as_values=same,
        bias=bias,
        output_bias=bias,
    )
    return full, local


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of Gemma4ForCausalLM."""
    check_activation(config)
    config.refuse("use_bidirectional_attention", "vision")  # "vision" applies to images only
    layers, width = config.count("num_hidden_layers", limit=MAX_LAYERS), config.count("hidden_size")
    norm = Norm("rms", config.number("rms_norm_eps", 1e-6))
    sliding = sliding_layers(config, [*except_every(PATTERN, layers - 1), False])
    full, local = _attentions(config, sliding, norm)
    inner, double = config.count("intermediate_size"), config.flag("use_double_wide_mlp", False)
    first = layers - config.optional_count(SHARED) if double else layers
    widths = [inner * 2 if layer >= first else inner for layer in range(layers)]
    moe = config.flag("enable_moe_block", False)
    experts = _experts(config, EXPERT_KEYS, layers, width, norm) if moe else None
    vocabulary = config.count("vocab_size")
    per_layer = config.optional_count("hidden_size_per_layer_input", required=True)
    if config.count("vocab_size_per_layer_input", vocabulary) and per_layer:
        config.check_count("vocab_size_per_layer_input", vocabulary, "like vocab_size")
    spec = _spec(
        checkpoint.path.name,
        config.count("max_position_embeddings"),
        vocabulary,
        width,
        [local if slides else full for slides in sliding],
        _feedforwards(widths, experts),
        per_layer,
        norm,
        Head(tied_head(checkpoint, config, default=True), config.optional_number("final_logit_softcapping")),
    )
    spec, names = with_shared_keys(config, spec, SHARED), NAMES.found_in(checkpoint.tensors)
    model = Model(spec, names.slots(spec), config.name("num_hidden_layers"))
    return with_ignored_keys(model, names, checkpoint.tensors)


def _gguf_attentions(
    checkpoint: Checkpoint, own: Config, sliding: list[bool], norm: Norm
) -> tuple[Attention, Attention]:
    layers = len(sliding)
    heads = own.count("attention.head_count")
    by_layer = own.by_layer("attention.head_count_kv", layers)
    kv_heads = dict(zip(sliding, by_layer))
    if any(kv_heads[slides] != count or not count or heads % count for slides, count in zip(sliding, by_layer)):
        raise own.error(
            "attention.head_count_kv", f"must divide {heads}, and must be equal in all layers of a kind (sliding, full)"
        )
    lengths = ("attention.key_length", "attention.key_length_swa")
    full_dim, local_dim = (even(own, key, own.count(key)) for key in lengths)
    for key, dim in (("attention.value_length", full_dim), ("attention.value_length_swa", local_dim)):
        own.check_count(key, dim, "the length of keys")
    rotary = _proportional(own.number("rope.freq_base", FULL_BASE, low=1.0), full_dim, ROTATED)
    first_full = sliding.index(False) if False in sliding else 0
    full = replace(
        _attention(heads, kv_heads.get(False, 1), full_dim, norm),
        rotary=replace(rotary, factors=frequency_factors(checkpoint, own) or rotary.factors),
        keys_as_values=f"blk.{first_full}.attn_v.weight" not in checkpoint.tensors,
    )
    local = replace(
        _attention(heads, kv_heads.get(True, 1), local_dim, norm),
        rotary=Rotary(own.number("rope.freq_base_swa", LOCAL_BASE, low=1.0), local_dim, "half"),
        window=own.count(GGUF_WINDOW),
    )
    for key, dim in (("rope.dimension_count", full_dim), ("rope.dimension_count_swa", local_dim)):
        own.check_count(key, dim, "the width of a head, because all its values are rotated")
    return full, local


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``gemma4.*`` metadata."""
    own = config.with_prefix("gemma4.")
    layers, width = own.count("block_count", limit=MAX_LAYERS), own.count("embedding_length")
    norm = Norm("rms", own.number("attention.layer_norm_rms_epsilon"))
    sliding = own.flags(GGUF_PATTERN, layers)
    if sliding is None:
        raise own.error(GGUF_PATTERN, f"missing; it must be a list of {layers} booleans")
    full, local = _gguf_attentions(checkpoint, own, sliding, norm)
    widths, moe = (own.by_layer("feed_forward_length", layers), own.optional_count("expert_count", limit=MAX_EXPERTS))
    experts = _experts(own, GGUF_EXPERT_KEYS, layers, width, norm) if moe else None
    names = _GGUF_APART if "blk.0.ffn_gate_exps.weight" in checkpoint.tensors else GGUF_NAMES
    spec = _spec(
        config.text("general.name", "gemma4"),
        own.count("context_length"),
        gguf_vocabulary(checkpoint, own),
        width,
        [local if slides else full for slides in sliding],
        _feedforwards(widths, experts),
        own.optional_count("embedding_length_per_layer_input"),
        norm,
        Head("output.weight" not in checkpoint.tensors, own.optional_number("final_logit_softcapping")),
    )
    spec = with_shared_keys(own, spec, "attention.shared_kv_layers")
    model = Model(spec, names.slots(spec), own.name("block_count"))
    return with_ignored_keys(model, names, checkpoint.tensors)


GEMMA4 = Family(
    "gemma4",
    gguf={"gemma4": from_gguf},
    safetensors={"gemma4_text": from_config},
    keys={"pattern": "layer_types"},
    pattern=("sliding_attention", "full_attention"),
)
