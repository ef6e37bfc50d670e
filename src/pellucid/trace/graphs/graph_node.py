"""`GraphNode`: a node of an attribution graph."""

from __future__ import annotations

from typing import NamedTuple


class NeuronPlace(NamedTuple):
    """The place of a neuron's value: its ``number`` at the hook point ``point``, of a chosen ``expert`` or None."""

    point: str
    expert: int | None
    number: int

    @property
    def down(self) -> str:
        """The slot of the matrix, or of the experts' matrices, that read the neuron, as in ``neurons.py``."""
        return f"{self.point.removesuffix('hidden')}down.weight"


class GraphNode(NamedTuple):
    """A node: a value of ``kind`` at a ``layer`` and a token (``position``).

    ``kind`` is "embedding", "position", "feature", "neuron", "head", "error" (of a feed-forward: what its units in the
    graph leave out), or "logit".

    ``number`` is the number of the feature, neuron or head, or the id of the token. ``text`` is the text of a token, or
    the expert and the neuron of a mixture, such as "3.170": its ``number`` counts the neurons of all experts.
    ``activation`` is the value of the node: of a head its part of the weighted sum of the targets. ``weight`` is the
    weight of a target.
    """

    kind: str
    layer: int | None
    position: int
    number: int
    activation: float = 0.0
    text: str = ""
    weight: float = 0.0

    @property
    def neuron(self) -> NeuronPlace:
        """The place of a neuron, whose ``text`` is its label (``ExpertNeurons.label``)."""
        stage, (expert, _, number) = f"blocks.{self.layer}.feedforward", self.text.partition(".")
        if not expert:
            return NeuronPlace(f"{stage}.hidden", None, self.number)
        if expert == "shared":
            return NeuronPlace(f"{stage}.shared.hidden", None, int(number))
        return NeuronPlace(f"{stage}.experts.hidden", int(expert), int(number))

    @property
    def name(self) -> str:
        """A short name, such as "neuron 5.170 at 3"."""
        if self.kind in ("embedding", "logit"):
            return f"{self.kind} {self.text!r}" + (f" at {self.position}" if self.kind == "embedding" else "")
        if self.kind in ("error", "position"):
            return f"{self.kind}{'' if self.layer is None else f' {self.layer}'} at {self.position}"
        return f"{self.kind} {self.layer}.{self.text or self.number} at {self.position}"
