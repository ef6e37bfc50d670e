"""The Hugging Face hub: its interface over HTTP, and its cache of files on this machine.

In: a repository. Out: its commit with sizes and hashes of files, and paths in the cache. The cache has the layout that
huggingface-hub gives it, so that each program finds the other's files:

    models--OWNER--NAME/refs/main                  the last commit
    models--OWNER--NAME/blobs/HASH                 the contents of files
    models--OWNER--NAME/snapshots/COMMIT/FILE      links to blobs; copies where the system allows no links

The variables of huggingface-hub apply: ``HF_ENDPOINT``; ``HF_HUB_CACHE``, ``HUGGINGFACE_HUB_CACHE``, ``HF_HOME``,
``XDG_CACHE_HOME``; ``HF_TOKEN``, ``HUGGING_FACE_HUB_TOKEN``, ``HF_TOKEN_PATH``, ``HF_HUB_DISABLE_IMPLICIT_TOKEN``;
``HF_HUB_OFFLINE``, ``TRANSFORMERS_OFFLINE``; ``HF_HUB_DISABLE_SYMLINKS``. The hub's answers are not trusted: hashes,
sizes and names are checked.

Sources: https://huggingface.co/docs/hub/api, https://huggingface.co/docs/huggingface_hub/guides/manage-cache and
https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import quote, urlsplit

from msgspec import Meta, Struct

from pellucid.errors import DownloadInterrupted, SourceError, brief, reason, shown
from pellucid.util.paths import NOWHERE, file_lock, is_file_name, make_folder, move
from pellucid.weights.sources.http_download import GIT, HTTP
from pellucid.weights.sources.source import DownloadProgress

if TYPE_CHECKING:
    import httpx

ENDPOINT = "https://huggingface.co"
MAX_ANSWER = 64 << 20  # bytes of the list of a repository's files
_TRUE = ("1", "ON", "YES", "TRUE")
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n"  # backups skip the folder: https://bford.info/cachedir
_SHA1 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{40}\Z")]
_SHA256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class LargeFile(Struct, frozen=True):
    """The properties of a file in Git LFS."""

    sha256: _SHA256


class HubFile(Struct, frozen=True, rename={"name": "rfilename", "git_sha1": "blobId"}):
    """A file of a repository: its size in bytes and its hashes, as far as the hub states them."""

    name: str
    size: Annotated[int, Meta(ge=0)] | None = None
    git_sha1: _SHA1 | None = None  # of the file itself only if it is not in Git LFS
    lfs: LargeFile | None = None

    @property
    def hash(self) -> tuple[str, str] | None:
        """The kind and the hexadecimal digits of the hash."""
        if self.lfs:
            return "sha256", self.lfs.sha256
        return (GIT, self.git_sha1) if self.git_sha1 else None


class HubRevision(Struct, frozen=True):
    """A commit of a repository and its files."""

    sha: _SHA1
    siblings: list[HubFile] = []


class Hub(HTTP):
    """A client for one repository, "owner/name".

    Raises SourceError: the user wants no network, or a variable is not valid.
    """

    peer: ClassVar[str] = "the hub"
    certificate_settings: ClassVar[str] = "SSL_CERT_FILE"
    folder_settings: ClassVar[str] = "HF_HOME"
    part: ClassVar[str] = ".incomplete"  # huggingface-hub removes such files if they are old

    def __init__(self, repo: str) -> None:
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            if _is_set(variable):
                raise SourceError(f"{variable} is set, so nothing is downloaded: unset it")
        self.repo, self.endpoint, self.token = repo, _endpoint(), _token()
        super().__init__(headers={"Authorization": f"Bearer {self.token}"} if self.token else None)

    def revision(self) -> HubRevision:
        """The newest commit of the branch main.

        Raises DownloadInterrupted: the hub cannot be reached, or refuses more requests for now. Raises SourceError:
        there is no such repository, or the token may not read it.
        """
        import msgspec

        address = f"{self.endpoint}/api/models/{self.repo}/revision/main?blobs=true"
        page = self.page(address, "application/json", MAX_ANSWER)
        if page is None:
            raise SourceError(self._absent())
        try:
            return msgspec.json.decode(page.text, type=HubRevision)
        except (msgspec.DecodeError, RecursionError) as error:
            raise SourceError(f"the hub's answer about {self.repo} is damaged: {reason(error)}") from error

    def fetch(self, commit: str, file: HubFile, progress: DownloadProgress) -> Path:
        """The path of a file in the cache. Downloads the file if the cache does not have it.

        Raises DownloadInterrupted: the download broke off. The next call continues it. Raises SourceError: the file has
        another size or hash, cannot be read with the token, or cannot be written.
        """
        name = file.name
        if not is_file_name(name):
            raise SourceError(f"{brief(name)} of {self.repo} is not a name of a file on every system")
        if cache_folder() == NOWHERE:
            raise SourceError("no home folder is known: set HF_HOME to a folder")
        folder = repository_folder(self.repo)
        path = folder / "snapshots" / commit / name
        try:
            if path.is_file():
                return path
            # Only other hubs state no hash. The name of a blob is arbitrary; a file of a commit never changes.
            key = file.hash[1] if file.hash else hashlib.sha256(f"{commit}/{name}".encode()).hexdigest()
            blob, lock = folder / "blobs" / key, cache_folder() / ".locks" / folder.name / f"{key}.lock"
            with file_lock(lock, lambda: progress.update(0, None, f"{name}: waiting for another process")):
                _tag_cache()
                make_folder(blob.parent)
                is_new = not blob.is_file()
                if is_new:
                    address = f"{self.endpoint}/{self.repo}/resolve/{commit}/{quote(name)}"
                    self.download(address, blob, progress, shown(name), file.size, file.hash)
                _link(path, blob, is_new=is_new)
            return path
        except DownloadInterrupted as error:
            raise DownloadInterrupted(f"{error}; the same command continues the download") from error
        except OSError as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"cannot write {shown(name)} to {folder}: {reason(error)}") from error

    def refusal(self, response: httpx.Response) -> str:
        status, code = response.status_code, response.headers.get("x-error-code", "")
        if status == 429:
            seconds = response.headers.get("retry-after", "")
            wait = f"wait {seconds} seconds" if seconds.isascii() and seconds.isdecimal() else "try again later"
            return f"the hub limits the number of requests: {wait}{'' if self.token else ', or set HF_TOKEN'}"
        if code == "GatedRepo":
            remedy = "" if self.token else ", and set HF_TOKEN to your token"
            return f"{self.repo} is gated: accept its terms at {self.endpoint}/{self.repo}{remedy}"
        if code == "DisabledRepo":
            return f"{self.repo} has been disabled by the hub"
        if code == "RepoNotFound" or (status == 401 and not self.token):
            return self._absent()
        if code == "EntryNotFound" or status == 404:
            return f"{self.repo} does not have a file any more that the hub lists: try again"
        if status == 401:
            return "the hub does not accept the token: set HF_TOKEN to a valid token, or unset it"
        if status == 403:
            return f"the hub answers HTTP 403: the token may not read {self.repo}"
        return super().refusal(response)

    def _absent(self) -> str:
        """The message for a repository that is private or does not exist: the hub gives the same answer for both."""
        remedy = "the token may not read it" if self.token else "it needs HF_TOKEN"
        return f"the hub has no repository {self.repo}, or {remedy}: check the name"


def cache_folder() -> Path:
    """The hub's cache; `NOWHERE` if the user has no home folder."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(chosen) if chosen else _hub_home("hub")


