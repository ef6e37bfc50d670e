"""Seconds of attribution graphs: with transcoders beside circuit-tracer, with neurons and heads, and of a long prompt.

    python bench/attribution_graphs.py [--model smollm2] [--rounds 3] [--threads N] [--peers PYTHON]
        [--parts transcoders neurons] [--dtypes float32 ...] [--features 4608] [--nodes 1000] [--neuron-nodes 500]
    python bench/attribution_graphs.py --parts --long 6000 [--long-model gemma3] [--long-nodes 64]

transcoders    a prompt of 12 tokens with random transcoders of F features for each block, from the token ids to the
               graph without pruning. The biases are set so that about 40 features of a block are active at each token.
neurons        prompts of 12, 100 and 500 tokens without a dictionary: neurons and heads
--long N       a prompt of N tokens without heads as nodes, once, in a process of its own: seconds with the loading of
               float weights, and the peak of the resident memory with the model

`--peers` names an interpreter with circuit-tracer 0.5.0, transformers 4.57 and gguf: each round of ``transcoders`` then
also runs `attribution_graphs_peer.py`, on the same model file unpacked, with the same files of transcoders, the same
number of feature nodes and the same logits, in each of `--dtypes` and with batches of each of its sizes, of which the
fastest counts.

Output: medians. The first call, which dequantizes the model's weights, is apart. The agreement with circuit-tracer in
the first dtype, with Pellucid's defaults and with `precise`: the number of feature nodes that both graphs have, and the
correlation of their edges to the most likely token. The program ends if a correlation is too low. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import pellucid
from pellucid.llm import LLM
from pellucid.measure.roofs import facts
from pellucid.runtime.processors import processors
from pellucid.trace import Dictionary, attribution_graph
from pellucid.trace.graphs.attribution_graph import AttributionGraph
from pellucid.trace.traced_model import read
from pellucid.weights.written import write_safetensors, written_floats

PEER = Path(__file__).with_name("attribution_graphs_peer.py")
TEXT = Path(__file__).parents[1] / "tests" / "oracles" / "text.txt"
PROMPT = "The capital of the state that contains the city of Dallas is"
LENGTHS = 12, 100, 500
ACTIVE = 40  # features of a block at a token
SEED = 7
LONG_BUDGET = 10 << 30
LEAST = {"pellucid": 0.98, "pellucid precise": 0.9999}
"""The correlations with circuit-tracer in float32 without which the program ends."""
CONFIG = """model_kind: transcoder_set
feature_input_hook: mlp.hook_in
feature_output_hook: mlp.hook_out
"""
Edges = dict[tuple[int, int, int], float]
"""Edges from features to the first logit, by layer, token and feature."""


def timed(work: Callable[[], AttributionGraph]) -> tuple[float, AttributionGraph]:
    """Seconds, and the graph."""
    start = time.perf_counter()
    graph = work()
    return time.perf_counter() - start, graph


def write_transcoders(llm: LLM, ids: list[int], features: int, folder: Path) -> float:
    """Write random transcoders in circuit-tracer's format. Returns the active features of a block at a token."""
    rng, D = np.random.default_rng(SEED), llm.spec.embedding.width
    names = [f"blocks.{layer}.feedforward.norm" for layer in range(len(llm.spec.blocks))]
    values, active = read(llm, ids, names), list[float]()
    (folder / "config.yaml").write_text(CONFIG)
    for layer, name in enumerate(names):
        encoder, decoder = (rng.standard_normal((features, D), np.float32) / np.float32(D**0.5) for _ in range(2))
        before = values[name][1:] @ encoder.T  # the first token has no nodes
        centred = before - before.mean(0)
        bias = -before.mean(0) - np.quantile(centred, 1 - ACTIVE / features)
        active.append(float((before + bias > 0).sum(1).mean()))
        arrays = {"W_enc": encoder, "b_enc": bias, "W_dec": decoder, "b_dec": np.zeros(D, np.float32)}
        tensors = {key: written_floats(array.astype(np.float32)) for key, array in arrays.items()}
        write_safetensors(folder / f"layer_{layer}.safetensors", tensors)
    return statistics.mean(active)


