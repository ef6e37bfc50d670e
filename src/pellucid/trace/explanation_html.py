"""An explanation as HTML for notebooks, which run no scripts.

``trace/explanation_report.py`` makes a page with scripts.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from pellucid.util.display import bar, escaped, heat, section, shade, table

Explained: TypeAlias = Any
"""A ``PromptExplanation``. Its module imports this module."""


def sections(found: Explained) -> str:
    """The sections of all stages, in the order of the pipeline."""
    parts = [_tokens(found), _positions(found), _layers(found)]
    if found.attribution is not None:
        parts.append(_attribution(found.attribution))
    parts += [_heads(found), _logits(found), _chain(found)]
    if found.notes:
        parts.append(section("Notes", " ".join(found.notes)))
    return "".join(parts)


def _tokens(found: Explained) -> str:
    rows = [
        [
            at,
            piece.text,
            piece.id,
            ", ".join(f"{x:+.3f}" for x in piece.first) + " ...",
            round(piece.length, 3),
        ]
        for at, piece in enumerate(found.pieces)
    ]
    return section(
        "Tokens and embeddings",
        "The text is cut into tokens, and each has a vector: its first components, and its length.",
        table(["", "piece", "id", "embedding", "length"], rows),
    )


def _positions(found: Explained) -> str:
    return section("Positions", ". ".join(one[:1].upper() + one[1:] for one in found.position) + ".")


def _layers(found: Explained) -> str:
    lens, rows = found.layers, list[list[Any]]()
    for layer, name in enumerate(lens.layers):
        top = lens.top(layer, 0)
        cells: list[Any] = [(f"{text} {p:.2f}", bar(p)) for text, p in top]
        rows.append([name.removesuffix(".residual"), *cells, round(float(lens.entropy[layer, 0]), 3)])
    names = ["after", *(f"{rank + 1}" for rank in range(lens.ids.shape[-1])), "entropy"]
    return section(
        "What each layer would have said",
        "The residual stream after each block, through the last norm and the head (the logit lens).",
        table(names, rows),
    )


def _attribution(found: Any) -> str:
    most = max(abs(one.value) for one in found.contributions)
    rows = [[one.name, (round(one.value, 3), shade(one.value, most))] for one in found.ranked()[:15]]
    total = round(found.total, 3)
    return section(
        "What made it likely",
        f"Contributions to the logit of {found.token!r}, which is {found.logit:.3f}; all of them sum to {total}.",
        table(["part", "adds"], rows),
    )


def _heads(found: Explained) -> str:
    rows = [
        [
            f"{one.layer}.{one.head}",
            "" if one.contribution is None else round(one.contribution, 3),
            *[(f"{text} {weight:.2f}", bar(weight)) for text, weight in one.looked_at],
        ]
        for one in found.heads
    ]
    pieces = [piece.text for piece in found.pieces]
    maps = [
        _map(f"head {one.layer}.{one.head}", pattern, pieces)
        for one, pattern in zip(found.heads, np.asarray(found.patterns))
    ]
    return section(
        "The most telling heads",
        "What each adds to the logit, and the tokens that the last one looks at most. Rows of a map look at columns.",
        table(["head", "adds", "looks at", "", ""], rows),
        *maps,
    )


def _map(name: str, pattern: Any, pieces: list[str]) -> str:
    return f"<h3>{name}</h3>{heat(pattern, pieces, pieces, f'attention of {name}')}"


def _logits(found: Explained) -> str:
    rows = [
        [one.text, one.id, round(one.logit, 3), (f"{one.probability:.4f}", bar(one.probability)),
         (f"{one.final_probability:.4f}", bar(one.final_probability))]
        for one in found.alternatives
    ]  # fmt: skip
    return section(
        "Logits and probabilities",
        "The most likely tokens: in the model's distribution, and after the chain.",
        table(["token", "id", "logit", "model", "chain"], rows),
    )


def _chain(found: Explained) -> str:
    parts = []
    for text, trace in found.tokens:
        rows = [
            [
                step.name,
                step.removed,
                step.left,
                f"{step.removed_mass:.4f}",
                f"{step.moved:.4f}",
                f"{step.entropy_after:.3f}",
            ]
            for step in trace.steps
        ]
        how = "the likeliest" if trace.number is None else f"drawn with {trace.number:.6f}"
        parts.append(
            f"<p>{escaped(text)}: probability {trace.probability:.4f}, rank {trace.rank}, {how}</p>"
            + (table(["step", "removed", "left", "mass", "moved", "entropy"], rows) if rows else "")
        )
    return section("The draw", "What each step of the chain did, and the token that came.", *parts)
