"""Mixture of experts: a router chooses experts for each token, and their outputs are summed. (T, D) → (T, D).

The tokens of a step are grouped by expert: the weights of an expert are read once for all its tokens, and experts
without tokens are not read. With C chosen experts per token, T * C rows run through the experts. A buffer (T, C * F)
holds these rows in the order of the groups.
"""

from __future__ import annotations

from pellucid.errors import UnsupportedModel
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS, round_up
from pellucid.kernels.matmul.quantize import block_bytes
from pellucid.model.spec import Mixture, Router
from pellucid.plan.builder import COUNT, NO_BIAS, Builder, tiles
from pellucid.plan.feedforward import activate, feedforward
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Operation, Value, Vector, Weights


def mixture(builder: Builder, stage: str, kind: Mixture, x: str, out: str, residual: str) -> str:
    """out = sum of the outputs of the chosen experts and of the shared expert, without the residual addition.

    Router and experts read x. In a mixture with its own norms they read norms of ``residual`` instead.
    """
    router, expert = kind.router, kind.expert
    for part in (expert, kind.shared or expert):
        if (part.gate_scale, part.output_scale) != (1.0, 1.0) or part.sparsity:
            raise UnsupportedModel(
                f"{stage}: experts with factors of gates or outputs, or sparse gates, are not supported"
            )
    seen = _own_norm(builder, f"{stage}.router_norm", kind, residual, "routed") or x
    _route(builder, stage, router, seen)
    _group(builder, stage, router)
    seen = _own_norm(builder, f"{stage}.experts_norm", kind, residual, "routed") or x
    first, shape = "gate" if expert.gated else "up", f"(T, {router.chosen}, {expert.width})"
    hidden, up = _experts(builder, stage, first, kind, seen, "hidden", expert.width, gathered=True), ""
    if expert.gated:
        up = _experts(builder, stage, "up", kind, seen, "up", expert.width, gathered=True)
    if kind.input_weights:
        for rows in (hidden, up) if up else (hidden,):
            _weigh(builder, f"{stage}.experts.{rows}_weighed", router, rows, expert.width)
    activate(builder, f"{stage}.experts.hidden", expert, hidden, up, shape)
    width = builder.spec.embedding.width
    results = _experts(builder, stage, "down", kind, hidden, "results", width, gathered=False)
    shared = gate = ""
    if kind.shared:
        shared = feedforward(
            builder, f"{stage}.shared", kind.shared, x, builder.buffer("shared", builder.count_of(x))
        )
    if kind.shared_gate:
        gate = builder.linear(f"{stage}.shared_gate", x, f"{stage}.shared_gate", 1, "shared_gate")
    if kind.norms is None:
        return _combine(builder, stage, kind, results, shared, gate, out)
    if gate:
        raise UnsupportedModel(f"{stage}: a shared expert with a gate and a norm is not supported")
    _combine(builder, stage, kind, results, "", "", out)
    _own_norm(builder, f"{stage}.experts_post_norm", kind, out, out)
    if shared:
        _own_norm(builder, f"{stage}.shared_post_norm", kind, shared, shared)
        builder.add(f"{stage}.sum", out, shared)
    return out


def _own_norm(builder: Builder, stage: str, kind: Mixture, x: str, out: str) -> str:
    """out = norm(x) if the mixture has its own norms, otherwise ""."""
    return norm(builder, stage, stage, kind.norms, x, out) if kind.norms else ""


def _choice_stride(router: Router) -> int:
    """Bytes from the choices of one token to the choices of the next, in buffers (T, C)."""
    return 4 * round_up(router.chosen, ROWS)


def _route(builder: Builder, stage: str, router: Router, x: str) -> None:
    """Choose the experts of each token and their weights."""
    experts, chosen = router.experts, router.chosen
    scores = builder.linear(
        f"{stage}.router", x, f"{stage}.router", experts, builder.buffer("scores", experts), bias=router.bias
    )
    builder.scale(f"{stage}.router_scale", scores, router.output_scale)
    keys = builder.buffer("keys", experts + router.groups)
    ids, weights = builder.buffer("chosen", chosen, whole=True), builder.buffer("weights", chosen)
    fields: dict[str, Value] = {
        "scores": At(scores),
        "experts": experts,
        "stride": 4 * builder.width_of(scores),
        "keys": At(keys),
        "keys_stride": 4 * builder.width_of(keys),
        "correction": Vector(f"{stage}.correction.bias") if router.correction else 0,
        "groups": router.groups,
        "kept": router.kept,
        "chosen": chosen,
        "normalize": int(router.normalize),
        "factor": router.scale,
        "factors": Vector(f"{stage}.expert_scale.weight") if router.expert_scale else 0,
        "ids": At(ids),
        "weights": At(weights),
        "choice_stride": _choice_stride(router),
        "rows": COUNT["tokens"],
    }
    kernel = KernelKey("route", kind=router.score, group_best=router.group_best)
    reads, writes, shape = (scores,), (ids, weights, scores, keys), f"(T, {experts}) → (T, {chosen})"
    builder.emit(Operation(f"{stage}.route", kernel, fields, reads, writes, shape))


