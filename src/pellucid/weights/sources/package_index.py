"""Finds the wheel of a package in the package indexes that the user has configured for pip and uv."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import DownloadInterrupted, SourceError, reason, shown

if TYPE_CHECKING:
    from packaging.version import Version

    from pellucid.weights.sources.http_download import HTTP

# The package indexes that the user has configured for pip and uv.
#
# Sources: https://pip.pypa.io/en/stable/topics/configuration/ and https://docs.astral.sh/uv/reference/environment/.
# These settings apply, the first one that is set:
#
# - the index: ``UV_DEFAULT_INDEX``, ``UV_INDEX_URL``, ``PIP_INDEX_URL``, ``index-url`` in pip's files, then PyPI
# - further indexes, all of them: ``UV_INDEX``, ``UV_EXTRA_INDEX_URL``, ``PIP_EXTRA_INDEX_URL`` or ``extra-index-url``
# - folders and pages with links, all of them: ``UV_FIND_LINKS``, ``PIP_FIND_LINKS`` or ``find-links``
# - no index: ``UV_NO_INDEX``, ``PIP_NO_INDEX`` or ``no-index``
# - hosts that may send wheels without TLS and without a hash, all of them: ``UV_INSECURE_HOST``, ``PIP_TRUSTED_HOST``
#   or ``trusted-host``
# - certificates: ``PIP_CERT`` or ``cert``, ``SSL_CERT_FILE``, ``SSL_CERT_DIR``
# - proxies: ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``
#
# pip's files are its global, user and environment configuration, and ``PIP_CONFIG_FILE``. Their sections ``global`` and
# ``download`` count. Files of uv are not read.

PYPI = "https://pypi.org/simple"
ETC = Path("/etc")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class IndexSettings(Struct, frozen=True):
    """Addresses of indexes, in the order to ask them; folders or pages with links; a file with certificates."""

    indexes: tuple[str, ...]
    find_links: tuple[str, ...]
    certificates: str | None
    trusted_hosts: tuple[str, ...] = ()


def refuse_unprotected(address: str, hash: object, trusted_hosts: Iterable[str]) -> None:
    """Refuse a file without a hash from a plain HTTP address of another machine: anyone between may change the file.

    Raises SourceError: neither ``hash`` nor TLS protects the file, and its host is not one of ``trusted_hosts``.
    """
    at = urlsplit(address)
    host = at.hostname or ""
    if hash or at.scheme != "http" or host in LOOPBACK or not {host, f"{host}:{at.port}"}.isdisjoint(trusted_hosts):
        return
    raise SourceError(
        f"{shown(host)} sends {shown(at.path.rpartition('/')[2])} over plain HTTP and without a hash, so the file may "
        f"be changed on its way: use https, or allow the host with PIP_TRUSTED_HOST={shown(host)}"
    )


def index_settings(environment: Mapping[str, str] = os.environ) -> IndexSettings:
    """The settings of the user. A file that cannot be read has no settings."""
    pip = _pip_files(environment) | {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environment.items()
        if name.startswith("PIP_") and value
    }

    def uv(name: str) -> str:
        return environment.get(f"UV_{name}", "")

    main = [*uv("DEFAULT_INDEX").split(), *uv("INDEX_URL").split(), *pip.get("index-url", "").split(), PYPI]
    more = [*uv("INDEX").split(), *uv("EXTRA_INDEX_URL").split(), *pip.get("extra-index-url", "").split()]
    links = [*uv("FIND_LINKS").replace(",", " ").split(), *pip.get("find-links", "").split()]
    no_index = any(map(_is_on, (uv("NO_INDEX"), pip.get("no-index", ""))))
    indexes = [] if no_index else list(dict.fromkeys(map(_address, [main[0], *more])))
    trusted = [*uv("INSECURE_HOST").replace(",", " ").split(), *pip.get("trusted-host", "").split()]
    return IndexSettings(tuple(indexes), tuple(dict.fromkeys(links)), pip.get("cert"), tuple(trusted))


def _address(text: str) -> str:
    """The address of an index. uv's ``NAME=ADDRESS`` names an index."""
    name, equals, address = text.partition("=")
    return (address if equals and "/" not in name else text).rstrip("/")


