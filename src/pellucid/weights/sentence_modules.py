"""The list of modules of a sentence-transformers model: ``modules.json`` in the model's folder."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.util.paths import is_file_name
from pellucid.weights.json_files import read_json_list

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

    Raises:
        FileFormatError: the file is damaged, or a module's folder is outside the model's folder.
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

    Raises:
        UnsupportedModel: the first module is no transformer, or it is in another folder.
        FileFormatError: as ``read_modules``.
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
