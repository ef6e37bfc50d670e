"""Reads the outputs of an encoder: the modules of sentence-transformers, a head, or plain pooling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import msgspec
from msgspec.structs import replace

from pellucid.errors import UnsupportedModel, brief
from pellucid.model.config import MAX_DIMENSION, Config
from pellucid.model.output_heads import Heads, OutputParts, read_head, stated_head
from pellucid.model.outputs import (
    Dense,
    Labels,
    OutputActivation,
    Pooling,
    PoolingKind,
    Scale,
    Similarity,
    Task,
    UnitLength,
)
from pellucid.model.spec import Norm
from pellucid.model.weight_map import Slot
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import BODIES, Module, read_json, read_modules, unknown_module

# Reads the modules of sentence-transformers: what follows the body of a sentence encoder.
#
# ``modules.json`` in the model's folder lists the modules in order. Each has a folder with a ``config.json``, and some
# have weights there, which ``weights/safetensors.py`` adds to the tensors of the model.
# Source: https://sbert.net/docs/package_reference/sentence_transformer/models.html

FLAGS: Mapping[str, PoolingKind] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt",
    "pooling_mode_weightedmean_tokens": "weighted",
    "pooling_mode_lasttoken": "last",
}
"""Keys of the module Pooling before version 5, each true for a kind of pooling."""
NAMES: Mapping[str, PoolingKind] = {
    **{kind: kind for kind in get_args(PoolingKind)},
    "lasttoken": "last",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted",
}
SCALES: Mapping[str, Scale] = {"Sigmoid": "sigmoid", "Softmax": "softmax", "Identity": "none"}
"""Scales of the scores of a cross-encoder by the names of their classes in torch."""
ACTIVATIONS: Mapping[str, OutputActivation] = {
    "Identity": "",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
}
"""Activation functions of the module Dense by the names of their classes in torch."""
POOLING = "1_Pooling"
"""The usual folder of the module Pooling, which a model without ``modules.json`` may have too."""
SETTINGS = "config_sentence_transformers.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"
TRANSFORMER_SETTINGS = [
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
"""Names of the file with the settings of the module Transformer. The current releases write the first name."""
SIMILARITIES: Mapping[str, Similarity] = {name: name for name in get_args(Similarity)}
LAYER_NORM = Norm("layer", 1e-5)
"""The module LayerNorm."""


def sentence_modules(checkpoint: Checkpoint, config: Config, width: int) -> OutputParts | None:
    """The outputs that ``modules.json`` describes, for a body with rows of ``width`` values.

    None: there is no file, or it lists only the body of a cross-encoder, whose class has the head.

    Raises:
        UnsupportedModel: a module, or an option of a module, is not implemented.
        FileFormatError: a file is damaged.
    """
    modules = read_modules(checkpoint.path)
    if modules is None and (checkpoint.path / POOLING / "config.json").is_file():
        modules = [Module("Pooling", POOLING), Module("Normalize", "")]
    if modules is None or _is_classifier(checkpoint, modules):
        return None
    pooling: Pooling | None = None
    layers: list[Dense | Norm | UnitLength] = []
    slots = dict[str, Slot]()
    scores = 0
    for module in modules:
        kind = module.kind
        own = _config_of(checkpoint, module)
        if kind == "Pooling":
            pooling = _pooling(own)
        elif kind == "SpladePooling":
            pooling = _sparse(own)
        elif kind == "Dense":
            number, dense = len(layers), _dense(own)
            layers.append(dense)
            slots[f"output.{number}.weight"] = Slot(f"{module.path}/linear.weight")
            if dense.bias:
                slots[f"output.{number}.bias"] = Slot(f"{module.path}/linear.bias")
            width, scores = dense.width, dense.width if own.value("module_output_name") == "scores" else 0
        elif kind == "LayerNorm":
            number = len(layers)
            layers.append(LAYER_NORM)
            slots |= {f"output.{number}.{part}": Slot(f"{module.path}/norm.{part}") for part in ("weight", "bias")}
        elif kind == "Normalize":
            layers.append(UnitLength())
        elif kind == "MultiVectorMask":
            for key in ("skiplist_words", "keep_only_token_ids"):
                own.refuse(key, [])
        elif kind not in BODIES and kind != "Dropout":
            raise unknown_module(checkpoint.path, module)
    settings, prompts = settings_of(checkpoint), read_prompts(checkpoint)
    if scores:
        labels = Labels(tuple(f"LABEL_{number}" for number in range(scores)), "none")
        parts = OutputParts("classify", pooling, tuple(layers), slots, labels=labels)
        return with_settings(checkpoint, config, parts)
    check_texts(checkpoint)
    if pooling is None:
        settings.refuse("truncate_dim")
        own = transformer_settings(checkpoint)
        for key in ("query_length", "document_length", "query_expansion"):
            own.refuse(key)
        ends = layers and isinstance(layers[-1], UnitLength)
        if not ends and settings.value("model_type") != "MultiVectorEncoder":  # PyLate has no module for it
            layers.append(UnitLength())
        return OutputParts("tokens", None, tuple(layers), slots, prompts=prompts)
    if pooling.of_logits:
        active = settings.optional_count("max_active_dims")
        return OutputParts("sparse", pooling, tuple(layers), slots, prompts=prompts, max_active=active)
    truncated = settings.optional_count("truncate_dim")
    truncated, lengths = truncated if truncated < width else 0, matryoshka(config, width)
    if truncated and lengths != ():
        lengths = tuple(sorted({truncated, *(lengths or ())}))
    return OutputParts(
        "embed",
        pooling,
        tuple(layers),
        slots,
        matryoshka=lengths,
        prompts=prompts,
        truncate_dim=truncated,
        similarity=settings.choice("similarity_fn_name", SIMILARITIES, "cosine"),
    )


def _is_classifier(checkpoint: Checkpoint, modules: list[Module]) -> bool:
    """True if the modules have no outputs, because the head is in the class of a cross-encoder."""
    body = all(module.kind == "Transformer" for module in modules)
    return body and is_cross_encoder(checkpoint)


def with_settings(checkpoint: Checkpoint, config: Config, parts: OutputParts) -> OutputParts:
    """The outputs of a classifier with the settings that sentence-transformers saved: prompts and the scores' scale.

    The activation function is in the settings, or in ``config.json`` before version 5.

    Raises:
        UnsupportedModel: the activation function is not implemented.
    """
    labels, key = parts.labels, "activation_fn"
    places = [(settings_of(checkpoint), key), (config.table("sentence_transformers"), key)]
    places.append((config, "sbert_ce_default_activation_function"))
    place, key = next(((one, key) for one, key in places if one.has(key)), (config, ""))
    if labels is None:
        return parts
    if key:
        path = place.text(key)
        name = path.rpartition(".")[2]
        if not path.startswith("torch.") or name not in SCALES:
            raise UnsupportedModel(
                f"{place.path}: {place.name(key)} {brief(path)} is not supported (known: {', '.join(SCALES)} of torch)"
            )
        of_words = labels.relevant is not None and len(labels.names) == 2
        scale: Scale = "softmax" if of_words and name == "Sigmoid" else SCALES[name]  # of the difference of logits
        labels = msgspec.structs.replace(labels, scale=scale)
    return msgspec.structs.replace(parts, labels=labels, prompts=read_prompts(checkpoint))


def check_texts(checkpoint: Checkpoint) -> None:
    """Check that the module Transformer reads texts as they are, and returns the vectors of tokens.

    Raises:
        UnsupportedModel: it renders texts with the chat template, or returns another output of the model.
    """
    config = transformer_settings(checkpoint)
    modalities = config.table("modality_config")
    modalities.refuse("message")
    modalities.table("text").refuse("method", "forward")
    modalities.table("text").refuse("method_output_name", "last_hidden_state", "logits")


def transformer_settings(checkpoint: Checkpoint) -> Config:
    """The settings of the module Transformer; empty if there are none."""
    paths = [checkpoint.path / name for name in TRANSFORMER_SETTINGS]
    path = next((path for path in paths if path.is_file()), None)
    return Config({} if path is None else read_json(path), path or paths[0])


def max_tokens(checkpoint: Checkpoint) -> int:
    """The maximum tokens of a text that the files beside an encoder state; 0: they state none.

    sentence-transformers writes the limit of the tokenizer since version 6, as transformers does.
    """
    own, path = transformer_settings(checkpoint), checkpoint.path / TOKENIZER_SETTINGS
    tokenizer = Config(read_json(path) if path.is_file() else {}, path)
    places = [(own.table("processing_kwargs").table("text"), "max_length")]
    places += [(own.table(name), "model_max_length") for name in ("processor_kwargs", "tokenizer_args")]
    places += [(own, "max_seq_length"), (tokenizer, "model_max_length")]
    for place, key in places:
        if place.has(key):
            return int(min(place.number(key, high=math.inf), MAX_DIMENSION))
    return 0


def matryoshka(config: Config, width: int) -> tuple[int, ...] | None:
    """The shorter lengths of vectors that config.json states (``ModelSpec.matryoshka``)."""
    dimensions = config.number_set("matryoshka_dimensions", width + 1) - {0}
    shortens = bool(dimensions) or config.flag("is_matryoshka", False)
    return tuple(sorted(dimensions)) if shortens else None


def settings_of(checkpoint: Checkpoint) -> Config:
    """The settings of sentence-transformers beside a model; empty if there are none."""
    path = checkpoint.path / SETTINGS
    return Config(read_json(path) if path.is_file() else {}, path)


def is_cross_encoder(checkpoint: Checkpoint) -> bool:
    """True if sentence-transformers saved the model as a cross-encoder."""
    return bool(settings_of(checkpoint).value("model_type") == "CrossEncoder")


def read_prompts(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The prompts by name, and the default prompt by the name ""."""
    config = settings_of(checkpoint)
    stated = config.value("prompts") or {}
    if not isinstance(stated, Mapping) or not all(isinstance(text, str) for text in stated.values()):
        raise config.error("prompts", "must map names to texts")
    default = config.value("default_prompt_name")
    if default is not None and default not in stated:
        raise config.error("default_prompt_name", f"{brief(default)} is not the name of a prompt")
    default_prompt = (("", stated[default]),) if default is not None else ()
    prefixes = {name: config.text(f"{name}_prefix", "") for name in ("query", "document")}  # keys of PyLate
    named = {**{name: text for name, text in prefixes.items() if text}, **stated}
    return (*((str(name), text) for name, text in named.items()), *default_prompt)


