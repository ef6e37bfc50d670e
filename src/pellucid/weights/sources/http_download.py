"""Reads pages and downloads files over HTTP, with the user's certificates and proxies; entries of zip archives."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

from pellucid.errors import DownloadInterrupted, SourceError, reason
from pellucid.weights.sources.source import CHECKING, DownloadProgress

if TYPE_CHECKING:
    import zipfile

    import httpx

# Copies an entry out of a zip archive that is not trusted.

_CHUNK = 1 << 20


def damages() -> tuple[type[Exception], ...]:
    """The errors that zipfile raises for damaged and for encrypted archives."""
    import struct
    import zipfile
    import zlib

    return zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError


def copy_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, report: Callable[[int], None]) -> None:
    """Copy an entry whose stated size the caller has checked. ``report`` gets the bytes so far.

    Raises OSError: the target cannot be written. Raises Exception: the archive is damaged (`damages`).
    """
    copied = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as stream, open(target, "wb") as out:
        # zipfile stops at the size that was checked, and compares the CRC at the end.
        while chunk := stream.read(_CHUNK):
            out.write(chunk)
            copied += len(chunk)
            report(copied)


# Reads pages and downloads files over HTTP, with certificates and proxies of the user. A download that breaks off
# continues where it stopped, in the same process or in a later one: its bytes are in ``NAME.part`` until the file is
# complete and its hash is checked.

CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
TRIES = 3  # consecutive tries of a download that bring no byte
PAUSE = 1.0  # seconds before a second try, twice this before a third
PART = ".part"
GIT = "git-sha1"
"""The kind of hash of a file in Git: the SHA-1 of "blob", its size and its bytes."""
_HTTP_CHUNK = 1 << 16
_REPORT = 1 << 26  # bytes of a hashed file between two reports
_ADDRESS = re.compile(r"https?://\S+")
_BUSY = {408, 425, 429, 500, 502, 503, 504}  # statuses after which a later try may succeed


class Page(Struct, frozen=True):
    """A page: its address after redirects, the kind of its content, and its text."""

    address: str
    kind: str
    text: str


class HTTP:
    """An HTTP client. ``certificates`` is a file; None: ``SSL_CERT_FILE``, or the certificates of the system.

    ``headers`` are sent with every request. httpx does not send ``Authorization`` on to another host after a redirect.

    Attributes:
        peer: the server's name in messages.
        certificate_settings, folder_settings: the variables that errors name: of certificates, of the target folder.
        part: the suffix of a file that is not complete.

    Raises SourceError: the certificates cannot be read.
    """

    peer: ClassVar[str] = "the package index"
    certificate_settings: ClassVar[str] = "SSL_CERT_FILE or PIP_CERT"
    folder_settings: ClassVar[str] = "PELLUCID_HOME"
    part: ClassVar[str] = PART

    def __init__(self, certificates: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        import httpx

        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        headers = {"User-Agent": "pellucid", "Accept-Encoding": "identity", **(headers or {})}
        try:
            self.client = httpx.Client(
                verify=_certificates(certificates), timeout=timeout, headers=headers, follow_redirects=True
            )
        except (httpx.InvalidURL, ValueError) as error:  # a proxy
            raise SourceError(f"the proxy of HTTP_PROXY or HTTPS_PROXY is not valid: {reason(error)}") from error

    def __enter__(self) -> HTTP:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def page(self, address: str, accept: str, limit: int) -> Page | None:
        """Read a page of at most ``limit`` bytes; None if it does not exist.

        Raises DownloadInterrupted: the server cannot be reached. Raises SourceError: the page is too long.
        """
        for last in (False, True):
            try:
                with self._response(address, {"Accept": accept}) as response:
                    if response.status_code in (404, 410):
                        return None
                    self._refuse_status(response)
                    content = bytearray()
                    for chunk in response.iter_bytes(_HTTP_CHUNK):
                        content += chunk
                        if len(content) > limit:
                            raise SourceError(f"a page of {self.peer} has more than {limit:,} bytes")
                    kind = response.headers.get("content-type", "")
                    return Page(str(response.url), kind, content.decode(errors="replace"))
            except DownloadInterrupted:
                if last:
                    raise
                time.sleep(PAUSE)
        raise AssertionError

    def download(
        self,
        address: str,
        target: Path,
        progress: DownloadProgress,
        label: str,
        size: int | None = None,
        hash: tuple[str, str] | None = None,
    ) -> None:
        """Download a file to ``target``, and check its size and its hash if they are known.

        Raises DownloadInterrupted: the download broke off. The bytes so far remain in ``target`` + ``part``. Raises
        SourceError: the file has another size or hash, or does not fit on the disk.
        """
        part, failures = target.with_name(target.name + self.part), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            before = _bytes_in(part)
            try:
                self._continue(address, part, progress, label, size)
                break
            except DownloadInterrupted:
                failures = 1 if _bytes_in(part) > before else failures + 1
                if failures == TRIES:
                    raise
                time.sleep(PAUSE * 2 ** (failures - 1))
        self._check(part, progress, label, size, hash)
        os.replace(part, target)

    def _continue(self, address: str, part: Path, progress: DownloadProgress, label: str, size: int | None) -> None:
        """Append the missing bytes to ``part``. Raises as ``download``."""
        done = _bytes_in(part)
        if done and done == size:
            return
        with self._response(address, {"Range": f"bytes={done}-"} if done else {}) as response:
            if response.status_code == 416 and response.headers.get("content-range") == f"bytes */{done}":
                return  # the file was complete
            if response.status_code == 416 or (response.status_code == 206 and _start(response) != done):
                part.unlink()  # the file at the server is another one now
                raise DownloadInterrupted(f"{label}: the server has no bytes from {done:,} on")
            self._refuse_status(response)
            if response.status_code != 206:
                done = 0  # the server sends the whole file
            length = response.headers.get("content-length", "")
            total = size if size is not None else done + int(length) if length.isdecimal() else None
            if total is not None:
                refuse_full_disk(part.parent, total - done, label, self.folder_settings)
            with open(part, "ab" if done else "wb") as out:
                for chunk in response.iter_raw():  # a set size would lose a last part
                    done += len(chunk)
                    if size is not None and done > size:
                        raise SourceError(f"{label} is longer than the {size:,} bytes that {self.peer} states")
                    out.write(chunk)
                    progress.update(done, total, label)

    def _check(
        self, part: Path, progress: DownloadProgress, label: str, size: int | None, hash: tuple[str, str] | None
    ) -> None:
        problem, length = None, _bytes_in(part)
        if size is not None and length != size:
            problem = f"has {length:,} bytes, expected {size:,}"
        elif hash is not None:
            digest = hashlib.new("sha1" if hash[0] == GIT else hash[0], usedforsecurity=False)
            if hash[0] == GIT:
                digest.update(b"blob %d\0" % length)
            with open(part, "rb") as file:
                while chunk := file.read(_HTTP_CHUNK):
                    digest.update(chunk)
                    if file.tell() % _REPORT == 0:
                        progress.update(file.tell(), length, CHECKING + label)
            if (found := digest.hexdigest()) != hash[1]:
                problem = f"has {hash[0].upper()} {found[:12]}…, expected {hash[1][:12]}…"
        if problem:
            part.unlink()
            raise SourceError(f"{label} {problem}")

    @contextlib.contextmanager
    def _response(self, address: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The response to a GET request. Converts errors of the network to `DownloadInterrupted`."""
        import httpx

        try:
            with self.client.stream("GET", address, headers=headers) as response:
                hops = [one.url.scheme for one in (*response.history, response)]
                if address.startswith("https:") and set(hops) != {"https"}:
                    raise SourceError(f"{self.peer} leads from HTTPS to HTTP, which is not followed")
                yield response
        except httpx.TransportError as error:
            raise DownloadInterrupted(f"{self.peer} cannot be reached ({self._network_reason(error)})") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise SourceError(f"{self.peer}: {self._network_reason(error)}") from error

    def refusal(self, response: httpx.Response) -> str:
        """The message for a status other than 200 and 206, with a remedy."""
        status = response.status_code
        if status in _BUSY:
            return f"{self.peer} cannot be reached (HTTP {status})"
        remedy = ": check the user and password in its address" if status in (401, 403, 407) else ""
        return f"{self.peer} answers HTTP {status}{remedy}"

    def _refuse_status(self, response: httpx.Response) -> None:
        if response.status_code in (200, 206):
            return
        raise (DownloadInterrupted if response.status_code in _BUSY else SourceError)(self.refusal(response))

    def _network_reason(self, error: Exception) -> str:
        """The reason of a network error without addresses, which may have passwords."""
        text, name = _ADDRESS.sub(self.peer, reason(error)), type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return f"its certificate is not trusted: name a file of certificates with {self.certificate_settings}"
        return f"{name}: {text}" if text and text != name else name


def refuse_full_disk(folder: Path, need: int, what: str, variable: str = HTTP.folder_settings) -> None:
    """Refuse a file that the disk of a folder has no space for. ``variable`` selects the folder.

    Raises SourceError: the disk has fewer than ``need`` free bytes.
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        raise SourceError(
            f"{what} needs {need:,} bytes: no space left, {free:,} bytes are free in {folder}: set {variable} "
            "to use another folder"
        )


def _start(response: httpx.Response) -> int:
    """The first byte of a partial response; -1 if it is not stated."""
    match = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(match[1]) if match else -1


def _bytes_in(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _certificates(file: str | None) -> ssl.SSLContext:
    """The trusted certificates: of ``file`` or ``SSL_CERT_FILE``, otherwise of the system and of certifi."""
    import certifi

    try:
        context = ssl.create_default_context(cafile=file or os.environ.get("SSL_CERT_FILE") or None)
        if not file and not os.environ.get("SSL_CERT_FILE") and not os.environ.get("SSL_CERT_DIR"):
            context.load_verify_locations(certifi.where())
    except (OSError, ssl.SSLError) as error:
        where = file or os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise SourceError(f"the certificates in {where} cannot be read: {reason(error)}") from error
    return context
