"""Feed-forward of each token, dense or as a mixture of experts. (T, D) → (T, D)."""

from __future__ import annotations

from pellucid.errors import UnsupportedModel
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.layouts import ROWS, round_up
from pellucid.model.spec import FeedForward, Mixture, Router
from pellucid.plan.builder import NO_BIAS, Builder, tiles
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Value, Vector, Weights

# Feed-forward: up-projection, activation function and down-projection of each token. (T, D) → (T, D).

GATE = "the gate of each neuron, before the activation"
UP = "the up-projection, which the gates multiply"
NEURONS = "the neurons, before the activation"


def feedforward(
    builder: Builder, stage: str, kind: FeedForward, x: str, out: str, activation_bits: int = 0, first_bits: int = 0
) -> str:
    """out = down(f(gate x) * up x), or down(f(up x)), without the residual addition.

    ``stage`` is also the prefix of the slots: "blocks.3.feedforward". ``activation_bits`` of the last product and
    ``first_bits`` of the products before it, if not 0, replace the value of the plan.
    """

    def linear(part: str, x: str, width: int, out: str, letters: str = "F") -> str:
        bits = activation_bits if part == "down" else first_bits
        bias = kind.bias or (kind.output_bias and part == "down")
        return builder.linear(f"{stage}.{part}", x, width, out, bias=bias, activation_bits=bits, letters=letters)

    hidden, up = linear("gate" if kind.gated else "up", x, kind.width, "hidden"), ""
    builder.point(hidden, GATE if kind.gated else NEURONS)
    if kind.gated:
        up = linear("up", x, kind.width, "up")
        builder.point(up, UP)
    builder.scale(f"{stage}.gate_scale", hidden, kind.gate_scale, "the gates, times a factor")
    if kind.sparsity:
        _sparsify(builder, f"{stage}.sparsify", hidden, kind.sparsity)
        builder.point(hidden, "the gates above a threshold, minus the threshold; the other gates are 0")
    activate(builder, f"{stage}.hidden", kind, hidden, up, f"(T, {kind.width})")
    builder.point(hidden, "the neurons after the activation")
    return linear("down", hidden, builder.spec.embedding.width, out, "D")


def _sparsify(builder: Builder, stage: str, x: str, part: float) -> None:
    """x = max(0, x - cut). ``cut`` is the quantile ``part`` of a normal distribution fitted to the row."""
    from statistics import NormalDist  # slow to import, and few models need it

    deviations = NormalDist().inv_cdf(part)
    builder.in_place(stage, "sparsify", x, count=builder.count_of(x), deviations=deviations)


def activate(builder: Builder, stage: str, kind: FeedForward, x: str, up: str, shape: str) -> None:
    """x = f(x) * up, or f(x) without ``up``, with the activation function f of a feed-forward."""
    apply(builder, stage, kind.activation, x, up, shape, kind.limit, kind.sharpness)


def apply(
    builder: Builder, stage: str, function: str, x: str, up: str, shape: str, limit: float = 0.0, sharpness: float = 0.0
) -> None:
    """x = f(x) * up, or f(x) without ``up``. ``function`` is the name of f in ``kernels/ops/elementwise.py``."""
    width, reads, rows = builder.width_of(x), (x, up) if up else (x,), builder.buffers[x].rows
    fields: dict[str, Value] = {"x": At(x), "up": At(up) if up else 0, "width": width, "out": At(x), "quantized": 0}
    fields |= {"limit": limit, "sharpness": sharpness}
    kernel = KernelKey("activation", kind=function, activation_bits=8)
    partitions = dict.fromkeys(reads, tiles(width))
    builder.emit(stage, kernel, fields, reads, (x,), shape, rows, partitions=partitions)


# Mixture of experts: a router chooses experts for each token, and their outputs are summed. (T, D) → (T, D).
#
# The tokens of a step are grouped by expert: the weights of an expert are read once for all tokens that chose it, and
# experts without tokens are not read. With C chosen experts per token, T * C rows run through the experts. A buffer
# (T, C * F) holds these rows, ordered by expert.


