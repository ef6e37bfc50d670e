"""An explanation as HTML without scripts, for notebooks.

``trace/explanation_report.py`` makes a page with scripts.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from pellucid.util.display import bar, escaped, heat, section, shade, table

Explained: TypeAlias = Any
"""A ``PromptExplanation``. This module cannot import the class, because the class's module imports this module."""


def sections(explained: Explained) -> str:
    """The sections of all stages, in the order of the pipeline."""
    parts = [_tokens("Tokens and embeddings", "text", explained.pieces)]
    if explained.source_pieces:
        parts.insert(0, _tokens("Source", "source", explained.source_pieces))
    parts += [_positions(explained), _layers(explained)]
    if explained.attribution is not None:
        parts.append(_attribution(explained.attribution))
    if explained.token_contributions is not None:
        parts.append(_by_token(explained.token_contributions))
    parts += [_heads(explained), _logits(explained), _chain(explained)]
    if explained.notes:
        parts.append(section("Notes", " ".join(explained.notes)))
    return "".join(parts)


def _tokens(title: str, of: str, pieces: list[Any]) -> str:
    rows = [
        [
            position,
            piece.text,
            piece.id,
            ", ".join(f"{x:+.3f}" for x in piece.first) + " ...",
            round(piece.length, 3),
        ]
        for position, piece in enumerate(pieces)
    ]
    return section(
        title,
        f"The tokens of the {of}, with the first components and the length of each token's embedding.",
        table(["", "piece", "id", "embedding", "length"], rows),
    )


def _positions(explained: Explained) -> str:
    return section(
        "Positions", ". ".join(sentence[:1].upper() + sentence[1:] for sentence in explained.position) + "."
    )


def _layers(explained: Explained) -> str:
    lens, rows = explained.layers, list[list[Any]]()
    for layer, name in enumerate(lens.layers):
        top = lens.top(layer, 0)
        cells: list[Any] = [(f"{text} {p:.2f}", bar(p)) for text, p in top]
        rows.append([name.removesuffix(".residual"), *cells, round(float(lens.entropy[layer, 0]), 3)])
    names = ["after", *(f"{rank + 1}" for rank in range(lens.ids.shape[-1])), "entropy"]
    return section(
        "Prediction after each layer",
        "The logit lens: the last norm and the output head, applied to the residual stream after each block.",
        table(names, rows),
    )


def _attribution(attribution: Any) -> str:
    largest = max(abs(contribution.value) for contribution in attribution.contributions)
    rows = [
        [part.name, (round(part.value, 3), shade(part.value, largest))] for part in attribution.ranked()[:15]
    ]
    total = round(attribution.total, 3)
    return section(
        "Contributions to the logit",
        f"The logit of {attribution.token!r} is {attribution.logit:.3f}. The contributions sum to {total}.",
        table(["part", "adds"], rows),
    )


def _by_token(by_token: Any) -> str:
    ranked = by_token.ranked()
    largest = abs(ranked[0].value) or 1.0
    rows = [
        [one.of, one.position, one.piece, (round(one.value, 3), shade(one.value, largest))]
        for one in ranked[:15]
    ]
    return section(
        "Contributions of tokens",
        "What each token adds to the logit through the heads that attend to it. All other parts at the last position "
        f"add {by_token.rest:+.3f}.",
        table(["of", "", "piece", "adds"], rows),
    )


def _heads(explained: Explained) -> str:
    rows = [
        [
            head.name,
            "" if head.contribution is None else round(head.contribution, 3),
            *[(f"{text} {weight:.2f}", bar(weight)) for text, weight in head.looked_at],
        ]
        for head in explained.heads
    ]
    pieces = [piece.text for piece in explained.pieces]
    source = [piece.text for piece in explained.source_pieces]
    maps = [
        _map(f"head {head.name}", pattern, pieces, source if head.cross else pieces)
        for head, pattern in zip(explained.heads, explained.patterns)
    ]
    return section(
        "The most important heads",
        "Each head's contribution to the logit, and the tokens to which the last token attends most. In a map, a row "
        "is a query and a column is a key.",
        table(["head", "adds", "looks at", "", ""], rows),
        *maps,
    )


def _map(name: str, pattern: Any, queries: list[str], keys: list[str]) -> str:
    return f"<h3>{name}</h3>{heat(pattern, queries, keys, f'attention of {name}')}"


def _logits(explained: Explained) -> str:
    rows = [
        [token.text, token.id, round(token.logit, 3), (f"{token.probability:.4f}", bar(token.probability)),
         (f"{token.final_probability:.4f}", bar(token.final_probability))]
        for token in explained.alternatives
    ]  # fmt: skip
    return section(
        "Logits and probabilities",
        "The probabilities of the most likely tokens, in the model's distribution and after the sampler's chain.",
        table(["token", "id", "logit", "model", "chain"], rows),
    )


def _chain(explained: Explained) -> str:
    parts = []
    for text, trace in explained.tokens:
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
        choice = "the likeliest" if trace.number is None else f"drawn with {trace.number:.6f}"
        parts.append(
            f"<p>{escaped(text)}: probability {trace.probability:.4f}, rank {trace.rank}, {choice}</p>"
            + (table(["step", "removed", "left", "mass", "moved", "entropy"], rows) if rows else "")
        )
    return section("Sampling", "The effect of each step of the chain, and the sampled token.", *parts)
