"""Reads the outputs of an encoder in GGUF: pooling, or the classifier of a reranker.

Source: llama.cpp, ``llama_pooling_type`` in include/llama.h and ``build_pooling`` in src/llama-graph.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from pellucid.errors import UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.model.config import Config
from pellucid.model.output_heads import OutputParts
from pellucid.model.outputs import Dense, Labels, OutputActivation, Pooling, PoolingKind, UnitLength
from pellucid.model.spec import Norm
from pellucid.model.weight_map import Slot
from pellucid.weights.checkpoint import Checkpoint

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


def _classifier(
    checkpoint: Checkpoint, config: Config, names: list[str], classifier: Classifier
) -> OutputParts:
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