def mixture(builder: Builder, stage: str, kind: Mixture, x: str, out: str, residual: str) -> str:
    """out = sum of the outputs of the chosen experts and of the shared expert, without the residual addition.

    Router and experts read x. In a mixture with its own norms, router and experts read two norms of ``residual``
    instead.
    """
    router, expert = kind.router, kind.expert
    for part in (expert, kind.shared or expert):
        if (part.gate_scale, part.output_scale) != (1.0, 1.0) or part.sparsity or part.output_bias:
            raise UnsupportedModel(
                f"{stage}: experts with a gate scale, an output scale, sparse gates or only an output bias are not "
                "supported"
            )
    about = "the residual stream, normalised for the {}"
    seen = _own_norm(builder, f"{stage}.router_norm", kind, residual, "routed", about.format("router")) or x
    _route(builder, stage, router, seen)
    _group(builder, stage, router)
    seen = _own_norm(builder, f"{stage}.experts_norm", kind, residual, "routed", about.format("experts")) or x
    first, shape = "gate" if expert.gated else "up", f"(T, {router.chosen}, {expert.width})"
    hidden, up = _experts(builder, stage, first, kind, seen, "hidden", expert.width, gathered=True), ""
    neurons = "gate of each neuron" if expert.gated else "neurons before the activation"
    builder.point(hidden, f"the {neurons} of the chosen experts")
    if expert.gated:
        up = _experts(builder, stage, "up", kind, seen, "up", expert.width, gathered=True)
        builder.point(up, "the up-projection of the chosen experts")
    if kind.input_weights:
        for rows, name in ((hidden, "first projection"), (up, "up-projection")):
            if rows:
                _weigh(builder, f"{stage}.experts.{rows}_weighed", router, rows, expert.width)
                builder.point(rows, f"the {name} of the chosen experts, times their weights")
    activate(builder, f"{stage}.experts.hidden", expert, hidden, up, shape)
    builder.point(hidden, "the neurons of the chosen experts after the activation")
    width = builder.spec.embedding.width
    results = _experts(builder, stage, "down", kind, hidden, "results", width, gathered=False)
    builder.point(results, "the result of each chosen expert, before its weight", name=f"{stage}.experts.output")
    shared = gate = ""
    if kind.shared:
        shared = builder.buffer("shared", builder.count_of(x))
        feedforward(builder, f"{stage}.shared", kind.shared, x, shared)
        builder.point(shared, "the result of the shared expert, before its gate or norm")
    if kind.shared_gate:
        gate = builder.linear(f"{stage}.shared_gate", x, 1, "shared_gate")
        builder.point(gate, "the gate of the shared expert, before the sigmoid")
    if kind.norms is None:
        return _combine(builder, stage, kind, results, shared, gate, out)
    if gate:
        raise UnsupportedModel(f"{stage}: a shared expert with a gate and a norm is not supported")
    _combine(builder, stage, kind, results, "", "", out)
    about = "the sum of the chosen experts' results, before its norm"
    builder.point(out, about, name=f"{stage}.experts_output")
    _own_norm(
        builder, f"{stage}.experts_post_norm", kind, out, out, "the sum of the chosen experts' results, normalised"
    )
    if shared:
        about = "the result of the shared expert, normalised"
        _own_norm(builder, f"{stage}.shared_post_norm", kind, shared, shared, about)
        builder.add(f"{stage}.sum", out, shared)
    return out


def _own_norm(builder: Builder, stage: str, kind: Mixture, x: str, out: str, about: str) -> str:
    """Emit out = norm(x) and return out. Return "" if the mixture has no norms of its own."""
    return builder.point(norm(builder, stage, kind.norms, x, out), about) if kind.norms else ""


def _choice_stride(router: Router) -> int:
    """Bytes from the choices of one token to the choices of the next, in buffers (T, C)."""
    return 4 * round_up(router.chosen, ROWS)


def _route(builder: Builder, stage: str, router: Router, x: str) -> None:
    experts, chosen = router.experts, router.chosen
    scores = builder.linear(f"{stage}.router", x, experts, "scores", bias=router.bias, letters="E")
    builder.point(scores, "the router's score of each expert")
    builder.scale(
        f"{stage}.router_scale", scores, router.output_scale, "the router's score of each expert, times a factor"
    )
    keys = builder.buffer("keys", experts + router.groups)
    ids = builder.buffer("chosen", chosen, letters="C", dtype="int32")
    weights = builder.buffer("weights", chosen, letters="C")
    fields: dict[str, Value] = {"scores": At(scores), "experts": experts, "stride": 4 * builder.width_of(scores)}
    fields |= {"keys": At(keys), "keys_stride": 4 * builder.width_of(keys)}
    fields |= {"groups": router.groups, "kept": router.kept, "chosen": chosen}
    fields["correction"] = Vector(f"{stage}.correction.bias") if router.correction else 0
    fields |= {"normalize": int(router.normalize), "factor": router.scale}
    fields["factors"] = Vector(f"{stage}.expert_scale.weight") if router.expert_scale else 0
    fields |= {"ids": At(ids), "weights": At(weights), "choice_stride": _choice_stride(router)}
    kernel = KernelKey("route", kind=router.score, group_best=router.group_best)
    reads, writes, shape = (scores,), (ids, weights, scores, keys), f"(T, {experts}) → (T, {chosen})"
    builder.emit(f"{stage}.route", kernel, fields, reads, writes, shape)
    builder.point(ids, "the chosen experts", name=f"{stage}.experts", unit="expert")
    builder.point(weights, "the weights of the chosen experts", name=f"{stage}.expert_weights")


