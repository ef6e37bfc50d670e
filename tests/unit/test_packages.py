"""The sdist has all files of the repository, and a wheel that is built from it works. The description suits PyPI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import pellucid

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    (archive,) = SdistBuilder(str(ROOT)).build(directory=str(folder))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / f"pellucid-{pellucid.__version__}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is built from the sdist."""
    (path,) = WheelBuilder(str(sdist)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    return Path(path)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def tracked() -> set[str]:
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("needs git and a checkout")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_sdist_has_every_file_of_the_repository(sdist: Path) -> None:
    assert sorted(tracked() - names(sdist)) == []


def test_a_wheel_from_the_sdist_has_every_file_of_the_package(sdist: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    source = {name.removeprefix("src/") for name in names(sdist) if name.startswith("src/pellucid/")}
    assert source
    assert sorted(source - packed) == []


def test_a_wheel_from_the_sdist_can_be_imported(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import pellucid, pellucid.trace, pellucid.testing; from pellucid.tokenize import load_tokenizer; "
        "print(pellucid.__file__, pellucid.load, pellucid.trace.attribute)"
    )
    for arguments in (["-c", code], ["-m", "pellucid", "--version"]):
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert str(tmp_path) in done.stdout or done.stdout == f"pellucid {pellucid.__version__}\n"


def test_the_metadata_suits_pypi(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    assert metadata["Version"] == pellucid.__version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    addresses = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= set(addresses)
    text = str(metadata.get_payload(decode=True), "utf-8")  # type: ignore[arg-type]
    prose = re.sub(r"^```.*?^```|^ {4}.*?$|`[^`]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", prose)
    assert len(links) > 10
    assert [link for _, link in links if not link.startswith("https://")] == []
    repository = addresses["Repository"]
    assert [link for picture, link in links if picture] == [f"{repository}/raw/main/docs/images/page.png"]
    for anchor_or_file in ("#status", "/blob/main/docs/tracing.md", "/blob/main/SECURITY.md"):
        assert f"({repository}{anchor_or_file})" in text


def test_the_changelog_begins_with_this_version() -> None:
    (version, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert version == pellucid.__version__
