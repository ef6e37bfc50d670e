"""Names of hooks in TransformerLens and of modules in transformers, as the points of a model.

The names of TransformerLens are in ``trace/transformer_lens_names.py``. Files of dictionaries also name modules of
transformers, and values that TransformerLens has before the weights of a norm, or as a copy for one reader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from msgspec import Struct

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.plan.points import Point
from pellucid.trace.transformer_lens_names import hooks_of

NAME = re.compile(r"(?:(?:[a-z_]+\.)*(?:blocks|layers|h)\.(?P<block>\d{1,6}))?\.?(?P<value>.*)")
"""A name: a list of blocks with the number of a block, and the name of a value in the block."""
UNWEIGHTED = ".hook_normalized"
"""The end of a name of normalised values before the weights of the norm, which the point includes."""
OF_BLOCKS: Mapping[str, str] = {
    "hook_mlp_in": "hook_resid_mid",
    "mlp.hook_in": "ln2.hook_out",
    "ln2.hook_normalized": "ln2.hook_out",
    # Names of modules in transformers.
    "": "hook_resid_post",
    "output": "hook_resid_post",
    "self_attn": "attn.hook_out",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_attention_layernorm.output": "ln1_post.hook_out",
    "pre_feedforward_layernorm.output": "ln2.hook_out",
    "mlp.input": "ln2.hook_out",
    "mlp": "mlp.hook_out",
    "mlp.output": "mlp.hook_out",
    "post_feedforward_layernorm.output": "ln2_post.hook_out",
}
"""The hook of TransformerLens with the values of another name, in a block."""
OUTSIDE: Mapping[str, str] = {"embed_tokens": "hook_embed"}


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


def block_of_hook(hook: str) -> int | None:
    """The number of the block in the name of a hook; None if it names no block."""
    match = NAME.fullmatch(hook)
    return int(match["block"]) if match and match["block"] is not None else None


def point_of_hook(points: Mapping[str, Point], hook: str) -> HookedPoint:
    """The point of a hook, whose name may also be a point's own name; "hook_z[heads=3]" is one head.

    Raises:
        InvalidRequest: the model does not have the hook, or the point is no vector.
    """
    name, bracket, head = hook.partition("[heads=")
    found = points.get(name)
    if found is None and (match := NAME.fullmatch(name)):
        block, value = match["block"], match["value"]
        wanted = OUTSIDE.get(value, value) if block is None else f"blocks.{int(block)}.{OF_BLOCKS.get(value, value)}"
        found = points.get(hooks_of(points).get(wanted, ""))
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
