"""Names of hooks in TransformerLens and of modules in transformers, as the points of a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from msgspec import Struct

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.plan.points import Point

NAME = re.compile(r"(?:(?:[a-z_]+\.)*(?:blocks|layers|h)\.(?P<block>\d{1,6}))?\.?(?P<value>.*)")
"""A name: a list of blocks with the number of a block, and the name of a value in the block."""
BEFORE = ("blocks.M.residual", "embed.norm", "position", "embed.widen", "embed")
AFTER = ("blocks.N.residual",)
MIDDLE = ("blocks.N.attention.residual",)
HEADS = ("blocks.N.attention.heads",)
ATTENTION = ("blocks.N.attention.output",)
FEEDFORWARD = ("blocks.N.feedforward.output",)
INTO_FEEDFORWARD = ("blocks.N.feedforward.norm",)
OF_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "hook_resid_pre": BEFORE,
    "hook_in": BEFORE,
    "hook_resid_mid": MIDDLE,
    "hook_mlp_in": MIDDLE,
    "hook_resid_post": AFTER,
    "hook_out": AFTER,
    "hook_attn_out": ("blocks.N.attention.post_norm", *ATTENTION),
    "hook_mlp_out": ("blocks.N.feedforward.post_norm", *FEEDFORWARD),
    "attn.hook_z": HEADS,
    "ln1.hook_out": ("blocks.N.attention.norm",),
    "ln2.hook_out": INTO_FEEDFORWARD,
    "ln2.hook_normalized": INTO_FEEDFORWARD,
    "mlp.hook_in": INTO_FEEDFORWARD,
    "mlp.hook_post": ("blocks.N.feedforward.hidden",),
    "mlp.hook_out": FEEDFORWARD,
    # Names of modules in transformers.
    "": AFTER,
    "output": AFTER,
    "self_attn": ATTENTION,
    "self_attn.o_proj.input": HEADS,
    "post_attention_layernorm.output": ("blocks.N.attention.post_norm",),
    "pre_feedforward_layernorm.output": INTO_FEEDFORWARD,
    "mlp.input": INTO_FEEDFORWARD,
    "mlp": FEEDFORWARD,
    "mlp.output": FEEDFORWARD,
    "post_feedforward_layernorm.output": ("blocks.N.feedforward.post_norm",),
}
"""The points that can have a value of block N, or of the block M before it. The first that the model has is used."""
OUTSIDE: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("hook_embed", "embed_tokens"), ("embed.norm", "embed")
)
UNWEIGHTED = ".hook_normalized"
"""The end of a name of normalised values before the weights of the norm, which the point includes."""


class HookedPoint(Struct, frozen=True):
    """The point with a hook's values, or with the values of one ``head``.

    With ``norm``, the values of the point are divided by the weights of this slot.
    """

    point: Point
    head: int | None = None
    norm: str = ""

    @property
    def name(self) -> str:
        """The point, with the head in a bracket, as in a selection."""
        return self.point.name if self.head is None else f"{self.point.name}[heads={self.head}]"

    @property
    def width(self) -> int:
        """The number of values of a token."""
        return self.point.view.count if self.head is not None else math.prod(self.point.sizes)

    def at(self, tokens: str) -> str:
        """The selection of the values at the positions ``tokens``."""
        parts = [f"heads={self.head}"] * (self.head is not None) + [f"tokens={tokens}"] * (tokens != ":")
        return f"{self.point.name}[{'; '.join(parts)}]" if parts else self.point.name


def point_of_hook(points: Mapping[str, Point], hook: str) -> HookedPoint:
    """The point of a hook, whose name may also be a point's own name; "hook_z[heads=3]" is one head.

    Raises:
        InvalidRequest: the model does not have the hook, or the point is no vector.
    """
    name, bracket, head = hook.partition("[heads=")
    found = points.get(name)
    if found is None and (match := NAME.fullmatch(name)):
        block = None if match["block"] is None else int(match["block"])
        names = OUTSIDE.get(match["value"], ()) if block is None else OF_BLOCKS.get(match["value"], ())
        if block is not None:
            names = tuple(
                one.replace(".N.", f".{block}.").replace(".M.", f".{block - 1}.")
                for one in (names[:1] if names is BEFORE and block else names)
            )
        found = next((points[one] for one in names if one in points), None)
    if found is None:
        blocks = len({name.split(".")[1] for name in points if name.startswith("blocks.")})
        raise InvalidRequest(
            f"hook {brief(hook)}: the model has no such values; it has {blocks} blocks, and `pellucid points` lists all"
        )
    if found.kind != "value" or found.dtype != "float32" or found.rows == "sequences":
        raise InvalidRequest(f"hook {brief(hook)}: {found.name} is no vector of each token")
    number = int(head[:-1]) if bracket and head[:-1].isdecimal() else None
    if bracket and (number is None or number >= found.heads):
        raise InvalidRequest(f"hook {brief(hook)}: {found.name} has {found.heads} heads, numbered from 0")
    return HookedPoint(found, number, f"{found.name}.weight" if hook.endswith(UNWEIGHTED) else "")
