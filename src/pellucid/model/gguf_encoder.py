"""Reads GGUF files of encoders: llama.cpp's architectures with the structure of BERT, ModernBERT or Llama.

No key states biases, token types or heads: the presence of their tensors does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.gguf_metadata import gguf_attention, gguf_vocabulary
from pellucid.model.output_heads import OutputParts
from pellucid.model.outputs import (
    Dense,
    Labels,
    OutputActivation,
    Pooling,
    PoolingKind,
    UnitLength,
)
from pellucid.model.positions import Pairing
from pellucid.model.spec import Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.tensor_names import GGUF, TensorNames
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

POOLING: Mapping[int, PoolingKind] = {1: "mean", 2: "cls", 3: "last"}
"""Kinds of pooling by llama.cpp's numbers."""
RANK = 4  # the pooling of a classifier, whose kind is in classifier.pooling_type
GGUF_KEYS: Mapping[str, int] = {"attention.causal": False, "pooling_type": 1}
"""Keys of a typical file, for random models."""


NAMES = GGUF | {
    "attention.norm": "attn_output_norm",
    "feedforward.norm": "layer_output_norm",
    "model.embed.types": "token_types",
}
"""The names of llama.cpp for encoders with norms after attention and feed-forward."""


def gguf_names(checkpoint: Checkpoint) -> TensorNames:
    """The names in a file, which may store queries, keys and values in one tensor."""
    return NAMES.found_in_gguf(checkpoint.tensors)


def gguf_body(
    checkpoint: Checkpoint,
    config: Config,
    family: str,
    activation: OutputActivation,
    *,
    placement: Literal["pre", "post"] = "post",
    pairing: Pairing | None = "half",
    gated: bool = True,
    norm_bias: bool = True,
) -> ModelSpec:
    """The spec of an encoder without its outputs. With ``pairing`` None, the attention has no rotary positions.

    The embedding is normalized. With ``placement`` "pre", a norm follows the last block.
    """
    own, present = (
        config.with_prefix(f"{config.text('general.architecture')}."),
        checkpoint.tensors.__contains__,
    )
    own.refuse("attention.causal", False)
    norm = Norm("layer", own.number("attention.layer_norm_epsilon"), bias=norm_bias)
    types = config.count("tokenizer.ggml.token_type_count", 2) if present("token_types.weight") else 0
    attention = replace(
        gguf_attention(checkpoint, own, pairing),
        causal=False,
        bias=present("blk.0.attn_qkv.bias") or present("blk.0.attn_q.bias"),
        output_bias=present("blk.0.attn_output.bias"),
    )
    feedforward = FeedForward(
        own.count("feed_forward_length"),
        activation,  # type: ignore[arg-type]
        gated,
        bias=present("blk.0.ffn_up.bias"),
        output_bias=present("blk.0.ffn_down.bias"),
    )
    layers = own.count("block_count", limit=MAX_LAYERS)
    return ModelSpec(
        family,
        config.text("general.name", family),
        own.count("context_length"),
        Embedding(gguf_vocabulary(checkpoint, own), own.count("embedding_length"), types=types, norm=norm),
        (Block(attention, feedforward, norm, placement),) * layers,
        final_norm=norm if placement == "pre" else None,
    )


def gguf_model(
    checkpoint: Checkpoint,
    config: Config,
    body: ModelSpec,
    names: TensorNames,
    *,
    head_activation: OutputActivation = "tanh",
    pooling: PoolingKind = "cls",
) -> Model:
    """The model of a file: ``body`` with its outputs. ``config`` reads keys with the architecture as prefix.

    ``head_activation`` follows the first layer of a classifier, ``pooling`` is the default of its pooling.
    """
    outputs = gguf_outputs(checkpoint, config, body, head_activation, pooling)
    slots = {**names.slots(body), **outputs.slots}
    return Model(outputs.of(body), slots, config.name("block_count"))


def gguf_outputs(
    checkpoint: Checkpoint,
    config: Config,
    body: ModelSpec,
    head_activation: OutputActivation = "tanh",
    pooling: PoolingKind = "cls",
) -> OutputParts:
    """The outputs: of a classifier if the file has its tensors, of a late-interaction model if it has a projection of
    each token (``dense_2``), else a sentence vector. Arguments as in ``gguf_model``.
    """
    tensors, kind = checkpoint.tensors, config.count_choice("pooling_type", {**POOLING, RANK: "rank"})
    last = "cls.output" if "cls.output.weight" in tensors else "cls"
    if f"{last}.weight" in tensors and config.task in ("", "classify"):
        return _classifier(checkpoint, config, body, last, head_activation, pooling)
    if kind == 0 and "dense_2.weight" in tensors:
        bias = "dense_2.bias" in tensors
        dense = Dense(tensors["dense_2.weight"].shape[0], bias=bias)
        return OutputParts("tokens", None, (dense, UnitLength()), _slots("dense_2", 0, bias))
    return OutputParts("embed", Pooling(POOLING.get(kind, "mean")), (UnitLength(),))


def _classifier(
    checkpoint: Checkpoint,
    config: Config,
    body: ModelSpec,
    last: str,
    head_activation: OutputActivation,
    pooling: PoolingKind,
) -> OutputParts:
    tensors, layers = checkpoint.tensors, list[Dense | Norm | UnitLength]()
    slots = dict[str, Slot | tuple[Slot, ...]]()
    if last == "cls.output" and "cls.weight" in tensors:
        bias = "cls.bias" in tensors
        slots |= _slots("cls", 0, bias)
        layers.append(Dense(body.embedding.width, head_activation, bias))
        if "cls.norm.weight" in tensors:
            norm = replace(body.blocks[0].norm, bias="cls.norm.bias" in tensors)
            slots |= _slots("cls.norm", 1, norm.has_bias)
            layers.append(norm)
    shape = tensors[f"{last}.weight"].shape
    stated = config.value("classifier.output_labels")
    count = shape[0] if len(shape) > 1 else 1
    labels = (
        [str(label) for label in stated]
        if isinstance(stated, Sequence)
        else [f"LABEL_{n}" for n in range(count)]
    )
    if len(labels) != count:
        raise config.error(
            "classifier.output_labels", f"has {len(labels)} labels; {last}.weight has {count} rows"
        )
    bias = f"{last}.bias" in tensors
    slots |= _slots(last, len(layers), bias)
    layers.append(Dense(count, bias=bias))
    kind = POOLING.get(config.count_choice("classifier.pooling_type", POOLING), pooling)
    scale: Literal["softmax", "sigmoid"] = "softmax" if count > 1 else "sigmoid"
    return OutputParts("classify", Pooling(kind), tuple(layers), slots, labels=Labels(tuple(labels), scale))


def _slots(tensor: str, number: int, bias: bool) -> dict[str, Slot]:
    """The slots of output layer ``number``, filled by a tensor and its bias."""
    parts = ("weight", "bias") if bias else ("weight",)
    return {f"output.{number}.{part}": Slot(f"{tensor}.{part}") for part in parts}