def edges_of(graph: AttributionGraph) -> Edges:
    """The edges from all features of a graph to its first logit."""
    kinds = [node.kind for node in graph.nodes]
    (row,) = np.flatnonzero(graph.targets == kinds.index("logit"))
    return {
        (int(node.layer or 0), node.position, node.number): float(edge)
        for node, edge in zip(graph.nodes, graph.edges[row])
        if node.kind == "feature"
    }


def agreement(ours: Edges, theirs: Edges) -> dict[str, float]:
    """The number of features that both have, and the correlation of their edges."""
    both = sorted(ours.keys() & theirs.keys())
    values = np.array([[edges[feature] for feature in both] for edges in (ours, theirs)])
    return {"shared": len(both), "correlation": float(np.corrcoef(values)[0, 1])}


def ask_peer(asked: argparse.Namespace, file: Path, folder: Path, ids: list[int], tokens: list[int]) -> dict[str, Any]:
    """Run circuit-tracer once. Returns the JSON that it prints last."""
    options = ["--nodes", str(asked.nodes), "--threads", str(asked.threads), "--dtypes", *asked.dtypes]
    done = subprocess.run(
        [asked.peers, PEER, file, folder, json.dumps([ids, tokens]), *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(asked.threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def transcoders(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure graphs with transcoders, and print the medians."""
    seconds: dict[str, list[float]] = {}
    batches: dict[str, list[int]] = {}
    edges: dict[str, Edges] = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with pellucid.load(asked.model, threads=asked.threads, precise=True) as llm:
            ids = list(llm.inputs.prompt(PROMPT))
            active = write_transcoders(llm, ids, asked.features, folder)
            graph = attribution_graph(llm, ids, Dictionary.open(folder, llm), nodes=asked.nodes)
            tokens = [node.number for node in graph.nodes if node.kind == "logit"]
            precise = edges_of(graph)
        with pellucid.load(asked.model, threads=asked.threads) as llm:
            dictionary = Dictionary.open(folder, llm)

            def work() -> AttributionGraph:
                return attribution_graph(llm, ids, dictionary, target=tokens, nodes=asked.nodes)

            first, graph = timed(work)
            own = edges_of(graph)
            for _ in range(asked.rounds):
                llm.engine.cache.clear_prefixes()
                seconds.setdefault("pellucid", []).append(timed(work)[0])
                if asked.peers:
                    answer = ask_peer(asked, llm.checkpoint.path, folder, ids, tokens)
                    versions = answer["versions"]
                    for dtype, found in answer["graphs"].items():
                        label = f"circuit-tracer {dtype}"
                        seconds.setdefault(label, []).append(found["seconds"])
                        batches.setdefault(label, []).append(found["batch"])
                        edges[label] = {(a, b, c): edge for a, b, c, edge in found["edges"]}
    print(
        f"transcoders: {len(ids)} tokens, {asked.features:,} features in each block, {active:.0f} active at a token, "
        f"{asked.nodes:,} feature nodes, {len(tokens)} logits"
    )
    medians = {tool: statistics.median(own) for tool, own in seconds.items()}
    for tool, median in medians.items():
        note = f"  batches of {statistics.mode(batches[tool])}" if tool in batches else ""
        print(f"{tool:<26}{median:>8.2f} s{note}")
    print(f"{'pellucid, first call':<26}{first:>8.2f} s")
    agreed: dict[str, dict[str, float]] = {}
    if edges:
        fastest = min(edges, key=lambda tool: medians[tool])
        print(f"ratio {medians[fastest] / medians['pellucid']:.2f} ({fastest})")
        reference = next(iter(edges))
        others = {tool: theirs for tool, theirs in edges.items() if tool != reference}
        for tool, theirs in {"pellucid": own, "pellucid precise": precise, **others}.items():
            agreed[tool] = agreement(theirs, edges[reference])
            print(
                f"{tool:<26}{agreed[tool]['shared']:>5} of {len(edges[reference])} features of {reference}, "
                f"correlation of edges {agreed[tool]['correlation']:.6f}"
            )
            if reference.endswith(" float32") and not agreed[tool]["correlation"] >= LEAST.get(tool, -1):
                raise SystemExit(f"{tool}: the correlation is less than {LEAST[tool]}")
    return {"seconds": seconds, "first": first, "agreement": agreed, "batches": batches, "versions": versions}


def neurons(asked: argparse.Namespace) -> dict[str, list[float]]:
    """Measure graphs of neurons and heads, and print the medians. Returns the seconds by length."""
    seconds: dict[str, list[float]] = {str(length): [] for length in LENGTHS}
    with pellucid.load(asked.model, threads=asked.threads) as llm:
        ids = list(llm.inputs.prompt(TEXT.read_text("utf-8")))[: max(LENGTHS)]
        attribution_graph(llm, ids[: min(LENGTHS)], nodes=asked.neuron_nodes)  # warm: weights are dequantized
        for _ in range(asked.rounds):
            for length in LENGTHS:
                llm.engine.cache.clear_prefixes()
                spent, _ = timed(partial(attribution_graph, llm, ids[:length], nodes=asked.neuron_nodes))
                seconds[str(length)].append(spent)
    print(f"neurons and heads: {asked.neuron_nodes:,} nodes")
    for name, own in seconds.items():
        print(f"{f'{name} tokens':<26}{statistics.median(own):>8.2f} s")
    return seconds


def long_graph(model: str, tokens: int, nodes: int, threads: int) -> dict[str, float]:
    """The seconds of the graph of a long prompt, its nodes, and the peak of this process's memory in bytes."""
    import resource

    with pellucid.load(model, threads=threads) as llm:
        text, ids = TEXT.read_text("utf-8"), list[int]()
        while len(ids) < tokens:
            text += text
            ids = list(llm.inputs.prompt(text))
        spent, graph = timed(lambda: attribution_graph(llm, ids[:tokens], nodes=nodes, heads=False, budget=LONG_BUDGET))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"tokens": len(graph.ids), "seconds": spent, "nodes": len(graph.nodes), "peak_bytes": peak}


def long(asked: argparse.Namespace) -> Mapping[str, float]:
    """Measure a long prompt in a process of its own, and print its time and memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        given = asked.long_model, asked.long, asked.long_nodes, asked.threads
        try:
            found = pool.submit(long_graph, *given).result()
        except BrokenProcessPool:
            raise SystemExit("long: the process was killed, probably because memory was short") from None
    print(
        f"long: {asked.long_model}, {found['tokens']:,} tokens, {asked.long_nodes:,} neurons: "
        f"{found['seconds']:.1f} s, peak memory {found['peak_bytes'] / 1e9:.2f} GB"
    )
    return found


PARTS: Mapping[str, Callable[[argparse.Namespace], Mapping[str, Any]]] = {
    "transcoders": transcoders,
    "neurons": neurons,
}


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=processors().usable)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--features", type=int, default=4608, help="of each transcoder")
    parser.add_argument("--nodes", type=int, default=1000, help="of a graph with transcoders")
    parser.add_argument("--neuron-nodes", type=int, default=500, help="of a graph with neurons and heads")
    parser.add_argument("--long", type=int, metavar="TOKENS", help="measure a prompt of so many tokens, too")
    parser.add_argument("--long-model", default="gemma3")
    parser.add_argument("--long-nodes", type=int, default=64)
    return parser.parse_args()


def main() -> None:
    """Measure, and print the medians and the JSON line."""
    asked = arguments()
    found: dict[str, Any] = {}
    if asked.long:  # first: a new process inherits the peak of the memory of the process that starts it
        found["long"] = long(asked)
    for part in asked.parts:
        found[part] = PARTS[part](asked)
    print(json.dumps({**found, "machine": facts()}))


if __name__ == "__main__":
    main()