def _is_on(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _pip_files(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings in pip's files; later files override earlier files."""
    found = dict[str, str]()
    for path in _paths(environment):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        for section in ("global", "download"):
            if parser.has_section(section):
                found |= {name.replace("_", "-"): value for name, value in parser.items(section) if value}
    return found


def _paths(environment: Mapping[str, str]) -> Iterator[Path]:
    """The paths of pip's files, the most general first. ``PIP_CONFIG_FILE=/dev/null`` means no files."""
    from platformdirs import PlatformDirs

    chosen, name = environment.get("PIP_CONFIG_FILE"), "pip.ini" if sys.platform == "win32" else "pip.conf"
    if chosen == os.devnull:
        return
    folders = PlatformDirs("pip", appauthor=False, roaming=True, multipath=True)
    for folder in reversed(folders.site_config_dir.split(os.pathsep)):
        yield Path(folder) / name
    if sys.platform != "win32":
        yield ETC / name
    try:
        yield Path.home() / ("pip" if sys.platform == "win32" else ".pip") / name
        yield Path.home() / ".config" / "pip" / name
    except RuntimeError:  # the user has no home folder
        pass
    yield Path(folders.user_config_dir) / name
    yield Path(sys.prefix) / name
    if chosen:
        yield Path(chosen)


# Finds the wheel of a package: in folders and pages with links, then in package indexes. In: a package and optionally
# its version. Out: a `WheelFile`, an address or a path. The pages of an index are HTML (PEP 503) or JSON (PEP 691). The
# first place that has a suitable wheel is used. Pages are not trusted: their sizes and the schemes of their links are
# checked.

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

    Raises SourceError: no place has a suitable wheel. Raises DownloadInterrupted: a place cannot be reached, and no
    other place has the wheel.
    """
    from packaging.utils import canonicalize_name

    if not settings.indexes and not settings.find_links:
        raise SourceError("no package index may be used: unset PIP_NO_INDEX and UV_NO_INDEX, or set PIP_FIND_LINKS")
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

    Without a version: the newest version that is neither yanked nor a pre-release, unless all are pre-releases. Raises
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
        yield partial(page_of, place, http) if place.startswith(("http:", "https:")) else partial(_folder, place)
    for index in settings.indexes:
        address = f"{index}/{name}"
        yield partial(_folder, address) if index.startswith("file:") else partial(page_of, f"{address}/", http)


def _folder(place: str) -> Iterator[WheelFile]:
    """The wheels in a folder, given as a path or a file: address. A missing folder has no wheels."""
    path = url2pathname(urlsplit(place).path) if place.startswith("file:") else os.path.expanduser(place)
    for file in sorted(Path(path).glob("*.whl")):
        yield WheelFile(file.name, str(file), file.stat().st_size)


def page_of(address: str, http: HTTP) -> list[WheelFile]:
    """The wheels on a page; none if the page does not exist.

    Raises SourceError: the page is not a page of an index. Raises DownloadInterrupted: the page cannot be read.
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
        self.links.append(WheelFile(name, parts._replace(fragment="").geturl(), None, known, "data-yanked" in given))


def _html_links(text: str) -> Iterator[WheelFile]:
    parser = _Links()
    parser.feed(text)
    for link in parser.links:
        yield replace(link, address=urljoin(parser.base, link.address))


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
    return replace(wheel, address=address.geturl())


def _absent(name: str, version: str | None, others: Iterable[WheelFile]) -> str:
    if not version:
        return f"no package index has a wheel of {name} for this machine"
    versions = list(dict.fromkeys(wheel.name.split("-")[1] for wheel in others if wheel.name.count("-") >= 4))
    known = f"; it has {', '.join(map(shown, versions[-MAX_SHOWN:]))}" if versions else ""
    return f"no package index has a wheel of {name}=={version} for this machine{known}"
