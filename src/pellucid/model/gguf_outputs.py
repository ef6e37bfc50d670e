"""Reads the outputs of an encoder in GGUF: pooling, or the classifier of a reranker.

Source: llama.cpp, ``llama_pooling_type`` in include/llama.h and ``build_pooling`` in src/llama-graph.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

from pellucid.errors import UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.model.config import Config
from pellucid.model.output_heads import OutputParts
from pellucid.model.outputs import Dense, Labels, OutputActivation, Pooling, PoolingKind, UnitLength
from pellucid.model.weight_map import Slot
from pellucid.weights.checkpoint import Checkpoint

POOLING: Mapping[int, PoolingKind] = {1: "mean", 2: "cls", 3: "last"}
"""Kinds of pooling by the number ``pooling_type``. 0: a vector for each token."""
RANK = 4
"""The ``pooling_type`` of classifiers. llama.cpp calls them rerankers, because most have a single label."""
CLASSIFIER: Mapping[str, OutputActivation] = {"cls": "tanh", "cls.output": ""}
"""The layers of a classifier and their activation functions, in the order of computation. A file may lack one."""


def gguf_outputs(checkpoint: Checkpoint, config: Config) -> OutputParts:
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
        return _classifier(checkpoint, config, layers)
    own: tuple[UnitLength, ...] = (UnitLength(),)
    if kind == 0 and (config.task == "tokens" or (config.has("pooling_type") and config.task != "embed")):
        return OutputParts("tokens", layers=own)
    return OutputParts("embed", Pooling(POOLING.get(kind, "mean")), own)


def _classifier(checkpoint: Checkpoint, config: Config, names: list[str]) -> OutputParts:
    layers, slots = list[Dense](), dict[str, Slot]()
    for number, name in enumerate(names):
        shape, biased = checkpoint.tensors[f"{name}.weight"].shape, f"{name}.bias" in checkpoint.tensors
        layers.append(Dense(shape[0] if len(shape) > 1 else 1, CLASSIFIER[name], biased))
        slots[f"output.{number}.weight"] = Slot(f"{name}.weight")
        if biased:
            slots[f"output.{number}.bias"] = Slot(f"{name}.bias")
    count, key = layers[-1].width, "classifier.output_labels"
    stated = config.value(key)
    found = [f"LABEL_{number}" for number in range(count)] if stated is None else stated
    if not isinstance(found, list) or len(found) != count or not all(isinstance(one, str) for one in found):
        raise config.error(key, f"is {brief(stated)}; it must be a list of {count} labels")
    labels = Labels(tuple(found), "sigmoid" if count == 1 else "softmax")
    return OutputParts("classify", Pooling("cls"), tuple(layers), slots, labels=labels)
