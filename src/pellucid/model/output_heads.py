"""Reads the head of an encoder from ``config.json``: the task, the labels, and the layers.

A family lists its heads as data, in ``Heads``: the tensors of each task's output layers in the order of computation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from pellucid.errors import UnsupportedModel, brief, shown
from pellucid.model.config import Config
from pellucid.model.outputs import (
    Dense,
    Head,
    Labels,
    OutputActivation,
    PairPrompt,
    Pooling,
    PoolingKind,
    Scale,
    Similarity,
    Task,
    UnitLength,
)
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.weight_map import Slot
from pellucid.weights.checkpoint import Checkpoint

MAX_LABELS = 100_000
CLASS = re.compile(r".+For([A-Z]\w*)")
"""A class of transformers with a head. The name of the task begins with a capital letter, unlike in "RoFormer"."""
TASKS: Mapping[str, Task] = {
    "SequenceClassification": "classify",
    "TokenClassification": "tag",
    "QuestionAnswering": "answer",
    "MaskedLM": "fill",
    "PreTraining": "fill",
}
"""Tasks by the ending of the class names of transformers, as in BertForSequenceClassification.

``Heads`` may have further endings, for classes whose layers differ from the layers of the task's usual class.
"""


class OutputParts(Struct, frozen=True):
    """The parts of a spec after the body, and the tensors that fill their slots."""

    task: Task
    pooling: Pooling | None = None
    layers: tuple[Dense | Norm | UnitLength, ...] = ()
    slots: Mapping[str, Slot | tuple[Slot, ...]] = field(default_factory=dict)
    head: Head | None = None
    labels: Labels | None = None
    matryoshka: tuple[int, ...] | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    pair_prompt: PairPrompt | None = None
    truncate_dim: int = 0
    similarity: Similarity = "cosine"
    max_active: int = 0

    def of(self, spec: ModelSpec) -> ModelSpec:
        """The spec with these outputs."""
        fields = asdict(self)
        del fields["slots"]
        return replace(spec, output=fields.pop("layers"), **fields)


class HeadLayer(Struct, frozen=True):
    """A layer of a head: its tensors are ``name``.weight and ``name``.bias.

    ``kind`` "dense" has D columns, "labels" has a column for each label, "norm" is a norm as in the blocks.
    ``activation`` "hidden" stands for the activation function of the blocks.
    """

    name: str
    kind: Literal["dense", "labels", "norm"] = "dense"
    activation: OutputActivation | Literal["hidden"] = ""
    bias: bool = True
    width: int = 0
    """Number of columns of a dense layer; 0: D."""


class TaskHead(Struct, frozen=True):
    """The head of a task: its layers. ``pooling`` picks or pools the rows of a text for "classify".

    ``decoder`` and ``bias`` are the tensors of the projection to the vocabulary for "fill"; a decoder that the file
    lacks, or that config.json ties, is the embedding. ``labels`` are the labels, if config.json does not state them.
    ``task`` is the task of a head that is listed by the ending of its class.
    """

    layers: tuple[HeadLayer, ...] = ()
    pooling: PoolingKind | None = None
    late: bool = False
    """True: the results of the layers are pooled, instead of the rows before them."""
    decoder: str = ""
    bias: str = ""
    labels: Labels | None = None
    task: Task = "embed"


Heads = Mapping[str, TaskHead]
"""The heads of a family by task ("classify") or by the ending of a class of transformers ("NextSentencePrediction")."""


def encoder_heads(classify: TaskHead, fill: TaskHead, **more: TaskHead) -> Heads:
    """The heads of most encoders: tags and the answers to questions have a single layer with the same name in all."""
    tag, answer = (TaskHead((HeadLayer(name, "labels"),)) for name in ("classifier", "qa_outputs"))
    return {"classify": classify, "tag": tag, "answer": answer, "fill": fill, **more}


def fill_head(
    dense: str, norm: str, decoder: str, bias: str, activation: OutputActivation | Literal["hidden"] = "hidden"
) -> TaskHead:
    """The head of a masked language model: a dense layer and a norm before the projection to the vocabulary."""
    layers = (HeadLayer(dense, activation=activation), HeadLayer(norm, "norm"))
    return TaskHead(layers, decoder=decoder, bias=bias)


def choice_head(*layers: HeadLayer) -> TaskHead:
    """The head of a class for multiple choice. It gives each pair of a question and a choice one score.

    transformers returns the softmax over the scores of a question's choices.
    """
    return TaskHead(layers, "cls", labels=Labels(("choice",), "none"), task="classify")


def stated_head(config: Config, heads: Heads) -> tuple[Task, TaskHead | None]:
    """The task of the class in ``architectures``, or the task that the user asks for, and the head for this task.

    The default of the task is "embed". The head is None if the family has no head for the task.

    Raises:
        UnsupportedModel: the class has a head for another task.
    """
    listed = config.value("architectures")
    name = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""
    found = CLASS.fullmatch(name)
    ending = found[1] if found else ""
    asked: Task = config.task  # type: ignore[assignment]  # checked by LoadOptions
    own = heads.get(ending) if ending not in TASKS.values() else None
    if own is not None and asked in ("", own.task):
        return own.task, own
    if asked:
        return asked, heads.get(asked)
    if found and ending not in TASKS:
        known = ", ".join(dict.fromkeys([*TASKS, *(key for key in heads if key not in TASKS.values())]))
        raise UnsupportedModel(
            f"{config.path.name}: architectures is {brief(name)}: a head for {shown(ending)} is not supported "
            f"(known: {known})"
        )
    task = TASKS[ending] if found else "embed"
    return task, heads.get(task)


def read_head(
    checkpoint: Checkpoint,
    config: Config,
    task: Task,
    kind: TaskHead,
    width: int,
    norm: Norm,
    activation: OutputActivation,
    prefix: str,
) -> OutputParts:
    """The outputs of a task, from the tensors of its head ``kind``. Other arguments as in ``read_outputs``."""
    labels = kind.labels or read_labels(config, task)
    count = 2 if task == "answer" else len(labels.names) if labels else 0
    layers: list[Dense | Norm | UnitLength] = []
    slots = dict[str, Slot | tuple[Slot, ...]]()
    for number, layer in enumerate(kind.layers):
        name = prefix + layer.name
        slots[f"output.{number}.weight"] = Slot(f"{name}.weight")
        if layer.kind == "norm":
            layers.append(norm)
            biased = norm.has_bias
        else:
            columns = count if layer.kind == "labels" else layer.width or width
            used = activation if layer.activation == "hidden" else layer.activation
            layers.append(Dense(columns, used, layer.bias))
            biased = layer.bias
        if biased:
            slots[f"output.{number}.bias"] = Slot(f"{name}.bias")
    head = None
    if task == "fill":
        own = f"{prefix}{kind.decoder}.weight"
        tied = config.flag("tie_word_embeddings", True) or own not in checkpoint.tensors
        head = Head(tied=tied, bias=bool(kind.bias))
        if not tied:
            slots["project.weight"] = Slot(own)
        if kind.bias:
            bias = f"{prefix}{kind.bias}"
            other = f"{prefix}{kind.decoder}.bias"
            slots["project.bias"] = Slot(bias if bias in checkpoint.tensors or not kind.decoder else other)
    pooling = Pooling(kind.pooling, late=kind.late) if kind.pooling else None
    return OutputParts(task, pooling, tuple(layers), slots, head, labels)


def read_labels(config: Config, task: Task) -> Labels | None:
    """The labels of a classifier, from ``id2label`` or ``num_labels``, and the scale of their scores.

    transformers has two labels by default. One label is a score between 0 and 1, unless ``problem_type`` says
    "regression".

    Raises:
        FileFormatError: the labels are not numbered from 0 on.
    """
    if task not in ("classify", "tag"):
        return None
    names = _names(config)
    kinds: Mapping[str, Scale] = {
        "single_label_classification": "softmax",
        "multi_label_classification": "sigmoid",
        "regression": "none",
    }
    usual: Scale = "sigmoid" if len(names) == 1 and task == "classify" else "softmax"
    scale = config.choice("problem_type", kinds) if config.has("problem_type") else usual
    return Labels(tuple(names), scale)


def _names(config: Config) -> Sequence[str]:
    stated: Any = config.value("id2label")
    if stated is None:
        count = config.count("num_labels", 2, limit=MAX_LABELS)
        return [f"LABEL_{number}" for number in range(count)]
    if not isinstance(stated, Mapping) or not 0 < len(stated) <= MAX_LABELS:
        raise config.error("id2label", f"must map 1 to {MAX_LABELS:,} numbers to labels")
    table = config.table("id2label")
    names = [table.value(str(number)) for number in range(len(stated))]
    for number, name in enumerate(names):
        if not isinstance(name, (str, int)):
            raise config.error("id2label", f"has no label for the number {number}")
    return [str(name) for name in names]
