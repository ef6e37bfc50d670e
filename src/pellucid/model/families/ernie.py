"""ERNIE (Sun et al. 2019; ERNIE 3.0, Sun et al. 2021): BERT, in later versions with a vector for the task of the text.

The vector of the first task is added, as in transformers if no task is given.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families.bert import heads
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_encoder import StandardEncoder, bert_names


def _with_tasks(config: Config, spec: ModelSpec) -> ModelSpec:
    tasks = config.count("task_type_vocab_size", 3)
    used = config.flag("use_task_id", False)
    return replace(spec, embedding=replace(spec.embedding, tasks=tasks)) if used else spec


ERNIE = StandardEncoder(
    "ernie",
    names=bert_names("ernie") | {"model.embed.tasks": "ernie.embeddings.task_type_embeddings"},
    heads=heads("ernie"),
    change=_with_tasks,
    # in models for pretraining, beside the masked language model
    unused=(r"cls\.seq_relationship\..+",),
).family()
