"""The Grafana board asks only for metrics and labels that a server has, and shows every metric."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.served import models_folder, serving

from pellucid.engine.state import EngineState, ReplicaStates
from pellucid.serve.metrics import Metrics
from pellucid.serve.pool import ModelPool

BOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "pellucid.json"
NAME = re.compile(r"[a-z]+:[a-z_0-9]+")
LABELS = re.compile(r"(\w+)=~|by \(([\w, ]+)\)|\{\{(\w+)\}\}|label_values\([^,]+, (\w+)\)")


def samples(text: str) -> dict[str, set[str]]:
    """The labels of each sample of /metrics, by the name of the sample."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The samples of a real server after requests, and the samples of replicas, which only a cluster has."""
    with serving(models_folder(tmp_path_factory.mktemp("board"))) as served:
        body = {"model": "one", "prompt": "to see to see to see", "max_tokens": 20}
        for _ in range(2):
            httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).raise_for_status()
        found = samples(httpx.get(f"{served.url}/metrics").text)
        state = served.llm().state()
    return found | samples(replicas(state))


def replicas(state: EngineState) -> str:
    """/metrics of replicas with two stages."""

    class Replicas:
        weight_bytes = 0

        def state(self) -> EngineState:
            return state

        def replica_states(self) -> ReplicaStates:
            return ReplicaStates({"r": replace(state, stage_seconds=(1.0, 2.0)), "lost": None}, 1, 2, 3)

    models = ModelPool(["one"], lambda name: pytest.fail(f"{name} is loaded"), 0)
    models.put("one", Replicas())  # type: ignore[arg-type]
    return Metrics(models).text().decode()


def expressions() -> list[tuple[str, str]]:
    """The queries of the board, each with its legend."""
    board = json.loads(BOARD.read_text())
    found = [
        (target["expr"], target["legendFormat"]) for panel in board["panels"] for target in panel.get("targets", ())
    ]
    variables = [(one["query"]["query"], "") for one in board["templating"]["list"] if one["type"] == "query"]
    assert len(found) > 30
    return [*found, *variables]


def test_every_metric_and_label_of_the_board_exists(known: dict[str, set[str]]) -> None:
    for expression, legend in expressions():
        names = NAME.findall(expression)
        assert names, expression
        assert set(names) <= set(known), expression
        shown = {
            label.strip()
            for match in LABELS.findall(f"{expression} {legend}")
            for one in match
            for label in one.split(",")
            if label
        }
        for name in names:
            assert shown <= known[name], (name, shown - known[name])


def test_the_board_shows_every_metric(known: dict[str, set[str]]) -> None:
    shown = {name for expression, _ in expressions() for name in NAME.findall(expression)}
    # The board shows the buckets of a histogram, and no times of creation.
    wanted = {name for name in known if not name.endswith(("_created", "_sum", "_count"))}
    assert wanted == shown


def test_panels_do_not_overlap() -> None:
    taken = set[tuple[int, int]]()
    for panel in json.loads(BOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