def _group(builder: Builder, stage: str, router: Router) -> None:
    runs = builder.buffer("runs", router.experts + 1, "once", dtype="int32")
    sources = builder.buffer("sources", router.chosen, dtype="int32")
    places = builder.buffer("places", router.chosen, dtype="int32")
    fields: dict[str, Value] = {"ids": At("chosen"), "choice_stride": _choice_stride(router)}
    fields |= {"experts": router.experts, "chosen": router.chosen}
    fields |= {"runs": At(runs), "sources": At(sources), "places": At(places)}
    shape = f"(T, {router.chosen}) → ({router.experts} runs)"
    builder.emit(f"{stage}.group", "group", fields, ("chosen",), (runs, sources, places), shape)


def _experts(
    builder: Builder, stage: str, part: str, kind: Mixture, x: str, out: str, features: int, *, gathered: bool
) -> str:
    """out (T, C * features): the product of each row with the matrix of its expert.

    With ``gathered``, x has a row for each token, (T, D). Otherwise x has a row for each chosen expert, (T, C * F).
    """
    slot, router, bias = f"{stage}.experts.{part}", kind.router, kind.expert.bias
    packed, rows = builder.layouts[f"{slot}.weight"], round_up(features, ROWS)
    width = builder.width_of(x) // (1 if gathered else router.chosen)
    builder.buffer(out, router.chosen * rows)
    builder.view(out, "C F" if gathered else "C D", router.chosen, features, places="places")
    stored = packed.matrix_bytes(rows, width)
    fields: dict[str, Value] = {"weights": Weights(f"{slot}.weight", router.experts), "experts": router.experts}
    fields |= {"expert_bytes": stored, "groups": rows // ROWS, "group_bytes": packed.group_bytes(width)}
    fields |= {"columns": width, "runs": At("runs"), "sources": At("sources"), "replicated": 0}
    fields |= {"out": At(out), "out_stride": 4 * rows, "addend": Vector(f"{slot}.bias") if bias else NO_BIAS}
    fields |= {"addend_expert": 4 * rows if bias else 0, "addend_group": 4 * ROWS if bias else 0}
    kernel, source, fields["x_stride"] = builder.product("matmul_experts", slot, x, packed, width, gathered=gathered)
    fields["x"] = At(source)
    shape = f"(T, {router.chosen} of {router.experts}, {width}) x ({features}, {width})ᵀ"
    cost = router.chosen * stored, router.chosen * features * width
    builder.emit(slot, kernel, fields, (source, "runs", "sources"), (out,), shape, cost=cost)
    return out


def _weigh(builder: Builder, stage: str, router: Router, x: str, features: int) -> None:
    width = builder.width_of(x) // router.chosen
    fields: dict[str, Value] = {"x": At(x), "width": width, "chosen": router.chosen}
    fields |= {"places": At("places"), "weights": At("weights"), "choice_stride": _choice_stride(router)}
    builder.emit(stage, "weigh", fields, (x, "places", "weights"), (x,), f"(T, {router.chosen}, {features})")


def _combine(builder: Builder, stage: str, kind: Mixture, results: str, shared: str, gate: str, out: str) -> str:
    width, router = builder.width_of(out), kind.router
    weights = "" if kind.input_weights else "weights"
    fields: dict[str, Value] = {"results": At(results), "width": width, "chosen": router.chosen, "out": At(out)}
    fields |= {"places": At("places"), "choice_stride": _choice_stride(router)}
    fields |= {"weights": At(weights) if weights else 0, "shared": At(shared) if shared else 0}
    fields |= {"gate": At(gate) if gate else 0}
    fields["bias"] = Vector(f"{stage}.experts_output.bias") if kind.output_bias else 0
    reads = tuple(name for name in (results, "places", weights, shared, gate) if name)
    partitions = dict.fromkeys((name for name in (shared, out) if name), tiles(width))
    shape = f"(T, {router.chosen}, {width}) → (T, {width})"
    builder.emit(f"{stage}.combine", "combine", fields, reads, (out,), shape, partitions=partitions)
    return out
