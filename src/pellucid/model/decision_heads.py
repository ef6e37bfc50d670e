"""The heads and blocks of decision models: scores of options instead of the next token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import FileFormatError, UnsupportedModel, brief
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.gguf_encoder import CLASSIFIER, NORM, gguf_dense
from pellucid.model.metadata import GGUF_PATTERN
from pellucid.model.output_heads import OutputParts
from pellucid.model.outputs import Dense, Head
from pellucid.model.shapes import Shape
from pellucid.model.spec import Attention, Block, DecisionBlocks, FeedForward, ModelSpec, Norm
from pellucid.model.tensor_names import TensorNames
from pellucid.model.text_part import TABLE, TextPart
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

# The head of llama.cpp's decision type "clef", which scores the options of all questions of a prompt together.
#
# The language model gives the normalised vector of each token. The other tensors of the head are read when it is used
# (``decide/joint_scores.py``); here their shapes are checked.
#
# Dimensions: D width of the model, W width of the head, F width of its feed-forwards.
#
# Source: ``load_arch_tensors`` in llama.cpp's src/models/clef.cpp.

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
        raise own.error("decision.block_count", "is 0, and so is decision.routing_block_count: the head needs a block")
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
        raise FileFormatError(checkpoint.path, name, f"matrix missing; a model of the decision type {CLEF} needs it")
    return tensor.shape[0]


# The head of llama.cpp's decision type "kev": a query and a key for each token.
#
#     [q | k] = W x + b      x: the normalised vector of a token (D,); q and k: (P,)
#
# The score of an option is the product of the query of the prompt's last token and the key of the option's last token
# (``decide/option_layouts.py``).
#
# Source: ``KevModel`` in llama.cpp's conversion/lev.py, and src/models/qwen35.cpp.

KEV = "kev"
OUTPUT_WIDTH = "embedding_length_out"


def pointer_head(checkpoint: Checkpoint, own: Config) -> OutputParts:
    """The outputs of a language model with a pointer head. ``own`` adds the architecture to its keys.

    Raises:
        FileFormatError: the head is missing, or its width is not twice the width of a key.
    """
    name, slots = CLASSIFIER[1], dict[str, Slot]()
    if f"{name}.weight" not in checkpoint.tensors:
        raise FileFormatError(
            checkpoint.path, f"{name}.weight", f"tensor missing; a model of the decision type {KEV} needs it"
        )
    dense = gguf_dense(checkpoint, name, 0, slots)
    own.check_count(OUTPUT_WIDTH, dense.width, f"the rows of {name}.weight")
    if dense.width % 2:
        raise own.error(OUTPUT_WIDTH, f"is {dense.width:,}; it must be even: queries and keys have equal widths")
    return OutputParts("decide", None, (dense,), slots)


# Decision models with a head of their own: a projection to the scores of labels instead of tokens (Jev).
#
#     scores = softcap(W x + b)      x: the normalised vector of a token
#
# The options of a question have consecutive columns.
# ``config.json`` has ``model_type`` "jev", the configuration of the language model in ``text_config``, and
# ``num_verbalizers``, the number of columns. ``offsets`` are the first columns of each question type.
#
# Source: ``transformers.models.jev.modeling_jev``, version 5.24.

MODEL_TYPE, WEIGHT, BIAS = "jev", "proj.weight", "proj.bias"
OFFSETS: Mapping[str, int] = {"noul": 0, "score": 2, "choice": 8}
"""The offsets of a file that states none."""


def is_headed(checkpoint: Checkpoint) -> bool:
    """True if a checkpoint is a decision model with a head of its own."""
    stated = checkpoint.kind == "safetensors" and checkpoint.metadata.get("model_type") == MODEL_TYPE
    return stated and isinstance(checkpoint.metadata.get(TABLE), Mapping)


def offsets_of(checkpoint: Checkpoint) -> dict[str, int]:
    """The first column of each question type.

    Raises:
        FileFormatError: they are no columns of the head.
    """
    stated = checkpoint.metadata.get("offsets")
    offsets: Any = dict(OFFSETS) if stated is None else stated
    columns = Config(checkpoint.metadata, checkpoint.path).count("num_verbalizers", 24)
    good = isinstance(offsets, dict) and set(offsets) == set(OFFSETS)
    if not good or not all(type(one) is int and 0 <= one < columns for one in offsets.values()):
        raise FileFormatError(
            checkpoint.path, "offsets", f"is {brief(stated)}: must be a column for each of {', '.join(OFFSETS)}"
        )
    return dict(offsets)


class HeadedPart(TextPart):
    """The language model of a headed checkpoint, with the tensors of the head."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        own = [name for name in (WEIGHT, BIAS) if name in checkpoint.tensors]
        self.original |= {name: name for name in own}
        self.tensors = {**self.tensors, **{name: checkpoint.tensors[name] for name in own}}
        self.others = [name for name in self.others if name not in own]

    def headed(self, model: Model) -> Model:
        """The model with the head of the file."""
        top = Config(self._whole.metadata, self.path)
        columns = top.count("num_verbalizers", 24)
        head = Head(tied=False, bias=True, softcap=top.optional_number("softcap", 0.0), labels=columns)
        slots = {**model.slots, "project.weight": Slot(WEIGHT), "project.bias": Slot(BIAS)}
        return replace(model, spec=replace(model.spec, head=head, task="decide"), slots=slots)


