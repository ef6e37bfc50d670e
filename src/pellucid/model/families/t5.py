"""T5 (Raffel et al. 2020), Flan-T5, mT5 and UMT5: relative buckets, RMS norms before each part, no biases.

UMT5 has a table of buckets in every block; the other models have one table for all blocks of a side.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.encoder_decoder import first_tokens, refuse_heads
from pellucid.model.families.gemma import DECODER
from pellucid.model.family import Family
from pellucid.model.metadata import gguf_vocabulary
from pellucid.model.outputs import Head, Pooling, UnitLength
from pellucid.model.positions import RelativeBuckets
from pellucid.model.sentence_modules import read_outputs
from pellucid.model.spec import Attention, Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.standard_decoder import ACTIVATIONS
from pellucid.model.tensor_names import TRANSFORMERS_SANDWICH, TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

CONTEXT = 512
"""The length of the texts in training. Relative buckets have no longest text."""


class Names(Struct, frozen=True):
    """The tensor names of a format, for feed-forwards without and with a gate."""

    plain: TensorNames
    gated: TensorNames


def _transformers(side: str) -> TensorNames:
    """The names of the "encoder" or "decoder" in transformers."""
    attention, last = "layer.0.SelfAttention", 1 if side == "encoder" else 2
    names = {
        "model.embed": "shared",
        "model.norm": f"{side}.final_layer_norm",
        "model.project": "lm_head",
        "model.relative": f"{side}.block.0.{attention}.relative_attention_bias",
        "attention.relative": f"{attention}.relative_attention_bias",
        "attention.norm": "layer.0.layer_norm",
        "attention.output": f"{attention}.o",
        "feedforward.up": f"layer.{last}.DenseReluDense.wi",
        "feedforward.down": f"layer.{last}.DenseReluDense.wo",
        "feedforward.norm": f"layer.{last}.layer_norm",
        **{f"attention.{part}": f"{attention}.{part}" for part in "qkv"},
    }
    if side == "decoder":
        names |= {f"cross.{part}": f"layer.1.EncDecAttention.{part}" for part in "qkv"}
        names |= {"cross.output": "layer.1.EncDecAttention.o", "cross.norm": "layer.1.layer_norm"}
    return TensorNames(names, f"{side}.block")


def _gguf(side: str) -> TensorNames:
    """The names of the encoder ("enc") or decoder ("dec") in llama.cpp."""
    names = {
        "model.embed": "token_embd",
        "model.norm": f"{side}.output_norm",
        "model.project": "output",
        "model.relative": f"{side}.blk.0.attn_rel_b",
        "attention.relative": "attn_rel_b",
        **{f"feedforward.{part}": f"ffn_{part}" for part in ("norm", "gate", "up", "down")},
        **{f"attention.{part}": f"attn_{part}" for part in ("norm", "q", "k", "v")},
        **{f"cross.{part}": f"cross_attn_{part}" for part in ("norm", "q", "k", "v")},
        "attention.output": "attn_o",
        "cross.output": "cross_attn_o",
    }
    return TensorNames(names, f"{side}.blk")


def _gated(names: TensorNames) -> TensorNames:
    up = names.names["feedforward.up"]
    return names | {"feedforward.gate": f"{up}_0", "feedforward.up": f"{up}_1"}


_encoder_names, _decoder_names = _transformers("encoder"), _transformers("decoder")
TRANSFORMERS = Names(
    replace(_decoder_names, encoder=_encoder_names), replace(_gated(_decoder_names), encoder=_gated(_encoder_names))
)
GGUF = Names(*[replace(_gguf("dec"), encoder=_gguf("enc"))] * 2)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of T5, mT5 and UMT5, or of an encoder alone (T5EncoderModel)."""
    config = config.with_aliases({"d_model": "hidden_size", "num_heads": "num_attention_heads"})
    config.flag("is_encoder_decoder", True)
    refuse_heads(config)
    for derived in ("dense_act_fn", "is_gated_act", "num_hidden_layers", "head_dim"):
        config.value(derived)
    kind = config.text("model_type")
    choices = {name: (False, activation) for name, activation in ACTIVATIONS.items()}
    choices |= {f"gated-{name}": (True, activation) for name, activation in ACTIVATIONS.items()}
    choices["gated-gelu"] = (True, "gelu_tanh")
    usual = "relu" if kind == "t5" else "gated-gelu"
    gated, activation = config.choice("feed_forward_proj", choices, usual)
    buckets = RelativeBuckets(
        config.count("relative_attention_num_buckets", 32),
        config.count("relative_attention_max_distance", 128),
        own=kind == "umt5",
    )
    heads, head_dim, width = config.count("num_heads"), config.count("d_kv"), config.count("d_model")
    layers = config.count("num_layers", limit=MAX_LAYERS)
    encoder = _encoder(
        Attention(heads, heads, head_dim, 1.0, causal=False, relative=buckets),
        FeedForward(config.count("d_ff"), activation, gated),
        Norm("rms", config.number("layer_norm_epsilon", 1e-6)),
        layers,
        name=checkpoint.path.name,
        context=config.count("n_positions", CONTEXT),
        embedding=Embedding(config.count("vocab_size"), width),
    )
    decoder_layers = config.count("num_decoder_layers", layers, limit=MAX_LAYERS)
    # The first T5 divides the logits by the root of D. Its successors have a head of their own, and do not.
    stated = config.flag("scale_decoder_outputs", config.flag("tie_word_embeddings", True))
    names = TRANSFORMERS.gated if gated else TRANSFORMERS.plain
    assert names.encoder
    if _is_encoder(config):
        outputs = read_outputs(checkpoint, config, {}, width, encoder.blocks[0].norm, "")
        spec = outputs.of(encoder)
        slots = {**names.encoder.slots(encoder), **outputs.slots}
        return Model(spec, slots, config.name("num_layers"))
    head = Head("lm_head.weight" not in checkpoint.tensors, scale=width**-0.5 if stated and kind != "mt5" else 1.0)
    start = first_tokens(checkpoint, config, encoder.embedding.vocabulary, default=0)
    spec = _with_decoder(encoder, decoder_layers, head, start)
    return Model(spec, names.slots(spec), config.name("num_decoder_layers"))


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read GGUF metadata of the architectures t5 and t5encoder. GGUF states no greatest distance: it is 128."""
    architecture = config.text("general.architecture")
    own, tensors = config.with_prefix(f"{architecture}."), checkpoint.tensors
    heads, width = own.count("attention.head_count"), own.count("embedding_length")
    head_dim = own.count("attention.key_length", width // heads)
    own.check_count("attention.value_length", head_dim, "as attention.key_length")
    buckets = RelativeBuckets(
        own.count("attention.relative_buckets_count"), 128, own="enc.blk.1.attn_rel_b.weight" in tensors
    )
    gated = "enc.blk.0.ffn_gate.weight" in tensors
    layers = own.count("block_count", limit=MAX_LAYERS)
    epsilon = own.number("attention.layer_norm_epsilon", 1e-6)
    encoder = _encoder(
        Attention(heads, heads, head_dim, 1.0, causal=False, relative=buckets),
        FeedForward(own.count("feed_forward_length"), "gelu_tanh" if gated else "relu", gated),
        Norm("rms", own.number("attention.layer_norm_rms_epsilon", epsilon)),
        layers,
        name=config.text("general.name", "t5"),
        context=own.count("context_length", CONTEXT),
        embedding=Embedding(gguf_vocabulary(checkpoint, own), width),
    )
    names = GGUF.gated if gated else GGUF.plain
    assert names.encoder
    if architecture == "t5encoder":
        spec = replace(encoder, task="embed", pooling=Pooling(), output=(UnitLength(),))
        return Model(spec, names.encoder.slots(spec), own.name("block_count"))
    tied = "output.weight" not in tensors
    own.token_ids("decoder_start_token_id", encoder.embedding.vocabulary)
    spec = _with_decoder(
        encoder,
        own.count("decoder_block_count", layers, limit=MAX_LAYERS),
        Head(tied, scale=width**-0.5 if tied else 1.0),
        (own.optional_count("decoder_start_token_id"),),
    )
    return Model(spec, names.slots(spec), own.name("decoder_block_count"))


def _encoder(attention: Attention, feedforward: FeedForward, norm: Norm, layers: int, **fields: Any) -> ModelSpec:
    block = Block(attention, feedforward, norm, "pre")
    return ModelSpec("t5", blocks=(block,) * layers, final_norm=norm, **fields)


def _with_decoder(encoder: ModelSpec, layers: int, head: Head, start: tuple[int, ...]) -> ModelSpec:
    own, block = encoder.attention, encoder.blocks[0]
    cross = replace(own, relative=None)
    decoder = replace(block, attention=replace(own, causal=True), cross=cross)
    return replace(encoder, blocks=(decoder,) * layers, head=head, encoder=encoder, start=start)


def _is_encoder(config: Config) -> bool:
    stated = config.value("architectures")
    return isinstance(stated, list) and any("EncoderModel" in str(name) for name in stated)


T5 = Family(
    "t5",
    gguf=dict.fromkeys(("t5", "t5encoder"), from_gguf),
    safetensors=dict.fromkeys(("t5", "mt5", "umt5"), from_config),
    unused=(
        r"(en|de)coder\.embed_tokens\.weight",  # copies of the shared embedding
        # Cross attention has no positions.
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        r"dec\.blk\.0\.cross_attn_rel_b\.weight",
    ),
    keys={"width": "d_model", "heads": "num_heads", "head_dim": "d_kv", "feed_forward": "d_ff", "layers": "num_layers"},
    gguf_usual={"attention.relative_buckets_count": 32},
)


# T5Gemma (Zhang et al. 2025): an encoder and a decoder of Gemma 2, with cross attention between norms of its own.

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


def t5gemma_from_config(checkpoint: Checkpoint, config: Config) -> Model:
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


T5GEMMA = Family("t5gemma", safetensors={"t5gemma": t5gemma_from_config})
