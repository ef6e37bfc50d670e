"""The tokenizer of a model folder, whatever files it is in.

In: the folder, or one file of it. Out: a :class:`Tokenizer`. What is found first counts: ``tokenizer.json``, which says
everything; ``vocab.json`` with ``merges.txt``; tiktoken's ranks; a SentencePiece model; ``vocab.txt``; and ByT5, which
needs no file but its config.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pellucid.errors import UnsupportedModel
from pellucid.tokenize import older
from pellucid.tokenize.base import Tokenizer
from pellucid.tokenize.beside import Beside, Json
from pellucid.tokenize.huggingface import from_file, from_spec

FILES = "tokenizer.json, vocab.json with merges.txt, *.tiktoken, *.model, vocab.txt"


def load_path(path: Path) -> Tokenizer:
    """The tokenizer of a model folder, or in a file; of a file of weights, what lies beside it.

    Raises :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    folder = path if path.is_dir() else path.parent
    beside = Beside.read(folder)
    if path.is_file() and (found := _reader(path)) is not None:
        return found(path, beside)
    for name in tokenizer_files(folder):
        found = _reader(folder / name)
        if found is not None:
            return found(folder / name, beside)
    if beside.kind == "ByT5Tokenizer":
        from pellucid.tokenize.kinds.bytes import from_config

        return from_config(folder, beside)
    raise UnsupportedModel(f"{folder.name}: no tokenizer found; known are {FILES}")


Reader = Callable[[Path, Beside], Tokenizer]


def tokenizer_files(folder: Path) -> list[str]:
    """The files of a folder that may hold its tokenizer, in the order in which they count."""
    others = sorted(found.name for pattern in ("*.tiktoken", "*.model") for found in folder.glob(pattern))
    listed = ["tokenizer.json", "vocab.json", *others, "vocab.txt"]
    return [name for name in listed if (folder / name).is_file()]


def _reader(path: Path) -> Reader | None:
    """What reads a file with a tokenizer in it; None for other files."""
    if path.name in (
        "tokenizer_config.json",
        "config.json",
        "special_tokens_map.json",
        "generation_config.json",
    ):
        return None
    if path.name == "vocab.json":
        return _of_spec(lambda path, beside: older.merges(path.parent, beside)) if _has_merges(path) else None
    if path.suffix == ".json":
        return from_file
    if path.suffix == ".txt":
        return _of_spec(older.wordpiece)
    if path.suffix == ".tiktoken" or (path.suffix == ".model" and older.is_tiktoken(path)):
        return lambda path, beside: from_file(path, beside, older.tiktoken)
    return _sentencepiece if path.suffix == ".model" else None


def _has_merges(path: Path) -> bool:
    return (path.parent / "merges.txt").is_file()


def _of_spec(read: Callable[[Path, Beside], Json]) -> Reader:
    return lambda path, beside: from_spec(path, read(path, beside), beside)


MOVED = (
    "XLMRoberta",
    "Camembert",
    "XGLM",
    "MBart",
    "MBart50",
    "Barthez",
    "NllbTokenizer",
    "Pegasus",
    "Reformer",
)
"""Classes of ``transformers`` that give the pieces of a SentencePiece file other ids than the file does."""


def _sentencepiece(path: Path, beside: Beside) -> Tokenizer:
    from pellucid.tokenize.sentencepiece import from_file

    kind = beside.kind or ""
    if kind.startswith(MOVED):
        raise UnsupportedModel(
            f"{path.name}: a {kind} numbers the pieces differently than this file; save it as tokenizer.json"
        )
    habits = {"LlamaTokenizer": (True, False), "GemmaTokenizer": (True, False), "T5Tokenizer": (False, True)}
    wanted = habits.get(kind, (False, False))
    flags = [beside.config.get(f"add_{name}_token", usual) for name, usual in zip(("bos", "eos"), wanted)]
    return from_file(path, beside, *map(bool, flags))
