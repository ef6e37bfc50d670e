"""T5Gemma (Zhang et al. 2025): an encoder and a decoder of Gemma 2, with cross attention between norms of its own."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.encoder_decoder import first_tokens
from pellucid.model.families.gemma2 import DECODER
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
    for key in (
        "attention_bias",
        "cross_attention_hidden_size",
        "layer_types",
        "sliding_window",
        "vocab_size",
    ):
        own.value(key)
    spec = replace(DECODER, name="t5gemma", names=_names(side)).from_config(checkpoint, own).spec
    own.check_count(
        "vocab_size", config.count("vocab_size"), "because encoder and decoder share a vocabulary"
    )
    return spec


def _whole(attention: Attention, *, causal: bool) -> Attention:
    """The attention without a window."""
    return replace(attention, window=0, causal=causal)


def _with_cross(block: Block) -> Block:
    assert block.attention
    return replace(block, cross=replace(_whole(block.attention, causal=False), rotary=None))


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json``.

    A token of the encoder sees the tokens within a window on both sides. The context is so short that the window is
    the whole source.
    """
    config.flag("is_encoder_decoder", True)
    encoder, decoder = (_side(checkpoint, config, side) for side in ("encoder", "decoder"))
    windows = [kind.window for kind in encoder.attentions if kind.window]
    context = min(encoder.context, decoder.context, *(window + 1 for window in windows))
    encoder = encoder.change_attention(lambda _, attention: _whole(attention, causal=False))
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
