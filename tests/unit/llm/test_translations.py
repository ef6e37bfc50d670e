"""Answers of tiny encoder-decoders, token by token against transformers (tests/oracles/translations_oracle.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.drawn import drawn_source
from support.sources import source_model
from support.tiny import GOLDENS

import pellucid
from pellucid.engine.request import run_together
from pellucid.llm import LLM

CASES = json.loads((GOLDENS / "translations.json").read_text())
NAMES = [name for name in CASES if name != "made_with"]


@pytest.fixture(scope="module", params=NAMES)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, list[dict[str, Any]]]]:
    folder: Path = tmp_path_factory.mktemp("sources")
    with pellucid.load(source_model(request.param, folder), precise=True) as llm:
        yield llm, CASES[request.param]


def options(case: dict[str, Any]) -> dict[str, Any]:
    own = {name: case["options"][name] for name in ("max_new_tokens", "no_repeat_ngram_size")}
    return own | {"stop_token_ids": case["ends"]}


def test_greedy_answers_together(model: tuple[LLM, list[dict[str, Any]]]) -> None:
    """All answers of a model at once: sources and answers of other requests share the steps."""
    llm, cases = model
    requests = [llm.request(drawn_source(case["seed"]), **options(case)) for case in cases]
    run_together(requests)
    assert [one.result().ids for one in requests] == [case["greedy"] for case in cases]


def test_beam_searches(model: tuple[LLM, list[dict[str, Any]]]) -> None:
    llm, cases = model
    for case in cases:
        found = llm.beam_search(drawn_source(case["seed"]), num_beams=4, **options(case) | case["options"])
        assert found.texts[0].ids == case["beams"]["ids"], case
        assert found.texts[0].score == pytest.approx(case["beams"]["score"], abs=2e-5)
