"""Points (hook points): the named values of a run that can be recorded and changed.

A point is an output of an operation in the plan before passes. Its name is the name of the operation's stage, such as
"blocks.3.attention.q". Some points have another name, which describes the value instead of the operation (``RENAMED``).
No operation stores the scores and patterns of attention, so they are computed separately. "blocks.3.residual" is the
residual stream after block 3.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from msgspec import Struct

from pellucid.plan.plan import LETTER, Cache, Operation, Plan, RowKind, View
from pellucid.runtime.cache_layout import StateShape

PointKind = Literal["value", "probabilities", "pattern", "scores", "state", "output"]
ENDLESS = 1 << 31  # more tokens than a text has
RESIDUAL = "x"
"""The name of the residual stream's buffer."""
HIDDEN_KERNELS = ("quantize", "pick", "heads")
"""Kernels that copy or convert a value. Their outputs are not points."""
RENAMED = {
    "attention.attend": "attention.heads",
    "feedforward.down": "feedforward.output",
    "feedforward.combine": "feedforward.output",
    "feedforward.route": "feedforward.experts",
    "feedforward.experts.down": "feedforward.experts.output",
    "recurrent.decay": "recurrent.step_softplus",
}
RENAMED_BESIDE: Mapping[str, Mapping[str, str]] = {
    "attention.latent": {
        "attention.q_rotary": "attention.q_rotary_input",
        "attention.k_rotary": "attention.k_rotary_input",
        "attention.q_rotated": "attention.q_rotary",
        "attention.k_rotated": "attention.k_rotary",
        "attention.attend": "attention.latent_heads",
        "attention.v_up": "attention.heads",
    },
    "feedforward.sum": {
        "feedforward.combine": "feedforward.experts_output",
        "feedforward.sum": "feedforward.output",
    },
}
"""Names of stages in blocks that have the stage of the key: there, another stage computes the value of a name."""
SECOND = {
    "feedforward.experts": "feedforward.expert_weights",
    "recurrent.step_softplus": "recurrent.decay",
}
"""Names of an operation's second output, by the name of its first output."""
ABOUT: Mapping[str, str] = {
    "embed": "the token's row of the embedding matrix",
    "embed.types": "the embedding, with the vector of the token's type added",
    "embed.norm": "the normalised sum of the token's vectors",
    "position": "the embedding and the vector of the position",
    "position.angles": "cosines and sines of the angles by which queries and keys are rotated",
    "attention.norm": "the input of attention, normalised",
    "attention.q": "queries, before a rotary position",
    "attention.k": "keys, before a rotary position",
    "attention.v": "values",
    "attention.q_norm": "queries, normalised by head",
    "attention.k_norm": "keys, normalised by head",
    "attention.q_rotary": "queries, rotated by their position",
    "attention.k_rotary": "keys, rotated by their position",
    "attention.q_rotary_input": "the part of the queries that is rotated, before the rotary position",
    "attention.k_rotary_input": "the part of the keys that is rotated, before the rotary position",
    "attention.latent": "the vector that keys and values of all heads are made of",
    "attention.latent_norm": "the same, normalised",
    "attention.k_up": "queries in the space of the latent vectors",
    "attention.latent_heads": "what each head has gathered of the latent vectors",
    "attention.scores": "scores of the tokens that a head sees, before the softmax",
    "attention.pattern": "how much of a head's attention each token gets",
    "attention.heads": "what each head has gathered, before the output projection",
    "attention.output": "what attention adds to the residual stream, before factors and norms after it",
    "attention.post_norm": "the same, normalised",
    "attention.residual": "the residual stream after attention",
    "feedforward.norm": "the input of the feed-forward, normalised",
    "feedforward.gate": "the gate of each neuron, before the activation",
    "feedforward.up": "the projection up: the neurons before an activation, or what gates multiply",
    "feedforward.hidden": "the neurons after the activation",
    "feedforward.experts_output": "the sum of the chosen experts' results, before the norm after it",
    "feedforward.output": "what the feed-forward adds to the residual stream, before factors and norms after it",
    "feedforward.post_norm": "the same, normalised",
    "feedforward.residual": "the residual stream after the feed-forward",
    "recurrent.step": "the step of each head, as the projection gives it",
    "recurrent.step_softplus": "the size of each head's step",
    "recurrent.decay": "what each head's state is multiplied by",
    "recurrent.scan": "what each head has read from its state",
    "recurrent.output": "what the recurrent layer adds to the residual stream, before factors and norms after it",
    "recurrent.residual": "the residual stream after the recurrent layer",
    "feedforward.router": "the router's score of each expert",
    "feedforward.experts": "the experts that the token's router has chosen",
    "feedforward.expert_weights": "the weights of the chosen experts",
    "feedforward.experts.gate": "the gate of each neuron of the chosen experts",
    "feedforward.experts.up": "the projection up of the chosen experts",
    "feedforward.experts.hidden_weighed": "the first projection of the chosen experts, times their weights",
    "feedforward.experts.up_weighed": "the projection up of the chosen experts, times their weights",
    "feedforward.experts.hidden": "the neurons of the chosen experts after the activation",
    "feedforward.experts.output": "the result of each chosen expert, before its weight",
    "residual": "the residual stream after the block",
    "norm": "the last vectors, normalised",
    "project.logits": "the score of each token of the vocabulary",
    "project.probabilities": "the probability of each token of the vocabulary, before the sampler's chain",
    "pool": "the sentence vector",
}
UNITS = {
    "attention.pattern": "probability",
    "feedforward.experts": "expert",
    "project.logits": "nats, up to a constant",
    "project.probabilities": "probability",
}
LETTERS: Mapping[str, tuple[str, ...]] = {
    "q": ("H", "K"), "k": ("G", "K"), "v": ("G", "V"), "q_norm": ("H", "K"), "k_norm": ("G", "K"),
    "v_norm": ("G", "V"), "q_rotary": ("H", "K"), "k_rotary": ("G", "K"), "heads": ("H", "V"), "scan": ("H", "V"),
    "gate": ("F",), "up": ("F",), "hidden": ("F",), "router": ("E",), "experts": ("C",),
    "expert_weights": ("C",), "logits": ("V",), "probabilities": ("V",),
}  # fmt: skip


