"""The head of llama.cpp's decision type "clef", which scores the options of all questions of a prompt together.

The language model gives the normalised vector of each token. The other tensors of the head are read when it is used
(``decide/joint_scores.py``); here their shapes are checked.

Dimensions: D width of the model, W width of the head, F width of its feed-forwards.

Source: ``load_arch_tensors`` in llama.cpp's src/models/clef.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from pellucid.errors import FileFormatError
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.output_heads import OutputParts
from pellucid.model.shapes import Shape
from pellucid.model.spec import Norm
from pellucid.model.weight_map import Slot
from pellucid.weights.checkpoint import Checkpoint

CLEF = "clef"
TYPES = 3
"""Number of types of questions: "noul", "choice" and "score", in the order of their vectors."""
HIDDEN_NORM, MEMORY = "decision.hidden_norm", "decision.proj_memory"
PROJECTIONS = ("memory", "question", "option_question", "global", "option_context", "option_lexical")


class JointHead(Struct, frozen=True):
    """The dimensions of a joint head.

    The ``routing`` blocks come first: options read the prompt. In the ``joint`` blocks after them, questions read each
    other and the prompt. ``eps`` is the epsilon of all norms, which are layer normalizations.
    """

    routing: int
    joint: int
    heads: int
    width: int
    inner: int
    eps: float


def joint_head(checkpoint: Checkpoint, own: Config) -> JointHead:
    """The dimensions of a file's joint head. ``own`` adds the architecture to its keys.

    Raises:
        FileFormatError: a key or a tensor is missing or wrong.
    """
    routing = own.optional_count("decision.routing_block_count", required=True, limit=MAX_LAYERS)
    joint = own.optional_count("decision.block_count", required=True, limit=MAX_LAYERS)
    if not routing + joint:
        raise own.error(
            "decision.block_count", "is 0, and so is decision.routing_block_count: the head needs a block"
        )
    width, inner = (_rows(checkpoint, name) for name in (f"{MEMORY}.weight", "dec.blk.0.ffn_up.weight"))
    heads = own.divisor("decision.head_count", MEMORY, of=width)
    eps = own.number("attention.layer_norm_epsilon")
    head = JointHead(routing, joint, heads, width, inner, eps)
    for name, shape in joint_shapes(head, own.count("embedding_length")).items():
        tensor = checkpoint.tensors.get(name)
        if tensor is None or tensor.shape != shape:
            found = "tensor missing" if tensor is None else f"tensor has shape {tensor.shape}"
            offset = None if tensor is None else tensor.offset
            raise FileFormatError(checkpoint.path, name, f"{found}; the decision head needs {shape}", offset)
        own.tensors.add(name)
    return head


def joint_outputs(head: JointHead) -> OutputParts:
    """The outputs of a language model with a joint head: the normalised vector of each token."""
    slots = {f"output.0.{part}": Slot(f"{HIDDEN_NORM}.{part}") for part in ("weight", "bias")}
    return OutputParts("decide", None, (Norm("layer", head.eps),), slots)


def joint_shapes(head: JointHead, hidden: int) -> dict[str, Shape]:
    """The tensors of a joint head and their shapes, row-major. ``hidden`` is the width D of the model."""
    return dict(_shapes(head, hidden))


def _shapes(head: JointHead, hidden: int) -> Iterator[tuple[str, Shape]]:
    width = head.width
    for number in range(head.routing + head.joint):
        at = f"dec.blk.{number}"
        routes = number < head.routing
        norms = ("cross_attn_norm_kv",) if routes else ("attn_norm",)
        for norm in (*norms, "cross_attn_norm", "ffn_norm"):
            yield from _norm(f"{at}.{norm}", width)
        for attention in ("cross_attn",) if routes else ("attn", "cross_attn"):
            for part in "qkvo":
                yield from _dense(f"{at}.{attention}_{part}", width, width)
        yield from _dense(f"{at}.ffn_up", head.inner, width)
        yield from _dense(f"{at}.ffn_down", width, head.inner)
    yield from _norm(HIDDEN_NORM, hidden)
    for norm in ("option_summary_norm", "field_norm", "option_norm"):
        yield from _norm(f"decision.{norm}", width)
    for projection in PROJECTIONS:
        yield f"decision.proj_{projection}.weight", (width, hidden)
    yield "decision.scales", (3,)
    yield "token_types.weight", (TYPES, width)
    yield from _dense("decision.scorer", width, 4 * width)
    yield from _dense("decision.scorer_out", 1, width)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _dense(name: str, rows: int, columns: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _rows(checkpoint: Checkpoint, name: str) -> int:
    """The rows of a matrix.

    Raises:
        FileFormatError: the matrix is missing.
    """
    tensor = checkpoint.tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise FileFormatError(
            checkpoint.path, name, f"matrix missing; a model of the decision type {CLEF} needs it"
        )
    return tensor.shape[0]
