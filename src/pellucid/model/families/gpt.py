"""GPT, GPT-2, GPT-J, GPT-NeoX, Pythia, gpt-oss, StarCoder 2, Phi 1 to 4."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.metadata import SlidingWindows, even
from pellucid.model.spec import Attention, Mixture, ModelSpec, Norm
from pellucid.model.standard_decoder import GPT_ALIASES, GPT_KEYS, GPT_LIKE, StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS, TensorNames, places
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

# GPT-2 (Radford et al. 2019): learned positions, layer norms, biases, matrices stored as (inputs, outputs).

NAMES = TensorNames(
    {
        "model.embed": "transformer.wte",
        "model.position": "transformer.wpe",
        "model.norm": "transformer.ln_f",
        "model.project": "lm_head",
        "attention.q,k,v": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "attention.norm": "ln_1",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
        "feedforward.norm": "ln_2",
    },
    "transformer.h",
    transposed=places("attention.q,k,v,output", "feedforward.up,down"),
)


DECODER = replace(
    GPT_LIKE,
    name="gpt2",
    positions="learned",
    widening=4,
    keys=GPT_KEYS,
    aliases=GPT_ALIASES,
    unused=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # masks
    names=NAMES,
)


def _scores(config: Config, spec: ModelSpec) -> ModelSpec:
    """Set the scale of scores. One option sets it to 1, another option divides it by the number of the layer."""
    scaled = config.flag("scale_attn_weights", True)
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    return spec.change_attention(
        lambda layer, attention: replace(
            attention, scale=(attention.scale if scaled else 1.0) / (layer + 1 if by_layer else 1)
        )
    )


GPT2 = replace(DECODER, config_change=_scores).family()


# GPT (Radford et al. 2018): like GPT-2, with norms after the residual additions.

OPENAI_GPT = replace(
    DECODER,
    name="openai-gpt",
    architecture=None,
    activations={"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"},
    placement="post",
    final_norm=False,
    keys={**GPT_KEYS, "activation": "afn"},
    unused=(r"(transformer\.)?h\.\d+\.attn\.bias",),
    names=NAMES | {"model.embed": "transformer.tokens_embed", "model.position": "transformer.positions_embed"},
).family()


# GPT-J (Wang and Komatsuzaki 2021): parallel attention and feed-forward with one layer norm.

GPTJ_NAMES = TensorNames(
    {
        "model.embed": "transformer.wte",
        "model.norm": "transformer.ln_f",
        "model.project": "lm_head",
        "attention.q": "attn.q_proj",
        "attention.k": "attn.k_proj",
        "attention.v": "attn.v_proj",
        "attention.output": "attn.out_proj",
        "attention.norm": "ln_1",
        "feedforward.up": "mlp.fc_in",
        "feedforward.down": "mlp.fc_out",
    },
    "transformer.h",
)


ROTATED = 64  # default number of rotated values of a head


def _rotated(config: Config, spec: ModelSpec) -> ModelSpec:
    attention = spec.attention
    assert attention.rotary is not None
    usual = attention.head_dim if config.is_present("rotary_dim") else min(ROTATED, attention.head_dim)
    dims = even(config, "rotary_dim", config.count("rotary_dim", usual, limit=attention.head_dim))
    return spec.with_attention(rotary=replace(attention.rotary, dims=dims))


GPTJ = replace(
    GPT_LIKE,
    name="gptj",
    architecture=None,
    pairing="interleaved",
    bias=False,
    output_bias=False,
    widening=4,
    tied=False,
    placement="shared",
    head_bias=True,
    keys=GPT_KEYS,
    aliases=GPT_ALIASES,
    unused=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    names=GPTJ_NAMES,
    config_change=_rotated,
).family()


# GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): parallel attention and feed-forward.

GPT_NEOX_NAMES = TensorNames(
    {
        "model.embed": "gpt_neox.embed_in",
        "model.norm": "gpt_neox.final_layer_norm",
        "model.project": "embed_out",
        "attention.q,k,v": "attention.query_key_value",
        "attention.output": "attention.dense",
        "attention.norm": "input_layernorm",
        "feedforward.up": "mlp.dense_h_to_4h",
        "feedforward.down": "mlp.dense_4h_to_h",
        "feedforward.norm": "post_attention_layernorm",
    },
    "gpt_neox.layers",
    by_group=frozenset({"attention.query_key_value"}),
)


def _parallel(config: Config, spec: ModelSpec) -> ModelSpec:
    parallel = config.flag("use_parallel_residual", True)
    return spec.with_blocks(placement="parallel" if parallel else "pre")


GPT_NEOX = replace(
    GPT_LIKE,
    name="gpt_neox",
    architecture="gptneox",
    rotated=0.25,
    activation="gelu",
    tied=False,
    keys={"kv_heads": "", "head_dim": "", "norm_eps": "layer_norm_eps", "feedforward_bias": ""},
    unused=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    names=GPT_NEOX_NAMES,
    rope_keys=("rotary_emb_base", "rotary_pct"),
    gguf_change=_parallel,
    config_change=_parallel,
).family()


# gpt-oss (OpenAI 2025): experts with biases and clamped activations, attention sinks, windows in half the layers.

POSITIONS = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
LIMIT, SHARPNESS = 7.0, 1.702  # defaults of the clamped activation


def _clamped(spec: ModelSpec, limit: float, sharpness: float) -> ModelSpec:
    def change(_: int, mixture: Mixture) -> Mixture:
        expert = replace(mixture.expert, activation="clamped_silu", limit=limit, sharpness=sharpness)
        return replace(mixture, expert=expert)

    return spec.change_mixture(change)


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    return _clamped(spec, config.number("swiglu_limit", LIMIT), config.number("swiglu_alpha", SHARPNESS))


def _unrounded(attention: Attention) -> Attention:
    """Keep YaRN's interpolation limits unrounded, as in training. GGUF has no key for this; llama.cpp rounds them."""
    rotary = attention.rotary
    if rotary is None or rotary.scaling is None:
        return attention
    scaling = replace(rotary.scaling, whole_pairs=False)
    return replace(attention, rotary=replace(rotary, scaling=scaling))


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return _clamped(spec.change_attention(lambda _, attention: _unrounded(attention)), LIMIT, SHARPNESS)


GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
_NAMES = replace(
    TRANSFORMERS
    | {
        "attention.sinks.weight": "self_attn.sinks",
        "feedforward.router": "mlp.router",
        "feedforward.experts.gate,up.bias": f"{GATE_UP}_bias",
        "feedforward.experts.down.bias": f"{DOWN}_bias",
    },
    alternating=True,
)
_DECODER = StandardDecoder(
    "gpt_oss",
    architecture="gpt-oss",
    base=150_000.0,
    default_rope_parameters=POSITIONS,
    norm=Norm("rms", 1e-5),
    bias=True,
    output_bias=True,
    sinks=True,
    windows=SlidingWindows(period=2),
    feedforward_bias=True,
    mixture=StandardMixture(normalize=True, bias=True, keys={"width": "", "normalize": ""}),
    keys={"feedforward_bias": ""},
    gguf_names=GGUF | {"attention.sinks": "attn_sinks", "feedforward.norm": "post_attention_norm"},
    names=_NAMES.with_experts(GATE_UP, DOWN, transposed=True),
    gguf_change=_from_gguf,
    config_change=_from_config,
)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json``. Published files store the matrices of experts in MXFP4, as (outputs, inputs)."""
    decoder = _DECODER
    if f"model.layers.0.{DOWN}_blocks" in checkpoint.tensors:
        decoder = replace(decoder, names=_NAMES.with_experts(f"{GATE_UP}_blocks", f"{DOWN}_blocks"))
    return decoder.from_config(checkpoint, config)


GPT_OSS = replace(_DECODER.family(), safetensors={"gpt_oss": from_config})


# StarCoder 2 (Lozhkov et al. 2024): layer norms, biases everywhere, an ungated feed-forward with GELU.


def _starcoder2_from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    # Older files have these keys, and transformers ignores them.
    for key in ("activation_function", "layer_norm_epsilon"):
        config.value(key)
    return spec


STARCODER2 = replace(
    GPT_LIKE,
    name="starcoder2",
    keys={"norm_eps": "norm_epsilon", "bias": "use_bias", "feedforward_bias": "use_bias", "window": "sliding_window"},
    config_change=_starcoder2_from_config,
    names=TRANSFORMERS | {"feedforward.up": "mlp.c_fc", "feedforward.down": "mlp.c_proj"},
).family()


# Phi-1, 1.5 and 2 (Microsoft 2023): parallel attention and feed-forward with one layer norm.

PHI = replace(
    GPT_LIKE,
    name="phi",
    architecture="phi2",
    rotated=0.5,
    tied=False,
    placement="shared",
    head_bias=True,
    head_norm="qk_layernorm",
    keys={"head_dim": "", "norm_eps": "layer_norm_eps", "bias": "", "feedforward_bias": ""},
    names=TRANSFORMERS
    | {
        "model.norm": "model.final_layernorm",
        "attention.output": "self_attn.dense",
        "attention.q_norm": "self_attn.q_layernorm",
        "attention.k_norm": "self_attn.k_layernorm",
        "feedforward.up": "mlp.fc1",
        "feedforward.down": "mlp.fc2",
    },
).family()


# Phi-3 and Phi-4-mini (Abdin et al. 2024): like Llama, with fused QKV and fused gate and up-projections.


def _window(config: Config, spec: ModelSpec) -> ModelSpec:
    return spec.with_attention(window=config.optional_count("attention.sliding_window"))


PHI3 = StandardDecoder(
    "phi3",
    partial=True,
    norm=Norm("rms", 1e-5),
    keys={"window": "sliding_window"},
    gguf_names=GGUF | {"feedforward.gate": "ffn_up"},
    names=TRANSFORMERS | {"attention.q,k,v": "self_attn.qkv_proj", "feedforward.gate,up": "mlp.gate_up_proj"},
    gguf_change=_window,
).family()
