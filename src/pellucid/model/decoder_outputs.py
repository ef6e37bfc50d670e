"""Reads decoders that are used as encoders: sentence encoders, classifiers and rerankers made of language models.

``as_encoder`` gives a language model that a family has read the outputs of its task. It works for every family,
because a family reads only the body and the head. The task follows from, in this order:

1. the task that the user asks for
2. in safetensors, the modules of sentence-transformers; the class in ``architectures``: a class for classification, or
   a class without a head (``Qwen3Model``); in GGUF, the pooling type and the tensors of output layers
3. the direction of attention: a model whose tokens see later tokens is a sentence encoder

All other models generate text. A sentence encoder that states no pooling takes the last token if attention is causal,
as in sentence-transformers and vLLM, and otherwise the mean of all tokens; its vectors have length 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import count

from msgspec.structs import replace

from pellucid.errors import UnsupportedModel, brief, shown
from pellucid.model.config import Config
from pellucid.model.decision_heads import CLEF, KEV, joint_head, joint_outputs, pointer_head
from pellucid.model.gguf_encoder import POOLING, RANK, gguf_dense, gguf_labels
from pellucid.model.output_heads import TASKS, HeadLayer, Heads, OutputParts, TaskHead
from pellucid.model.outputs import TWO_SIDED, Dense, Pooling, PoolingKind, Task, UnitLength
from pellucid.model.rerankers import gguf_prompt, logit_score, pair_settings, prompt_of_classifier, published_reranker
from pellucid.model.sentence_modules import is_cross_encoder, read_outputs, sentence_modules
from pellucid.model.spec import Block, ModelSpec, ShortConvolution
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_modules

# Reads the outputs of a GGUF file: pooling, dense layers and the head of a classifier, with the names of llama.cpp.

TwoSided = Callable[[Config, ModelSpec, int, bool], ModelSpec]
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
        return spec, joint_outputs(joint_head(checkpoint, config)) if joint else pointer_head(checkpoint, config)
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


def _dense(checkpoint: Checkpoint, config: Config, spec: ModelSpec) -> tuple[tuple[Dense, ...], dict[str, Slot]]:
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


def _classifier(checkpoint: Checkpoint, config: Config, model: Model, causal: bool, architecture: str) -> OutputParts:
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


TEXT_CLASS = re.compile(r".+For(CausalLM|ConditionalGeneration)\w*|.+LMHeadModel")
"""Classes of transformers that generate text."""
TWO_SIDED_CLASS = re.compile(r".+(Bi|Bidirectional|Encoder)(Model|For[A-Z]\w*)")
"""Classes whose tokens see later tokens: ``LlamaBiModel`` of llm2vec, ``LlamaBidirectionalModel`` of NVIDIA."""
TWO_SIDED_TYPES = ("llama_bidirec",)
TWO_SIDED_KEYS: Mapping[str, bool] = {
    "use_bidirectional_attention": True,
    "is_causal": False,
    "use_causal_mask": False,
    "bidirectional": True,
}
"""Keys of config.json → the value that lets tokens see later tokens."""
POOLINGS: Mapping[str, PoolingKind] = {"avg": "mean", "weighted_avg": "weighted", "cls": "cls", "last": "last"}
"""Values of the key ``pooling`` of NVIDIA's models."""


def as_encoder(checkpoint: Checkpoint, config: Config, model: Model) -> Model:
    """The language model ``model`` with the outputs of its task. A model that generates text stays as it is.

    Raises:
        UnsupportedModel: the file has a head for another task, or does not allow the task that the user asks for.
        FileFormatError: a file is damaged, or labels are missing.
    """
    gguf = checkpoint.kind == "gguf"
    if gguf:
        own = config.with_prefix(f"{config.text('general.architecture')}.")
        spec, parts = gguf_decoder_outputs(checkpoint, own, model, two_sided)
    else:
        model_type = config.text("model_type")
        spec = _two_sided_in_config(config, model.spec, model_type)
        parts = _config_outputs(checkpoint, config, replace(model, spec=spec), model_type)
    if parts is None and not _is_causal(spec):
        raise UnsupportedModel(
            f"{checkpoint.path.name}: task=generate: tokens see later tokens, so the model cannot generate text: leave "
            "task out"
        )
    if parts is None:
        return model
    head = [slot for slot in model.slots if slot.startswith("project.")]
    unread = [Slot(source.tensor) for slot in head for source in model.sources(slot)]
    return replace(
        model,
        spec=parts.of(replace(spec, head=None)),
        slots={**{slot: source for slot, source in model.slots.items() if slot not in head}, **parts.slots},
        ignored=(*model.ignored, *(slot for slot in unread if slot.tensor in checkpoint.tensors)),
    )


