"""LFM2 (Liquid AI 2025): gated short convolutions in most layers, attention in the others; dense or with experts."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.decision_heads import OMNI, has_decision_blocks, with_decision, without_decision
from pellucid.model.decoder_outputs import two_sided
from pellucid.model.hybrid import MAX_TAPS, gguf_recurrent, layer_types, mixed
from pellucid.model.spec import ModelSpec, Norm, ShortConvolution
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint


def _mixed(config: Config, spec: ModelSpec) -> ModelSpec:
    layers = len(spec.blocks)
    attention = config.number_set("full_attn_idxs", layers)
    by_index = [bool(attention) and layer not in attention for layer in range(layers)]
    where = layer_types(config, "layer_types", layers) or by_index
    taps = config.count("conv_L_cache", limit=MAX_TAPS)
    return mixed(spec, ShortConvolution(taps, config.flag("conv_bias", False)), where)


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    width = config.count("intermediate_size")
    if config.flag("block_auto_adjust_ff_dim", True):
        width = int(2 * width / 3)
        if config.has("block_ffn_dim_multiplier"):
            multiple = config.count("block_multiple_of", 256)
            width = int(config.number("block_ffn_dim_multiplier") * width)
            width = -(-width // multiple) * multiple
    return _mixed(config, spec.change_dense(lambda _, dense: replace(dense, width=width)))


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    taps = config.count("shortconv.l_cache", limit=MAX_TAPS)
    return mixed(spec, ShortConvolution(taps), gguf_recurrent(config, len(spec.blocks)))


_NAMES = TRANSFORMERS | {
    "model.norm": "model.embedding_norm",
    "attention.output": "self_attn.out_proj",
    "attention.q_norm": "self_attn.q_layernorm",
    "attention.k_norm": "self_attn.k_layernorm",
    "attention,recurrent.norm": "operator_norm",
    "recurrent.b,c,x": "conv.in_proj",
    "recurrent.conv": "conv.conv",
    "recurrent.output": "conv.out_proj",
    "feedforward.norm": "ffn_norm",
    "feedforward.gate": "feed_forward.w1",
    "feedforward.up": "feed_forward.w3",
    "feedforward.down": "feed_forward.w2",
    "feedforward.router": "feed_forward.gate",
    "feedforward.correction.bias": "feed_forward.expert_bias",
    "feedforward.experts.gate": "feed_forward.experts.{}.w1",
    "feedforward.experts.up": "feed_forward.experts.{}.w3",
    "feedforward.experts.down": "feed_forward.experts.{}.w2",
}
_GGUF = GGUF | {
    "model.norm": "token_embd_norm",
    "recurrent.norm": "attn_norm",
    "recurrent.b,c,x": "shortconv.in_proj",
    "recurrent.conv": "shortconv.conv",
    "recurrent.output": "shortconv.out_proj",
}
_LFM2 = StandardDecoder(
    "lfm2",
    head_norm=True,
    base=1_000_000.0,
    norm=Norm("rms", 1e-5),
    tied=True,
    pattern=("conv", "conv", "full_attention"),
    kv_by_layer=True,
    keys={
        "norm_eps": "norm_eps",
        "bias": "",
        "head_dim": "",
        "feedforward_bias": "",
        "taps": "conv_L_cache",
        "pattern": "layer_types",
    },
    aliases={"intermediate_size": "block_ff_dim"},
    names=_NAMES,
    gguf_names=_GGUF,
    config_change=_from_config,
    gguf_change=_from_gguf,
)


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture lfm2, also with decision blocks (d1-omni, without pictures and sounds)."""
    own = config.with_prefix("lfm2.")
    if not has_decision_blocks(own, OMNI):
        return _LFM2.from_gguf(checkpoint, config)
    if own.flag("attention.causal", True):
        raise own.error("attention.causal", f"is true; it must be false, because {OMNI} is an encoder")
    own, widths = without_decision(own)
    body = two_sided(own, _LFM2.from_gguf(checkpoint, own.with_prefix("")).spec, 1, centered=True)
    norm = Norm("layer", own.number("attention.layer_norm_epsilon"))
    return with_decision(own, body, norm, _GGUF, _GGUF.names["model.norm"], widths)


LFM2 = replace(_LFM2.family(), gguf={"lfm2": from_gguf})
LFM2_MOE = replace(
    _LFM2,
    name="lfm2_moe",
    architecture="lfm2moe",
    mixture=StandardMixture(
        score="sigmoid",
        normalize=True,
        correction=True,
        correction_key="use_expert_bias",
        keys={"scale": "routed_scaling_factor", "dense": "num_dense_layers"},
    ),
    config_change=_mixed,
).family()
