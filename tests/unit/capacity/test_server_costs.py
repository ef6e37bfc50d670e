"""The server's own cost is measured on a real server with real clients."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

import pellucid
from pellucid.capacity import server_costs
from pellucid.capacity.layouts import ModelSize
from pellucid.capacity.server_costs import seen_by_clients, with_server
from pellucid.capacity.step_costs import StepCosts
from pellucid.errors import KernelError
from pellucid.testing import random_model

COSTS = StepCosts({1: 1e-5, 64: 2e-5}, {1: 1e-5, 256: 1e-4})


def test_a_server_takes_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said = tmp_path / "llama.gguf", list[str]()
    random_model("llama", path, context=512)
    monkeypatch.setattr(server_costs, "REQUESTS", 2)
    llm = pellucid.load(path, threads=1)
    room = ModelSize("tiny", llm.spec, llm.plan, llm.runner.limits, 0).replica_capacity(1 << 30)
    found = with_server(llm, COSTS, room, lambda done, total, what: said.append(what))
    assert said == ["a server with one client", "a server with 8 clients"]
    assert (found.rows, found.prompts) == (COSTS.rows, COSTS.prompts)
    assert 0 < found.request < 1
    assert 0 <= found.stream < 1
    assert 0 < found.server_step + found.server_row < 0.1
    assert llm.runner.executor.closed


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(KernelError, match="could not be measured") as raised:
        seen_by_clients("http://127.0.0.1:1", 1, 1)
    assert "\n" not in str(raised.value)
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://127.0.0.1:1")
