"""``hf:owner/name[/file]``, ``hf:owner/name:TAG``: the Hugging Face hub, and its cache on this machine.

If the spec names no file, the safetensors of the repository are fetched, with config and tokenizer. If the repository
has only GGUF files, ``PREFERENCE`` selects one of them. ``TAG`` selects the GGUF file with this word in its name, such
as ``Q4_K_M``; it may also be the file's name. The cache takes precedence over the hub. The user's settings for the hub
apply (endpoint, token, cache folder, ``HF_HUB_OFFLINE``). The first request has a deadline, so an unreachable hub costs
only seconds.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from msgspec import Struct

from pellucid.errors import SourceError, brief, shown
from pellucid.util.paths import is_file_name
from pellucid.weights.safetensors import INDEX_NAME, SINGLE_NAME
from pellucid.weights.sources.source import DownloadProgress, Source

T = TypeVar("T")

DEADLINE = 5.0  # seconds for the first answer, including the DNS lookup and proxies
# The order of preference if a repository has several GGUF files: small files with little loss first.
PREFERENCE = (
    *("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "MXFP4", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1"),
    *("Q8_0", "Q6_K", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "F16", "BF16", "F32"),
)
_REPO = r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
_TAGGED = rf"{_REPO}:(?P<tag>[A-Za-z0-9][\w.-]*)"
_REST = re.compile(rf"{_TAGGED}|{_REPO.replace('repo', 'plain')}(?:/(?P<file>.+))?", re.ASCII)
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<rest>[^?#]+)(?:[?#].*)?", re.IGNORECASE)
_VIEW = re.compile(r"(?P<repo>[^/]+/[^/]+)/(?:resolve|blob|raw|tree)/(?P<revision>[^/]+)(?:/(?P<file>.+))?")
_LATEST = "latest"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<kind>gguf|safetensors)")
_COMPANIONS = {".json", ".txt", ".model", ".jinja"}
_POOLING = "1_Pooling/config.json"


class HubSpec(Struct, frozen=True):
    """A parsed spec: a repository, and a file or a tag (the default tag, "latest", is None)."""

    repo: str
    file: str | None = None
    tag: str | None = None


def parse(rest: str) -> HubSpec:
    """Parse ``rest``. Raises `SourceError` unless it is ``owner/name``, ``owner/name:TAG`` or ``owner/name/file``."""
    match = _REST.fullmatch(rest.rstrip("/"))
    if match is None:
        raise SourceError(f"{brief(rest)} is not owner/name, owner/name:TAG or owner/name/file")
    repo = match["repo"] or match["plain"]
    # The hub has no such names, and in its cache "--" separates the owner from the name.
    if "--" in repo or ".." in repo:
        raise SourceError(f"{brief(repo)} is not a repository: it has -- or ..")
    if tag := match["tag"]:
        if tag.endswith(".gguf"):
            return HubSpec(repo, file=tag)
        return HubSpec(repo, tag=None if tag == _LATEST else tag)
    file = match["file"]
    if file and not is_file_name(file):
        raise SourceError(f"{brief(file)} is not a path inside a repository")
    return HubSpec(repo, file)


class HuggingFace(Source):
    scheme = "hf"

    def spec_of(self, text: str) -> str | None:
        """The rest for ``hf.co/owner/name[:TAG]``, an address of the hub's site, or ``owner/name:TAG``."""
        if re.fullmatch(_TAGGED, text, re.ASCII):
            return text
        if (address := _ADDRESS.fullmatch(text)) is None:
            return None
        rest = address["rest"].rstrip("/")
        if (view := _VIEW.fullmatch(rest)) is None:
            return rest
        if view["revision"] != "main":
            raise SourceError(f"{brief(text)}: only the revision main can be fetched: save the file first")
        return "/".join(filter(None, (view["repo"], view["file"])))

    def elsewhere(self, rest: str) -> str | None:
        if self.cached(rest) is None:
            return None
        return f"it is in the cache of Hugging Face: hf cache rm model/{parse(rest).repo} removes it"

    def cached(self, rest: str) -> Path | None:
        from pellucid.weights.sources.hub import snapshot

        spec = parse(rest)
        folder = snapshot(spec.repo)
        if folder is None:
            return None
        if spec.file:
            path = folder / spec.file
            if not path.is_file():
                return None
            parts = _split_files(path.name, (p.name for p in path.parent.iterdir()))
            return path if parts == [path.name] or _all_shards(parts) else None
        here = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        try:
            files = choose(spec.repo, here, spec.tag)
        except SourceError:
            return None
        return _path_to_open(folder, files) if _all_shards(files) else None

    def fetch(self, rest: str, scratch: Path, progress: DownloadProgress, limit: int | None) -> Path:
        from pellucid.weights.sources.hub import Hub, set_snapshot

        spec = parse(rest)
        repo, file = spec.repo, spec.file
        progress.update(0, None, f"hf:{repo}")
        with contextlib.ExitStack() as stack:
            try:
                hub = Hub(repo)
                stack.enter_context(hub)
                revision = _within(DEADLINE, hub.revision)
            except SourceError:
                if (here := self.cached(rest)) is not None:
                    return here
                raise
            known = {entry.name: entry for entry in revision.siblings}
            files = _chosen(spec, {entry.name: entry.size for entry in revision.siblings}, limit, progress)
            paths = {name: hub.fetch(revision.sha, known[name], progress) for name in files}
        set_snapshot(repo, revision.sha)
        return paths[file] if file else _path_to_open(paths[files[0]].parents[files[0].count("/")], files)


