"""pellucid sample MODEL PROMPT: the choice of each token, step by step through the sampler chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import Loading, load
from pellucid.cli.sampling_options import checked

if TYPE_CHECKING:
    from pellucid.engine.output import TokenOutput
    from pellucid.sample.token_trace import TokenTrace
    from pellucid.tokenize import Tokenizer

BAR = 20
"""Characters of the bar of probability 1."""
USUAL_TOKENS = 4


def command(
    model: common.Model,
    prompt: common.Prompt = None,
    top: Annotated[int, common.count("Tokens to show, the most likely first.")] = 8,
    *,
    loading: Loading,
    json: common.Json = False,
    **sampling: Any,
) -> None:
    """Show how tokens are chosen.

    Shows how many tokens each step of the sampler chain removes, and the most likely tokens before and after the chain.
    Generates 4 tokens unless --max-new-tokens is given.
    """
    from pellucid.util.checks import whole

    top = whole("top", top, 1, 1000)
    options = checked(sampling, max_new_tokens=USUAL_TOKENS, watch=True)
    text = common.text_or_stdin(prompt, "no prompt")
    llm = load(model, loading, lambda inputs: inputs.prompt(text))
    run = llm.start(text, **options)
    documents = []
    for index, piece in enumerate(run):
        trace = piece.trace
        assert trace is not None  # the options have ``watch``
        if json:
            documents.append(as_dict(piece, trace, llm.tokenizer, top))
        else:
            _show(index, piece, trace, llm.tokenizer, top)
    if json:
        common.print_json({**run.result().as_dict(), "trace": documents})


def as_dict(piece: TokenOutput, trace: TokenTrace, tokenizer: Tokenizer, top: int) -> dict[str, Any]:
    """The choice of a token, as data."""
    from dataclasses import asdict

    return {
        **asdict(trace),
        "text": tokenizer.piece(trace.token),
        "candidates": candidates(piece, tokenizer, top),
    }


def candidates(piece: TokenOutput, tokenizer: Tokenizer, top: int) -> list[dict[str, Any]]:
    """The most likely tokens and the chosen token, with their probabilities in the model and after the chain."""
    from pellucid.sample.token_trace import likeliest

    assert piece.draw is not None  # the token has not waited in a queue
    ids, before, after = likeliest(piece.draw, top)
    return [
        {"id": token, "text": tokenizer.piece(token), "probability": float(p), "final_probability": float(q)}
        for token, p, q in zip(ids.tolist(), before, after)
    ]


def _show(index: int, piece: TokenOutput, trace: TokenTrace, tokenizer: Tokenizer, top: int) -> None:
    how = "the likeliest" if trace.number is None else f"drawn with {trace.number:.6f}"
    print(
        f"token {index}: {common.visible(tokenizer.piece(trace.token))}  id {trace.token}, rank {trace.rank}, "
        f"probability {_share(trace.probability)}, after the chain {_share(trace.final_probability)}, {how}"
    )
    table = common.table(
        "step", "removed", "left", "mass", "moved", "entropy", "", right=("removed", "left", "mass", "moved")
    )
    table.add_row("logits", "", "", "", "", f"{trace.entropy:.3f}", "")
    for step in trace.steps:
        table.add_row(
            step.name,
            f"{step.removed:,}",
            f"{step.left:,}",
            _share(step.removed_mass),
            _share(step.moved),
            f"{step.entropy_after:.3f}",
            step.note,
        )
    common.show(table)
    bars = common.table(
        "token", "id", "model", "", "chain", "", right=("id", "model", "chain"), no_wrap=("token",)
    )
    for candidate in candidates(piece, tokenizer, top):
        mark = "▸" if candidate["id"] == trace.token else " "
        bars.add_row(
            f"{mark} {common.visible(candidate['text'])}",
            str(candidate["id"]),
            _share(candidate["probability"]),
            _bar(candidate["probability"]),
            _share(candidate["final_probability"]),
            _bar(candidate["final_probability"]),
        )
    common.show(bars)
    print()


def _share(probability: float) -> str:
    return f"{100 * probability:.2f} %"


def _bar(probability: float) -> str:
    eighths = round(probability * BAR * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


COMMAND = Command("sample", command, sampling=True)