def _group(builder: Builder, stage: str, router: Router) -> None:
    """Group the choices of all tokens by expert."""
    runs = builder.buffer("runs", router.experts + 1, "once", whole=True)
    sources = builder.buffer("sources", router.chosen, whole=True)
    places = builder.buffer("places", router.chosen, whole=True)
    builder.conceal(runs)
    fields: dict[str, Value] = {
        "ids": At("chosen"),
        "choice_stride": _choice_stride(router),
        "experts": router.experts,
        "chosen": router.chosen,
        "runs": At(runs),
        "sources": At(sources),
        "places": At(places),
        "rows": COUNT["tokens"],
    }
    writes, shape = (runs, sources, places), f"(T, {router.chosen}) → ({router.experts} runs)"
    builder.emit(Operation(f"{stage}.group", KernelKey("group"), fields, ("chosen",), writes, shape))


def _experts(
    builder: Builder, stage: str, part: str, kind: Mixture, x: str, out: str, features: int, *, gathered: bool
) -> str:
    """out (T, C * features): the product of each row with the matrix of its expert.

    With ``gathered``, x has a row for each token, (T, D); otherwise x has a row for each choice, (T, C * F).
    """
    slot, router, bias = f"{stage}.experts.{part}", kind.router, kind.expert.bias
    packed, rows = builder.layouts[f"{slot}.weight"], round_up(features, ROWS)
    width = builder.width_of(x) // (1 if gathered else router.chosen)
    builder.buffer(out, router.chosen * rows)
    builder.spread(out, router.chosen, features, "places")
    fields: dict[str, Value] = {
        "weights": Weights(f"{slot}.weight", router.experts),
        "experts": router.experts,
        "expert_bytes": packed.matrix_bytes(rows, width),
        "groups": rows // ROWS,
        "group_bytes": packed.group_bytes(width),
        "columns": width,
        "runs": At("runs"),
        "sources": At("sources"),
        "out": At(out),
        "out_stride": 4 * rows,
        "addend": Vector(f"{slot}.bias") if bias else NO_BIAS,
        "addend_expert": 4 * rows if bias else 0,
        "addend_group": 4 * ROWS if bias else 0,
        "replicated": 0,
        "rows": COUNT["tokens"],
    }
    if packed.is_float:
        kernel, source = KernelKey("matmul_experts_float", packed=packed, gathered=gathered), x
        fields |= {"x": At(x), "x_stride": 4 * width}
    else:
        bits = builder.activation_bits
        kernel = KernelKey("matmul_experts_int8", packed=packed, activation_bits=bits, gathered=gathered)
        source = builder.quantized(x, f"{slot}", bits)
        fields |= {"x": At(source), "x_stride": width // BLOCK * block_bytes(bits)}
    builder.emit(
        Operation(
            slot,
            kernel,
            fields,
            (source, "runs", "sources"),
            (out,),
            f"(T, {router.chosen} of {router.experts}, {width}) x ({features}, {width})ᵀ",
            weight_bytes=router.chosen * packed.matrix_bytes(rows, width),
            multiply_adds=router.chosen * features * width,
        )
    )
    return out


def _weigh(builder: Builder, stage: str, router: Router, x: str, features: int) -> None:
    """Multiply x (T, C, features) by the weight of each choice."""
    width = builder.width_of(x) // router.chosen
    fields: dict[str, Value] = {
        "x": At(x),
        "width": width,
        "chosen": router.chosen,
        "places": At("places"),
        "weights": At("weights"),
        "choice_stride": _choice_stride(router),
        "rows": COUNT["tokens"],
    }
    shape = f"(T, {router.chosen}, {features})"
    builder.emit(Operation(stage, KernelKey("weigh"), fields, (x, "places", "weights"), (x,), shape))


def _combine(
    builder: Builder, stage: str, kind: Mixture, results: str, shared: str, gate: str, out: str
) -> str:
    width, router = builder.width_of(out), kind.router
    weights = "" if kind.input_weights else "weights"
    fields: dict[str, Value] = {
        "results": At(results),
        "width": width,
        "chosen": router.chosen,
        "places": At("places"),
        "weights": At(weights) if weights else 0,
        "choice_stride": _choice_stride(router),
        "shared": At(shared) if shared else 0,
        "gate": At(gate) if gate else 0,
        "out": At(out),
        "rows": COUNT["tokens"],
    }
    reads = tuple(name for name in (results, "places", weights, shared, gate) if name)
    partitions = dict.fromkeys((name for name in (shared, out) if name), tiles(width))
    kernel, shape = KernelKey("combine"), f"(T, {router.chosen}, {width}) → (T, {width})"
    builder.emit(Operation(f"{stage}.combine", kernel, fields, reads, (out,), shape, partitions=partitions))
    return out
