"""The slots of a spec and the shape of each: the plan and the checks of files agree through this table."""

from __future__ import annotations

from collections.abc import Iterator

from pellucid.model.spec import Block, FeedForward, Learned, Mixture, ModelSpec, Norm

Shape = tuple[int, ...]


def expected_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Slot names and shapes, row-major: a matrix that maps D inputs to N outputs is (N, D); of E experts (E, N, D)."""
    return dict(_slots(spec))


def _slots(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    embedding, width = spec.embedding, spec.embedding.width
    yield "embed.weight", (embedding.vocabulary, width)
    if isinstance(spec.position, Learned):
        yield "position.weight", (spec.position.count, width)
    if embedding.types:
        yield "embed.types.weight", (embedding.types, width)
    if embedding.norm:
        yield from _norm("embed.norm", embedding.norm, width)
    for index, block in enumerate(spec.blocks):
        yield from _block(f"blocks.{index}", block, width)
    if spec.final_norm:
        yield from _norm("norm", spec.final_norm, width)
    if spec.head and not spec.head.tied:
        yield "project.weight", (embedding.vocabulary, width)
    if spec.head and spec.head.bias:
        yield "project.bias", (embedding.vocabulary,)


def _norm(name: str, norm: Norm, width: int) -> Iterator[tuple[str, Shape]]:
    if norm.weight:
        yield f"{name}.weight", (width,)
    if norm.has_bias:
        yield f"{name}.bias", (width,)


def _block(name: str, block: Block, width: int) -> Iterator[tuple[str, Shape]]:
    attention = block.attention
    heads, kv_heads = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    values, attended = attention.kv_heads * attention.value_dim, attention.heads * attention.value_dim
    for part, rows, columns, bias in (
        ("attention.q", heads, width, attention.bias),
        ("attention.k", kv_heads, width, attention.bias),
        ("attention.v", values, width, attention.bias),
        ("attention.output", width, attended, attention.output_bias),
    ):
        yield f"{name}.{part}.weight", (rows, columns)
        if bias:
            yield f"{name}.{part}.bias", (rows,)
    if isinstance(block.feedforward, Mixture):
        yield from _mixture(f"{name}.feedforward", block.feedforward, width)
    else:
        yield from _feedforward(f"{name}.feedforward", block.feedforward, width)
    if attention.qk_norm:
        whole = attention.qk_norm_whole
        yield from _norm(
            f"{name}.attention.q_norm", attention.qk_norm, heads if whole else attention.head_dim
        )
        yield from _norm(
            f"{name}.attention.k_norm", attention.qk_norm, kv_heads if whole else attention.head_dim
        )
    if attention.sinks:
        yield f"{name}.attention.sinks.weight", (attention.heads,)
    if block.placement != "output":
        yield from _norm(f"{name}.attention.norm", block.norm, width)
        if block.placement != "shared":
            yield from _norm(f"{name}.feedforward.norm", block.norm, width)
    if block.placement in ("sandwich", "output"):
        yield from _norm(f"{name}.attention.post_norm", block.norm, width)
        yield from _norm(f"{name}.feedforward.post_norm", block.norm, width)


def _feedforward(
    name: str, kind: FeedForward, width: int, experts: Shape = ()
) -> Iterator[tuple[str, Shape]]:
    for part in ("gate", "up", "down") if kind.gated else ("up", "down"):
        rows, columns = (width, kind.width) if part == "down" else (kind.width, width)
        yield f"{name}.{part}.weight", (*experts, rows, columns)
        if kind.bias:
            yield f"{name}.{part}.bias", (*experts, rows)


def _mixture(name: str, kind: Mixture, width: int) -> Iterator[tuple[str, Shape]]:
    experts = kind.router.experts
    yield f"{name}.router.weight", (experts, width)
    if kind.router.bias:
        yield f"{name}.router.bias", (experts,)
    if kind.router.correction:
        yield f"{name}.correction.bias", (experts,)
    yield from _feedforward(f"{name}.experts", kind.expert, width, (experts,))
    if kind.shared:
        yield from _feedforward(f"{name}.shared", kind.shared, width)
    if kind.shared_gate:
        yield f"{name}.shared_gate.weight", (1, width)
