"""Machine files: the fields that are read. Any other content is refused with the name of the field."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command import Command

from pellucid.capacity.machines import MAX_CORES, MAX_KINDS, MAX_MACHINES, Link, Machine, read_machines
from pellucid.errors import InvalidRequest
from pellucid.measure.cost import Rates

HERE = Machine("this machine", 1, 16_000_000_000, 4, Rates(40e9, 800e9), "measured")
GOOD: dict[str, Any] = {"name": "a", "count": 3, "memory_gb": 64, "cores": 16}


def read(tmp_path: Path, document: Any) -> Any:
    path = tmp_path / "machines.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return read_machines(path, lambda: HERE)


def test_what_a_file_says(tmp_path: Path) -> None:
    given_rates = {"name": "b", "memory_gb": 8, "cores": 2, "read_gb_per_s": 20, "multiply_gmac_per_s": 100}
    found = read(tmp_path, {"machines": [GOOD, given_rates], "link": {"latency_us": 20, "gbit_per_s": 25}})
    one, other = found.kinds
    assert one == Machine("a", 3, 64_000_000_000, 16, Rates(160e9, 3200e9), "by cores")
    assert other == Machine("b", 1, 8_000_000_000, 2, Rates(20e9, 100e9), "given")
    assert found.link == Link(20e-6, 25e9 / 8)
    assert read(tmp_path, {"machines": [GOOD]}).link == Link()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "not JSON"),
        ([], "no list of machines"),
        ({"machines": []}, "no list of machines"),
        ({"machines": [1]}, "machines[0]=1"),
        ({"machines": [{"name": "a", "cores": 2}]}, "machines[0].memory_gb is missing"),
        ({"machines": [{**GOOD, "cores": 0}]}, "machines[0].cores=0"),
        ({"machines": [{**GOOD, "cores": "many"}]}, "machines[0].cores='many'"),
        ({"machines": [{**GOOD, "memory_gb": -1}]}, "machines[0].memory_gb=-1"),
        ({"machines": [{**GOOD, "count": 10**9}]}, "machines[0].count"),
        ({"machines": [{**GOOD, "read_gb_per_s": 20}]}, "multiply_gmac_per_s is missing"),
        ({"machines": [{**GOOD, "color": "red"}]}, "'color'"),
        ({"machines": [GOOD, GOOD]}, "the same name"),
        ({"machines": [{**GOOD, "name": str(n)} for n in range(33)]}, "lists 33 kinds of machines; the limit is 32"),
        (" " * (1 << 20) + "{}", "has more than 1,048,576 bytes"),
        ({"machines": [GOOD], "link": 3}, "link=3"),
        ({"machines": [GOOD], "link": {"gbit_per_s": 0}}, "link.gbit_per_s=0"),
        ({"machines": [GOOD], "links": {}}, "'links'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, document: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(tmp_path, document)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("name", ("a", "a" * 100), ("", "a" * 101, 7)),
        ("cores", (1, MAX_CORES), (0, MAX_CORES + 1, 1.5)),
        ("count", (1, MAX_MACHINES), (0, MAX_MACHINES + 1, True)),
        ("memory_gb", (0.001, 1e6), (0, 1e6 + 1, "64")),
    ],
)
def test_limits_of_a_field(tmp_path: Path, field: str, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    for value in good:
        read(tmp_path, {"machines": [{**GOOD, field: value}]})
    for value in bad:
        with pytest.raises(InvalidRequest, match=rf"machines\[0\]\.{field}="):
            read(tmp_path, {"machines": [{**GOOD, field: value}]})


def test_as_many_kinds_as_the_limit_says(tmp_path: Path) -> None:
    kinds = [{**GOOD, "name": str(number)} for number in range(MAX_KINDS)]
    assert len(read(tmp_path, {"machines": kinds}).kinds) == MAX_KINDS


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_is_read_up_to_a_limit() -> None:
    with pytest.raises(InvalidRequest, match="has more than"):
        read_machines(Path("/dev/zero"), lambda: HERE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["machines", "link", "name", "cores", "memory_gb", "count", "latency_us", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_document_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    with contextlib.suppress(InvalidRequest):
        read(tmp_path_factory.getbasetemp(), {"machines": [GOOD, document], "link": document})


def test_a_plan_on_machines(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "machines.json"
    rates = {"read_gb_per_s": 50, "multiply_gmac_per_s": 1000}
    path.write_text(json.dumps({"machines": [{**GOOD, **rates}, {**GOOD, **rates, "name": "s", "memory_gb": 24}]}))
    made = command("plan", "llama-3-70b", "--machines", str(path), "--context", "4096", "--json")
    found = json.loads(made.out)
    assert {(one["machines"], one["replicas"], one["stages"]) for one in found["layouts"]} == {
        ("a", 1, 1), ("a", 3, 1), ("a", 1, 3), ("s", 1, 2), ("s", 1, 3),
    }  # fmt: skip
    assert found["recommended"]["machines"] == "a"
    assert found["recommended"]["replicas"] == 3
    shown = command("plan", "llama-3-70b", "--machines", str(path), "--context", "4096")
    assert "recommended: 3 replicas of a" in shown.out
    divided = command("plan", "gpt3-175b", "--machines", str(path), "--context", "2048")
    assert "recommended: 3 stages of a: 3 machines have memory for a larger batch (5 sequences)" in divided.out
    assert " with 3 " in divided.out
    for arguments, said in (
        (["--machines", str(tmp_path / "none.json")], "cannot be read"),
        (["--machines", "here", "--prompt", "8"], "--prompt"),
        (["--machines", "here", "--measured"], "shape on paper"),
        (["--machines", "here", "--threads", "-1"], "threads=-1"),
        (["--machines", str(path), "--context", "0"], "context=0"),
        (["--machines", str(path), "--context", "8000"], None),
    ):
        refused = command("plan", "llama-3-70b", *arguments)
        assert (refused.code, "Traceback" in refused.err) == (0 if said is None else 2, False)
        assert said is None or said in refused.err


def test_capacity_of_a_shape_on_paper(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "machines.json"
    rates = {"read_gb_per_s": 400, "multiply_gmac_per_s": 20_000}
    path.write_text(json.dumps({"machines": [{**GOOD, **rates}]}))
    asked = ["capacity", "llama-3-8b", "--rate", "3", "--context", "4096", "--machines", str(path)]
    made = command(*asked, "--prompt", "200", "--tokens", "50", "--day", "flat", "--json")
    (found,) = json.loads(made.out)["machines"]
    assert found["machines"] >= 1
    assert found["day"][0]["outcome"]["first_token"]["p95"] <= 1.0
    assert found["day"][0]["outcome"]["per_token"]["p95"] <= 0.1
    shown = command(*asked, "--prompt", "200", "--tokens", "50", "--day", "flat")
    assert "machines are enough in the busiest hour" in shown.out
    for arguments, said in (
        (["--ttft", "soon"], "ttft='soon'"),
        (["--tpot", "0s"], "tpot='0s'"),
        (["--day", "night"], "day='night'"),
        (["--prompt", "5000"], "the context is 4,096"),
        (["--turns", "0"], "turns=0"),
        (["--shared", "9000"], "shared=9000: must be at most 256"),
        (["--prompt", "100-300", "--shared", "150"], "shared=150"),
        (["--prompt", "1000~1000"], "up to 5,128 tokens"),
        (["--think", "10000001s"], "think="),
        (["--ttft", "1" * 400 + "s"], "ttft="),
    ):
        refused = command(*asked, *arguments)
        assert refused.code == 2
        assert said in refused.err
    assert "keys and values: 131.1 kB for a token, 32.8 MB for a request of 250 tokens" in shown.out
    hopeless = command(*asked, "--ttft", "1ms")
    assert "these machines cannot reach" in hopeless.out
