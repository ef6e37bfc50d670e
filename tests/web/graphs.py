"""Attribution graphs for the tests of the page: a small one whose edges are known, and large ones."""

from __future__ import annotations

import random
from typing import Any

TOKENS = ["<bos>", "The", " capital", " of", " Texas", " is"]
LAYERS = 4


def node(layer: str, number: int, column: int, kind: str, **more: Any) -> dict[str, Any]:
    """A node as circuit-tracer writes it (frontend/graph_models.py)."""
    name = f"{layer}_{number}_{column}"
    plain: dict[str, Any] = {"token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0}
    fields = {"node_id": name, "feature": number, "layer": layer, "ctx_idx": column, "feature_type": kind}
    return {**fields, **plain, "jsNodeId": name, "clerp": "", "influence": None, "activation": None, **more}


def link(source: str, target: str, weight: float) -> dict[str, Any]:
    return {"source": source, "target": target, "weight": weight}


def document(
    nodes: list[dict[str, Any]], links: list[dict[str, Any]], tokens: list[str], **more: Any
) -> dict[str, Any]:
    facts = {"slug": "texas", "scan": "tiny", "transcoder_list": [], "prompt": "".join(tokens)}
    asked = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    metadata = {**facts, "prompt_tokens": tokens, "node_threshold": 0.8, "schema_version": 1}
    return {"metadata": metadata, "qParams": {**asked, **more}, "nodes": nodes, "links": links}


def small() -> dict[str, Any]:
    """A graph of eleven nodes: Texas and capital lead to the logit of Austin, directly and through features."""
    feature = "cross layer transcoder"
    nodes = [
        node("E", 11, 2, "embedding", clerp=" capital", influence=0.3),
        node("E", 12, 4, "embedding", clerp=" Texas", influence=0.2),
        node("0", 7, 4, feature, clerp="state names", influence=0.35, activation=2.5),
        node("1", 3, 2, feature, influence=0.5, activation=1.25),
        node("1", 4, 5, "neuron", influence=0.7, activation=-0.5),
        node("2", 1, 5, "head", influence=0.6),
        node(
            "2", 9, 5, feature, label="say Austin", influence=0.4, activation=4.0,
            top_logits=[[" Austin", 3.25], [" Dallas", -1.5]],
        ),
        node("3", 8, 5, feature, influence=0.98, activation=0.125),
        {**node("3", 0, 4, "mlp reconstruction error", influence=0.9), "node_id": "0_3_4", "feature": -1},
        node("5", 900, 5, "logit", clerp='Output " Austin" (p=0.450)', token_prob=0.45, is_target_logit=True),
        node("5", 901, 5, "logit", clerp='Output " Dallas" (p=0.100)', token_prob=0.1),
    ]  # fmt: skip
    links = [
        link("E_12_4", "0_7_4", 3.0),
        link("E_11_2", "1_3_2", 2.0),
        link("0_7_4", "2_1_5", 1.5),
        link("2_1_5", "2_9_5", 1.0),
        link("1_3_2", "2_9_5", 0.75),
        link("0_7_4", "2_9_5", 0.5),
        link("1_4_5", "2_9_5", -0.25),
        link("2_9_5", "5_900_5", 4.0),
        link("2_9_5", "5_901_5", -2.0),
        link("E_12_4", "5_900_5", 0.125),
        link("0_3_4", "5_900_5", -0.5),
        link("3_8_5", "5_900_5", 0.0625),
    ]
    return document(nodes, links, TOKENS)


def large(nodes: int, links: int, tokens: int = 24, layers: int = 26) -> dict[str, Any]:
    """A random graph: edges lead upwards, and a few have most of the weight."""
    rng = random.Random(7)
    words = [f" word{n}" for n in range(tokens)]
    made = [node("E", 40 + n, n, "embedding", clerp=words[n], influence=0.2) for n in range(tokens)]
    for n in range(nodes - tokens - 1):
        share = round(1 - (1 - n / nodes) ** 2, 6)
        place = (str(rng.randrange(layers)), n, min(tokens - 1, int(rng.paretovariate(1.2) - 1)))
        layer, number, back = place
        made.append(node(layer, number, tokens - 1 - back, "cross layer transcoder", influence=share, activation=1.0))
    made.append(node(str(layers + 1), 5, tokens - 1, "logit", clerp='Output " end" (p=0.9)', token_prob=0.9))
    height = {one["node_id"]: -1 if one["layer"] == "E" else int(one["layer"]) for one in made}
    ids = sorted(height, key=height.__getitem__)
    found = set[tuple[str, str]]()
    edges = []
    while len(edges) < links:
        source, target = sorted(rng.sample(range(len(ids)), 2))
        pair = (ids[source], ids[target])
        if height[pair[0]] < height[pair[1]] and pair not in found:
            found.add(pair)
            edges.append(link(*pair, rng.gauss(0, 1) ** 3))
    return document(made, edges, words)
