"""Edges of attribution graphs equal those of an independent torch implementation; graphs add up, prune and export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.lettered import lettered_llm
from support.tiny import GOLDENS, TINY

from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.model.spec import Mixture
from pellucid.trace import (
    Dictionary,
    ablate,
    attribution_graph,
    check_graph,
    gradients,
    logit_difference,
    promoted_tokens,
    replace,
)
from pellucid.trace.graphs import frozen_products
from pellucid.trace.graphs.attribution_graph import AttributionGraph, influences
from pellucid.trace.graphs.local_run import LocalRun
from pellucid.trace.graphs.targets import MOST

IDS = [3, 17, 90, 41, 8, 55]
CASES = sorted((GOLDENS.parent / "attribution_graphs").iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_edges_are_those_of_torch(case: Path, tmp_path: Path) -> None:
    """The greatest error is 1e-4 of the range of the edges of a target."""
    golden = np.load(case / "expected.npz")
    with lettered_llm(str(golden["model"]), tmp_path) as llm:
        dictionary = Dictionary.open(case, llm) if (case / "config.yaml").exists() else None
        tokens = golden["targets"][golden["kinds"] == "logit"][:, 2].tolist()
        graph = attribution_graph(
            llm, golden["ids"].tolist(), dictionary, target=tokens, nodes=100_000, heads=False, first=0
        )
    place = {(node.kind, node.layer, node.position, node.number): at for at, node in enumerate(graph.nodes)}
    kind, T = str(golden["kinds"][-1]), len(golden["ids"])
    row_of = {int(target): row for row, target in enumerate(graph.targets)}
    checked = 0
    for number, (own, (layer, token, index)) in enumerate(zip(golden["kinds"], golden["targets"].tolist())):
        at = place.get(("logit", None, T - 1, index) if own == "logit" else (kind, layer, token, index))
        if at is None:
            assert golden["activations"][layer, token, index] == 0 or kind == "neuron"
            continue
        row, checked = graph.edges[row_of[at]], checked + 1
        expected = dict[int, float]()
        for (layer_, t, f), value in np.ndenumerate(golden["features"][number]):
            if (unit := place.get((kind, layer_, t, f))) is not None:
                expected[unit] = value
            else:
                assert value == 0 or kind == "neuron"
        for (layer_, t), value in np.ndenumerate(golden["errors"][number]):
            expected[place["error", layer_, t, -1]] = value
        for t in range(T):
            expected[place["embedding", None, t, golden["ids"][t]]] = golden["embeddings"][number, t]
            if "positions" in golden:
                expected[place["position", None, t, -1]] = golden["positions"][number, t]
        found = np.array([row[source] for source in expected])
        wanted = np.array(list(expected.values()))
        largest = float(np.abs(wanted).max())
        assert np.abs(found - wanted).max() <= 1e-4 * largest, (own, layer, token, index)
        assert row.sum() == pytest.approx(found.sum(), abs=1e-4 * largest * len(row)), "other edges"
        value = graph.nodes[at].activation
        assert value == pytest.approx(golden["values"][number], rel=1e-3, abs=1e-5)
        assert graph.rests[row_of[at]] == pytest.approx(golden["rest"][number], abs=2e-4 * largest + 1e-5)
    assert checked >= 0.95 * len(golden["kinds"])


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with lettered_llm("llama", tmp_path_factory.mktemp("graphs")) as llm:
        yield llm


@pytest.fixture(scope="module")
def graph(llm: LLM) -> AttributionGraph:
    return attribution_graph(llm, IDS, nodes=60)


def test_paths_sum_to_the_total_effect(llm: LLM) -> None:
    """With all units and no error, the effects over all paths from the embeddings sum to the logits."""
    graph = attribution_graph(llm, IDS, nodes=100_000, heads=True, first=0)
    n = len(graph.nodes)
    direct = np.zeros((n, n))
    direct[graph.targets] = graph.edges
    values = np.array([node.activation for node in graph.nodes])
    relative = np.zeros((n, n))  # the share of a target's value that a source gives
    np.divide(direct, values[:, None], out=relative, where=values[:, None] != 0)
    total = np.linalg.inv(np.eye(n) - relative) - np.eye(n)
    roots = [at for at, node in enumerate(graph.nodes) if node.kind == "embedding"]
    logits = [at for at, node in enumerate(graph.nodes) if node.kind == "logit"]
    errors = graph.edges[:, [node.kind == "error" for node in graph.nodes]]
    assert np.abs(errors).max() < 1e-5 * np.abs(graph.edges).max(), "all units are nodes"
    assert any(node.kind == "head" for node in graph.nodes)
    np.testing.assert_allclose(total[np.ix_(logits, roots)].sum(1), 1, atol=2e-3)
    assert np.abs(graph.rests).max() < 1e-4 * np.abs(values).max()


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_fewer_nodes_leave_the_sums_unchanged(name: str, tmp_path: Path) -> None:
    """Units without a node count as errors, so the inputs of each target have the same sum."""
    with lettered_llm(name, tmp_path) as llm:
        whole = attribution_graph(llm, IDS, nodes=100_000, heads=False, first=0)
        small = attribution_graph(llm, IDS, nodes=20, heads=False, first=0)
    assert sum(node.kind == "neuron" for node in small.nodes) == 20
    values = dict(zip((whole.nodes[at] for at in whole.targets), whole.edges))
    for at, row, rest in zip(small.targets, small.edges, small.rests):
        expected = values[small.nodes[at]].sum(dtype=np.float64)
        assert row.sum(dtype=np.float64) == pytest.approx(expected, abs=1e-3 * float(np.abs(row).max()))
        assert rest == pytest.approx(small.nodes[at].activation - expected, abs=1e-3)


def test_patterns_are_computed_again_if_they_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Edges with patterns from queries and keys equal those with recorded patterns, across blocks of queries."""
    monkeypatch.setattr(frozen_products, "BLOCK", 5)
    rng = np.random.default_rng(3)
    ids = rng.integers(3, 120, 40).tolist()
    for name in ("llama", "gemma3", "qwen2"):
        with lettered_llm(name, tmp_path) as llm:
            recorded = attribution_graph(llm, ids, nodes=30, heads=False)
            products = LocalRun.recorded_patterns
            monkeypatch.setattr(LocalRun, "recorded_patterns", (False,))
            computed = attribution_graph(llm, ids, nodes=30, heads=False)
            monkeypatch.setattr(LocalRun, "recorded_patterns", products)
        logits = [at for at in recorded.targets if recorded.nodes[at].kind == "logit"]
        assert logits
        rows = [list(recorded.targets).index(at) for at in logits]
        largest = np.abs(recorded.edges[rows]).max()
        same = [node.kind in ("embedding", "logit") for node in recorded.nodes]
        others = [node.kind in ("embedding", "logit") for node in computed.nodes]
        np.testing.assert_allclose(
            computed.edges[-len(rows) :, others], recorded.edges[-len(rows) :, same], atol=1e-4 * largest
        )


