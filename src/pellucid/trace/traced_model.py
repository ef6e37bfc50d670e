"""A model as lenses use it: traced runs, the weights as float32, and the points of the residual stream in order."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import Any, Protocol

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief, shown
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
from pellucid.kernels.matmul.layouts import ROWS, round_up
from pellucid.kernels.matmul.product import MatmulRecord
from pellucid.model.read import without_conversions
from pellucid.model.slot_reader import SlotReader, shape_of
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.weight_map import Model
from pellucid.plan.embedding import RESIDUAL
from pellucid.plan.plan import Plan
from pellucid.plan.points import Point
from pellucid.runtime.executor import Executor, Program, table
from pellucid.runtime.memory import address, aligned
from pellucid.tokenize import Tokenizer
from pellucid.trace.trace import SequenceTrace, Trace
from pellucid.util.checks import token_id
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.pack import prepare
from pellucid.weights.quant.format import lookup

# The product x Wᵀ in float32, with the same bits whatever other rows of x and W are computed with it.
#
# A BLAS library promises no such bits: its kernels, and so their order of summation, depend on the shape of the
# operands and on the processor. This module calls the engine's own kernel, which adds the columns in ascending order
# with fused multiply-adds for each row of x and of W (``kernels/matmul/floats.py``).

PADDED = 4096
"""Maximum number of rows of x that are copied at once, with padding."""
SMALL = 1 << 20
"""Number of multiplications below which a meeting of threads takes longer than the product."""


class RowProduct:
    """The matrix W (N, D) float32, packed. ``name`` is for errors. Several threads may call."""

    def __init__(self, rows: NDArray[np.float32], name: str = "a dictionary") -> None:
        self.count, self.width = rows.shape
        form = lookup("F32", name)
        stored = np.ascontiguousarray(rows, np.float32).view(np.uint8).reshape(-1)

        def read(start: int, out: NDArray[np.uint8]) -> None:
            out[:] = stored[start : start + len(out)]

        packing = prepare(form, (self.count, self.width, 4), read)
        for piece in packing.pieces:
            piece()
        self._matrix = packing.matrix
        key = KernelKey("matmul_float", packed=form.packed)
        self._run, self._kernel = shared().function(key), shared().load([key])[key]
        self._zeros = aligned(4 * ROWS).view(np.float32)
        self._zeros[:] = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix."""
        return int(self._matrix.data.nbytes)

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows of W, (n, D)."""
        groups = self._matrix.data.view(np.float32).reshape(-1, self._matrix.columns, ROWS)
        return np.ascontiguousarray(groups[numbers // ROWS, : self.width, numbers % ROWS])

    def __call__(self, x: NDArray[np.float32], team: Executor | None = None) -> NDArray[np.float32]:
        """The product (n, N) of ``x`` (n, D), on the threads of a ``team``. The bits do not depend on the team."""
        columns, wide = self._matrix.columns, round_up(self.count, ROWS)
        most = min(len(x), PADDED)
        rows = aligned(4 * most * columns).view(np.float32).reshape(most, columns)
        rows[:, self.width :] = 0
        out = aligned(4 * len(x) * wide).view(np.float32).reshape(len(x), wide)
        for first in range(0, len(x), PADDED):
            own = x[first : first + PADDED]
            rows[: len(own), : self.width] = own
            self._multiply(rows[: len(own)], out[first : first + PADDED], team)
        return out[:, : self.count]

    def _multiply(self, x: NDArray[np.float32], out: NDArray[np.float32], team: Executor | None) -> None:
        fields = {
            "weights": self._matrix.address,
            "groups": self._matrix.groups,
            "group_bytes": self._matrix.packed.group_bytes(x.shape[1]),
            "columns": x.shape[1],
            "x": address(x),
            "x_stride": 4 * x.shape[1],
            "out": address(out),
            "out_stride": 4 * out.shape[1],
            "rows": 0,
            "addend": address(self._zeros),
            "addend_group": 0,
            "addend_row": 0,
            "replicated": 0,
        }
        step = np.array([len(x)], np.int64)
        if team is None or len(x) * self.count * self.width < SMALL:
            words = np.array(MatmulRecord.pack(fields), np.int64)
            self._run(address(words), address(step), 0, 1)
        else:
            team.run(Program(table([MatmulRecord.pack(fields, self._kernel, 0)]), (x, out)), step)


NEXT_TOKEN = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}
"""The options of a request that reads its prompt."""
DECISION_NORM, DECISION_TYPES = "decision.norm", "decision.types"
"""The points of the residual stream before the decision blocks of an encoder (``plan/embedding.py``)."""
TOGETHER = 32
"""Maximum number of copies of a prompt that run at the same time."""
MOST_SUMMED = 1 << 15
"""Maximum number of rows of a matrix whose products are summed in order, in float32. BLAS rounds less."""
WEIGHT_ROWS = 4096
"""Number of rows of the embedding matrix that are dequantized at once."""


class OpenedModel(Protocol):
    """A model's file and tokenizer. The model need not be loaded."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def model(self) -> Model: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def spec(self) -> ModelSpec: ...


