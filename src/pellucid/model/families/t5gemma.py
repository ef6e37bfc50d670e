"""T5Gemma (Zhang et al. 2025): an encoder and a decoder of Gemma 2, with cross attention between norms of its own."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.encoder_decoder import first_tokens, refuse_heads
from pellucid.model.families.gemma import DECODER
from pellucid.model.family import Family
from pellucid.model.outputs import Head
from pellucid.model.spec import Attention, Block, ModelSpec
from pellucid.model.tensor_names import TRANSFORMERS_SANDWICH, TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

HEAD = "lm_head.out_proj"


def _names(side: str) -> TensorNames:
    """The tensor names of the "encoder" or "decoder"."""
    names = {
        "model.embed": f"model.{side}.embed_tokens",
        "model.norm": f"model.{side}.norm",
        "model.project": HEAD,
        "attention.norm": "pre_self_attn_layernorm",
        "attention.post_norm": "post_self_attn_layernorm",
        "cross.norm": "pre_cross_attn_layernorm",
        "cross.post_norm": "post_cross_attn_layernorm",
        "cross.output": "cross_attn.o_proj",
        **{f"cross.{part}": f"cross_attn.{part}_proj" for part in "qkv"},
    }
    return replace(TRANSFORMERS_SANDWICH | names, prefix=f"model.{side}.layers", norm_plus=1.0)


NAMES = replace(_names("decoder"), encoder=_names("encoder"))


def _side(checkpoint: Checkpoint, config: Config, side: str) -> ModelSpec:
    """The spec of the "encoder" or "decoder", from its table of config.json."""
    own = config.table(side) if config.has(side) else config
    for key in ("attention_bias", "cross_attention_hidden_size", "layer_types", "sliding_window", "vocab_size"):
        own.value(key)
    spec = replace(DECODER, name="t5gemma", names=_names(side)).from_config(checkpoint, own).spec
    own.check_count("vocab_size", config.count("vocab_size"), "because encoder and decoder share a vocabulary")
    return spec


def _two_sided(attention: Attention) -> Attention:
    """The attention of the encoder: a token sees the tokens up to ``sliding_window`` before and after it."""
    return replace(attention, causal=False, window=attention.window and attention.window + 1)


def _with_cross(block: Block) -> Block:
    assert block.attention
    return replace(block, cross=replace(block.attention, window=0, causal=False, rotary=None))


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json``."""
    config.flag("is_encoder_decoder", True)
    refuse_heads(config)
    encoder, decoder = (_side(checkpoint, config, side) for side in ("encoder", "decoder"))
    context = min(encoder.context, decoder.context)
    encoder = encoder.change_attention(lambda _, attention: _two_sided(attention))
    assert decoder.head
    tied = config.flag("tie_word_embeddings", True) and f"{HEAD}.weight" not in checkpoint.tensors
    spec = replace(
        decoder,
        context=context,
        blocks=tuple(_with_cross(block) for block in decoder.blocks),
        head=Head(tied, softcap=decoder.head.softcap),
        encoder=replace(encoder, context=context, head=None),
        start=first_tokens(checkpoint, config, decoder.embedding.vocabulary),
    )
    return Model(spec, NAMES.slots(spec), "decoder.num_hidden_layers")


T5GEMMA = Family("t5gemma", safetensors={"t5gemma": from_config})