class AttentionMask(Struct, frozen=True):
    """The attention mask: the tokens that a position sees.

    A ``causal`` mask excludes the tokens after the position. A ``window`` limits the number of tokens up to the
    position (0: no limit). ``chunked`` windows do not overlap. In ``cross`` attention the tokens are the encoder's.
    """

    causal: bool
    window: int
    chunked: bool
    cross: bool

    def seen(self, position: int) -> range:
        """The range of tokens that a position sees. It may go beyond the end of the text."""
        if self.cross:
            return range(ENDLESS)
        first = 0
        if self.window:
            chunk = position // self.window * self.window
            first = chunk if self.chunked else max(0, position - self.window + 1)
        return range(first, position + 1 if self.causal else ENDLESS)


@dataclass(frozen=True)
class Point:
    """A named value: its ``name``, the ``sizes`` and ``letters`` of its last dimensions, a description and a unit.

    ``operation`` is the index of the operation that computes the value, in the plan before passes. ``write`` is the
    index of that operation's output buffer, and ``view`` the place of the value in it. ``rows`` is the kind of rows
    that have the value: after the last block, values are computed only at positions whose logits are needed. ``said``
    and ``measured``, if given, are the description and the unit.

    Values of kind "pattern" and "scores" have a row for each head and token, and the ``mask`` of their attention. Kind
    "probabilities" is the softmax of a value. Kind "state" is a ``part`` of the recurrent state after the last token of
    each step; its ``write`` is the layer of the cache. Kind "output" is not part of the plan (``trace/outputs.py``).
    """

    name: str
    kind: PointKind
    operation: int
    write: int
    view: View
    rows: RowKind
    dtype: str
    letters: tuple[str, ...]
    sizes: tuple[int, ...]
    said: str = ""
    measured: str = ""
    part: str = ""
    mask: AttentionMask | None = None

    def __repr__(self) -> str:
        return f"Point({self.name}, {self.shape} {self.dtype}: {self.about})"

    @property
    def shape(self) -> str:
        """The shape with its sizes, such as "(B, T, H 9, K 64)"; for a pattern "(B, H 9, T, T')", from query to key."""
        if self.kind in ("pattern", "scores"):
            return f"(B, H {self.sizes[0]}, T, T')"
        if self.kind == "output":
            return f"(B, N{''.join(f', {size}' for size in self.sizes)})"
        rows = {"tokens": "T", "outputs": "T", "sequences": ""}.get(self.rows, LETTER[self.rows])
        sized = [f"{letter} {size}" if size else letter for letter, size in zip(self.letters, self.sizes)]
        return f"({', '.join(part for part in ('B', rows, *sized) if part)})"

    @property
    def about(self) -> str:
        """A short description of the value."""
        kind = _kind(self.name)
        return (
            self.said
            or ABOUT.get(kind)
            or ABOUT.get(kind.rstrip(".0123456789"))
            or "what the operation of this name makes"
        )

    @property
    def unit(self) -> str:
        """The unit of the value; "" for values without a unit, such as activations."""
        return self.measured or UNITS.get(_kind(self.name), "")

    @property
    def heads(self) -> int:
        """The number of heads, or other parts, that can be selected; 0 if the point has none."""
        return self.view.parts if len(self.sizes) == 2 else 0


