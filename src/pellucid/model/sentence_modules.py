"""Reads the modules of sentence-transformers: what follows the body of a sentence encoder.

``modules.json`` in the model's folder lists the modules in order. Each has a folder with a ``config.json``, and some
have weights there, which ``weights/safetensors.py`` adds to the tensors of the model.
Source: https://sbert.net/docs/package_reference/sentence_transformer/models.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from pellucid.errors import UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.model.config import Config
from pellucid.model.output_heads import OutputParts
from pellucid.model.outputs import Dense, OutputActivation, Pooling, PoolingKind, Task, UnitLength
from pellucid.model.weight_map import Slot
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json
from pellucid.weights.sentence_modules import MODULES, Module, read_modules

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
KNOWN = ("Transformer", "Pooling", "Dense", "Normalize", "MLMTransformer", "SpladePooling", "Dropout")


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
    layers: list[Dense | UnitLength] = []
    slots = dict[str, Slot]()
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
        elif kind == "Normalize":
            layers.append(UnitLength())
        elif kind not in KNOWN:
            raise UnsupportedModel(
                f"{checkpoint.path.name}: {MODULES}: module {brief(kind)} in {brief(module.path)} is not supported, "
                f"and would change the vectors (known: {', '.join(KNOWN)})"
            )
    task: Task = "embed"
    if pooling is None:
        task = "tokens"
        if not layers or not isinstance(layers[-1], UnitLength):  # PyLate scales to length 1 without a module
            layers.append(UnitLength())
    elif pooling.of_logits:
        task = "sparse"
    prompts = read_prompts(checkpoint)
    return OutputParts(
        task, pooling, tuple(layers), slots, matryoshka=matryoshka(config, width), prompts=prompts
    )


def _is_classifier(checkpoint: Checkpoint, modules: list[Module]) -> bool:
    """True if the modules have no outputs, because the head is in the class of a cross-encoder."""
    body = all(module.kind == "Transformer" for module in modules)
    return body and is_cross_encoder(checkpoint)


def max_tokens(checkpoint: Checkpoint) -> int:
    """The maximum tokens of a text that sentence-transformers states; 0: it states none."""
    path = checkpoint.path / "sentence_bert_config.json"
    stated = Config(read_json(path), path) if path.is_file() else None
    return 0 if stated is None else int(stated.count("max_seq_length", 0))


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
    if config.has("pooling_mode"):
        return Pooling(config.choice("pooling_mode", NAMES))
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
