"""Facts about a model of the catalogue: who published it, under which licence, and what its packages are."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pellucid.cli import common

if TYPE_CHECKING:
    from pellucid.weights.catalogue import CatalogueModel
    from pellucid.weights.sources.source import DownloadProgress

NOT_RUN = "Nothing of a package is installed or run: only the listed files are copied, and their SHA-256 is checked."


def facts_of(model: CatalogueModel) -> dict[str, Any]:
    """The facts, by name. The hash is the hash of the model's weights."""
    return {
        "publisher": model.publisher,
        "licence": model.licence,
        "download": f"{model.bytes / 1e6:.1f} MB",
        "sha256": model.weights.sha256,
        "origin": model.origin,
    }


class Announced:
    """A ``DownloadProgress`` that prints the facts of a catalogue model on standard error when its download begins."""

    def __init__(self, name: str, progress: DownloadProgress) -> None:
        from pellucid.weights.catalogue import find

        self._model, self._progress = find(name), progress

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """Report the progress of the download, or of the check of a local file."""
        from pellucid.weights.sources.source import CHECKING

        if self._model is not None and not label.startswith(CHECKING):
            facts = {"model": f"{self._model.name}, {self._model.description}", **facts_of(self._model)}
            common.print_facts(facts, file=sys.stderr)
            self._model = None
        self._progress.update(done_bytes, total_bytes, label)
