"""Reads the decision blocks of an encoder in GGUF: llama.cpp's decision types "laya" and "lfm2-d1-omni".

    h = norm(encoder(tokens)) + types[type of the question]             (T, D)
    h = block(h), ``decision.block_count`` times: all tokens see each other, without positions
    score = W2 gelu(W1 norm(h) + b1) + b2                               at the mark of each option

The decision blocks follow the blocks of the encoder: ``block_count`` and the lists by layer count both. llama.cpp
computes the scores of all three types of questions; here a prompt has the type of its question as its token type.

Source: ``build_decision_head`` in llama.cpp's src/models/modern-bert.cpp and src/models/lfm2.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pellucid.errors import UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.gguf_outputs import CLASSIFIER, NORM
from pellucid.model.output_heads import OutputParts
from pellucid.model.outputs import Dense
from pellucid.model.sliding_windows import GGUF_PATTERN
from pellucid.model.spec import Attention, Block, DecisionBlocks, FeedForward, ModelSpec, Norm
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Model, Slot

LAYA, OMNI = "laya", "lfm2-d1-omni"
"""The types of decision models with decision blocks: a ModernBERT and an LFM2."""
QUESTION_TYPES = 3
"""Number of types of questions: "choice", "score" and "noul", in the order of their vectors."""
BLOCKS, WIDTH, COUNT = "block_count", "feed_forward_length", "decision.block_count"
KV_HEADS = "attention.head_count_kv"
FUSED = {"attention.q,k,v": "attn_qkv"}
"""The name of a tensor that decision blocks have in place of queries, keys and values."""


def has_decision_blocks(own: Config, implemented: str) -> bool:
    """True if a file states decision blocks of the type ``implemented``. ``own`` adds the architecture to its keys.

    Raises:
        UnsupportedModel: the file has decision blocks of another type.
    """
    kind = own.value("decision.type")
    if kind != implemented and own.has(COUNT):
        raise UnsupportedModel(
            f"{own.path.name}: decision blocks of the type {brief(kind)} ({own.name('decision.type')}) are not "
            f"implemented for this architecture; implemented is {implemented}"
        )
    return bool(kind == implemented)


def without_decision(own: Config) -> tuple[Config, list[int]]:
    """The metadata of the encoder alone, and the feed-forward width of each decision block.

    All heads of a decision block have their own keys and values.

    Raises:
        FileFormatError: the file has no block of the encoder, or blocks with different feed-forward widths in it.
    """
    blocks = own.count(BLOCKS, limit=MAX_LAYERS)
    encoder = blocks - own.count(COUNT, limit=blocks - 1)
    widths = own.by_layer(WIDTH, blocks)
    if len(set(widths[:encoder])) > 1 or not all(widths):
        raise own.error(
            WIDTH, f"is {widths}: the {encoder} blocks of the encoder must have one width above 0"
        )
    values = {BLOCKS: encoder, WIDTH: widths[0]}
    if own.is_list(GGUF_PATTERN):
        values[GGUF_PATTERN] = (own.flags(GGUF_PATTERN, blocks) or [])[:encoder]
    if own.is_list(KV_HEADS):
        heads, kv_heads = own.count("attention.head_count"), own.by_layer(KV_HEADS, blocks)
        if set(kv_heads[encoder:]) != {heads}:
            raise own.error(
                KV_HEADS, f"is {kv_heads}: the {blocks - encoder} decision blocks must have {heads}"
            )
        values[KV_HEADS] = kv_heads[:encoder]
    own.value("pooling_type")  # has no effect: scores are read at marks
    changed = {own.name(key): value for key, value in values.items()}
    return replace(own, values={**own.values, **changed}), widths[encoder:]


def with_decision(
    own: Config, body: ModelSpec, norm: Norm, names: TensorNames, final_norm: str, widths: Sequence[int]
) -> Model:
    """The model of an encoder ``body`` with decision blocks of the feed-forward ``widths``, and its scorer.

    The blocks have the heads of the encoder's attention, without positions, windows and norms of heads, and each head
    has its own keys and values. ``norm`` is the norm of the blocks and of the scorer. ``names`` are the names of the
    encoder's tensors, and ``final_norm`` is the name of its final norm.
    """
    assert body.final_norm
    kind, width = body.attention, body.embedding.width
    attention = Attention(
        kind.heads, kind.heads, kind.head_dim, kind.scale, causal=False, bias=True, output_bias=True
    )
    blocks = tuple(
        Block(attention, FeedForward(inner, "relu", gated=False, bias=True), norm, "pre") for inner in widths
    )
    spec = replace(
        body,
        embedding=replace(body.embedding, types=0),  # the file's token types belong to questions
        blocks=(*body.blocks, *blocks),
        decision=DecisionBlocks(len(blocks), body.final_norm, QUESTION_TYPES),
        final_norm=None,
        head=None,
    )
    layers = (norm, Dense(width, "gelu"), Dense(1))
    tensors = (NORM, *CLASSIFIER)
    slots: dict[str, Slot | tuple[Slot, ...]] = {
        f"output.{number}.{part}": Slot(f"{name}.{part}")
        for number, name in enumerate(tensors)
        for part in ("weight", "bias")
    }
    names = names | {"model.decision.norm": final_norm, "model.decision.types": "token_types"}
    of_blocks = tuple(f"blocks.{len(body.blocks) + number}." for number in range(len(blocks)))
    slots |= {
        slot: source for slot, source in (names | FUSED).slots(spec).items() if slot.startswith(of_blocks)
    }
    outputs = OutputParts("decide", None, layers, slots)
    return Model(outputs.of(spec), {**names.slots(spec), **slots}, own.name(BLOCKS))
