"""Reads the outputs of an encoder: the modules of sentence-transformers, a head, or plain pooling."""

from __future__ import annotations

from typing import get_args

from msgspec.structs import replace

from pellucid.errors import UnsupportedModel
from pellucid.model.config import Config
from pellucid.model.output_heads import Heads, OutputParts, read_head, stated_head
from pellucid.model.outputs import OutputActivation, Pooling, PoolingKind, Task, UnitLength
from pellucid.model.sentence_modules import matryoshka, sentence_modules, with_settings
from pellucid.model.spec import Norm
from pellucid.weights.checkpoint import Checkpoint


def read_outputs(
    checkpoint: Checkpoint,
    config: Config,
    heads: Heads,
    width: int,
    norm: Norm,
    activation: OutputActivation,
    prefix: str = "",
    task: Task | None = None,
    pooling: PoolingKind = "mean",
) -> OutputParts:
    """The outputs of an encoder with rows of ``width`` values.

    ``modules.json`` of sentence-transformers has precedence over the class in ``architectures``, because a sentence
    encoder may be saved with a class that has another head. ``norm`` and ``activation`` are those of the blocks.
    ``prefix`` precedes the names of tensors in ``heads``. ``task`` is the task of a model without modules (None: the
    task that the file states), and ``pooling`` is the pooling of a sentence encoder that states none.

    Raises:
        UnsupportedModel: the family has no head for the task, or a module is not implemented.
        FileFormatError: a file is damaged, or labels are missing.
    """
    of_modules = config.task in ("", "embed", "sparse", "tokens")
    modules = sentence_modules(checkpoint, config, width) if of_modules else None
    if modules is not None and modules.task != "sparse":
        return modules
    sparse = modules.pooling if modules is not None else None
    if modules is None and config.task == "sparse":  # older SPLADE models have no modules.json
        sparse = Pooling("max", of_logits=True)
    found: Task = "fill"
    head = heads.get(found)
    if sparse is None:
        found, head = (task, heads.get(task)) if task else stated_head(config, heads)
    if found == "embed":
        layers = (UnitLength(),)
        return OutputParts("embed", Pooling(pooling), layers, matryoshka=matryoshka(config, width))
    if head is None:
        known = ", ".join(key for key in heads if key in get_args(Task))
        raise UnsupportedModel(
            f"{checkpoint.path.name}: the family has no head for the task {found!r} (known: embed, {known})"
        )
    own = read_head(checkpoint, config, found, head, width, norm, activation, prefix)
    if sparse is not None:  # the sparse vector pools the logits of the masked language model
        return replace(own, task="sparse", pooling=sparse, max_active=modules.max_active if modules else 0)
    return with_settings(checkpoint, config, own) if found == "classify" else own
