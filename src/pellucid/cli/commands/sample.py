"""pellucid sample MODEL PROMPT: the choice of each token. pellucid beams MODEL PROMPT: the best texts by beam
search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.cli.options import Loading, checked, load
from pellucid.util.checks import whole

if TYPE_CHECKING:
    from pellucid.engine.output import Beams, TokenOutput
    from pellucid.sample.chain import TokenTrace
    from pellucid.tokenize import Tokenizer

BAR = 20
"""Characters of the bar of probability 1."""
USUAL_TOKENS = 4


@command("sample", sampling=True)
def sample_command(
    model: common.Model,
    prompt: common.Prompt = None,
    top: int = common.count("Tokens to show, the most likely first.", 8),
    *,
    loading: Loading,
    json: common.Json = False,
    **sampling: Any,
) -> None:
    """Show how tokens are chosen.

    Shows how many tokens each step of the sampler chain removes, and the most likely tokens before and after the chain.
    Generates 4 tokens unless --max-new-tokens is given.
    """
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

    return {**asdict(trace), "text": tokenizer.piece(trace.token), "candidates": candidates(piece, tokenizer, top)}


def candidates(piece: TokenOutput, tokenizer: Tokenizer, top: int) -> list[dict[str, Any]]:
    """The most likely tokens and the chosen token, with their probabilities in the model and after the chain."""
    from pellucid.sample.chain import likeliest

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
    steps = [
        (
            *(step.name, f"{step.removed:,}", f"{step.left:,}", _share(step.removed_mass), _share(step.moved)),
            *(f"{step.entropy_after:.3f}", step.note),
        )
        for step in trace.steps
    ]
    rows = [("logits", "", "", "", "", f"{trace.entropy:.3f}", ""), *steps]
    common.print_table("step", ">removed", ">left", ">mass", ">moved", "entropy", "", rows=rows)
    bars = [
        (
            f"{'▸' if one['id'] == trace.token else ' '} {common.visible(one['text'])}",
            str(one["id"]),
            *(_share(one["probability"]), _bar(one["probability"])),
            *(_share(one["final_probability"]), _bar(one["final_probability"])),
        )
        for one in candidates(piece, tokenizer, top)
    ]
    common.print_table("|token", ">id", ">model", "", ">chain", "", rows=bars)
    print()


def _share(probability: float) -> str:
    return f"{100 * probability:.2f} %"


def _bar(probability: float) -> str:
    eighths = round(probability * BAR * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


BEAMS_USUAL_TOKENS = 32


@command("beams", sampling=True)
def beams_command(
    model: common.Model,
    prompt: common.Prompt = None,
    num_beams: int = common.count("Beams: candidate texts that each step keeps.", 4),
    num_return_sequences: int = common.count("Texts to print, the best first.", 1),
    length_penalty: float = common.number(
        "Scores are divided by the length to this power. A number above 0 favours long texts.", 1.0
    ),
    early_stopping: str = common.text(
        "WHEN",
        "When to stop: at --num-beams finished texts (true), or when better texts are unlikely (false) or "
        "impossible (never).",
        "false",
    ),
    num_beam_groups: int = common.count(
        "Groups of beams (diverse beam search), which should differ from each other.", 1
    ),
    diversity_penalty: float = common.number("Penalty on the score of a token that another group chose.", 0.0),
    do_sample: bool = common.flag(
        "--do-sample", "Sample the candidates with the sampler chain, instead of the most likely tokens."
    ),
    tree: bool = common.flag("--tree", "Print all candidates of the search, step by step."),
    *,
    loading: Loading,
    json: common.Json = False,
    **sampling: Any,
) -> None:
    """Find the best continuations of a text by beam search.

    Generates at most 32 tokens unless --max-new-tokens is given.
    """
    from pellucid.sample.beams import BeamOptions

    beams: dict[str, Any] = {
        "num_beams": num_beams,
        "num_return_sequences": num_return_sequences,
        "length_penalty": length_penalty,
        "early_stopping": {"true": True, "false": False}.get(early_stopping, early_stopping),
        "num_beam_groups": num_beam_groups,
        "diversity_penalty": diversity_penalty,
        "do_sample": do_sample,
    }
    BeamOptions(**beams)
    options = checked(sampling, max_new_tokens=BEAMS_USUAL_TOKENS)
    text = common.text_or_stdin(prompt, "no prompt")
    llm = load(model, loading, lambda inputs: inputs.prompt(text))
    result = llm.beam_search(text, **beams, **options)
    if json:
        common.print_json(result.as_dict())
        return
    if tree:
        _tree(result, llm.tokenizer)
    for best in result.texts:
        print(f"{best.score:9.4f}  {common.visible(best.text)}  [{len(best.ids)} tokens, {best.finish_reason}]")


def _tree(result: Beams, tokenizer: Tokenizer) -> None:
    rows = []
    for node in result.tree[1:]:
        state = {"extended": "goes on", "finished": f"finished, {node.final_score or 0:.4f}"}.get(node.state, node.why)
        token = common.visible(tokenizer.piece(node.token))
        rows.append((str(node.step), str(node.id), str(node.parent), token, f"{node.score:.4f}", state))
    common.print_table(">step", ">node", ">from", "token", ">score", "", rows=rows)
    print()
