"""Finds the wheel of a package: in folders and pages with links, then in package indexes.

In: a package and optionally its version. Out: a `WheelFile`, an address or a path. The pages of an index are HTML (PEP
503) or JSON (PEP 691). The first place that has a suitable wheel is used. Pages are not trusted: their sizes and the
schemes of their links are checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from msgspec import Struct

from pellucid.errors import DownloadInterrupted, SourceError
from pellucid.errors.messages import reason, shown
from pellucid.weights.sources.index_settings import IndexSettings

if TYPE_CHECKING:
    from packaging.version import Version

    from pellucid.weights.sources.http_download import HTTP

JSON = "application/vnd.pypi.simple.v1+json"
ACCEPT = f"{JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MAX_PAGE = 64 << 20  # bytes of a page of an index
HASHES = ("sha256", "sha512", "sha384")
MAX_SHOWN = 8


class WheelFile(Struct, frozen=True):
    """A wheel: its address or path, its size in bytes, and a hash ("sha256", hexadecimal digits), as far as known."""

    name: str
    address: str
    size: int | None = None
    hash: tuple[str, str] | None = None
    yanked: bool = False

    @property
    def is_local(self) -> bool:
        """True if the address is a path."""
        return "://" not in self.address


def find_wheel(name: str, version: str | None, settings: IndexSettings, http: HTTP) -> WheelFile:
    """The wheel of a version (None: the newest) of a package. No code runs, so the version of Python does not matter.

    Raises:
        SourceError: no place has a suitable wheel.
        DownloadInterrupted: a place cannot be reached, and no other place has the wheel.
    """
    from packaging.utils import canonicalize_name

    if not settings.indexes and not settings.find_links:
        raise SourceError(
            "no package index may be used: unset PIP_NO_INDEX and UV_NO_INDEX, or set PIP_FIND_LINKS"
        )
    others, problems = list[WheelFile](), list[SourceError]()
    for place in _places(canonicalize_name(name), settings, http):
        try:
            found = list(place())
        except SourceError as error:
            problems.append(error)
            continue
        wheel = choose(found, name, version)
        if wheel is not None:
            return wheel
        others += found
    if problems:
        kind = next((type(one) for one in problems if isinstance(one, DownloadInterrupted)), SourceError)
        raise kind("; ".join(dict.fromkeys(map(str, problems))))
    raise SourceError(_absent(name, version, others))


def choose(wheels: Iterable[WheelFile], name: str, version: str | None) -> WheelFile | None:
    """The wheel of a package and version that suits this machine best; None if there is no suitable wheel.

    Without a version: the newest version that is neither yanked nor a pre-release, unless all are pre-releases.

    Raises:
        SourceError: the version is not valid (PEP 440).
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    try:
        wanted = SpecifierSet(f"=={version}") if version else SpecifierSet()
    except InvalidSpecifier as error:
        raise SourceError(f"{shown(str(version))} is not a version of a package") from error
    rank = {tag: number for number, tag in enumerate(sys_tags())}
    suitable: list[tuple[bool, Version, int, WheelFile]] = []
    for wheel in wheels:
        try:
            package, number, _, tags = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename:
            continue
        ranks = [rank[tag] for tag in tags if tag in rank]
        if package != canonicalize_name(name) or not ranks or not wanted.contains(number, prereleases=True):
            continue
        if version or not wheel.yanked:
            suitable.append((not number.is_prerelease, number, -min(ranks), wheel))
    return max(suitable, key=lambda one: one[:3])[3] if suitable else None


def _places(name: str, settings: IndexSettings, http: HTTP) -> Iterator[Callable[[], Iterable[WheelFile]]]:
    """Functions that list the wheels of a place. Folders come first, because they need no network."""
    for place in sorted(settings.find_links, key=lambda one: one.startswith(("http:", "https:"))):
        if place.startswith(("http:", "https:")):
            yield lambda place=place: page_of(place, http)  # type: ignore[misc]
        else:
            yield lambda place=place: _folder(place)  # type: ignore[misc]
    for index in settings.indexes:
        if index.startswith("file:"):
            yield lambda index=index: _folder(f"{index}/{name}")  # type: ignore[misc]
        else:
            yield lambda index=index: page_of(f"{index}/{name}/", http)  # type: ignore[misc]


