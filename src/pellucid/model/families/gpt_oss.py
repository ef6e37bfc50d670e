"""gpt-oss (OpenAI 2025): experts with biases and clamped activations, attention sinks, windows in half the layers."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.metadata import SlidingWindows
from pellucid.model.spec import Attention, Mixture, ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

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
