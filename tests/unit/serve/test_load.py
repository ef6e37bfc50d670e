"""The load test tool: its requests, its latency statistics, and the command against a server."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command import pellucid
from support.served import Served, models_folder, serving

from pellucid.errors import InvalidRequest
from pellucid.measure.server_load import Lengths, Sample, ServerLoad, figures, measure_server, models_of, percentiles


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(models_folder(tmp_path_factory.mktemp("load"))) as made:
        yield made


@given(st.integers(1, 500), st.integers(0, 500))
def test_lengths(low: int, more: int) -> None:
    by = random.Random(0)
    assert Lengths.of("n", str(low)).draw(by) == low
    between = Lengths.of("n", f"{low}-{low + more}")
    assert all(low <= between.draw(by) <= low + more for _ in range(20))
    assert Lengths.of("n", f"{low}~{more}").draw(by) >= 1


@pytest.mark.parametrize("text", ["", "a", "5-3", "0", "1-", "-1", "1~", "9" * 30])
def test_wrong_lengths(text: str) -> None:
    with pytest.raises(InvalidRequest, match="tokens"):
        Lengths.of("tokens", text)


@given(st.lists(st.floats(0, 1e3), min_size=1))
def test_percentiles(values: list[float]) -> None:
    found = percentiles(values)
    for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        assert sum(value <= found[name] for value in values) >= part * len(values)
        assert sum(value < found[name] for value in values) < part * len(values) + 1


def test_figures_of_known_times() -> None:
    made = figures([Sample(1.0, [2.0, 2.5, 4.0], prompt_tokens=9, tokens=4), Sample(1.0, error="status 503: x")], 8.0)
    assert (made["requests"], made["failed"], made["errors"]) == (2, 1, ["status 503: x"])
    assert made["tokens_per_second"] == 0.5
    assert made["first_token"]["p95"] == 1.0
    assert made["per_token"]["p50"] == pytest.approx(2 / 3)
    assert made["gap"] == {"p50": 0.5, "p95": 1.5, "p99": 1.5, "longest": 1.5}


def test_requests_of_a_seed_are_the_same() -> None:
    work = ServerLoad("", "m", requests=5, prompt=Lengths(8, 20), shared=6, tokens=Lengths(3, 9))
    first, again = list(work.bodies()), list(work.bodies())
    assert first == again
    prompts = [body["prompt"].split() for body in first]
    assert len({tuple(words[:6]) for words in prompts}) == 1
    assert len({tuple(words) for words in prompts}) == 5
    assert all(8 <= len(words) <= 20 for words in prompts)
    assert list(ServerLoad("", "m", requests=5, seed=1).bodies()) != first


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_server_under_load(served: Served, api: str) -> None:
    work = ServerLoad(
        served.url, "one", api, requests=6, prompt=Lengths(10, 30), shared=4, tokens=Lengths(5, 9),
        body={"prompt_lookup": False},
    )  # fmt: skip
    told = list[int]()
    for level in ({"clients": 3}, {"rate": 200.0}):
        made = measure_server(work, **level, progress=lambda done, total: told.append(done))  # type: ignore[arg-type]
        assert (made["requests"], made["failed"]) == (6, 0)
        wanted = sum(body["max_tokens"] for body in work.bodies())
        assert made["tokens_per_second"] * made["seconds"] == pytest.approx(wanted)
    assert told == [1, 2, 3, 4, 5, 6] * 2
    broken = measure_server(ServerLoad(served.url, "none", api, requests=2), clients=1)
    assert broken["failed"] == 2
    assert "this server has one" in broken["errors"][0]


def test_the_command(served: Served) -> None:
    made = pellucid(
        "bench", "serve", served.url, "--clients", "1", "--clients", "2", "--requests", "4", "--prompt", "8",
        "--shared", "2", "--tokens", "4",
    )  # fmt: skip
    assert made.code == 0, made
    assert made.out.splitlines()[0].split()[:2] == ["clients", "tokens/s"]
    assert [line.split()[0] for line in made.out.splitlines()[1:3]] == ["1", "2"]
    for arguments, word in (
        (("http://127.0.0.1:1",), "has no server"),
        ((served.url, "--clients", "1", "--rate", "1"), "--clients and --rate exclude each other"),
        ((served.url, "--body", "[]"), "body='[]'"),
        ((served.url, "--model", "none", "--requests", "1"), "no request was answered"),
    ):
        failed = pellucid("bench", "serve", *arguments)
        assert failed.code == 2
        assert word in failed.err
    assert models_of(served.url, None) == ["one", "two", "encoder"]
