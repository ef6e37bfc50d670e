"""Widgets in notebooks (Jupyter, marimo), drawn by the modules of the page, offline.

    from pellucid.integrations.widgets import show

    show(graph)                      # an attribution graph: Neuronpedia's JSON, or an object with as_dict()
    show(logit_lens(llm, text))
    show((tokens, patterns))         # attention weights (H, T, T) of T tokens
    show(run)                        # a recorded run: its text, and the steps of its sampler chain

The widget is an ``anywidget.AnyWidget`` with two traits: ``kind`` and ``data``. Save in a graph writes its pinned nodes
and groups into ``data``, so ``widget.data["qParams"]`` has them.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.trace.lenses.logit_lens import LogitLens
from pellucid.trace.recorded_run import RecordedRun
from pellucid.web.bundle import widget_script, widget_style

try:
    anywidget: Any = importlib.import_module("anywidget")
    traitlets: Any = importlib.import_module("traitlets")
except ImportError as error:
    raise ImportError(
        f"widgets need anywidget, which is not installed ({error}): pip install 'pellucid[notebook]'"
    ) from error

MOST_VALUES = 1 << 24
PROBABILITY = "sample.probability"


class PageWidget(anywidget.AnyWidget):  # type: ignore[misc]
    """A component of the page: "graph", "attention", "lens" or "run", and what it shows."""

    _esm = widget_script()
    _css = widget_style()
    kind = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)


def show(thing: Any) -> PageWidget:
    """A widget of an attribution graph, a logit lens, a recorded run, or attention weights with their tokens.

    A graph is a dictionary in Neuronpedia's JSON format, or an object whose ``as_dict()`` has that form. Weights are a
    pair: the texts of T tokens, and an array (H, T, T). Raises InvalidRequest if the thing is none of them, or the
    weights do not fit the tokens.
    """
    if isinstance(thing, LogitLens):
        return PageWidget(kind="lens", data=thing.as_dict())
    if isinstance(thing, RecordedRun):
        return PageWidget(kind="run", data=_run(thing))
    if isinstance(thing, tuple) and len(thing) == 2:
        return PageWidget(kind="attention", data=_attention(*thing))
    document = thing.as_dict() if hasattr(thing, "as_dict") else thing
    if isinstance(document, Mapping) and {"metadata", "nodes", "links"} <= document.keys():
        return PageWidget(kind="graph", data=dict(document))
    raise InvalidRequest(
        f"thing={brief(thing)}: a widget shows an attribution graph (metadata, nodes, links), a LogitLens, "
        "a RecordedRun, or a pair of tokens and attention weights (H, T, T)"
    )


def _attention(tokens: Sequence[str], weights: Any) -> dict[str, Any]:
    values: NDArray[np.float32] = np.asarray(weights, np.float32)
    count = len(tokens)
    if values.ndim != 3 or values.shape[1:] != (count, count) or not values.size:
        raise InvalidRequest(f"weights of shape {values.shape}: {count} tokens need (H, {count}, {count})")
    if values.size > MOST_VALUES:
        raise InvalidRequest(
            f"weights of shape {values.shape}: a widget shows {MOST_VALUES:,} numbers at most: "
            "choose heads, or fewer tokens"
        )
    data = base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
    array = {"shape": list(values.shape), "dtype": "float32", "data": data}
    return {"tokens": [str(one) for one in tokens], "weights": array}


def _run(run: RecordedRun) -> dict[str, Any]:
    """The parts of a run that the widget shows. A probability that was not recorded is None."""
    recorded = run.get(PROBABILITY, np.zeros(0)).reshape(-1).tolist()[: len(run.ids)]
    return {
        "model": str(run.model.get("name")),
        "pieces": run.pieces,
        "characters": [{"first": first, "stop": stop, "text": text} for first, stop, text in run.characters],
        "prompt": len(run.prompt),
        "probabilities": recorded + [None] * (len(run.ids) - len(recorded)),
        "chain": run.chain,
        "finish_reason": run.finish_reason,
    }