def _kind(name: str) -> str:
    """A point's name without its block, such as "attention.q"."""
    parts = name.split(".")
    return ".".join(parts[2:]) if parts[0] == "blocks" else name


def points_of(plan: Plan) -> dict[str, Point]:
    """The points of a plan by name, in the order of the pipeline."""
    source = plan.source or plan
    found: dict[str, Point] = {}
    for point in _points(source):
        found.setdefault(point.name, point)
    return found


def _points(plan: Plan) -> Iterator[Point]:
    stages = {op.stage for op in plan.operations}
    last_logits = max((i for i, op in enumerate(plan.operations) if plan.output in op.writes), default=-1)
    for number, op in enumerate(plan.operations):
        if op.kernel.name in HIDDEN_KERNELS or (plan.output in op.writes and number != last_logits):
            continue
        name = _renamed(op.stage, stages)
        if op.kernel.name == "attention":
            yield from _patterns(number, op, name)
        yield from _states(plan, number, op)
        if number == last_logits and op.rows == "outputs":
            name = "project.logits"
        for write, view in enumerate(op.views):
            if view is None or (write and _kind(name) not in SECOND):
                continue
            own = name if not write else f"{name.rpartition('.')[0]}.{SECOND[_kind(name)].rpartition('.')[2]}"
            whole = plan.buffers[op.writes[write]].whole
            yield _value(own, number, write, view, op.rows, "int32" if whole else "float32")
            if name == "project.logits":
                yield replace(
                    _value("project.probabilities", number, write, view, op.rows, "float32"),
                    kind="probabilities",
                )
            if write == 1:
                break
        if _ends_block(plan, number):
            at = ".".join(op.stage.split(".")[:2])
            (view,) = op.views[:1]
            if view is not None:
                yield _value(f"{at}.residual", number, 0, view, op.rows, "float32")


def _renamed(stage: str, stages: Container[str]) -> str:
    """The name of a stage's point, in a plan with ``stages``."""
    parts = stage.split(".")
    if parts[0] != "blocks":
        return stage
    block, kind = ".".join(parts[:2]), ".".join(parts[2:])
    for beside, names in RENAMED_BESIDE.items():
        if kind in names and f"{block}.{beside}" in stages:
            return f"{block}.{names[kind]}"
    return f"{block}.{RENAMED.get(kind, kind)}"


def _value(name: str, number: int, write: int, view: View, rows: RowKind, dtype: str) -> Point:
    letters = LETTERS.get(name.rpartition(".")[2], ("D",))
    if view.places:
        letters = ("C", *letters)
    if view.parts > 1 and len(letters) < 2:
        letters = ("H", "K")
    sizes = (view.parts, view.count) if len(letters) == 2 else (view.count,)
    return Point(name, "value", number, write, view, rows, dtype, letters, sizes)


def _patterns(number: int, op: Operation, name: str) -> Iterator[Point]:
    at, heads = name.rpartition(".")[0], op.fields["heads"]
    assert isinstance(heads, int)
    view = View(heads, 0, 0, 0)
    causal, window, chunked, cross = (op.fields[name] for name in ("causal", "window", "chunked", "cross"))
    assert isinstance(window, int)
    mask = AttentionMask(bool(causal), window, bool(chunked), bool(cross))
    for kind in ("scores", "pattern"):
        yield Point(
            f"{at}.{kind}",
            kind,
            number,
            0,
            view,
            "tokens",
            "float32",
            ("H", "T"),
            (heads, 0),
            mask=mask,
        )


def _states(plan: Plan, number: int, op: Operation) -> Iterator[Point]:
    """The points of a recurrent state that an operation writes, one for each part."""
    for value in op.fields.values():
        shape = plan.layers[value.layer] if isinstance(value, Cache) else None
        if isinstance(value, Cache) and isinstance(shape, StateShape):
            size, block = dict(shape.parts)[value.part], ".".join(op.stage.split(".")[:2])
            said = "the recurrent state after the last token of a step" if value.part == "memory" else (
                "what a convolution keeps of the last tokens of a step"
            )  # fmt: skip
            yield Point(
                f"{block}.recurrent.state.{value.part}", "state", number, value.layer, View(1, size, size, size),
                "tokens", "float32", ("S",), (size,), said, part=value.part,
            )  # fmt: skip


def _ends_block(plan: Plan, number: int) -> bool:
    """True if an operation is the last in its block that writes the residual stream."""
    op = plan.operations[number]
    if not op.stage.startswith("blocks.") or RESIDUAL not in op.writes:
        return False
    block = ".".join(op.stage.split(".")[:2]) + "."
    later = plan.operations[number + 1 :]
    return not any(one.stage.startswith(block) and RESIDUAL in one.writes for one in later)
