"""`GraphNode`: a node of an attribution graph."""

from __future__ import annotations

from typing import NamedTuple


class GraphNode(NamedTuple):
    """A node: a value of ``kind`` at a ``layer`` and a token (``position``).

    ``kind`` is "embedding", "position", "feature", "neuron", "head", "error" (of a feed-forward: what its units in the
    graph leave out), or "logit".

    ``number`` is the number of the feature, neuron or head, or the id of the token. ``activation`` is the value of the
    node: of a head its part of the weighted sum of the targets. ``weight`` is the weight of a target.
    """

    kind: str
    layer: int | None
    position: int
    number: int
    activation: float = 0.0
    text: str = ""
    weight: float = 0.0

    @property
    def name(self) -> str:
        """A short name, such as "neuron 5.170 at 3"."""
        if self.kind in ("embedding", "logit"):
            return f"{self.kind} {self.text!r}" + (f" at {self.position}" if self.kind == "embedding" else "")
        if self.kind in ("error", "position"):
            return f"{self.kind}{'' if self.layer is None else f' {self.layer}'} at {self.position}"
        return f"{self.kind} {self.layer}.{self.number} at {self.position}"