def repository_folder(repo: str) -> Path:
    """The folder of a repository in the cache."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def snapshot(repo: str) -> Path | None:
    """The folder of the last commit in the cache; None if the cache has no commit."""
    folder = repository_folder(repo)
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = folder / "snapshots" / commit
    return path if commit.isalnum() and path.is_dir() else None


def set_snapshot(repo: str, commit: str) -> None:
    """Make a commit the last one in the cache. Its files are complete.

    Raises SourceError: the cache cannot be written.
    """
    path = repository_folder(repo) / "refs" / "main"
    if snapshot(repo) == repository_folder(repo) / "snapshots" / commit:
        return  # the cache may be read-only
    part = path.with_name(f"main.{os.getpid()}.tmp")
    try:
        make_folder(path.parent)
        part.write_text(commit, encoding="utf-8")
        move(part, path)
    except OSError as error:
        raise SourceError(f"cannot write {path}: {reason(error)}") from error


def _link(path: Path, blob: Path, *, is_new: bool) -> None:
    """Make ``path`` a link to a blob. Without links, a new blob is moved there, and another one is copied."""
    make_folder(path.parent)
    if not _is_set("HF_HUB_DISABLE_SYMLINKS"):
        path.unlink(missing_ok=True)  # a link to a blob that was removed
        with contextlib.suppress(OSError):  # few users of Windows may make links
            os.symlink(os.path.relpath(blob, path.parent), path)
            return
    if is_new:
        move(blob, path)
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    shutil.copyfile(blob, part)
    move(part, path)


def _tag_cache() -> None:
    """Mark the cache as a folder that backups may skip."""
    with contextlib.suppress(OSError), open(cache_folder() / "CACHEDIR.TAG", "x", encoding="ascii") as file:
        file.write(_TAG)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in _TRUE


def _expanded(path: str) -> Path:
    text = os.path.expandvars(os.path.expanduser(path))
    return NOWHERE if text.startswith("~") else Path(text).absolute()


def _hub_home(*parts: str) -> Path:
    """A path in the folder of the hub's files; `NOWHERE` if the user has no home folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = _expanded(os.environ.get("HF_HOME") or os.path.join(caches, "huggingface"))
    return folder if folder == NOWHERE else folder.joinpath(*parts)


def _endpoint() -> str:
    """The address of the hub. Raises `SourceError` if ``HF_ENDPOINT`` is not an address."""
    endpoint = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    try:
        parts: Any = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not endpoint.isprintable():
        raise SourceError(f"HF_ENDPOINT={brief(endpoint)}: is not an address: use https://HOST, or unset it")
    return endpoint


def _token() -> str | None:
    """The user's token: of a variable, or of ``hf auth login``."""
    if _is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    where = "the token of HF_TOKEN"
    if not token:
        chosen = os.environ.get("HF_TOKEN_PATH")
        path = _expanded(chosen) if chosen else _hub_home("token")
        where = f"the token in {path}"
        try:
            token = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{where} cannot be read: {reason(error)}") from error
    token = token.strip()
    if not all("!" <= c <= "~" for c in token):
        raise SourceError(f"{where} has other characters than a token of the hub: correct or unset it")
    return token or None
