"""Reads the JSON files of a model, and the list of modules of a sentence-transformers model. No file is trusted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from msgspec import Struct

from pellucid.errors import FileFormatError, UnsupportedModel, brief, reason
from pellucid.util.paths import is_file_name
from pellucid.weights.checkpoint import ModelFile

MAX_JSON = 100_000_000  # bytes of a document; the specification of safetensors has this limit for headers
MAX_VALUES = 1 << 23  # values in a document; the entry of a tensor in a safetensors header has about 8


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `FileFormatError` if the file has no object or is larger than 100 MB."""
    return parse_json(path, "file", _bytes_of(path), 0)


def read_json_list(path: Path) -> list[Any]:
    """The list in a JSON file. Raises `FileFormatError` if the file has no list or is larger than 100 MB."""
    value = _parsed(path, "file", _bytes_of(path), 0)
    if not isinstance(value, list):
        raise FileFormatError(path, "file", "must be a JSON list", 0)
    return value


def _bytes_of(path: Path) -> bytes:
    file = ModelFile(path)
    try:
        if file.size > MAX_JSON:
            raise FileFormatError(path, "file", f"{file.size:,} bytes are above the limit of {MAX_JSON:,}", 0)
        return file.read(0, file.size)
    finally:
        file.close()


def parse_json(path: Path, field: str, text: bytes, offset: int) -> dict[str, Any]:
    """The JSON object in ``text``, which was read at byte ``offset`` of ``path``. Names must not repeat."""
    value = _parsed(path, field, text, offset)
    if not isinstance(value, dict):
        raise FileFormatError(path, field, "must be a JSON object", offset)
    return value


def _parsed(path: Path, field: str, text: bytes, offset: int) -> Any:
    """The JSON value in ``text``."""

    def fail(problem: str, at: int = 0) -> FileFormatError:
        return FileFormatError(path, field, problem, offset + at)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise fail(f"the name {brief(twice)} appears twice")
        return table

    # The number of values is limited, because a value of 2 bytes of text can take 60 bytes of memory.
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise fail(f"has more than {MAX_VALUES:,} values")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise fail(f"is not valid UTF-8 ({error.reason})", error.start) from None
    except json.JSONDecodeError as error:
        raise fail(f"is not valid JSON: {error.msg}", len(error.doc[: error.pos].encode())) from None
    except RecursionError:
        raise fail("is nested too deeply") from None
    except FileFormatError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise fail(f"is not valid JSON: {reason(error)}") from None


# The list of modules of a sentence-transformers model: ``modules.json`` in the model's folder.

MODULES = "modules.json"
MAX_MODULES = 32
BODIES = ("Transformer", "MLMTransformer")
"""Modules that run the model of the folder."""
KNOWN = (*BODIES, "Pooling", "Dense", "LayerNorm", "Normalize", "SpladePooling", "MultiVectorMask", "Dropout")


class Module(Struct, frozen=True):
    """A module: the name of its class, and its folder inside the model's folder ("": the model's folder itself)."""

    kind: str
    path: str


def read_modules(folder: Path) -> list[Module] | None:
    """The modules in order; None if the folder has no ``modules.json``.

    Raises FileFormatError: the file is damaged, or a module's folder is outside the model's folder.
    """
    file = folder / MODULES
    if not file.is_file():
        return None
    listed = read_json_list(file)
    if len(listed) > MAX_MODULES:
        raise FileFormatError(file, "modules", f"{len(listed):,} modules; the limit is {MAX_MODULES}")
    modules = []
    for number, entry in enumerate(listed):
        stated = entry if isinstance(entry, dict) else {}
        kind, path = stated.get("type"), stated.get("path")
        if not isinstance(kind, str) or not isinstance(path, str) or not _is_inside(path):
            raise FileFormatError(
                file,
                f"module {number}",
                f"{brief(entry)}: must have a type, and the path of a folder in the model's folder",
            )
        modules.append(Module(kind.rpartition(".")[2], path))
    return modules


def check_body(folder: Path) -> None:
    """Check that the model is in the folder itself, if the folder has ``modules.json``.

    Raises UnsupportedModel: the first module is no transformer, or it is in another folder. Raises FileFormatError: as
    ``read_modules``.
    """
    modules = read_modules(folder)
    if not modules:
        return
    if modules[0].kind not in BODIES:
        raise unknown_module(folder, modules[0])
    if modules[0].path:
        raise UnsupportedModel(
            f"{folder.name}: {MODULES}: the model is in the folder {brief(modules[0].path)}: save it with "
            "sentence-transformers 6, which puts it beside the list of modules"
        )


def unknown_module(folder: Path, module: Module) -> UnsupportedModel:
    """The error for a module that is not implemented."""
    place = f" in {brief(module.path)}" if module.path else ""
    return UnsupportedModel(
        f"{folder.name}: {MODULES}: module {brief(module.kind)}{place} is not supported, and would change the "
        f"vectors (known: {', '.join(KNOWN)})"
    )


def _is_inside(path: str) -> bool:
    """True if a path is the model's folder or a folder in it."""
    return not path or (is_file_name(path) and "/" not in path)
