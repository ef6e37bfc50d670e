"""Finds and reads the tokenizer of a model folder.

In: the folder, or a file in it. Out: a :class:`Tokenizer`. The first file that exists is used, in this order:
``tokenizer.json``, which is complete; ``tekken.json``; ``vocab.json`` with ``merges.txt``; tiktoken's ranks; a
SentencePiece model, which M2M-100 and Marian have beside a ``vocab.json``; ``vocab.txt``; ByT5's config, because ByT5
needs no other file. The format of a file is detected from its contents, not from its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.tokenize.files import sentencepiece, sentencepiece_layout, vocab_files
from pellucid.tokenize.files.json_tokenizer import from_file, from_spec
from pellucid.tokenize.files.sidecar import Json, Sidecar
from pellucid.tokenize.files.tokenizer_classes import (
    SENTENCEPIECE,
    VOCAB_JSON_MERGES,
    VOCAB_JSON_SENTENCEPIECE,
    VOCAB_TXT,
)
from pellucid.tokenize.kind import json_models, known_kinds, sentencepiece_models
from pellucid.tokenize.stages.postprocess import Template
from pellucid.tokenize.tokenizer import Tokenizer

FILES = "tokenizer.json, vocab.json with merges.txt, tekken.json, *.tiktoken, *.model, vocab.txt"


def load_path(path: Path) -> Tokenizer:
    """The tokenizer of a model folder or a tokenizer file; for a weights file, the tokenizer of its folder.

    Raises :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    folder = path if path.is_dir() else path.parent
    sidecar = Sidecar.read(folder)
    if path.is_file() and (read := _reader(path)) is not None:
        return read(path, sidecar)
    for name in tokenizer_files(folder):
        read = _reader(folder / name)
        if read is not None:
            return read(folder / name, sidecar)
    classes = {name: read for kind in known_kinds().values() for name, read in kind.classes.items()}
    if sidecar.kind in classes:
        return classes[sidecar.kind](folder, sidecar)
    for text in sorted(folder.glob("*.txt")):
        _refuse_rwkv(text)
    raise UnsupportedModel(f"{folder.name}: no tokenizer found; known are {FILES}")


Reader = Callable[[Path, Sidecar], Tokenizer]


def tokenizer_files(folder: Path) -> list[str]:
    """The files of a folder that may hold its tokenizer, in order of preference."""
    # Mistral's names end with the version. Marian has a source.spm and a target.spm.
    patterns = ("*.tiktoken", "*.model", "*.model.v*", "source.spm")
    others = sorted(file.name for pattern in patterns for file in folder.glob(pattern))
    listed = ["tokenizer.json", "tekken.json", "vocab.json", *others, "vocab.txt"]
    return [name for name in listed if (folder / name).is_file()]


def _reader(path: Path) -> Reader | None:
    if path.name in ("tokenizer_config.json", "config.json", "special_tokens_map.json", "generation_config.json"):
        return None
    if path.name == "vocab.json":
        has_merges = path.with_name("merges.txt").is_file()
        return _of_spec(vocab_files.read_vocab_json, VOCAB_JSON_MERGES, "GPT2Tokenizer") if has_merges else None
    head = _head(path)
    if vocab_files.is_tekken(head):
        return lambda path, sidecar: from_file(
            path, vocab_files.tekken_sidecar(sidecar), json_models(), vocab_files.read_tekken
        )
    if path.suffix == ".json":
        return lambda path, sidecar: from_file(path, sidecar, json_models())
    _refuse_rwkv(path)
    if path.suffix == ".txt":
        return _of_spec(vocab_files.read_vocab_txt, VOCAB_TXT, "BertTokenizer")
    if path.suffix == ".tiktoken" or vocab_files.is_tiktoken(head):
        return lambda path, sidecar: from_file(path, sidecar, json_models(), vocab_files.read_tiktoken)
    return _sentencepiece if ".model" in path.name or path.suffix == ".spm" or _PROTO.match(head) else None


_PROTO = re.compile(rb"\n.\n.<unk>\x15", re.DOTALL)
"""The beginning of a SentencePiece model: the message of the first piece, its text, and the key of its score."""
_RWKV = re.compile(rb"\d+ b?(['\"]).*\1 \d+\r?\n")
"""The first line of an RWKV vocabulary: an id, a piece as a Python literal, and its length in bytes."""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(vocab_files.HEAD)


def _refuse_rwkv(path: Path) -> None:
    if _RWKV.match(_head(path)):
        raise UnsupportedModel(
            f"{path.name}: a vocabulary of RWKV, whose tokenizer (the longest match in a trie of bytes) is not "
            f"implemented; use a model with one of {FILES}"
        )


def _of_spec(read: Callable[[Path, Sidecar], Json], file: str, default: str) -> Reader:
    """The reader of a vocabulary file of the kind ``file``; ``default`` is the class if no file names one."""

    def read_file(path: Path, sidecar: Sidecar) -> Tokenizer:
        known = sidecar.for_file(file, default)
        return from_spec(path, read(path, known), known, json_models())

    return read_file


REFUSED = ("Barthez", "BertGeneration", "BigBird", "FNet", "Reformer", "RemBert", "Seamless", "Speech", "XLNet")
"""Beginnings of the names of tokenizer classes that change a SentencePiece file in ways that are not implemented."""
ADDS_BOS_EOS = {"LlamaTokenizer": (True, False), "GemmaTokenizer": (True, False)}
"""Tokenizer classes that add BOS or EOS to texts unless the config says otherwise."""


def _sentencepiece(path: Path, sidecar: Sidecar) -> Tokenizer:
    kind, known = sidecar.kind or "", sidecar.known
    if kind.startswith(REFUSED) or (known is not None and known.file not in (SENTENCEPIECE, VOCAB_JSON_SENTENCEPIECE)):
        raise UnsupportedModel(f"{path.name} of a {kind} is not implemented; save the tokenizer as tokenizer.json")
    file = sentencepiece.read(path.read_bytes(), path)
    models = sentencepiece_models()
    if known is None:
        return sentencepiece.from_file(file, path, models, sidecar, partial(_bos_eos, path, sidecar))
    if known.file == VOCAB_JSON_SENTENCEPIECE:
        return sentencepiece_layout.from_vocab_json(file, path, models, sidecar)
    return sentencepiece_layout.from_class(file, path, models, sidecar)


def _bos_eos(path: Path, sidecar: Sidecar, named: Mapping[str, int]) -> Template:
    """BOS and EOS around texts, as the config or the class says. ``named`` are the ids of the named tokens."""
    around = dict[str, list[int]]()
    for name, default in zip(("bos", "eos"), ADDS_BOS_EOS.get(sidecar.kind or "", (False, False))):
        around[name] = []
        if sidecar.config.get(f"add_{name}_token", default):
            if name not in named:
                problem = "not in the vocabulary, but must be put around texts"
                raise FileFormatError(path, f"{name}_piece", problem)
            around[name] = [named[name]]
    return Template.around(around["bos"], around["eos"])