def test_influence_over_paths() -> None:
    """A chain and a fork, by hand: shares of inputs, multiplied along each path."""
    edges = np.array([[0, 0, -3, 1, 0], [1, 1, 0, 0, 0], [4, 0, 2, 0, 0]], np.float32)
    found = influences(edges, np.array([-1, 2, 3]), np.array([0.5]))
    logit = 0.5 * np.array([0, 0, 0.75, 0.25, 0])
    third = logit[3] * np.array([2 / 3, 0, 1 / 3, 0, 0])
    second = (logit[2] + third[2]) * np.array([0.5, 0.5, 0, 0, 0])
    np.testing.assert_allclose(found.nodes, logit + third + second, rtol=1e-6)


def test_pruning_keeps_paths(graph: AttributionGraph) -> None:
    pruned = graph.pruned(0.7, 0.9)
    assert len(pruned.nodes) < len(graph.nodes)
    assert [node for node in pruned.nodes if node.kind == "embedding"] == [
        node for node in graph.nodes if node.kind == "embedding"
    ]
    for at, node in enumerate(pruned.nodes):
        if node.kind in ("neuron", "head"):
            assert pruned.inputs(at)
            assert pruned.outputs(at)
    for at, row, rest in zip(pruned.targets, pruned.edges, pruned.rests):
        whole = list(graph.targets).index(graph.nodes.index(pruned.nodes[at]))
        before = graph.edges[whole].sum(dtype=np.float64) + graph.rests[whole]
        assert row.sum(dtype=np.float64) + rest == pytest.approx(before, abs=1e-5)
    everything = graph.pruned(1.0, 1.0)
    assert np.count_nonzero(everything.edges) <= np.count_nonzero(graph.edges)
    replaced, complete = graph.scores()
    assert 0 < replaced <= 1
    assert 0 < complete <= 1