def _folder(place: str) -> Iterator[WheelFile]:
    """The wheels in a folder, given as a path or a file: address. A missing folder has no wheels."""
    path = url2pathname(urlsplit(place).path) if place.startswith("file:") else os.path.expanduser(place)
    for file in sorted(Path(path).glob("*.whl")):
        yield WheelFile(file.name, str(file), file.stat().st_size)


def page_of(address: str, http: HTTP) -> list[WheelFile]:
    """The wheels on a page; none if the page does not exist.

    Raises:
        SourceError: the page is not a page of an index.
        DownloadInterrupted: the page cannot be read.
    """
    page = http.page(address, ACCEPT, MAX_PAGE)
    if page is None:
        return []
    try:
        is_json = page.kind.partition(";")[0].strip() in (JSON, "application/json")
        links = _json_links(page.text) if is_json else _html_links(page.text)
        return [link for link in (_absolute(link, page.address) for link in links) if link is not None]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"the page of the package index is damaged: {reason(error)}") from error


def _json_links(text: str) -> Iterator[WheelFile]:
    import json

    for file in json.loads(text)["files"]:
        hashes, size = file.get("hashes") or {}, file.get("size")
        known = next(((kind, str(hashes[kind])) for kind in HASHES if kind in hashes), None)
        bytes_ = size if isinstance(size, int) and size >= 0 else None
        yield WheelFile(str(file["filename"]), str(file["url"]), bytes_, known, bool(file.get("yanked")))


class _Links(HTMLParser):
    """Collects the links of a page, and its base address."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.links = "", list[WheelFile]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get("href")
        if tag == "base" and address:
            self.base = address
        if tag != "a" or not address:
            return
        parts = urlsplit(address)
        kind, _, digits = parts.fragment.partition("=")
        name = unquote(parts.path.rpartition("/")[2])
        known = (kind, digits.lower()) if kind in HASHES else None
        self.links.append(
            WheelFile(name, parts._replace(fragment="").geturl(), None, known, "data-yanked" in given)
        )


def _html_links(text: str) -> Iterator[WheelFile]:
    parser = _Links()
    parser.feed(text)
    for link in parser.links:
        yield _with(link, address=urljoin(parser.base, link.address))


def _with(wheel: WheelFile, **changes: Any) -> WheelFile:
    from msgspec.structs import replace

    return replace(wheel, **changes)


def _absolute(wheel: WheelFile, page: str) -> WheelFile | None:
    """The wheel with an absolute address; None for another kind of file, or a link that leaves HTTP or HTTPS.

    A page that came over HTTPS has no links to files over HTTP. Files at the server of the page get the credentials of
    the page's address.
    """
    if not wheel.name.endswith(".whl"):
        return None
    address, source = urlsplit(urljoin(page, wheel.address)), urlsplit(page)
    if address.scheme not in ("http", "https") or (source.scheme == "https" and address.scheme != "https"):
        return None
    at = source.netloc.rpartition("@")
    if at[0] and address.netloc == at[2] and address.scheme == source.scheme:
        address = address._replace(netloc=source.netloc)
    return _with(wheel, address=address.geturl())


def _absent(name: str, version: str | None, others: Iterable[WheelFile]) -> str:
    if not version:
        return f"no package index has a wheel of {name} for this machine"
    versions = list(dict.fromkeys(wheel.name.split("-")[1] for wheel in others if wheel.name.count("-") >= 4))
    known = f"; it has {', '.join(map(shown, versions[-MAX_SHOWN:]))}" if versions else ""
    return f"no package index has a wheel of {name}=={version} for this machine{known}"
