"""pellucid explain, graph MODEL PROMPT: why a model continues a prompt as it does, stage by stage or as a graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.cli.options import Loading, checked, load
from pellucid.cli.output_file import OutputFile
from pellucid.errors import InvalidRequest
from pellucid.util.checks import real, whole

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs
    from pellucid.llm import LLM
    from pellucid.trace.explanation import ExplainedPiece, PromptExplanation
    from pellucid.trace.graphs.attribution_graph import AttributionGraph, Promoted
    from pellucid.trace.lenses.logit_lens import LogitLens

BAR = 20
"""Characters of the bar of probability 1."""
SHOWN_LAYERS = 16
HEADS = 8
"""Default number of attention heads that are shown."""
SHOWN_TOKENS = 10
"""Tokens whose contributions are shown."""


@command("explain", sampling=True)
def explain_command(
    model: common.Model,
    prompt: common.Prompt = None,
    top: int = common.count("Tokens to show of each distribution, the most likely first.", 5),
    heads: int = common.count("Attention heads to show, the largest effect first.", HEADS),
    step: int = common.count("The generated token to explain: 1 for the first.", 1),
    html: Path | None = common.text("FILE", "Write the report as one self-contained HTML page; - for standard output."),
    *,
    loading: Loading,
    json: common.Json = False,
    **sampling: Any,
) -> None:
    """Explain how a model continues a text, fills in its masks or labels it.

    Shows the tokens and their vectors, the effect of positions, the prediction after each layer, the parts of the model
    and the tokens that made the token likely, the most important heads and the tokens that they attend to, the
    probabilities, and the effect of the sampler chain. Explains the first generated token unless --step is given. For
    an encoder-decoder the prompt is the source. A masked language model shows the tokens that each layer would fill in,
    and a classifier the scores of its labels after each layer.
    """
    from pellucid.trace.explanation import MOST_STEP, explain

    step = whole("step", step, 1, MOST_STEP)
    page = None if html is None else OutputFile("html", html, [model])
    if json and page is not None and page.is_stdout:
        raise InvalidRequest("--html - and --json both write to standard output: name a file, or remove --json")
    options = checked(sampling, max_new_tokens=step, watch=True)
    text = common.text_or_stdin(prompt, "no prompt")

    def check(inputs: Inputs) -> None:
        if inputs.spec.task not in ("fill", "classify"):
            inputs.prompt(text)
            return
        given = [f"--{name.replace('_', '-')}" for name, value in sampling.items() if value is not None]
        given += [f"--html {common.visible(str(html))}"] * (html is not None) + ["--heads"] * (heads != HEADS)
        given += ["--step"] * (step != 1)
        if given:
            raise InvalidRequest(f"{given[0]}: only for models that generate text: remove it")

    llm = load(model, loading, check)
    if not llm.spec.generates:
        _explain_encoder(llm, text, top, json=json)
        return
    explanation = explain(llm, text, top=top, heads=heads, step=step, **options)
    if page is not None:
        page.write(explanation.html())
    if json:
        common.print_json(explanation.as_dict())
    elif page is None:
        _show(explanation)


def _explain_encoder(llm: LLM, text: str, top: int, *, json: bool) -> None:
    """Show what each layer of a masked language model or of a classifier says."""
    from pellucid.trace.explanation import MOST_TOP
    from pellucid.trace.lenses.logit_lens import label_lens, logit_lens

    top = whole("top", top, 1, MOST_TOP)
    if llm.spec.task == "classify":
        labels = label_lens(llm, text)
        if json:
            common.print_json(labels.as_dict())
            return
        print("scores of the labels after each layer")
        rows = []
        for layer, name in enumerate(labels.layers):
            line = "  ".join(f"{common.visible(label)} {score:.4f}" for label, score in labels.ranked(layer)[:top])
            rows.append((name.removesuffix(".residual"), line))
        common.print_table("after", "labels and their scores", rows=rows)
        return
    lens = logit_lens(llm, text, top=top)
    if json:
        common.print_json(lens.as_dict())
        return
    for position in range(len(lens.pieces)):
        print(f"{chr(10) if position else ''}the token at mask {position + 1}, for each layer (logit lens)")
        _show_layers(lens, position)


def _show(explanation: PromptExplanation) -> None:
    if explanation.source_pieces:
        print("tokens of the source and their embeddings")
        _show_pieces(explanation.source_pieces)
        print()
    print("tokens and embeddings")
    _show_pieces(explanation.pieces)
    print("\npositions")
    for line in explanation.position:
        print(f"  {line}")
    print("\nprediction of each layer after the last token (logit lens)")
    _show_layers(explanation.layers, 0)
    if (attribution := explanation.attribution) is not None:
        print(f"\nparts that made {common.visible(attribution.token)} likely (its logit is {attribution.logit:.3f})")
        parts = [(f"{part.value:+.3f}", part.name) for part in attribution.ranked()[:10]]
        common.print_table(">adds", "part", rows=parts)
    if (by_token := explanation.token_contributions) is not None:
        print("\ntokens that made it likely, through the heads that attend to them")
        ranked = by_token.ranked()[:SHOWN_TOKENS]
        rows = [(f"{one.value:+.3f}", one.of, str(one.position), common.visible(one.piece)) for one in ranked]
        common.print_table(">adds", "of", ">", "piece", rows=rows)
    print("\nheads with the largest effect")
    heads = []
    for head in explanation.heads:
        looked = ", ".join(f"{common.visible(text)} {weight:.2f}" for text, weight in head.looked_at)
        heads.append((head.name, "" if head.contribution is None else f"{head.contribution:+.3f}", looked))
    common.print_table("head", ">adds", "attends to", rows=heads)
    _show_draw(explanation)
    for note in explanation.notes:
        print(f"\n{note}")


def _show_pieces(pieces: list[ExplainedPiece]) -> None:
    firsts = [" ".join(f"{x:+.3f}" for x in piece.first) for piece in pieces]
    rows = [
        (str(at), common.visible(piece.text), str(piece.id), first, f"{piece.length:.3f}")
        for at, (piece, first) in enumerate(zip(pieces, firsts))
    ]
    common.print_table(">", "|piece", ">id", "first components", ">length", rows=rows)


def _show_layers(lens: LogitLens, position: int) -> None:
    shown = range(len(lens.layers))
    if len(shown) > SHOWN_LAYERS:
        step = -(-len(shown) // SHOWN_LAYERS)
        shown = range((len(shown) - 1) % step, len(shown), step)
    rows = []
    for layer in shown:
        line = "  ".join(f"{common.visible(text)} {p:.2f}" for text, p in lens.top(layer, position))
        rows.append((lens.layers[layer].removesuffix(".residual"), f"{lens.entropy[layer, position]:.2f}", line))
    common.print_table("after", ">entropy", "tokens and their probabilities", rows=rows)


def _show_draw(explanation: PromptExplanation) -> None:
    print("\nlogits and probabilities")
    rows = [
        (
            *(common.visible(part.text), f"{part.logit:.2f}", f"{100 * part.probability:.2f} %"),
            *(_bar(part.probability), f"{100 * part.final_probability:.2f} %", _bar(part.final_probability)),
        )
        for part in explanation.alternatives
    ]
    common.print_table("|token", ">logit", ">model", "", ">chain", "", rows=rows)
    for text, trace in explanation.tokens:
        steps = ", ".join(f"{step.name} leaves {step.left:,} and moves {step.moved:.2f}" for step in trace.steps)
        how = "the likeliest" if trace.number is None else f"drawn with {trace.number:.6f}"
        print(f"\n{common.visible(text)}  {how}" + (f"; {steps}" if steps else ""))
    print(f"\n{common.visible(explanation.prompt)} → {common.visible(explanation.text)}")


def _bar(probability: float) -> str:
    return "█" * round(probability * BAR)


SHOWN_NODES = 20
EDGES = 3


@command("graph")
def graph_command(
    model: common.Model,
    prompt: common.Prompt = None,
    transcoders: Path | None = common.text(
        "PATH", "Transcoders, whose features are the nodes. Default: neurons and attention heads."
    ),
    token: list[str] | None = common.text("TEXT", "A token whose logit is explained. Default: the most likely tokens."),
    nodes: int = common.count("Neurons, features and heads before pruning.", 1000),
    heads: bool | None = typer.Option(
        None, help="Attention heads are nodes. Default: without transcoders.", show_default=False
    ),
    first: int = typer.Option(1, help="The first token with units as nodes. 0: the first of the prompt."),
    node_share: float = typer.Option(0.8, help="Share of the influence that the kept nodes have."),
    edge_share: float = typer.Option(0.98, help="Share of the influence that the kept edges have."),
    out: Path | None = common.text(
        "FILE", "The file to write: .json in Neuronpedia's format, or .html, which opens in a browser."
    ),
    *,
    loading: Loading,
    json: common.Json = False,
) -> None:
    """Show how neurons or features lead to the next token: an attribution graph.

    Attention patterns and norms keep the values of the run, so all effects between feed-forwards are linear. An edge is
    the direct effect of one node on another. pellucid look opens the JSON file; so do Neuronpedia and circuit-tracer.
    """
    from json import dumps

    import numpy as np

    from pellucid.trace.dictionaries.dictionary import Dictionary
    from pellucid.trace.graphs.build import attribution_graph
    from pellucid.trace.graphs.targets import promoted_tokens

    if out is not None and out.suffix.lower() not in (".json", ".html"):
        raise InvalidRequest(f"out={common.visible(str(out))}: its name must end with .json or .html")
    output = None if out is None else OutputFile("out", out, [model, *([transcoders] if transcoders else [])])
    text = common.text_or_stdin(prompt, "no prompt")
    node_share, edge_share = (
        real(name, share, 0.0, 1.0) for name, share in (("node-share", node_share), ("edge-share", edge_share))
    )
    llm = load(model, loading, lambda inputs: inputs.prompt(text))
    dictionary = None if transcoders is None else Dictionary.open(transcoders, llm)
    with common.progress() as bars:
        whole = attribution_graph(
            llm, text, dictionary, target=token, nodes=nodes, heads=heads, first=first, told=bars.connecting
        )
    graph = whole.pruned(node_share, edge_share)
    promoted = promoted_tokens(llm, graph, dictionary)
    scan = llm.checkpoint.path.stem
    if output is not None and out is not None:
        is_page = out.suffix.lower() == ".html"
        output.write(graph.html(scan=scan, promoted=promoted) if is_page else dumps(graph.as_dict("", scan, promoted)))
    if json:
        common.print_json(graph.as_dict("", scan, promoted))
    elif out is not None:
        print(f"{len(graph.nodes):,} nodes, {np.count_nonzero(graph.edges):,} edges: {common.visible(str(out))}")
    else:
        _show_graph(whole, graph, promoted)


def _show_graph(whole: AttributionGraph, graph: AttributionGraph, promoted: Promoted) -> None:
    replaced, complete = whole.scores()
    print(f"{graph!r}")
    print(f"of {len(whole.nodes):,} nodes; replacement score {replaced:.2f}, completeness score {complete:.2f}")
    print("\nnodes with the highest influence on the logits")
    rows = []
    for node, share in graph.top(SHOWN_NODES):
        at = graph.index(node)
        inputs = "  ".join(f"{graph.nodes[edge.source].name} {edge.weight:+.2f}" for edge in graph.inputs(at, EDGES))
        tokens = " ".join(common.visible(text) for text, _ in promoted.get(at, ())[:EDGES])
        token = common.visible(graph.pieces[node.position])
        rows.append((f"{share:.4f}", node.name, token, f"{node.activation:.2f}", tokens, inputs))
    columns = (">influence", "node", "token", ">activation", "promotes", "strongest inputs")
    common.print_table(*columns, rows=rows)
