"""The project's description on PyPI: the README with absolute links. The build backend calls the hook.

On PyPI, relative links and pictures lead nowhere, and headings have no anchors.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Description(MetadataHookInterface):
    """Adds the description to the metadata of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by Hatchling. The address of the repository is in ``project.urls``."""
        root = Path(self.root)
        relinked = runpy.run_path(str(root / "docs" / "website" / "links.py"))["relinked"]
        address = metadata["urls"]["Repository"]

        def absolute(link: str, picture: bool) -> str:
            return (
                address + link
                if link.startswith("#")
                else f"{address}/{'raw' if picture else 'blob'}/main/{link}"
            )

        text = relinked((root / "README.md").read_text(encoding="utf-8"), absolute)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
