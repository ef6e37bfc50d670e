"""Perplexity and divergence: the windows, and the results against direct implementations of the definitions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sampling import softmax
from support.tiny import GOLDENS, write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid import evaluate
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

ROOT = Path(__file__).parents[2]
TEXT = "to see that it rains in the east, or in the west: a stone rests in the rain. " * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_llama(tmp_path_factory.mktemp("models") / "tiny")
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    llm = pellucid.load(folder, threads=2)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_llama(tmp_path_factory.mktemp("models") / "other", seed=5)
    write_tokenizer(path)
    llm = pellucid.load(path, threads=1)
    yield llm
    llm.close()


def logits(llm: LLM, ids: list[int]) -> np.ndarray:
    """Logits after every token, (T, V) float64."""
    sequence = BlockTable()
    rows = [llm.runner.forward([Chunk(sequence, [token])])[0] for token in ids]
    llm.runner.cache.truncate(sequence, 0)
    return np.array(rows, np.float64)[:, : llm.tokenizer.vocab_size]


@given(st.integers(2, 3000), st.integers(2, 600), st.data())
def test_every_token_but_the_first_is_scored_once_with_enough_before_it(
    tokens: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    parts = list(evaluate.windows(tokens, window, stride))
    scored = [place for part in parts for place in range(part.first, part.stop)]
    assert scored == list(range(1, tokens))
    for part in parts:
        assert part.start < part.first < part.stop <= part.start + window
        assert part.start == 0 or part.first - part.start >= window - stride


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 15), (16, 1), (100, 50), (128, 64)])
def test_perplexity_is_exp_of_the_mean_surprise(llm: LLM, window: int, stride: int) -> None:
    ids = llm.tokenizer.encode(TEXT)
    surprises = []
    for part in evaluate.windows(len(ids), window, stride):
        rows = logits(llm, ids[part.start : part.stop])
        for place in range(part.first, part.stop):
            surprises.append(-math.log(softmax(rows[place - part.start - 1])[ids[place]]))
    told: list[tuple[int, int, str]] = []
    found = evaluate.perplexity(llm, TEXT, window, stride, lambda *how: told.append(how))
    assert found.tokens == len(surprises) == len(ids) - 1
    assert found.nats.mean == pytest.approx(np.mean(surprises), rel=1e-9)
    assert found.nats.error == pytest.approx(np.std(surprises, ddof=1) / math.sqrt(len(surprises)))
    assert found.perplexity == pytest.approx(math.exp(np.mean(surprises)))
    assert found.bits_per_byte == pytest.approx(sum(surprises) / math.log(2) / len(TEXT.encode()))
    assert told[-1][:2] == (len(ids), len(ids))
    llm.runner.cache.clear_prefixes()
    assert llm.runner.cache.kv.free_pages == llm.runner.cache.kv.pages


def test_a_text_in_one_window_is_what_score_says(llm: LLM) -> None:
    short = TEXT[:60]
    assert evaluate.perplexity(llm, short).nats.mean == pytest.approx(-llm.score(short).logprobs.chosen.mean())


def test_divergence_is_that_of_the_distributions(llm: LLM, other: LLM) -> None:
    ids = llm.tokenizer.encode(TEXT)
    values, same = [], 0
    for part in evaluate.windows(len(ids), 32, 16):
        mine, theirs = (logits(x, ids[part.start : part.stop]) for x in (llm, other))
        for place in range(part.first - part.start - 1, part.stop - part.start - 1):
            p, q = softmax(theirs[place]), softmax(mine[place])
            values.append(float((p * (np.log(p) - np.log(q))).sum()))
            same += int(p.argmax() == q.argmax())
    found = evaluate.divergence(llm, other, TEXT, 32, 16)
    assert found.tokens == len(values)
    assert found.nats.mean == pytest.approx(np.mean(values), rel=1e-9)
    assert (found.median, found.p99) == pytest.approx(tuple(np.quantile(values, [0.5, 0.99])))
    assert (found.most, found.same_top) == pytest.approx((max(values), same / len(values)))
    assert evaluate.divergence(llm, llm, TEXT).nats.mean == 0


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a", {}, "a single token"),
        ("", {}, "text='': must be a text of at least 1 character"),
        (TEXT, {"window": 1}, "window=1: must be a whole number from 2 to 128"),
        (TEXT, {"window": 129}, "window=129"),
        (TEXT, {"window": "9"}, "window='9'"),
        (TEXT, {"window": 16, "stride": 16}, "stride=16: must be a whole number from 1 to 15"),
        (TEXT, {"stride": 0}, "stride=0"),
    ],
)
def test_what_cannot_be_evaluated(llm: LLM, text: str, options: dict[str, Any], message: str) -> None:
    for call in (evaluate.perplexity, lambda x, text, **how: evaluate.divergence(x, llm, text, **how)):
        with pytest.raises(InvalidRequest) as caught:
            call(llm, text, **options)
        assert message in str(caught.value)


def test_models_of_different_vocabularies(llm: LLM, tmp_path: Path) -> None:
    write_llama(tmp_path)
    write_tokenizer(tmp_path, size=300)
    smaller = pellucid.load(tmp_path, threads=1)
    with pytest.raises(InvalidRequest, match="different vocabularies"):
        evaluate.divergence(llm, smaller, TEXT)
    smaller.close()


@pytest.mark.model
def test_each_window_begins_as_the_model_begins_a_text() -> None:
    """Gemma 3 fails without BOS."""
    llm = pellucid.load("gemma3")
    text = (ROOT / "README.md").read_text()[:3000]
    found = evaluate.perplexity(llm, text, 128, 64)
    ids = llm.tokenizer.encode(text)
    assert ids[0] == llm.tokenizer.bos_id
    assert found.tokens == len(ids) - 1
    alone = -llm.score(ids[:128]).logprobs.chosen
    assert found.perplexity < 3 * math.exp(alone.mean())
    llm.close()


@pytest.mark.model
def test_scores_are_those_of_the_float32_run() -> None:
    """Windows of SmolLM2's golden: transformers' log-probabilities of the tokens that follow."""
    llm = pellucid.load("smollm2", precise=True)
    with np.load(GOLDENS / "smollm2.npz") as file:
        for ids, wanted in zip(file["windows"][:3].tolist(), file["next_logprobs"]):
            found = llm.score(ids).logprobs.chosen[64:]
            assert np.abs(found - wanted).mean() < 1e-3
            assert abs(found.mean() - wanted.mean()) < 1e-4
    llm.close()
