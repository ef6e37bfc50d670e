"""Reads the outputs of a GGUF file: pooling, dense layers and the head of a classifier, with the names of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.gguf_outputs import POOLING, RANK, gguf_dense, gguf_labels
from pellucid.model.joint_head import CLEF, joint_head, joint_outputs
from pellucid.model.output_heads import OutputParts
from pellucid.model.outputs import Dense, Pooling, UnitLength
from pellucid.model.pointer_head import KEV, pointer_head
from pellucid.model.rerankers import gguf_prompt, published_reranker
from pellucid.model.spec import ModelSpec
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

TwoSided = Callable[[Config, ModelSpec, int, bool], ModelSpec]
TWO_SIDED = ("gemma-embedding", "llama-embed")
"""Architectures whose tokens see later tokens."""
CLASSIFIER = "cls.output"


def gguf_decoder_outputs(
    checkpoint: Checkpoint, config: Config, model: Model, two_sided: TwoSided
) -> tuple[ModelSpec, OutputParts | None]:
    """The spec with the direction of attention in the file, and its outputs (None: the model generates text).

    ``config`` reads keys with the architecture as prefix. Vectors have length 1, as llama.cpp returns them.
    """
    architecture, spec = config.prefix.removesuffix("."), model.spec
    causal = config.flag("attention.causal", architecture not in TWO_SIDED)
    kind = config.value("decision.type")
    if kind in (KEV, CLEF):
        if not causal:
            raise config.error("attention.causal", f"is false; it must be true for the decision type {kind}")
        joint = kind == CLEF
        return spec, joint_outputs(joint_head(checkpoint, config)) if joint else pointer_head(
            checkpoint, config
        )
    if not causal:
        spec = two_sided(config, spec, 2, True)
    stated = config.count_choice("pooling_type", {**POOLING, RANK: "rank"})
    task = config.task
    if task == "generate":
        return spec, None
    if task == "classify" or (not task and stated == RANK):
        return spec, _classifier(checkpoint, config, model, causal, architecture)
    layers, slots = _dense(checkpoint, config, spec)
    if task == "tokens" or (not task and not stated and layers):
        return spec, OutputParts("tokens", None, (*layers, UnitLength()), slots)
    if task in ("", "embed") and (task or stated or not causal):
        pooling = Pooling(POOLING.get(stated, "last" if causal else "mean"))
        return spec, OutputParts("embed", pooling, (*layers, UnitLength()), slots)
    return spec, None


def _dense(
    checkpoint: Checkpoint, config: Config, spec: ModelSpec
) -> tuple[tuple[Dense, ...], dict[str, Slot]]:
    """The dense layers after pooling, dense_2 and dense_3: the modules 2_Dense and 3_Dense of EmbeddingGemma."""
    layers, slots, width = list[Dense](), dict[str, Slot](), spec.embedding.width
    for number in count(2):
        name = f"dense_{number}"
        if f"{name}.weight" not in checkpoint.tensors:
            break
        config.check_count(f"{name}_feat_in", width, "the width of the rows before the layer")
        layers.append(dense := gguf_dense(checkpoint, name, len(layers), slots))
        width = dense.width
        config.check_count(f"{name}_feat_out", width, f"the rows of {name}.weight")
    config.check_count("embedding_length_out", width, "the width of the vectors")
    return tuple(layers), slots


def _classifier(
    checkpoint: Checkpoint, config: Config, model: Model, causal: bool, architecture: str
) -> OutputParts:
    """The head of a classifier: one linear layer. Its first label is the relevance of a document, as in llama.cpp."""
    if f"{CLASSIFIER}.weight" not in checkpoint.tensors:
        return published_reranker(config, model, architecture.removesuffix("vl"))
    slots = dict[str, Slot]()
    dense = gguf_dense(checkpoint, CLASSIFIER, 0, slots)
    labels = replace(gguf_labels(config, dense.width), relevant=0 if dense.width < 3 else None)
    return OutputParts(
        "classify",
        Pooling("last" if causal else "cls"),
        (dense,),
        slots,
        labels=labels,
        pair_prompt=gguf_prompt(config.with_prefix(""), architecture, labels),
    )
