"""From the last vectors to the model's output: logits (R, V) of the wanted rows, or sentence vectors (B, D)."""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.quantize import FINEST
from pellucid.plan.builder import COUNT, Builder
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Operation, Value


def final_norm(plan: Builder, x: str) -> str:
    """Pick the rows whose logits are wanted and normalise them: (T, D) → (R, D). Encoders keep every row."""
    width = plan.width_of(x)
    if plan.spec.head:
        picked = plan.buffer("picked", width, "outputs")
        fields: dict[str, Value] = {"x": At(x), "width": width, "out": At(picked)}
        plan.emit(
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
    if plan.spec.final_norm:
        return norm(plan, "norm", "norm", plan.spec.final_norm, x, f"{x}.normed")
    return x


def project(plan: Builder, x: str) -> str:
    """Logits (R, V), or pooled vectors (B, D)."""
    head, pooling = plan.spec.head, plan.spec.pooling
    if head:
        slot = "embed" if head.tied else "project"
        # Activations of 16 bits cost little for so few rows, and no later layer reduces an error made here:
        # SmolLM2 with 8 bits is 2.7e-3 nats from float32 without this, 1.8e-3 with it.
        logits = plan.linear(
            "project", x, slot, plan.spec.embedding.vocabulary, "logits", activation_bits=FINEST
        )
        if head.softcap:
            width = plan.width_of(logits)
            fields: dict[str, Value] = {
                "x": At(logits),
                "width": width,
                "cap": head.softcap,
                "rows": COUNT["outputs"],
            }
            kernel = KernelKey("softcap")
            plan.emit(
                Operation(
                    "project.softcap", kernel, fields, (logits,), (logits,), f"(R, {width})", rows="outputs"
                )
            )
        return logits
    width = plan.width_of(x)
    out = plan.buffer("pooled", width, "sequences")
    fields = {
        "x": At(x),
        "width": width,
        "normalize": int(bool(pooling and pooling.normalize)),
        "out": At(out),
    }
    plan.emit(
        Operation(
            "pool", KernelKey("pool"), fields, (x,), (out,), f"(T, {width}) → (B, {width})", rows="sequences"
        )
    )
    return out