# Reads the decision blocks of an encoder in GGUF: llama.cpp's decision types "laya" and "lfm2-d1-omni".
#
#     h = norm(encoder(tokens)) + types[type of the question]             (T, D)
#     h = block(h), ``decision.block_count`` times: all tokens see each other, without positions
#     score = W2 gelu(W1 norm(h) + b1) + b2                               at the mark of each option
#
# The decision blocks follow the blocks of the encoder: ``block_count`` and the lists by layer count both. llama.cpp
# computes the scores of all three types of questions; here a prompt has the type of its question as its token type.
#
# Source: ``build_decision_head`` in llama.cpp's src/models/modern-bert.cpp and src/models/lfm2.cpp.

LAYA, OMNI = "laya", "lfm2-d1-omni"
"""The types of decision models with decision blocks: a ModernBERT and an LFM2."""
QUESTION_TYPES = 3
"""Number of types of questions: "choice", "score" and "noul", in the order of their vectors."""
BLOCKS, WIDTH, COUNT = "block_count", "feed_forward_length", "decision.block_count"
KV_HEADS = "attention.head_count_kv"
FUSED = {"attention.q,k,v": "attn_qkv"}
"""The name of a tensor that decision blocks have in place of queries, keys and values."""


def has_decision_blocks(own: Config, implemented: str) -> bool:
    """True if a file states decision blocks of the type ``implemented``. ``own`` adds the architecture to its keys.

    Raises:
        UnsupportedModel: the file has decision blocks of another type.
    """
    kind = own.value("decision.type")
    if kind != implemented and own.has(COUNT):
        raise UnsupportedModel(
            f"{own.path.name}: decision blocks of the type {brief(kind)} ({own.name('decision.type')}) are not "
            f"implemented for this architecture; implemented is {implemented}"
        )
    return bool(kind == implemented)


def without_decision(own: Config) -> tuple[Config, list[int]]:
    """The metadata of the encoder alone, and the feed-forward width of each decision block.

    All heads of a decision block have their own keys and values.

    Raises:
        FileFormatError: the file has no block of the encoder, or blocks with different feed-forward widths in it.
    """
    blocks = own.count(BLOCKS, limit=MAX_LAYERS)
    encoder = blocks - own.count(COUNT, limit=blocks - 1)
    widths = own.by_layer(WIDTH, blocks)
    if len(set(widths[:encoder])) > 1 or not all(widths):
        raise own.error(WIDTH, f"is {widths}: the {encoder} blocks of the encoder must have one width above 0")
    values = {BLOCKS: encoder, WIDTH: widths[0]}
    if own.is_list(GGUF_PATTERN):
        values[GGUF_PATTERN] = (own.flags(GGUF_PATTERN, blocks) or [])[:encoder]
    if own.is_list(KV_HEADS):
        heads, kv_heads = own.count("attention.head_count"), own.by_layer(KV_HEADS, blocks)
        if set(kv_heads[encoder:]) != {heads}:
            raise own.error(KV_HEADS, f"is {kv_heads}: the {blocks - encoder} decision blocks must have {heads}")
        values[KV_HEADS] = kv_heads[:encoder]
    own.value("pooling_type")  # has no effect: scores are read at marks
    changed = {own.name(key): value for key, value in values.items()}
    return replace(own, values={**own.values, **changed}), widths[encoder:]


def with_decision(
    own: Config, body: ModelSpec, norm: Norm, names: TensorNames, final_norm: str, widths: Sequence[int]
) -> Model:
    """The model of an encoder ``body`` with decision blocks of the feed-forward ``widths``, and its scorer.

    The blocks have the heads of the encoder's attention, without positions, windows and norms of heads, and each head
    has its own keys and values. ``norm`` is the norm of the blocks and of the scorer. ``names`` are the names of the
    encoder's tensors, and ``final_norm`` is the name of its final norm.
    """
    assert body.final_norm
    kind, width = body.attention, body.embedding.width
    attention = Attention(kind.heads, kind.heads, kind.head_dim, kind.scale, causal=False, bias=True, output_bias=True)
    blocks = tuple(
        Block(attention, FeedForward(inner, "relu", gated=False, bias=True), norm, "pre") for inner in widths
    )
    spec = replace(
        body,
        embedding=replace(body.embedding, types=0),  # the file's token types belong to questions
        blocks=(*body.blocks, *blocks),
        decision=DecisionBlocks(len(blocks), body.final_norm, QUESTION_TYPES),
        final_norm=None,
        head=None,
    )
    layers = (norm, Dense(width, "gelu"), Dense(1))
    tensors = (NORM, *CLASSIFIER)
    slots: dict[str, Slot | tuple[Slot, ...]] = {
        f"output.{number}.{part}": Slot(f"{name}.{part}")
        for number, name in enumerate(tensors)
        for part in ("weight", "bias")
    }
    names = names | {"model.decision.norm": final_norm, "model.decision.types": "token_types"}
    of_blocks = tuple(f"blocks.{len(body.blocks) + number}." for number in range(len(blocks)))
    slots |= {slot: source for slot, source in (names | FUSED).slots(spec).items() if slot.startswith(of_blocks)}
    outputs = OutputParts("decide", None, layers, slots)
    return Model(outputs.of(spec), {**names.slots(spec), **slots}, own.name(BLOCKS))
