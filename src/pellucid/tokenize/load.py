"""Loads the tokenizer of a model.

In: a :class:`Checkpoint`, or a path. Out: a :class:`Tokenizer`. The tokenizer of a GGUF file is in its metadata. The
tokenizer of a model folder is in files next to the weights (``model_folder.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import FileFormatError, UnsupportedModel, brief, reason
from pellucid.tokenize.files.gguf_fields import GGUFFields
from pellucid.tokenize.kind import gguf_reader, known_kinds
from pellucid.weights.json_files import read_json

if TYPE_CHECKING:
    from pellucid.tokenize.tokenizer import Tokenizer
    from pellucid.weights.checkpoint import Checkpoint


def load_tokenizer(source: Checkpoint | Path | str) -> Tokenizer:
    """Load the tokenizer of an opened model, or of a path: a model folder, a weights file or a tokenizer file.

    A string is a path, or a model's name as for ``pellucid.load``.

    Raises :class:`FileFormatError` if the file contradicts itself, :class:`UnsupportedModel` if it needs a feature that
    is not implemented; the message lists the implemented choices.
    """
    if isinstance(source, str):
        from pellucid.weights.store import resolve

        source = resolve(source)
    if isinstance(source, Path):
        path = source.expanduser().absolute()
        if not _holds_gguf(path):
            return _load_files(path)
        from pellucid.weights.open import open_checkpoint

        source = open_checkpoint(path)
    if source.kind != "gguf":
        return _load_files(source.path)
    fields = GGUFFields(source.path, source.metadata)
    name = fields.get("ggml.model", str)
    if name is None:
        raise fields.wrong("model", "missing: the file has no tokenizer")
    read = gguf_reader(name)
    if read is None:
        known = ", ".join(sorted(name for kind in known_kinds().values() for name in kind.gguf))
        raise UnsupportedModel(f"tokenizer.ggml.model {brief(name)} is not known; known are {known}")
    return read(fields)


def _load_files(path: Path) -> Tokenizer:
    """The tokenizer of files other than GGUF. Their readers are imported here, because the import takes 5 ms."""
    from pellucid.tokenize.model_folder import load_path

    return load_path(path)


def _holds_gguf(path: Path) -> bool:
    """True if a path is a GGUF file, or a folder with a GGUF file and no tokenizer file."""
    if path.is_dir():
        from pellucid.tokenize.model_folder import tokenizer_files

        return not tokenizer_files(path) and any(path.glob("*.gguf"))
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise FileFormatError(path, "file", f"cannot be read: {reason(error)}") from error


# Decides by a model's file whether the model is trained to answer messages (instruct) or to continue text (base).
#
# llama.cpp and Ollama use the chat template of every file that has one. But the files of some base models have one too
# (Qwen 2.5 and 3: the file of the base model has the template of the instruct model). The rule:
#
# 1. A model without a chat template is a base model.
# 2. Words of its name decide next: "instruct", "chat", "it" ... or "base", "pretrained" ... The name is in the GGUF
#  metadata ``general.name``, ``general.finetune`` and ``general.basename``, and in the name of the file, the folder or
#  the hub's repository. Fields that name the model's parent (``general.base_model``, ``_name_or_path``) do not count.
# 3. Otherwise, the model is a base model if its template writes control tokens, but none of the end tokens that the
# file
#    declares. An instruct model learned to end its turns, so the end of a turn is an end token of its file. The base
#    models of Qwen end texts with ``<|endoftext|>``, and their template ends turns with ``<|im_end|>``.

INSTRUCT = re.compile(r"instruct.*|chat.*|it|assistant|think.*|reason.*|sft|dpo|orpo|rlhf")
BASE = re.compile(r"base|pretrain(ed)?|foundation")
"""Words of a model's name, in lower case."""
GENERATION = "generation_config.json"
_REPOSITORY = re.compile(r"models--.+--(.+)")  # a folder of the hub's cache


def why_base(checkpoint: Checkpoint, tokenizer: Tokenizer) -> str:
    """The reason why a model is a base model, for a message; "" for an instruct model.

    Raises FileFormatError: ``generation_config.json`` is damaged.
    """
    template = tokenizer.chat_template
    if not template:
        return "it has no chat template"
    words = [word for name in _names(checkpoint) for word in re.split(r"[^a-z0-9]+", name.casefold())]
    if any(INSTRUCT.fullmatch(word) for word in words):
        return ""
    if word := next((word for word in words if BASE.fullmatch(word)), None):
        return f"its name has the word {word}"
    ends = {tokenizer.piece(token) for token in _declared_ends(checkpoint) if token < tokenizer.vocab_size}
    ends |= {tokenizer.named_tokens.get("eos_token", "")}
    if not any(ends) or "eos_token" in template or any(end and end in template for end in ends):
        return ""
    controls = tokenizer.vocabulary.special_tokens
    if any(control and control in template for control in controls):
        return "its chat template ends turns with no end token of the file"
    return ""


def _names(checkpoint: Checkpoint) -> Iterator[str]:
    """The names of a model: in its metadata, of its file or folder, and of its repository in the hub's cache."""
    if checkpoint.kind == "gguf":
        for key in ("name", "finetune", "basename"):
            if isinstance(name := checkpoint.metadata.get(f"general.{key}"), str):
                yield name
        yield checkpoint.path.name
    else:
        yield (checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent).name
    for folder in checkpoint.path.parents:
        if repository := _REPOSITORY.fullmatch(folder.name):
            yield repository[1]


def _declared_ends(checkpoint: Checkpoint) -> list[int]:
    """The end tokens that a file declares by their ids."""
    if checkpoint.kind == "gguf":
        values: Mapping[str, Any] = checkpoint.metadata
        keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    else:
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        file = folder / GENERATION
        values, keys = read_json(file) if file.is_file() else checkpoint.metadata, ["eos_token_id"]
    listed = (one if isinstance(one, list) else [one] for one in (values.get(key) for key in keys))
    return [int(token) for one in listed for token in one if isinstance(token, int) and token >= 0]
