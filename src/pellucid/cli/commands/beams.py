"""pellucid beams MODEL PROMPT: the best continuations by beam search; --tree shows all candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import Loading, load
from pellucid.cli.sampling_options import checked

if TYPE_CHECKING:
    from pellucid.engine.output import Beams
    from pellucid.tokenize import Tokenizer

USUAL_TOKENS = 32


def command(
    model: common.Model,
    prompt: common.Prompt = None,
    num_beams: Annotated[int, common.count("Beams: candidate texts that each step keeps.")] = 4,
    num_return_sequences: Annotated[int, common.count("Texts to print, the best first.")] = 1,
    length_penalty: Annotated[
        float,
        common.number("Scores are divided by the length to this power. A number above 0 favours long texts."),
    ] = 1.0,
    early_stopping: Annotated[
        str,
        common.text(
            "WHEN",
            "When to stop: at --num-beams finished texts (true), or when better texts are unlikely (false) or "
            "impossible (never).",
        ),
    ] = "false",
    num_beam_groups: Annotated[
        int, common.count("Groups of beams (diverse beam search), which should differ from each other.")
    ] = 1,
    diversity_penalty: Annotated[
        float, common.number("Penalty on the score of a token that another group chose.")
    ] = 0.0,
    do_sample: Annotated[
        bool,
        common.flag(
            "--do-sample", "Sample the candidates with the sampler chain, instead of the most likely tokens."
        ),
    ] = False,
    tree: Annotated[bool, common.flag("--tree", "Print all candidates of the search, step by step.")] = False,
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
    options = checked(sampling, max_new_tokens=USUAL_TOKENS)
    text = common.text_or_stdin(prompt, "no prompt")
    llm = load(model, loading, lambda inputs: inputs.prompt(text))
    result = llm.beam_search(text, **beams, **options)
    if json:
        common.print_json(result.as_dict())
        return
    if tree:
        _tree(result, llm.tokenizer)
    for best in result.texts:
        print(
            f"{best.score:9.4f}  {common.visible(best.text)}  [{len(best.ids)} tokens, {best.finish_reason}]"
        )


def _tree(result: Beams, tokenizer: Tokenizer) -> None:
    """Print the search tree, a line for each candidate."""
    nodes = result.tree
    table = common.table(
        "step", "node", "from", "token", "score", "", right=("step", "node", "from", "score")
    )
    for node in nodes[1:]:
        state = {"extended": "goes on", "finished": f"finished, {node.final_score or 0:.4f}"}.get(
            node.state, node.why
        )
        token = common.visible(tokenizer.piece(node.token))
        table.add_row(str(node.step), str(node.id), str(node.parent), token, f"{node.score:.4f}", state)
    common.show(table)
    print()


COMMAND = Command("beams", command, sampling=True)
