"""The output of the model, after the last block: final norm, pooling, output layers, projection to the vocabulary.

Rows are (T, D) after the last block, and (R, D) or (B, D) after selection or pooling: R output rows, B sequences.
"""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import StepRecord
from pellucid.model.outputs import Dense, Head, UnitLength
from pellucid.plan.block import STREAMS, join_streams
from pellucid.plan.builder import Builder
from pellucid.plan.feedforward import apply
from pellucid.plan.norm import norm
from pellucid.plan.plan import LETTER, At, Value
from pellucid.plan.points import RowKind


def select_rows(builder: Builder, x: str) -> str:
    """Pick the rows that the output needs: output rows (R, D), first rows (B, D), or all rows (T, D) for pooling."""
    pooling = builder.spec.pooling
    x = STREAMS if builder.spec.altup else x
    if pooling is None or pooling.kind == "last":
        x = _pick(builder, x, "outputs", StepRecord.at.output_rows)
    elif pooling.kind == "cls":
        x = _pick(builder, x, "sequences", StepRecord.at.first_row)
    if pooling is not None and pooling.picks:
        builder.point(x, f"the vector of the {'first' if pooling.kind == 'cls' else 'last'} token", name="pool")
    return join_streams(builder, x) if builder.spec.altup else x


def _pick(builder: Builder, x: str, rows: RowKind, index: int) -> str:
    width, picked = builder.width_of(x), builder.buffer("picked", builder.count_of(x), rows)
    fields: dict[str, Value] = {"x": At(x), "width": width, "index": index, "out": At(picked)}
    shape = f"(T, {width}) → ({LETTER[rows]}, {width})"
    builder.emit("pick", "pick", fields, (x,), (picked,), shape, rows)
    return picked


def final_norm(builder: Builder, x: str) -> str:
    """Normalize the selected rows, if the model has a final norm."""
    if builder.spec.final_norm:
        x = norm(builder, builder.named("norm"), builder.spec.final_norm, x, f"{x}.normed")
        builder.point(x, "the last vectors, normalised")
    return x


def output_layers(builder: Builder, x: str) -> str:
    """Pool the rows of each sequence, and run the output layers: (T, D) → (B, N), or (R, D) → (R, N)."""
    pooling = builder.spec.pooling
    pools = pooling is not None and not pooling.picks and not pooling.of_logits
    if pooling is not None and pools and not pooling.late:
        x = pool(builder, x, pooling.kind, "pooled", "the pooled vector of the text")
    for number, layer in enumerate(builder.spec.output):
        stage, rows = f"output.{number}", builder.buffers[x].rows
        match layer:
            case Dense(width, activation, bias):
                # Few rows need finer activations, so they cost little, and no later layer would reduce the error.
                bits = builder.sensitive_bits
                out = builder.linear(stage, x, width, stage, bias=bias, activation_bits=bits, letters="N")
                if activation:
                    shape = f"({LETTER[rows]}, {width})"
                    apply(builder, f"{stage}.activation", activation, out, "", shape)
                x = builder.point(out, f"the values of output layer {number}", name=stage)
            case UnitLength():
                stage = "normalize" if number == len(builder.spec.output) - 1 else stage
                x = builder.in_place(stage, "normalize", x)
                builder.point(x, "the vector, scaled to length 1")
            case _:
                x = norm(builder, stage, layer, x)
                builder.point(x, f"the values of output layer {number}, normalised")
    if pooling is not None and pools and pooling.late:
        x = pool(builder, x, pooling.kind, "pooled", "the mean of the scores of all tokens of the text")
    return x


def pool(builder: Builder, x: str, kind: str, out: str, about: str) -> str:
    """One row for each sequence, from all its rows: (T, N) → (B, N). ``kind`` is one of ``pooling.KINDS``."""
    width, letters = builder.width_of(x), builder.letters_of(x)
    builder.buffer(out, builder.count_of(x), "sequences", letters=letters)
    fields: dict[str, Value] = {"x": At(x), "width": width, "out": At(out)}
    shape = f"(T, {width}) → (B, {width})"
    builder.emit("pool", KernelKey("pool", kind=kind), fields, (x,), (out,), shape, "sequences")
    return builder.point(out, about)


def project(builder: Builder, x: str) -> str:
    """The logits of the vocabulary (R, V), if the model has a head. Otherwise x."""
    spec = builder.spec
    if spec.head is None:
        return x
    logits = _logits(builder, spec.head, x)
    if spec.pooling is not None and spec.pooling.of_logits:
        about = "the weight of each token of the vocabulary in the text"
        return pool(builder, logits, "sparse", "sparse", about)
    return logits


def _logits(builder: Builder, head: Head, x: str) -> str:
    slot, embedding = "embed" if head.tied else "project", builder.spec.embedding
    if embedding.narrow and builder.count_of(x) != embedding.narrow:
        x = builder.linear("project.narrow", x, embedding.narrow, "narrowed")
        builder.point(x, "the last vectors, projected to the width of the embeddings")
    # This product has few rows, so finer activations cost little. No later layer would reduce its error.
    bits, bias = builder.sensitive_bits, "project" if head.bias else False
    width = builder.spec.output_width
    logits = builder.linear("project", x, width, "logits", bias=bias, activation_bits=bits, letters="V", slot=slot)
    builder.scale("project.scale", logits, head.scale)
    if head.softcap:
        builder.softcap("project.softcap", logits, head.softcap)
    about = "the score of each token of the vocabulary"
    scaled = head.scale != 1 or head.softcap != 0
    builder.point(logits, about, name="project.logits", unit="nats, up to a constant", scaled=scaled)
    about = "the probability of each token of the vocabulary, before the sampler's chain"
    name = "project.probabilities"
    return builder.point(logits, about, name=name, unit="probability", kind="probabilities")