def test_groups_sum_edges(graph: AttributionGraph) -> None:
    neurons = [at for at, node in enumerate(graph.nodes) if node.kind == "neuron"]
    logits = [at for at, node in enumerate(graph.nodes) if node.kind == "logit"]
    grouped = graph.grouped({"early": neurons[:5], "out": logits})
    expected = sum(edge.weight for at in neurons[:5] for edge in graph.outputs(at, 10_000) if edge.target in logits)
    assert grouped.between("early", "out") == pytest.approx(expected, abs=1e-5)
    document = grouped.as_dict()
    assert [group[0] for group in document["qParams"]["supernodes"]] == ["early", "out"]
    with pytest.raises(InvalidRequest, match="one group only"):
        graph.grouped({"a": neurons[:2], "b": neurons[1:3]})
    with pytest.raises(InvalidRequest, match="groups='none': has no nodes"):
        graph.grouped({"none": []})
    with pytest.raises(InvalidRequest, match="no such group"):
        grouped.between("early", "late")


def test_the_file_is_neuronpedias(graph: AttributionGraph, tmp_path: Path) -> None:
    """Ids are unique, links name nodes, and all fields of circuit-tracer's Node are there."""
    graph.grouped({"all": [0]}).save(tmp_path / "graph.json", slug="test", scan="tiny")
    document = json.loads((tmp_path / "graph.json").read_text())
    ids = [node["node_id"] for node in document["nodes"]]
    assert len(set(ids)) == len(ids) == len(graph.nodes)
    assert {link[end] for link in document["links"] for end in ("source", "target")} <= set(ids)
    assert document["metadata"]["prompt_tokens"] == graph.pieces
    assert sum(node["is_target_logit"] for node in document["nodes"]) == 1
    fields = {
        "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "token_prob": float,
        "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "jsNodeId": str, "clerp": str,
    }  # fmt: skip
    for node in document["nodes"]:
        assert all(isinstance(node[name], kind) for name, kind in fields.items()), node
    with pytest.raises(InvalidRequest, match="cannot be written"):
        graph.save(tmp_path / "missing" / "graph.json")


def test_predicted_and_measured_changes(llm: LLM, graph: AttributionGraph) -> None:
    """A small change of a node has the predicted effect on differences of logits; norms move all top logits alike."""
    node = next(node for node, _ in graph.top(50, "neuron") if node.layer == 1)
    found = check_graph(llm, graph, node, 0.99, frozen=True)
    at = [number for number, own in enumerate(found.nodes) if own.kind == "logit"]
    assert at
    predicted, measured = (own[at] - own[at].mean() for own in (found.predicted, found.measured))
    np.testing.assert_allclose(measured, predicted, atol=0.2 * np.abs(predicted).max())
    assert "correlation" in repr(found)
    again = check_graph(llm, graph, node, 1.0)
    assert not again.predicted.any()
    assert not again.measured.any()
    with pytest.raises(InvalidRequest, match="cannot be changed"):
        check_graph(llm, graph, next(own for own in graph.nodes if own.kind == "embedding"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "olmo2", "granite", "openai-gpt", "cohere2"])
def test_promoted_tokens_are_the_edges_to_the_logits(name: str, tmp_path: Path) -> None:
    """Of a neuron of the last block at the last token, whose effects pass only norms, up to one factor."""
    with lettered_llm(name, tmp_path) as llm:
        last, vocabulary = len(llm.spec.blocks) - 1, llm.tokenizer.vocab_size
        graph = attribution_graph(llm, IDS, nodes=100_000, heads=False, first=0, target=list(range(3, 40)))
        promoted = promoted_tokens(llm, graph, count=MOST)
        rows = [row for row, at in enumerate(graph.targets) if graph.nodes[at].kind == "logit"]
        checked = 0
        for at, node in enumerate(graph.nodes):
            if node.kind == "neuron" and node.layer == last and node.position == len(IDS) - 1:
                values = dict(promoted[at])
                own = [(row, graph.nodes[graph.targets[row]].text) for row in rows]
                edges = np.array([graph.edges[row, at] for row, text in own if text in values])
                shown = np.array([values[text] for _, text in own if text in values])
                if len(shown) > 8 and np.abs(edges).max() > 1e-4:
                    assert np.corrcoef(edges * np.sign(node.activation), shown)[0, 1] > 0.9999, node.name
                    checked += 1
    assert vocabulary > MOST
    assert checked > 3


