"""The result of an encoder's task has the same bits alone, among 200 requests, on any number of threads, and traced.

``test_encoder_bits.py`` tests sentence vectors; this file tests the tasks with other outputs.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import TASKS

import pellucid
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.llm import LLM

Call = Callable[[LLM, str], Any]
CALLS: dict[str, tuple[str, Call]] = {
    "classify": ("bert-classify", lambda llm, text: llm.classify([text])),
    "many labels": ("bert-many", lambda llm, text: llm.classify([text, ("a pair", text)])),
    "rerank": ("bert-rank", lambda llm, text: llm.rerank("the query", [text, "a", text + "s"])),
    "tag": ("roberta-tag", lambda llm, text: llm.tag(text, "average")),
    "answer": ("bert-answer", lambda llm, text: llm.answer("which one?", text * 9, top=3, unanswerable=True)),
    "fill": ("bert-fill", lambda llm, text: llm.fill(text + " [MASK] and [MASK]")),
    "sparse": ("sparse", lambda llm, text: llm.sparse([text, "a " + text])),
    "tokens": ("tokens", lambda llm, text: [rows.tobytes() for rows in llm.token_vectors([text])]),
    "late interaction": ("tokens", lambda llm, text: llm.rerank("a query", ["stop it", text])),
}
"""By task: the model, and a function of a text."""
MODULES = {"sparse": ("bert-fill", ["Transformer", "SpladePooling"]), "tokens": ("bert-tag", ["Transformer"])}
"""Models with the modules of sentence-transformers: the model with their weights, and the modules."""
WORDS = [
    "the", "and", "import", "name", "debug", "stop", "smile", "word", "one", "two", "three", "is", "it", "what",
]  # fmt: skip
DRAW = random.Random(5)
TEXTS = [" ".join(DRAW.choices(WORDS, k=DRAW.randint(1, 13))) for _ in range(25)]


@pytest.fixture(scope="module", params=[False, True], ids=["default", "precise"])
def precise(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# Models with modules do not read their head.
pytestmark = pytest.mark.filterwarnings("ignore:.*are not read")


@pytest.fixture(scope="module", params=CALLS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def path(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, _ = CALLS[task]
    if name in TASKS:
        return TASKS[name]
    base, modules = MODULES[name]
    folder = tmp_path_factory.mktemp("modules") / name
    shutil.copytree(TASKS[base], folder)
    listed = [
        {"idx": number, "path": f"{number}_{kind}" if number else "", "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for module in listed[1:]:
        (folder / module["path"]).mkdir()
        (folder / module["path"] / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def alone(task: str, path: Path, precise: bool) -> Iterator[tuple[LLM, Call, list[Any]]]:
    """A model, the function of its task, and the results of the texts when each runs alone."""
    call = CALLS[task][1]
    with pellucid.load(path, precise=precise, threads=1) as llm:
        yield llm, call, [call(llm, text) for text in TEXTS]


def test_results_depend_on_the_text(alone: tuple[LLM, Call, list[Any]]) -> None:
    _, _, results = alone
    assert sum(result != results[0] for result in results) > 20


def test_among_200_requests(alone: tuple[LLM, Call, list[Any]]) -> None:
    llm, call, results = alone
    order = random.Random(6).choices(range(len(TEXTS)), k=200)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: call(llm, TEXTS[number]), order))
    assert found == [results[number] for number in order]


def test_in_a_batch_of_200(alone: tuple[LLM, Call, list[Any]]) -> None:
    llm = alone[0]
    texts = [EncoderInput(ids) for ids in llm.inputs.sentences(TEXTS)]
    outputs = [llm.encode([text])[0].tobytes() for text in texts]
    assert [rows.tobytes() for rows in llm.encode(texts * 8)] == outputs * 8


def test_while_other_requests_run(alone: tuple[LLM, Call, list[Any]]) -> None:
    """A batch of long texts in another thread shares the steps."""
    llm, call, results = alone
    rng = np.random.default_rng(7)
    long = [EncoderInput(rng.integers(5, 60, 60).tolist()) for _ in range(150)]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(llm.encode, long)
        assert [call(llm, text) for text in TEXTS] == results
        running.result()


@pytest.mark.parametrize("threads", [2, 3])
def test_on_any_number_of_threads(alone: tuple[LLM, Call, list[Any]], path: Path, precise: bool, threads: int) -> None:
    _, call, results = alone
    with pellucid.load(path, precise=precise, threads=threads) as llm:
        assert [call(llm, text) for text in TEXTS] == results


def test_traced(alone: tuple[LLM, Call, list[Any]]) -> None:
    llm, call, results = alone
    with llm.trace("blocks.*.residual", "blocks.*.feedforward.hidden", "blocks.0.attention.pattern"):
        assert [call(llm, text) for text in TEXTS[:6]] == results[:6]
