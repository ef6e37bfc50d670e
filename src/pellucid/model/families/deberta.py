"""DeBERTa (He et al. 2020, https://arxiv.org/abs/2006.03654) and DeBERTa V2 and V3 (He et al. 2021,
https://arxiv.org/abs/2111.09543), also as mDeBERTa.

DeBERTa is an encoder as BERT, but with disentangled attention: scores depend on relative positions, which have vectors
of their own. V2 and V3 put long distances into buckets on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pellucid.errors import UnsupportedModel, brief
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.family import Family
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, encoder_heads
from pellucid.model.outputs import HiddenActivation, OutputActivation
from pellucid.model.positions import Learned, RelativePositions
from pellucid.model.sentence_modules import read_outputs
from pellucid.model.spec import (
    Attention,
    Block,
    Embedding,
    FeedForward,
    ModelSpec,
    Norm,
    RelativeEmbedding,
    TokenConvolution,
)
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

HIDDEN: Mapping[str, HiddenActivation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
ACTIVATIONS: Mapping[str, OutputActivation] = {**HIDDEN, "tanh": "tanh"}
MAX_TAPS = 33
BASE = {
    "embed": "embeddings.word_embeddings",
    "embed.widen": "embeddings.embed_proj",
    "embed.types": "embeddings.token_type_embeddings",
    "embed.norm": "embeddings.LayerNorm",
    "position": "embeddings.position_embeddings",
    "relative": "encoder.rel_embeddings",
    "relative.norm": "encoder.LayerNorm",
    "convolution.norm": "encoder.conv.LayerNorm",
}
BLOCK = {
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "feedforward.up": "intermediate.dense",
    "feedforward.down": "output.dense",
    "feedforward.norm": "output.LayerNorm",
}
V1_BLOCK = BLOCK | {
    "attention.position_k": "attention.self.pos_proj",
    "attention.position_q": "attention.self.pos_q_proj",
}
V2_BLOCK = BLOCK | {
    "attention.q": "attention.self.query_proj",
    "attention.k": "attention.self.key_proj",
    "attention.v": "attention.self.value_proj",
    "attention.position_k": "attention.self.pos_key_proj",
    "attention.position_q": "attention.self.pos_query_proj",
}
LEGACY = "cls.predictions"
FILL = TaskHead(
    (
        HeadLayer("lm_predictions.lm_head.dense", activation="hidden"),
        HeadLayer("lm_predictions.lm_head.LayerNorm", "norm"),
    ),
    bias="lm_predictions.lm_head.bias",
)


def _heads(checkpoint: Checkpoint, config: Config) -> Heads:
    """The heads. Files have one of two heads for masked tokens: V3's own, or the head that ``legacy`` asks for."""
    pooled = config.choice("pooler_hidden_act", ACTIVATIONS, "gelu")
    config.check_count("pooler_hidden_size", config.count("hidden_size"), "the width of the model")
    legacy = config.flag("legacy", True) and f"{LEGACY}.transform.dense.weight" in checkpoint.tensors
    layers = (HeadLayer("pooler.dense", activation=pooled), HeadLayer("classifier", "labels"))
    return encoder_heads(TaskHead(layers, "cls"), _legacy_fill(config) if legacy else FILL)


def _legacy_fill(config: Config) -> TaskHead:
    """The head for masked tokens as in BERT. It has the width of the embedding."""
    dense, norm = (
        HeadLayer(f"{LEGACY}.transform.dense", activation="hidden", width=config.count("embedding_size", 0)),
        HeadLayer(f"{LEGACY}.transform.LayerNorm", "norm"),
    )
    return TaskHead((dense, norm), decoder=f"{LEGACY}.decoder", bias=f"{LEGACY}.bias")


def _score_parts(config: Config) -> list[str]:
    """The parts of the scores beside the product of query and key: "c2p", "p2c"."""
    stated: Any = config.value("pos_att_type")
    parts = stated.lower().split("|") if isinstance(stated, str) else stated or []
    known = ("c2p", "p2c")
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise config.error("pos_att_type", f"is {brief(stated)}; it must be a list of {' and '.join(known)}")
    parts = [part.strip() for part in parts if part.strip()]
    if other := [part for part in parts if part not in known]:
        raise UnsupportedModel(
            f"{config.path.name}: {config.name('pos_att_type')} has {brief(other[0])}, which is not supported (known: "
            f"{', '.join(known)})"
        )
    return list(dict.fromkeys(parts))


def _relative(config: Config, parts: list[str], v1: bool) -> RelativePositions | None:
    """The relative positions; None if no part of the scores depends on them."""
    shared = not v1 and config.flag("share_att_key", False)
    used = config.flag("relative_attention", False)
    stated = config.value("max_relative_positions")
    longest = config.count("max_position_embeddings", 512)
    if not (type(stated) is int and stated < 1):  # -1 stands for all positions
        longest = config.count("max_relative_positions", longest)
    stated = None if v1 else config.value("position_buckets")
    buckets = 0
    if stated is not None and not (type(stated) is int and stated < 1):
        buckets = config.count("position_buckets")
        if buckets < 4:
            raise config.error("position_buckets", f"is {buckets}; it must be at least 4, or -1 for none")
    if not (used and parts):
        return None
    return RelativePositions(
        span=buckets or longest,
        longest=longest if buckets else 0,
        keys="c2p" in parts,
        queries="p2c" in parts,
        shared=shared,
        key_bias=not v1,
    )