def test_promoted_tokens_are_logits_of_vectors(llm: LLM, graph: AttributionGraph) -> None:
    found = promoted_tokens(llm, graph, count=3)
    at = next(number for number, node in enumerate(graph.nodes) if node.kind == "neuron")
    node, weights = graph.nodes[at], llm.float_weights
    vector = weights.values(f"blocks.{node.layer}.feedforward.down.weight")[:, node.number]
    logits = weights.values("project.weight" if weights.has("project.weight") else "embed.weight") @ (
        vector * weights.values("norm.weight").reshape(-1)
    )
    best = np.argsort(-logits)[:3]
    assert [text for text, _ in found[at]] == [llm.tokenizer.piece(int(token)) for token in best]
    assert found[at][0][1] == pytest.approx(logits[best[0]] - logits.mean(), abs=1e-5)


FAMILIES = sorted(name for name in TINY if "-odd" not in name and name != "bert")
NOT_CONSTANTS = ("dt_bias", "e_score_correction_bias", "expert_bias")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_graphs_that_add_up(name: str, tmp_path: Path) -> None:
    """Through all kinds of layers. Without biases the inputs of a node sum to its value."""
    with lettered_llm(name, tmp_path) as llm:
        graph = attribution_graph(llm, IDS, nodes=24, first=0, heads=True)
        names = [one for one in llm.checkpoint.tensors if one.endswith("bias")]
        constants = [one for one in names if not one.endswith(NOT_CONSTANTS)]
        clips = any(attention.clip for attention in llm.spec.attentions)
    assert np.isfinite(graph.edges).all()
    assert np.isfinite(graph.rests).all()
    if not constants and not clips:
        assert (np.abs(graph.rests) < 1e-5 * np.abs(graph.edges).sum(1)).all()


@pytest.mark.parametrize("name", ["falcon_h1", "lfm2-odd", "qwen3_next"])
def test_a_pass_over_fewer_tokens_than_a_convolution_has_taps(name: str, tmp_path: Path) -> None:
    with lettered_llm(name, tmp_path) as llm:
        for ids, nodes in (([3, 17], 20), (IDS, 100_000)):
            graph = attribution_graph(llm, ids, nodes=nodes, first=0)
            assert np.isfinite(graph.edges).all()
            if name == "qwen3_next":  # it has no biases
                assert (np.abs(graph.rests) <= 1e-5 * np.abs(graph.edges).sum(1) + 1e-7).all()
        found = gradients(llm, [3, 17], logit_difference(llm, 65, 66), ["embed"])
        values = found.values["embed"]
        step = 1e-3 * np.abs(values).mean() * np.sign(found["embed"])
        after, before = (
            gradients(
                llm, [3, 17], logit_difference(llm, 65, 66), ["embed"], edits=[replace("embed", values + by)]
            ).value
            for by in (step, -step)
        )
    assert (after - before) / 2 == pytest.approx(float((found["embed"] * step).sum()), rel=0.05)


