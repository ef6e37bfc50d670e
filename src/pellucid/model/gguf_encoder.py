"""Reads GGUF files of encoders (llama.cpp's architectures with the structure of BERT and ModernBERT), and their
outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import UnsupportedModel, brief
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.metadata import gguf_attention, gguf_vocabulary
from pellucid.model.output_heads import OutputParts
from pellucid.model.outputs import Dense, HiddenActivation, Labels, OutputActivation, Pooling, PoolingKind, UnitLength
from pellucid.model.positions import Pairing
from pellucid.model.spec import Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.tensor_names import GGUF, TensorNames
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

# Reads the outputs of an encoder in GGUF: pooling, or the classifier of a reranker.
#
# Source: llama.cpp, ``llama_pooling_type`` in include/llama.h and ``build_pooling`` in src/llama-graph.cpp.

POOLING: Mapping[int, PoolingKind] = {1: "mean", 2: "cls", 3: "last"}
"""Kinds of pooling by the number ``pooling_type``. 0: a vector for each token."""
RANK = 4
"""The ``pooling_type`` of classifiers. llama.cpp calls them rerankers, because most have a single label."""
CLASSIFIER = ("cls", "cls.output")
"""The layers of a classifier, in the order of computation. A file may lack one."""
NORM, PROJECTION = "cls.norm", "dense_2"
"""The norm after the first layer of a classifier, and the projection of each token's vector for late interaction."""


class Classifier(Struct, frozen=True):
    """What a file does not state: the activation function of the first layer, its norm, and the pooling of the rows.

    The norm is used if the file has its tensor. The pooling is a default.
    """

    activation: OutputActivation = "tanh"
    norm: Norm | None = None
    pooling: PoolingKind = "cls"


OF_BERT = Classifier()


def gguf_outputs(checkpoint: Checkpoint, config: Config, classifier: Classifier = OF_BERT) -> OutputParts:
    """The outputs of an encoder. ``config`` adds the architecture to its keys.

    Without ``pooling_type``, a file with a classifier is a classifier, and another file is a sentence encoder that
    takes the mean of the rows. llama.cpp scales sentence vectors to length 1, and so does this reader.

    Raises:
        UnsupportedModel: ``pooling_type`` is unknown, or states a classifier that the file lacks.
    """
    kind = config.count_choice("pooling_type", {**POOLING, RANK: "rank"})
    layers = [name for name in CLASSIFIER if f"{name}.weight" in checkpoint.tensors]
    if kind == RANK or (layers and not config.has("pooling_type")):
        if not layers:
            raise UnsupportedModel(
                f"{checkpoint.path.name}: {config.name('pooling_type')} is {RANK}, a classifier, but the file has no "
                f"tensor {'.weight or '.join(CLASSIFIER)}.weight"
            )
        return _classifier(checkpoint, config, layers, classifier)
    projects = f"{PROJECTION}.weight" in checkpoint.tensors
    stated = config.has("pooling_type") or projects
    if kind == 0 and (config.task == "tokens" or (stated and config.task != "embed")):
        slots = dict[str, Slot]()
        layer = (gguf_dense(checkpoint, PROJECTION, 0, slots),) if projects else ()
        return OutputParts("tokens", None, (*layer, UnitLength()), slots)
    return OutputParts("embed", Pooling(POOLING.get(kind, "mean")), (UnitLength(),))


def gguf_dense(
    checkpoint: Checkpoint, name: str, number: int, slots: dict[str, Slot], activation: OutputActivation = ""
) -> Dense:
    """Output layer ``number``, with the tensors ``name``.weight and, if the file has it, ``name``.bias."""
    shape, biased = checkpoint.tensors[f"{name}.weight"].shape, f"{name}.bias" in checkpoint.tensors
    slots[f"output.{number}.weight"] = Slot(f"{name}.weight")
    if biased:
        slots[f"output.{number}.bias"] = Slot(f"{name}.bias")
    return Dense(shape[0] if len(shape) > 1 else 1, activation, biased)


def gguf_labels(config: Config, count: int) -> Labels:
    """The ``count`` labels of a classifier: independent if there is one, else exclusive.

    Raises:
        FileFormatError: the file lists another number of labels.
    """
    key = "classifier.output_labels"
    stated = config.value(key)
    names = [f"LABEL_{number}" for number in range(count)] if stated is None else stated
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise config.error(key, f"is {brief(stated)}; it must be a list of {count} labels")
    return Labels(tuple(names), "sigmoid" if count == 1 else "softmax")


def _classifier(checkpoint: Checkpoint, config: Config, names: list[str], classifier: Classifier) -> OutputParts:
    layers, slots, norm = list[Dense | Norm | UnitLength](), dict[str, Slot](), classifier.norm
    for name in names:
        activation = classifier.activation if name == CLASSIFIER[0] else ""
        layers.append(dense := gguf_dense(checkpoint, name, len(layers), slots, activation))
        if name == CLASSIFIER[0] and norm and f"{NORM}.weight" in checkpoint.tensors:
            for part in ("weight", "bias") if norm.has_bias else ("weight",):
                slots[f"output.{len(layers)}.{part}"] = Slot(f"{NORM}.{part}")
            layers.append(norm)
    labels = gguf_labels(config, dense.width)
    pooling = POOLING.get(config.count_choice("classifier.pooling_type", POOLING), classifier.pooling)
    return OutputParts("classify", Pooling(pooling), tuple(layers), slots, labels=labels)


# Reads GGUF files of encoders: llama.cpp's architectures with the structure of BERT, ModernBERT or Llama.
#
# No key states biases, token types or heads: the presence of their tensors does.

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
    activation: HiddenActivation,
    names: TensorNames,
    *,
    placement: Literal["pre", "post"] = "post",
    pairing: Pairing | None = "half",
    gated: bool = True,
    norm_bias: bool = True,
) -> ModelSpec:
    """The spec of an encoder without its outputs. With ``pairing`` None, the attention has no rotary positions.

    The embedding is normalized. With ``placement`` "pre", a norm follows the last block.
    """
    own, present = (config.with_prefix(f"{config.text('general.architecture')}."), checkpoint.tensors.__contains__)
    own.refuse("attention.causal", False)
    norm = Norm("layer", own.number("attention.layer_norm_epsilon"), bias=norm_bias)
    types = config.count("tokenizer.ggml.token_type_count", 2) if present("token_types.weight") else 0
    attention = replace(
        gguf_attention(checkpoint, own, pairing),
        causal=False,
        bias=present(f"blk.0.{names.names['attention.q']}.bias"),
        output_bias=present("blk.0.attn_output.bias"),
    )
    feedforward = FeedForward(
        own.count("feed_forward_length"),
        activation,
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
    checkpoint: Checkpoint, config: Config, body: ModelSpec, names: TensorNames, classifier: Classifier = OF_BERT
) -> Model:
    """The model of a file: ``body`` with its outputs. ``config`` reads keys with the architecture as prefix."""
    outputs = gguf_outputs(checkpoint, config, classifier)
    slots = {**names.slots(body), **outputs.slots}
    return Model(outputs.of(body), slots, config.name("block_count"))
