"""Neuronpedia's format of attribution graphs, which circuit-tracer's and our own page read.

Nodes have ids "layer_number_position"; errors have "0_layer_position" with the feature -1, and embeddings
"E_token_position". The kinds "neuron", "head" and "position" are our own.

Source: the classes ``Node`` and ``Model`` of circuit-tracer 0.5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.graphs.graph_node import GraphNode

KINDS: Mapping[str, str] = {"feature": "cross layer transcoder", "error": "mlp reconstruction error"}
"""The format's names of kinds, where they differ from ours."""
SCHEMA_VERSION = 1


def document(
    pieces: Sequence[str],
    nodes: Sequence[GraphNode],
    links: Sequence[tuple[int, int, float]],
    influence: NDArray[np.float64],
    groups: Mapping[str, Sequence[int]],
    layers: int,
    slug: str,
    scan: str,
    promoted: Mapping[int, Sequence[tuple[str, float]]],
) -> dict[str, Any]:
    """A graph as a dictionary for JSON. ``links`` are (source, target, weight).

    The other arguments are as in ``AttributionGraph``.
    """
    ids, prompt, shares = [node_id(node, layers) for node in nodes], "".join(pieces), _cumulative(influence)
    first = next((at for at, node in enumerate(nodes) if node.kind == "logit"), None)
    return {
        "metadata": {
            "slug": slug or f"graph-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}",
            "scan": scan or "pellucid",
            "transcoder_list": [],
            "prompt_tokens": list(pieces),
            "prompt": prompt,
            "node_threshold": None,
            "schema_version": SCHEMA_VERSION,
        },
        "qParams": {
            "pinnedIds": [ids[at] for group in groups.values() for at in group],
            "supernodes": [[name, *(ids[at] for at in group)] for name, group in groups.items()],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            {
                **_node(node, ids[at], layers, shares[at]),
                "is_target_logit": at == first,
                **({"top_logits": [list(pair) for pair in promoted[at]]} if promoted.get(at) else {}),
            }
            for at, node in enumerate(nodes)
        ],
        "links": [
            {"source": ids[source], "target": ids[target], "weight": weight}
            for source, target, weight in links
        ],
    }


def node_id(node: GraphNode, layers: int) -> str:
    """The id of a node."""
    if node.kind == "embedding":
        return f"E_{node.number}_{node.position}"
    if node.kind == "position":
        return f"P_{node.position}_{node.position}"
    if node.kind == "error":
        return f"0_{node.layer}_{node.position}"
    if node.kind == "logit":
        return f"{layers + 1}_{node.number}_{node.position}"
    if node.kind == "feature":
        return f"{node.layer}_{node.number}_{node.position}"
    return f"{node.layer}_{node.kind}.{max(node.number, 0)}_{node.position}"


def _node(node: GraphNode, own: str, layers: int, influence: float) -> dict[str, Any]:
    layer = {"embedding": "E", "position": "E", "logit": str(layers + 1)}.get(node.kind, str(node.layer))
    feature = {"error": -1, "position": node.position, "embedding": node.position}.get(node.kind, node.number)
    if node.kind == "feature":
        feature = _paired(node.layer or 0, node.number)
    return {
        "node_id": own,
        "feature": feature,
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": KINDS.get(node.kind, node.kind),
        "token_prob": node.weight,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": own,
        "clerp": f'Output "{node.text}" (p={node.weight:.3f})' if node.kind == "logit" else "",
        "influence": influence if node.kind != "logit" else None,
        "activation": node.activation if node.kind in ("feature", "neuron", "head") else None,
        "label": node.name,
    }


def _cumulative(influence: NDArray[np.float64]) -> list[float]:
    """The share of the influence that the nodes with at least a node's influence have together."""
    order = np.argsort(-influence, kind="stable")
    total = np.cumsum(influence[order])
    found = np.zeros(len(order))
    found[order] = total / max(float(total[-1]), 1e-30)
    return [float(value) for value in found]


def _paired(x: int, y: int) -> int:
    """Cantor's number of a pair, as circuit-tracer numbers features."""
    return (x + y) * (x + y + 1) // 2 + y