@pytest.mark.parametrize("name", ["qwen2_moe", "mixtral", "llama4", "qwen2_moe-odd", "mixtral-odd", "llama4-odd"])
def test_neurons_of_experts_are_nodes(name: str, tmp_path: Path) -> None:
    """Their sum is the output of the mixture. Their names have the expert, and a change of a neuron is as predicted."""
    with lettered_llm(name, tmp_path) as llm:
        graph = attribution_graph(llm, IDS, nodes=100_000, heads=False, first=0)
        neurons = [node for node in graph.nodes if node.kind == "neuron" and "." in node.text]
        layer = max(own.layer or 0 for own in neurons if own.neuron.expert is not None)
        ranked = (own for own, _ in graph.top(5000, "neuron") if own.layer == layer)
        node = next(own for own in ranked if own.neuron.expert is not None)
        promoted = promoted_tokens(llm, graph, count=1)[graph.index(node)]
        kind = llm.spec.blocks[layer].feedforward
        vectors = llm.float_weights.values(node.neuron.down)
        head, norm = (llm.float_weights.values(one) for one in ("project.weight", "norm.weight"))
        check = check_graph(llm, graph, node, 0.9, frozen=True)
    errors = graph.edges[:, [one.kind == "error" for one in graph.nodes]]
    assert np.abs(errors).max() < 1e-5 * np.abs(graph.edges).max(), "all units are nodes"
    assert isinstance(kind, Mixture)
    labels = {one.text.split(".")[0] for one in neurons}
    assert ("shared" in labels) == (kind.shared is not None)
    assert labels <= {"shared", *(str(expert) for expert in range(kind.router.experts))}
    assert f"neuron {node.layer}.{node.text} at {node.position}" == node.name
    expert, number = divmod(node.number, kind.expert.width)
    assert (expert, number) == (node.neuron.expert, node.neuron.number)
    logits = head @ (vectors.reshape(kind.router.experts, -1, kind.expert.width)[expert, :, number] * norm.reshape(-1))
    assert promoted[0][1] == pytest.approx(float(logits.max() - logits.mean()), rel=1e-4)
    at = [position for position, own in enumerate(check.nodes) if own.kind == "logit"]
    predicted, measured = (own[at] - own[at].mean() for own in (check.predicted, check.measured))
    if layer == graph.layers - 1:  # later blocks are not linear
        np.testing.assert_allclose(measured, predicted, atol=0.3 * np.abs(predicted).max())


def test_one_token_has_a_graph(llm: LLM) -> None:
    """Its units are nodes, because there is no other token."""
    kinds = {node.kind for node in attribution_graph(llm, [3], nodes=20).nodes}
    assert kinds == {"neuron", "head", "error", "embedding", "logit"}


def test_edits_of_the_run(llm: LLM) -> None:
    """An ablated neuron has no node, and the sums stay."""
    graph = attribution_graph(
        llm, IDS, nodes=100_000, heads=False, first=0, edits=[ablate("blocks.0.feedforward.hidden[dims=3]")]
    )
    assert not any(node.kind == "neuron" and (node.layer, node.number) == (0, 3) for node in graph.nodes)
    assert np.abs(graph.rests).max() < 1e-4 * np.abs([node.activation for node in graph.nodes]).max()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nodes": 0}, "nodes="),
        ({"first": 6}, "first="),
        ({"share": 0.0}, "share="),
        ({"target": []}, "at least one token"),
        ({"target": lambda logits: 0.0}, "no gradient"),
        ({"target": [10_000]}, "10000"),
        ({"budget": 100}, "budget=100"),
        ({"heads": "no"}, "heads='no': must be True or False"),
    ],
)
def test_what_is_refused(llm: LLM, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)) as error:
        attribution_graph(llm, IDS, **options)
    assert "\n" not in str(error.value)


def test_a_graph_of_another_model_is_refused(graph: AttributionGraph, tmp_path: Path) -> None:
    with lettered_llm("gemma3", tmp_path) as other:
        for call in (
            lambda: promoted_tokens(other, graph),
            lambda: check_graph(other, graph, graph.top(1, "neuron")[0][0]),
        ):
            with pytest.raises(InvalidRequest, match="give the graph's model"):
                call()


def test_dictionaries_without_transcoders_are_refused(tmp_path: Path) -> None:
    """An SAE of the residual stream has no output of a feed-forward."""
    with lettered_llm("llama", tmp_path) as llm:
        dictionary = Dictionary.open(CASES[[case.name for case in CASES].index("llama-transcoders")], llm)
        coder = dictionary.coder(0)
        coder.is_autoencoder = True
        with pytest.raises(InvalidRequest, match="needs transcoders"):
            attribution_graph(llm, IDS, dictionary)
        assert not any(node.kind == "head" for node in attribution_graph(llm, IDS, None, heads=False).nodes)
