"""Names of TransformerLens for points: "blocks.5.attn.hook_pattern" is "blocks.5.attention.pattern".

``HOOKS`` maps a name of TransformerLens to the points with its values and its shape. ``N`` is the number of a block,
and ``N-1`` the number of the block before it. A model has the hook if it has one of the points; the first is used.
Names and values are from ``TransformerBridge.boot_transformers`` of TransformerLens 4.3, which folds no layer norm into
weights, and the names also from ``HookedTransformer``. ``tests/oracles/hooks_oracle.py`` compares names, shapes and
values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from pellucid.plan.points import Point

MARK = "hook"  # a part of each name of TransformerLens, and of no point's name


class Hook(Struct, frozen=True):
    """The ``points`` that can have a hook's values; the first that the model has is used.

    The model must have the point ``needs`` and none of the points ``unless``. With ``is_middle``, the value must be the
    residual stream between the two norms of a block. With ``unscaled``, the point must not be ``scaled``.
    """

    points: tuple[str, ...]
    needs: str = ""
    unless: tuple[str, ...] = ()
    is_middle: bool = False
    unscaled: bool = False


SEVERAL_STREAMS = ("blocks.N.altup.predicted",)
LATENT = ("blocks.N.attention.latent",)  # in latent attention, queries of TransformerLens are other values
GATED = ("blocks.N.attention.gated",)
"""In gated attention, TransformerLens has the gates among the queries, and the heads after their gates."""
BEFORE = Hook(
    ("blocks.N-1.residual", "embed.norm", "position", "embed.widen", "embed"),
    unless=(*SEVERAL_STREAMS, "decision.norm"),
)
MIDDLE = Hook(("blocks.N.recurrent.residual", "blocks.N.attention.residual"), unless=SEVERAL_STREAMS, is_middle=True)
AFTER = Hook(("blocks.N.residual",), unless=SEVERAL_STREAMS)
QUERIES = Hook(("blocks.N.attention.q",), unless=(*LATENT, *GATED))
KEYS, VALUES = Hook(("blocks.N.attention.k",)), Hook(("blocks.N.attention.v",))
HEADS = Hook(("blocks.N.attention.heads",), unless=GATED)
UP = Hook(("blocks.N.feedforward.up",))
HIDDEN = Hook(("blocks.N.feedforward.hidden",))
LOGITS = Hook(("project.logits",), unscaled=True)

HOOKS: Mapping[str, Hook] = {
    "hook_embed": Hook(("embed.norm", "embed")),
    "embed.hook_out": Hook(("embed",)),
    "blocks.N.hook_resid_pre": BEFORE,
    "blocks.N.hook_in": BEFORE,
    "blocks.N.ln1.hook_out": Hook(("blocks.N.attention.norm", "blocks.N.recurrent.norm")),
    "blocks.N.attn.hook_q": QUERIES,
    "blocks.N.attn.q.hook_out": QUERIES,
    "blocks.N.attn.hook_k": KEYS,
    "blocks.N.attn.k.hook_out": KEYS,
    "blocks.N.attn.hook_v": VALUES,
    "blocks.N.attn.v.hook_out": VALUES,
    "blocks.N.attn.hook_rot_q": Hook(("blocks.N.attention.q_scale", "blocks.N.attention.q_rotary"), unless=LATENT),
    "blocks.N.attn.hook_rot_k": Hook(("blocks.N.attention.k_rotary",), unless=LATENT),
    "blocks.N.attn.hook_attn_scores": Hook(("blocks.N.attention.scores",)),
    "blocks.N.attn.hook_pattern": Hook(("blocks.N.attention.pattern",)),
    "blocks.N.attn.hook_z": HEADS,
    "blocks.N.attn.o.hook_in": HEADS,
    "blocks.N.attn.hook_out": Hook(("blocks.N.attention.output",)),
    "blocks.N.hook_attn_out": Hook(("blocks.N.attention.post_norm", "blocks.N.attention.output"), unscaled=True),
    "blocks.N.ln1_post.hook_out": Hook(("blocks.N.attention.post_norm",)),
    "blocks.N.hook_resid_mid": MIDDLE,
    "blocks.N.ln2.hook_out": Hook(("blocks.N.feedforward.norm",)),
    "blocks.N.mlp.hook_pre": Hook(("blocks.N.feedforward.gate", "blocks.N.feedforward.up")),
    "blocks.N.mlp.gate.hook_out": Hook(("blocks.N.feedforward.gate",)),
    "blocks.N.mlp.hook_pre_linear": Hook(("blocks.N.feedforward.up",), needs="blocks.N.feedforward.gate"),
    "blocks.N.mlp.in.hook_out": UP,
    "blocks.N.mlp.hook_post": HIDDEN,
    "blocks.N.mlp.out.hook_in": HIDDEN,
    # TransformerLens has the shared expert alone.
    "blocks.N.mlp.hook_out": Hook(("blocks.N.feedforward.output",), unless=("blocks.N.feedforward.shared_post_norm",)),
    "blocks.N.hook_mlp_out": Hook(("blocks.N.feedforward.post_norm", "blocks.N.feedforward.output"), unscaled=True),
    "blocks.N.ln2_post.hook_out": Hook(("blocks.N.feedforward.post_norm",)),
    "blocks.N.hook_resid_post": AFTER,
    "blocks.N.hook_out": AFTER,
    "ln_final.hook_out": Hook(("norm",)),
    "unembed.hook_in": Hook(("project.narrow", "norm")),
    "unembed.hook_out": LOGITS,
    "hook_unembed": LOGITS,
}
COPIES = "it is a copy of the residual stream for one reader: edit hook_resid_pre, hook_resid_mid or ln1.hook_out"
ABSENT: Mapping[str, str] = {
    "hook_pos_embed": "the position is added to the embedding at once: position has the sum",
    "hook_result": "the output of a single head is not computed: hook_z has the heads before the output matrix, and "
    "attribute() the contributions of heads",
    "hook_normalized": "it comes before the weights of the norm, which are applied at once: ln1.hook_out comes after",
    "hook_scale": "the divisor of a norm is not a value of the plan",
    "hook_attn_in": COPIES,
    "hook_q_input": COPIES,
    "hook_k_input": COPIES,
    "hook_v_input": COPIES,
    "hook_mlp_in": COPIES,
    "hook_expert_weights": "it has all experts: feedforward.expert_weights has the chosen experts",
    "hook_expert_indices": "it has no dimension of sequences: feedforward.experts has the chosen experts",
    "hook_cos": "position.angles has cosines and sines",
    "hook_sin": "position.angles has cosines and sines",
}
"""The last parts of names that no model has as a point, and the reason with the remedy."""


def hooks_of(points: Mapping[str, Point]) -> dict[str, str]:
    """The names of TransformerLens that a model has, with the names of their points, in the order of ``HOOKS``."""
    blocks = sorted({int(name.split(".")[1]) for name in points if name.startswith("blocks.")})
    found = {name: _point(points, hook, block) for name, (hook, block) in names_of_blocks(blocks).items()}
    return {name: point for name, point in found.items() if point is not None}


def names_of_blocks(blocks: Sequence[int]) -> dict[str, tuple[Hook, int]]:
    return {
        _of_block(name, block): (hook, block)
        for name, hook in HOOKS.items()
        for block in (blocks if ".N." in name else [0])
    }


def why_absent(name: str) -> str:
    """Why a name of TransformerLens is no point, after a colon; "" if there is no particular reason."""
    reason = ABSENT.get(name.split(".")[-1])
    return f": {reason}" if reason else ""


def _point(points: Mapping[str, Point], hook: Hook, block: int) -> str | None:
    if hook.needs and _of_block(hook.needs, block) not in points:
        return None
    if any(_of_block(name, block) in points for name in hook.unless):
        return None
    names = (_of_block(name, block) for name in hook.points)
    point = next((points[name] for name in names if name in points), None)
    if point is None or (hook.unscaled and point.scaled) or (hook.is_middle and not _is_middle(points, point)):
        return None
    return point.name


def _is_middle(points: Mapping[str, Point], point: Point) -> bool:
    """True if the value is computed between the norms of its block, or if the block has neither norm."""
    block = ".".join(point.name.split(".")[:2])
    mixers = (f"{block}.attention.norm", f"{block}.recurrent.norm")
    first = next((points[name].operation for name in mixers if name in points), None)
    last = points.get(f"{block}.feedforward.norm")
    if first is None or last is None:
        return first is None and last is None
    return first < point.operation < last.operation


def _of_block(name: str, block: int) -> str:
    return name.replace(".N-1.", f".{block - 1}.").replace(".N.", f".{block}.")
