"""pellucid graph MODEL PROMPT: an attribution graph of the next token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import Loading, load
from pellucid.cli.output_file import OutputFile
from pellucid.errors import InvalidRequest
from pellucid.util.checks import real

if TYPE_CHECKING:
    from pellucid.trace.graphs.attribution_graph import AttributionGraph, Promoted

SHOWN = 20
EDGES = 3


def command(
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
        _show(whole, graph, promoted)


def _show(whole: AttributionGraph, graph: AttributionGraph, promoted: Promoted) -> None:
    replaced, complete = whole.scores()
    print(f"{graph!r}")
    print(f"of {len(whole.nodes):,} nodes; replacement score {replaced:.2f}, completeness score {complete:.2f}")
    print("\nnodes with the highest influence on the logits")
    table = common.table(
        "influence", "node", "token", "activation", "promotes", "strongest inputs", right=("influence", "activation")
    )
    for node, share in graph.top(SHOWN):
        at = graph.index(node)
        inputs = "  ".join(f"{graph.nodes[edge.source].name} {edge.weight:+.2f}" for edge in graph.inputs(at, EDGES))
        tokens = " ".join(common.visible(text) for text, _ in promoted.get(at, ())[:EDGES])
        token = common.visible(graph.pieces[node.position])
        table.add_row(f"{share:.4f}", node.name, token, f"{node.activation:.2f}", tokens, inputs)
    common.show(table)


COMMAND = Command("graph", command)
