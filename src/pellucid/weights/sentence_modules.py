"""The list of modules of a sentence-transformers model: ``modules.json`` in the model's folder."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from pellucid.errors import FileFormatError
from pellucid.errors.messages import brief
from pellucid.util.paths import is_file_name
from pellucid.weights.json_files import read_json_list

MODULES = "modules.json"
MAX_MODULES = 32


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


def _is_inside(path: str) -> bool:
    """True if a path is the model's folder or a folder in it."""
    return not path or (is_file_name(path) and "/" not in path)