def _relative_norm(config: Config, norm: Norm) -> Norm | None:
    stated = [part.strip() for part in config.text("norm_rel_ebd", "none").lower().split("|")]
    return norm if "layer_norm" in stated else None


def _convolution(config: Config) -> TokenConvolution | None:
    """The convolution of the embeddings (V2 XLarge)."""
    taps = config.optional_count("conv_kernel_size", limit=MAX_TAPS)
    activation = config.choice("conv_act", ACTIVATIONS, "tanh")
    if not taps:
        return None
    config.refuse("conv_groups", 1)
    if taps % 2 == 0:
        raise config.error("conv_kernel_size", f"is {taps}; it must be odd, so that each token keeps its place")
    return TokenConvolution(taps, activation)


def _read(checkpoint: Checkpoint, config: Config, v1: bool) -> Model:
    width, heads = config.count("hidden_size"), config.divisor("num_attention_heads", "hidden_size")
    head_dim, parts = width // heads, _score_parts(config)
    config.check_count("attention_head_size", head_dim, "the width of the model divided by the heads")
    config.refuse("talking_head", False)
    activation = config.choice("hidden_act", HIDDEN, "gelu")
    norm = Norm("layer", config.number("layer_norm_eps", 1e-7))
    relative, relative_norm = _relative(config, parts, v1), None if v1 else _relative_norm(config, norm)
    attention = Attention(
        heads,
        heads,
        head_dim,
        (head_dim * (1 + len(parts))) ** -0.5,
        causal=False,
        bias=True,
        key_bias=not v1,
        output_bias=True,
        disentangled=relative,
    )
    feedforward = FeedForward(config.count("intermediate_size"), activation, gated=False, bias=True)
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    positions, narrow = config.count("max_position_embeddings", 512), config.count("embedding_size", width)
    narrow = 0 if narrow == width else narrow
    spec = ModelSpec(
        family="deberta",
        name=checkpoint.path.name,
        context=positions,
        embedding=Embedding(
            config.count("vocab_size"),
            width,
            types=config.optional_count("type_vocab_size"),
            norm=norm,
            narrow=narrow,
            narrow_sum=bool(narrow),
            norm_last=bool(narrow),
        ),
        position=Learned(positions) if config.flag("position_biased_input", True) else None,
        relative=RelativeEmbedding(relative.buckets, relative_norm) if relative else None,
        convolution=None if v1 else _convolution(config),
        blocks=(Block(attention, feedforward, norm, "post"),) * layers,
    )
    outputs = read_outputs(checkpoint, config, _heads(checkpoint, config), width, norm, activation)
    slots = dict(_slots(checkpoint, spec, v1)) | dict(outputs.slots)
    return Model(outputs.of(spec), slots, config.name("num_hidden_layers"))


def _slots(checkpoint: Checkpoint, spec: ModelSpec, v1: bool) -> Iterator[tuple[str, Slot | tuple[Slot, ...]]]:
    prefix = "deberta." if "deberta.embeddings.word_embeddings.weight" in checkpoint.tensors else ""
    names = {slot: prefix + name for slot, name in BASE.items()}
    for i in range(len(spec.blocks)):
        for slot, name in (V1_BLOCK if v1 else V2_BLOCK).items():
            names[f"blocks.{i}.{slot}"] = f"{prefix}encoder.layer.{i}.{name}"
    for slot, name in names.items():
        yield f"{slot}.weight", Slot(f"{name}.weight")
        yield f"{slot}.bias", Slot(f"{name}.bias")
    yield "convolution.weight", Slot(f"{prefix}encoder.conv.conv.weight", joined=True)
    yield "convolution.bias", Slot(f"{prefix}encoder.conv.conv.bias")
    if v1:
        for i in range(len(spec.blocks)):
            yield from _joined(f"blocks.{i}.attention", f"{prefix}encoder.layer.{i}.attention.self", spec.attention)


def _joined(place: str, name: str, attention: Attention) -> Iterator[tuple[str, Slot | tuple[Slot, ...]]]:
    """DeBERTa's queries, keys and values: for each head the rows of its query, key and value in one matrix."""
    width = attention.head_dim
    for number, part in enumerate("qkv"):
        starts = ((3 * head + number) * width for head in range(attention.heads))
        yield (
            f"{place}.{part}.weight",
            tuple(Slot(f"{name}.in_proj.weight", rows=(start, start + width)) for start in starts),
        )
    yield f"{place}.q.bias", Slot(f"{name}.q_bias")
    yield f"{place}.v.bias", Slot(f"{name}.v_bias")


def from_v1_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of DebertaModel."""
    return _read(checkpoint, config, v1=True)


def from_v2_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of DebertaV2Model."""
    return _read(checkpoint, config, v1=False)


DEBERTA = Family(
    "deberta",
    safetensors={"deberta": from_v1_config, "deberta-v2": from_v2_config},
    # position_ids: 0, 1, 2 ...; files have learned and relative positions even if config.json switches them off; a tied
    # decoder is the embedding
    unused=(
        r"(deberta\.)?embeddings\.position_(ids|embeddings\..+)",
        r"(deberta\.)?encoder\.(rel_embeddings|LayerNorm)\..+",
        r"cls\.predictions\.decoder\..+",
    ),
    # heads of tasks that were not asked for
    skipped=(r"(cls|lm_predictions|mask_predictions|pooler|classifier|qa_outputs)\..+",),
)