def _chosen(spec: HubSpec, sizes: Mapping[str, int | None], limit: int | None, progress: DownloadProgress) -> list[str]:
    """The files of a spec, at most ``limit`` bytes. ``sizes`` has all files of the repository."""
    repo, file = spec.repo, spec.file
    if file and file not in sizes:
        raise SourceError(f"{repo} has no file {brief(file)}; it has {_listed(sizes)}")
    files = _split_files(file, sizes) if file else choose(repo, sizes, spec.tag)
    if limit is not None and any(sizes[name] is None for name in files):
        raise SourceError(f"the hub does not state the size of {', '.join(files)}")
    total = sum(sizes[name] or 0 for name in files)
    if limit is not None and total > limit:
        raise SourceError(f"{', '.join(files)} has {total:,} bytes, expected at most {limit:,}")
    if not file:
        progress.update(0, total or None, f"hf:{repo}: {_path_to_open(Path(), files).name or 'safetensors'}")
    return files


def choose(repo: str, names: Iterable[str], tag: str | None = None) -> list[str]:
    """The files of one model, weights last: with a ``tag``, of the GGUF model with this word in its name.

    Raises `SourceError` with the choices if there are several models, or none with the tag.
    """
    names = sorted(names)
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    if weights and "config.json" in top and tag is None:
        if SINGLE_NAME in weights:
            weights = [SINGLE_NAME]
        elif INDEX_NAME in top:
            weights = [name for name in weights if _SHARD.fullmatch(name)]
        elif len(weights) > 1:
            raise SourceError(f"{repo} has several models, name one: hf:{repo}/FILE with {_listed(weights)}")
        small = [name for name in top if PurePosixPath(name).suffix in _COMPANIONS]
        if INDEX_NAME in small and weights == [SINGLE_NAME]:
            small.remove(INDEX_NAME)
        return small + [name for name in names if name == _POOLING] + weights
    models = [n for n in names if n.endswith(".gguf") and not re.search(r"mmproj|imatrix", n, re.IGNORECASE)]
    if not models:
        raise SourceError(f"{repo} has neither safetensors with a config.json nor GGUF; it has {_listed(names)}")
    stems = {_SHARD.sub(r"\g<stem>", name) for name in models}
    for quantization in (None, *PREFERENCE) if tag is None else (tag,):
        matching = {stem for stem in stems if quantization is None or _has_word(stem, quantization)}
        if len(matching) == 1:
            return [name for name in models if _SHARD.sub(r"\g<stem>", name) in matching]
        if matching and quantization is not None:
            break
    if tag is not None and not matching:
        raise SourceError(f"{repo} has no GGUF file with {brief(tag)} in its name; it has {_listed(models)}")
    raise SourceError(f"{repo} has several models, name one: hf:{repo}/FILE with {_listed(models)}")


def _has_word(stem: str, word: str) -> bool:
    """True if the name of a file has a word, such as Q4_K_M. Q4_K is not a word of Q4_K_M."""
    pattern = rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9_])"
    return re.search(pattern, stem, re.IGNORECASE) is not None


def _split_files(file: str, names: Iterable[str]) -> list[str]:
    """All files of the split GGUF model that ``file`` belongs to; only ``file`` if the model is not split."""
    match = _SHARD.fullmatch(file)
    if match is None or match["kind"] != "gguf":
        return [file]
    shard_of_file = re.compile(rf"{re.escape(match['stem'])}-\d{{5}}-of-{match['count']}\.gguf")
    return sorted(name for name in names if shard_of_file.fullmatch(name))


def _listed(names: Iterable[str]) -> str:
    names = [shown(name) for name in names]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more if names else "nothing"


def _path_to_open(folder: Path, files: list[str]) -> Path:
    """The path to open: the (first) GGUF file, or the folder of safetensors."""
    return folder / files[0] if files[0].endswith(".gguf") else folder


def _all_shards(files: list[str]) -> bool:
    """True if all files of a split model are present.

    The weights are fetched last, so all other files are then present, too.
    """
    shards = [match for name in files if (match := _SHARD.fullmatch(name))]
    return not shards or len(shards) == int(shards[0]["count"])


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """The result of ``ask``. Raises `SourceError` after ``seconds``.

    ``ask`` runs in a thread, because a DNS lookup has no timeout.
    """
    answers: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # raised again in the waiting thread
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True, name="pellucid-hub")
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not answers:
        raise SourceError(f"the hub did not answer within {seconds:g} seconds")
    return answers[0]


SOURCE: Source = HuggingFace()