def _config_of(checkpoint: Checkpoint, module: Module) -> Config:
    path = checkpoint.path / module.path / "config.json"
    stated = read_json(path) if module.path and path.is_file() else {}
    return Config(stated, path)


def _pooling(config: Config) -> Pooling:
    config.refuse("include_prompt", True)
    if config.is_list("pooling_mode"):
        stated = config.choices("pooling_mode", NAMES, len(config.value("pooling_mode"))) or []
    elif config.has("pooling_mode"):
        stated = [config.choice("pooling_mode", NAMES)]
    else:
        stated = [kind for key, kind in FLAGS.items() if config.flag(key, False)]
    if len(stated) > 1:
        raise UnsupportedModel(
            f"{config.path}: pooling {' and '.join(stated)} together is not supported: the vectors would be joined"
        )
    unknown = [key for key in config.values if key.startswith("pooling_mode_") and key not in FLAGS]
    for key in unknown:
        config.refuse(key, False)
    return Pooling(stated[0] if stated else "mean")


def _sparse(config: Config) -> Pooling:
    config.refuse("pooling_strategy", "max")
    config.refuse("activation_function", "relu")
    return Pooling("max", of_logits=True)


def _dense(config: Config) -> Dense:
    name = config.text("activation_function", "Tanh").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"{config.path}: activation_function {brief(name)} is not supported (known: {', '.join(ACTIVATIONS)})"
        )
    config.refuse("use_residual", False)
    return Dense(config.count("out_features"), ACTIVATIONS[name], config.flag("bias", True))


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
