"""Hatch's hooks: the description and the dependencies of a distribution, and the contents of a wheel.

A wheel that ``make wheel`` builds has the kernels of one system, whose name ``PELLUCID_WHEEL`` states, and needs no
compiler. Any other installation (from a clone, from the sdist) compiles its kernels at their first use, so it depends
on Numba.

The description is the README with absolute links, because on PyPI relative links and pictures lead nowhere, and
headings have no anchors.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "PELLUCID_WHEEL"
FOLDER = "src/pellucid/kernels/objects"
PLATFORMS = {
    "linux-x86_64": "manylinux_2_17_x86_64.manylinux2014_x86_64.musllinux_1_1_x86_64",
    "linux-aarch64": "manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64",
    "darwin-aarch64": "macosx_11_0_arm64",
    "darwin-x86_64": "macosx_10_15_x86_64",
    "windows-x86_64": "win_amd64",
}
"""The systems of wheels, with the tags of their platforms."""


def system() -> str:
    """The system whose kernels the wheel has; "" for none.

    Raises:
        ValueError: ``PELLUCID_WHEEL`` names no system of ``PLATFORMS``.
    """
    name = os.environ.get(VARIABLE, "")
    if name and name not in PLATFORMS:
        raise ValueError(f"{VARIABLE}={name}: wheels have the kernels of {', '.join(PLATFORMS)}")
    return name


class Metadata(MetadataHookInterface):
    """Adds the description, and the compiler to the dependencies of distributions without kernels."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by Hatchling. The address of the repository is in ``project.urls``."""
        always, compiler = self.config["always"], metadata["optional-dependencies"]["compile"]
        metadata["dependencies"] = [*always, *([] if system() else compiler)]
        text = _description(Path(self.root), metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def _description(root: Path, address: str) -> str:
    relinked = runpy.run_path(str(root / "docs" / "website" / "links.py"))["relinked"]

    def absolute(link: str, picture: bool) -> str:
        return address + link if link.startswith("#") else f"{address}/{'raw' if picture else 'blob'}/main/{link}"

    text: str = relinked((root / "README.md").read_text(encoding="utf-8"), absolute)
    return text


class Kernels(BuildHookInterface[Any]):
    """Puts the kernels of a system into a wheel, and its platform into the wheel's name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not (name := system()) or self.target_name != "wheel" or version == "editable":
            return
        files = sorted(Path(self.root, FOLDER).glob(f"{name}-*.kernels"))
        if not files:
            raise FileNotFoundError(f"no kernels of {name} in {FOLDER}: run make kernels first")
        build_data["artifacts"] += [f"/{FOLDER}/{file.name}" for file in files]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{PLATFORMS[name]}"
