"""The package indexes that the user has configured for pip and uv.

Sources: https://pip.pypa.io/en/stable/topics/configuration/ and https://docs.astral.sh/uv/reference/environment/. These
settings apply, the first one that is set:

- the index: ``UV_DEFAULT_INDEX``, ``UV_INDEX_URL``, ``PIP_INDEX_URL``, ``index-url`` in pip's files, then PyPI
- further indexes, all of them: ``UV_INDEX``, ``UV_EXTRA_INDEX_URL``, ``PIP_EXTRA_INDEX_URL`` or ``extra-index-url``
- folders and pages with links, all of them: ``UV_FIND_LINKS``, ``PIP_FIND_LINKS`` or ``find-links``
- no index: ``UV_NO_INDEX``, ``PIP_NO_INDEX`` or ``no-index``
- hosts that may send wheels without TLS and without a hash, all of them: ``UV_INSECURE_HOST``, ``PIP_TRUSTED_HOST`` or
  ``trusted-host``
- certificates: ``PIP_CERT`` or ``cert``, ``SSL_CERT_FILE``, ``SSL_CERT_DIR``
- proxies: ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``

pip's files are its global, user and environment configuration, and ``PIP_CONFIG_FILE``. Their sections ``global`` and
``download`` count. Files of uv are not read.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from pellucid.errors import SourceError
from pellucid.errors.messages import shown

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

    Raises:
        SourceError: neither ``hash`` nor TLS protects the file, and its host is not one of ``trusted_hosts``.
    """
    at = urlsplit(address)
    host = at.hostname or ""
    if (
        hash
        or at.scheme != "http"
        or host in LOOPBACK
        or not {host, f"{host}:{at.port}"}.isdisjoint(trusted_hosts)
    ):
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

    main = [*_words(uv("DEFAULT_INDEX")), *_words(uv("INDEX_URL")), *_words(pip.get("index-url", "")), PYPI]
    more = [*_words(uv("INDEX")), *_words(uv("EXTRA_INDEX_URL")), *_words(pip.get("extra-index-url", ""))]
    links = [*_words(uv("FIND_LINKS").replace(",", " ")), *_words(pip.get("find-links", ""))]
    no_index = any(map(_is_on, (uv("NO_INDEX"), pip.get("no-index", ""))))
    indexes = [] if no_index else list(dict.fromkeys(map(_address, [main[0], *more])))
    trusted = [*_words(uv("INSECURE_HOST").replace(",", " ")), *_words(pip.get("trusted-host", ""))]
    return IndexSettings(tuple(indexes), tuple(dict.fromkeys(links)), pip.get("cert"), tuple(trusted))


def _words(text: str) -> list[str]:
    return text.split()


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