def _config_outputs(checkpoint: Checkpoint, config: Config, model: Model, model_type: str) -> OutputParts | None:
    """The outputs by ``config.json`` and the files beside it; None: the model generates text."""
    spec, asked = model.spec, config.task
    stated = _stated_task(checkpoint, config)
    if asked == "generate":
        return None
    if asked in ("", "classify"):
        for module in read_modules(checkpoint.path) or []:
            if module.kind == "LogitScore":
                return logit_score(checkpoint, config, model, module.path)
        if asked and stated == "generate":
            return published_reranker(config, model, model_type)
    width, norm = spec.embedding.width, spec.final_norm or spec.blocks[0].norm
    if not asked and stated == "generate":
        modules = sentence_modules(checkpoint, config, width)
        if modules is not None or _is_causal(spec):
            return modules
    task: Task = asked or ("embed" if stated == "generate" else stated)  # type: ignore[assignment]
    pooling = POOLINGS.get(str(config.value("pooling")), "last" if _is_causal(spec) else "mean")
    last = pooling if config.has("pooling") else "last"
    heads = _heads(checkpoint, last)
    parts = read_outputs(checkpoint, config, heads, width, norm, "", task=task, pooling=pooling)
    if parts.task != "classify":
        return parts
    if model_type in TWO_SIDED_TYPES and config.number("temperature", 1.0) != 1:
        raise UnsupportedModel(f"{checkpoint.path.name}: temperature, a divisor of the scores, is not supported")
    pools = any(module.kind == "Pooling" for module in read_modules(checkpoint.path) or [])
    if parts.pooling and parts.pooling.kind == "last" and not pools:
        padding = config.token("pad_token_id", spec.embedding.vocabulary)
        parts = replace(parts, pooling=Pooling("last", padding=padding))
    own = is_cross_encoder(checkpoint)
    prompt = pair_settings(checkpoint) if own else prompt_of_classifier(model_type, parts.labels)
    return replace(parts, pair_prompt=prompt)


def _stated_task(checkpoint: Checkpoint, config: Config) -> Task:
    """The task of the class in ``architectures``.

    Raises:
        UnsupportedModel: the class has a head that is not implemented.
    """
    listed = config.value("architectures")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if not names or any(TEXT_CLASS.fullmatch(name) for name in names):
        return "generate"
    _, found, ending = names[0].partition("For")
    if ending in TASKS:
        return TASKS[ending]
    if found:
        raise UnsupportedModel(
            f"{checkpoint.path.name}: architectures is {brief(names[0])}: a head for {shown(ending)} is not supported "
            f"in this family (known: {', '.join(TASKS)})"
        )
    # Some files of language models state the class of the body, but have a head.
    return "generate" if "lm_head.weight" in checkpoint.tensors else "embed"


def _heads(checkpoint: Checkpoint, pooling: PoolingKind) -> Heads:
    """The heads of transformers' decoders. Their names, and whether they have a bias, are found in the file."""
    name = "classifier" if "classifier.weight" in checkpoint.tensors else "score"
    labels = HeadLayer(name, "labels", bias=f"{name}.bias" in checkpoint.tensors)
    return {
        "classify": TaskHead((labels,), pooling),
        "tag": TaskHead((labels,)),
        "answer": TaskHead((HeadLayer("qa_outputs", "labels"),)),
        "fill": TaskHead(decoder="lm_head"),
    }


def _is_causal(spec: ModelSpec) -> bool:
    return all(attention.causal for attention in spec.attentions)


def _two_sided_in_config(config: Config, spec: ModelSpec, model_type: str) -> ModelSpec:
    """The spec with attention to later tokens, if ``config.json`` says so.

    A window of w tokens reaches w tokens to each side, as in transformers, or w / 2 in Gemma's models.
    """
    listed = config.value("architectures")
    names = listed if isinstance(listed, list) else []
    by_class = any(isinstance(name, str) and TWO_SIDED_CLASS.fullmatch(name) for name in names)
    images = config.value("use_bidirectional_attention") == "vision"  # Gemma 4: the tokens of images only
    keys = [
        key
        for key, value in TWO_SIDED_KEYS.items()
        if not (images and key == "use_bidirectional_attention") and config.flag(key, not value) is value
    ]
    if not (by_class or keys or model_type in TWO_SIDED_TYPES):
        return spec
    halved = "use_bidirectional_attention" in keys
    return two_sided(config, spec, 2 if halved else 1, centered=by_class)


def two_sided(config: Config, spec: ModelSpec, divisor: int, centered: bool) -> ModelSpec:
    """The spec whose tokens see later tokens. A window of w tokens reaches w / ``divisor`` tokens to each side.

    ``centered``: short convolutions are centered (LFM2.5's encoders).

    Raises:
        UnsupportedModel: a layer reads tokens in one direction only.
    """

    def block_of(block: Block) -> Block:
        attention, recurrent = block.attention, block.recurrent
        if attention is not None:
            if attention.chunked:
                raise refused("attention in chunks")
            window = attention.window // divisor + 1 if attention.window else 0
            attention = replace(attention, causal=False, window=window)
        if recurrent is not None and not isinstance(recurrent, ShortConvolution):
            raise refused(type(recurrent).__name__)
        if recurrent is not None:
            if centered and recurrent.taps % 2 == 0:
                raise refused(f"a convolution over {recurrent.taps} tokens, which has no center")
            recurrent = replace(recurrent, centered=centered)
        return replace(block, attention=attention, recurrent=recurrent)

    def refused(layer: str) -> UnsupportedModel:
        return UnsupportedModel(f"{config.path.name}: tokens see later tokens, which is not supported with {layer}")

    return replace(spec, blocks=tuple(map(block_of, spec.blocks)))
