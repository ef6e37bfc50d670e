"""The output of the model: logits (R, V) of the output rows, or sentence vectors (B, D)."""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.plan.builder import Builder
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Operation, Value
from pellucid.plan.streams import STREAMS, join_streams


def final_norm(builder: Builder, x: str) -> str:
    """Pick the output rows and normalize them: (T, D) → (R, D). Sentence encoders keep every row."""
    altup = builder.spec.altup
    x = STREAMS if altup else x
    width = builder.width_of(x)
    if builder.spec.head:
        picked = builder.buffer("picked", builder.count_of(x), "outputs")
        fields: dict[str, Value] = {"x": At(x), "width": width, "out": At(picked)}
        builder.emit(
            Operation(
                "pick",
                KernelKey("pick"),
                fields,
                (x,),
                (picked,),
                f"(T, {width}) → (R, {width})",
                rows="outputs",
            )
        )
        x = picked
    if altup:
        x = join_streams(builder, x)
    if builder.spec.final_norm:
        x = norm(builder, builder.named("norm"), builder.spec.final_norm, x, f"{x}.normed")
        builder.point(x, "the last vectors, normalised")
    return x


def project(builder: Builder, x: str) -> str:
    """Logits (R, V), or pooled vectors (B, D)."""
    head, pooling = builder.spec.head, builder.spec.pooling
    if head:
        slot, embedding = "embed" if head.tied else "project", builder.spec.embedding
        if embedding.narrow:
            x = builder.linear("project.narrow", x, embedding.narrow, "narrowed")
            builder.point(x, "the last vectors, projected to the width of the embeddings")
        # This product has few rows, so finer activations cost little. No later layer would reduce its error.
        logits = builder.linear(
            "project",
            x,
            embedding.vocabulary,
            "logits",
            bias="project" if head.bias else False,
            activation_bits=builder.sensitive_bits,
            letters="V",
            slot=slot,
        )
        builder.scale("project.scale", logits, head.scale)
        if head.softcap:
            builder.softcap("project.softcap", logits, head.softcap)
        about = "the score of each token of the vocabulary"
        builder.point(logits, about, name="project.logits", unit="nats, up to a constant")
        about = "the probability of each token of the vocabulary, before the sampler's chain"
        name = "project.probabilities"
        return builder.point(logits, about, name=name, unit="probability", kind="probabilities")
    width = builder.width_of(x)
    out = builder.buffer("pooled", builder.count_of(x), "sequences")
    fields: dict[str, Value] = {
        "x": At(x),
        "width": width,
        "normalize": int(bool(pooling and pooling.normalize)),
        "out": At(out),
    }
    builder.emit(
        Operation(
            "pool", KernelKey("pool"), fields, (x,), (out,), f"(T, {width}) → (B, {width})", rows="sequences"
        )
    )
    return builder.point(out, "the sentence vector")