class TracedModel(OpenedModel, Protocol):
    """A loaded model; ``llm.LLM`` implements it."""

    def project(self, vectors: NDArray[np.float32], rows: int = ...) -> NDArray[np.float32]: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def points(self) -> dict[str, Point]: ...
    def trace(self, *points: str, edits: Sequence[Any] = (), budget: int = ...) -> AbstractContextManager[Trace]: ...
    @property
    def inputs(self) -> Any: ...
    @property
    def encode(self) -> Callable[..., Any]: ...
    @property
    def generate(self) -> Callable[..., Any]: ...
    @property
    def request(self) -> Callable[..., Any]: ...
    @property
    def taped(self) -> Callable[..., Any]: ...
    @property
    def plan_versions(self) -> Any: ...
    @property
    def float_weights(self) -> ModelWeights: ...
    def edited_outputs(
        self, prompt: Any, copies: Sequence[Sequence[Any]], edits: Sequence[Any] = ()
    ) -> Iterator[tuple[int, NDArray[np.float32]]]: ...


class ModelWeights:
    """The weights of ``model`` as float32, read from its file on demand.

    A model that was read for a task has the weights of this task's output, too. Weights that were converted when the
    model was loaded have the values of the file. Values that fit into ``keep`` bytes are kept, so that they are
    dequantized once. Products run on ``threads`` threads.
    """

    def __init__(self, checkpoint: Checkpoint, model: Model, keep: int = 0, threads: int = 1) -> None:
        self._checkpoint, self._model = checkpoint, without_conversions(model)
        self._kept, self._room, self._lock = dict[str, NDArray[np.float32]](), keep, threading.Lock()
        self._products, self._threads = dict[str, RowProduct](), threads
        self._team: Executor | None = None

    def has(self, slot: str) -> bool:
        """True if the model has a slot, such as "blocks.3.attention.output.weight"."""
        return bool(self._model.sources(slot))

    def values(self, slot: str) -> NDArray[np.float32]:
        """The values of a slot: a matrix (N, D) that maps D inputs to N outputs, or a vector. Do not change them."""
        if (kept := self._kept.get(slot)) is not None:
            return kept
        values = self._read(slot)
        self._keep(self._kept, slot, values, values.nbytes)
        return values

    def product(self, rows: NDArray[np.float32], slot: str) -> NDArray[np.float32]:
        """Rows (n, N or more) times a slot's matrix (N, D): (n, D).

        The last bits depend on whether the packed matrix is kept: if not, NumPy's BLAS multiplies.
        """
        if (own := self._products.get(slot)) is None:
            values = self._kept.get(slot)
            values = self._read(slot) if values is None else values
            if len(values) > MOST_SUMMED or values.nbytes > self._room:
                self._keep(self._kept, slot, values, values.nbytes)
                return np.asarray(rows[:, : len(values)] @ values)
            transposed = np.ascontiguousarray(values.T)
            del values  # the matrix is packed without a third copy
            own = RowProduct(transposed, slot)
            self._keep(self._products, slot, own, own.nbytes)
        return own(rows[:, : own.width], self._own_team())

    def _read(self, slot: str) -> NDArray[np.float32]:
        return SlotReader(self._checkpoint, self._model.sources(slot)).values()

    def _own_team(self) -> Executor | None:
        """Threads apart from the engine's, so that products do not wait for the steps of requests."""
        with self._lock:
            if self._team is None and self._threads > 1:
                self._team = Executor(self._threads)
            return self._team

    def close(self) -> None:
        """Stop the threads after the last product that runs. Later products run on the caller's thread."""
        with self._lock:
            self._threads, self._team = 1, None

    def _keep(self, kept: dict[str, Any], slot: str, value: Any, size: int) -> None:
        """Keep a value of ``size`` bytes, if there is room."""
        with self._lock:
            if size <= self._room and slot not in kept:
                kept[slot] = value
                self._room -= size

    def rows(self, slot: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` - 1 of a slot's matrix."""
        (source, *others) = self._model.sources(slot)
        if others or source.transpose or source.rows is not None or source.step > 1:
            return self.values(slot)[start:stop]
        return SlotReader(self._checkpoint, (replace(source, rows=(start, stop)),)).values()

    def row(self, slot: str, row: int) -> NDArray[np.float32]:
        """A row of a slot's matrix or of its experts' matrices, whose rows are numbered over all experts.

        Raises:
            InvalidRequest: the matrix has no such row.
        """
        left = row
        for source in self._model.sources(slot):
            *rows, _ = shape_of(self._checkpoint.tensors[source.tensor], source)
            if left < prod(rows):
                if source.transpose or source.columns is not None:
                    values = SlotReader(self._checkpoint, (source,)).values()
                    found: NDArray[np.float32] = values.reshape(-1, values.shape[-1])[left]
                    return found
                first = (source.rows or (0, 0))[0] + left * source.step
                one = replace(source, rows=(first, first + 1), step=1)
                return np.asarray(SlotReader(self._checkpoint, (one,)).values()[0])
            left -= prod(rows)
        raise InvalidRequest(f"row={row:,}: {shown(slot)} has {row - left:,} rows")

    def vector(self, slot: str, size: int, missing: float) -> NDArray[np.float64]:
        """The vector of a slot, (size,) float64. If the model does not have the slot, all values are ``missing``."""
        if not self.has(slot):
            return np.full(size, missing)
        return self.values(slot).astype(np.float64).reshape(-1)


def unembedding(spec: ModelSpec, weights: ModelWeights, token: int) -> NDArray[np.float64]:
    """The vector (D,) float64 whose dot product with the normalised last vector is a token's logit."""
    row: NDArray[np.float64] = unembedding_rows(spec, weights, token, token + 1)[0]
    return row


def unembedding_rows(spec: ModelSpec, weights: ModelWeights, start: int, stop: int) -> NDArray[np.float64]:
    """The vectors (n, D) float64 of the tokens ``start`` to ``stop`` - 1, as in ``unembedding``."""
    assert spec.head is not None
    slot = "embed.weight" if spec.head.tied else "project.weight"
    rows: NDArray[np.float64] = weights.rows(slot, start, stop).astype(np.float64)
    if spec.embedding.narrow:
        rows = rows @ weights.values("project.narrow.weight").astype(np.float64)
    return np.asarray(rows * spec.head.scale, np.float64)


def backward_of_norm(
    norm: Norm | None, weight: NDArray[np.float64], x: NDArray[np.float64], gradient: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The vector g with g·x = gradient·(norm(x) - bias). The scale of x is held fixed, which makes the norm linear.

    ``x`` and ``gradient`` are vectors (D,), or rows (T, D).
    """
    if norm is None:
        return gradient
    centred = x - x.mean(-1, keepdims=True) if norm.kind == "layer" else x
    scaled = weight * gradient / np.sqrt(np.mean(centred**2, -1, keepdims=True) + norm.eps)
    return np.asarray(scaled - scaled.mean(-1, keepdims=True) if norm.kind == "layer" else scaled, np.float64)


def stream_points(model: TracedModel) -> list[str]:
    """The points that write the residual stream, in order: "embed", "blocks.0.attention.residual", ...

    Norms of the residual stream are included: after each addition ("blocks.0.attention.norm"), and before the decision
    blocks of an encoder (``DECISION_NORM``, then ``DECISION_TYPES``). So are factors of the stream ("blocks.0.scalar").

    Raises:
        InvalidRequest: the model has several residual streams.
    """
    if model.spec.altup:
        raise InvalidRequest(
            f"the model has {model.spec.altup.streams} residual streams, so its last vector is not a sum of the "
            "outputs of its blocks: use attribution_graph or gradients"
        )
    return written_points(model)


def written_points(model: TracedModel) -> list[str]:
    """The first point of each operation that writes the residual stream, in order."""
    source, names = model.plan.source or model.plan, dict[int, str]()
    for point in model.points.values():
        if point.of_source:
            continue
        if source.operations[point.operation].writes[0] == RESIDUAL:
            names.setdefault(point.operation, point.name)
    return list(names.values())


def residual_points(model: TracedModel) -> list[str]:
    """Names of the residual stream before the first block and after each block: "embed", "blocks.0.residual", ..."""
    stream = written_points(model)
    blocks = [f"blocks.{layer}.residual" for layer in range(len(model.spec.blocks))]
    return [*stream[: first_block(stream)][-1:], *(name for name in blocks if name in model.points)]


def first_block(stream: Sequence[str]) -> int:
    """The index of the first point of a block among the points of the residual stream."""
    return next(at for at, name in enumerate(stream) if name.startswith("blocks."))


def read(
    model: TracedModel,
    prompt: Any,
    points: Sequence[str],
    edits: Sequence[Any] = (),
    *,
    answer: Sequence[int] | None = None,
) -> SequenceTrace:
    """Run a prompt, and return the trace of its sequence. If ``prompt`` is a ``SequenceTrace``, return it unchanged.

    An encoder also reads a pair of texts, as a tuple. In an encoder-decoder, the decoder reads the tokens ``answer``.

    Raises: as ``LLM.generate`` and ``LLM.trace``; InvalidRequest if there are several prompts, or if the values do not
    fit into the trace's budget.
    """
    if isinstance(prompt, SequenceTrace):
        return prompt
    is_pair = not model.spec.generates and isinstance(prompt, tuple) and len(prompt) == 2
    several = isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], (str, list, tuple))
    if several and not is_pair:
        raise InvalidRequest(f"prompt={brief(prompt)}: a lens analyses one prompt: give one of them")
    if model.spec.encoder and answer is None:
        raise InvalidRequest(
            "a lens analyses tokens of the decoder: trace an answer (llm.trace), and give a sequence of the trace"
        )
    with model.trace(*dict.fromkeys(points)) as trace:
        if not model.spec.generates:  # an encoder
            model.encode(model.inputs.texts([prompt]), list(edits))
        elif model.spec.encoder:
            request = model.request(prompt, resumed=answer, edits=list(edits), **NEXT_TOKEN)
            request.wait()
            for said in request.unused_edits():
                warnings.warn(said, stacklevel=3)
        else:
            model.generate(prompt, edits=list(edits), **NEXT_TOKEN)
    if trace.dropped:
        raise InvalidRequest(f"budget={trace.budget:,}: the values of the prompt do not fit: give a shorter prompt")
    return trace.sequences[0]


def read_copies(
    model: TracedModel, prompt: Any, points: Sequence[str], copies: Sequence[Sequence[Any]]
) -> Iterator[SequenceTrace]:
    """Run a prompt of a language model with the edits of each copy, in batches. Yields the traces in order.

    Raises: as ``read``.
    """
    for first in range(0, len(copies), TOGETHER):
        with model.trace(*dict.fromkeys(points)) as trace:
            requests = [
                model.request(prompt, edits=list(edits), **NEXT_TOKEN) for edits in copies[first : first + TOGETHER]
            ]
            for request in requests:
                request.start()
            for request in requests:
                request.wait()
        for request in requests:
            request.results()  # raises the error of a failed edit
        yield from trace.sequences


def token_of(model: OpenedModel, token: int | str) -> int:
    """Return the id of a token, which is given as an id or as the text of a single token.

    Raises:
        InvalidRequest: the text is several tokens, or the id is outside the vocabulary.
    """
    if not isinstance(token, str):
        return token_id("token", token, model.spec.embedding.vocabulary)
    ids = model.tokenizer.encode(token, add_special=False)
    if len(ids) != 1:
        pieces = [model.tokenizer.piece(part) for part in ids]
        raise InvalidRequest(f"token={token!r}: the text is {len(ids)} tokens, {pieces}: give one of them, or an id")
    return ids[0]
