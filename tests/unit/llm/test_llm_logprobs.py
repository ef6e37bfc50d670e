"""Log-probabilities of generated and of scored texts, also over matrix rows without a token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.pages import in_use
from support.small_llm import CONTEXT, DRAWN, PROMPT
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model whose tokenizer has 270 tokens and whose matrix has 320 rows."""
    folder = write_llama(tmp_path_factory.mktemp("models") / "padded", context=CONTEXT)
    write_tokenizer(folder, size=270)
    llm = pellucid.load(folder, threads=1)
    yield llm
    llm.close()


def all_rows(llm: LLM, ids: list[int]) -> np.ndarray:
    """Log-probabilities of the next token after each id, over all rows of the matrix."""
    sequence = BlockTable()
    rows = [llm.runner.forward([Chunk(sequence, [token])])[0].astype(np.float64) for token in ids]
    llm.runner.cache.release(sequence)
    return np.array([row - np.logaddexp.reduce(row) for row in rows])


def test_rows_of_the_matrix_that_are_no_tokens_are_never_sampled(padded: LLM) -> None:
    made = padded.generate([7] * 9, **{**DRAWN, "temperature": 5, "max_new_tokens": None})
    assert (len(made.ids), max(made.ids) < 270) == (CONTEXT - 9, True)


def test_rows_of_the_matrix_that_are_no_tokens_count_in_log_probabilities(padded: LLM) -> None:
    prompt = [7, 8, 9]
    made = padded.generate(
        prompt, seed=3, max_new_tokens=9, logprobs=300, prompt_logprobs=2, watch=True, samplers=["top_k"], top_k=200
    )
    wanted = all_rows(padded, [*prompt, *made.ids[:-1]])
    assert made.logprobs is not None
    np.testing.assert_allclose(made.logprobs.chosen, wanted[2 + np.arange(9), made.ids], atol=1e-5)
    assert np.exp(made.logprobs.top[:, :270]).sum(1).max() < 0.97  # rows without tokens have the rest
    assert made.logprobs.top_ids.max() == 269
    assert (made.logprobs.top_ids[:, 270:] == -1).all()
    assert made.prompt_logprobs is not None
    np.testing.assert_allclose(made.prompt_logprobs.chosen, wanted[[0, 1], prompt[1:]], atol=1e-5)
    scored = padded.score([*prompt, *made.ids]).logprobs.chosen
    np.testing.assert_allclose(scored[2:], made.logprobs.chosen, atol=1e-5)
    assert made.trace is not None
    for token, row in zip(made.trace, wanted[2:]):
        assert token.probability == pytest.approx(math.exp(row[token.token]), rel=1e-5)
        assert [(step.name, step.left) for step in token.steps] == [("vocabulary", 270), ("top_k", 200)]
        assert token.steps[0].removed == 50
        assert token.steps[0].removed_mass == pytest.approx(np.exp(row[270:]).sum(), rel=1e-4)
    beams = padded.beam_search(prompt, num_beams=2, max_new_tokens=3).texts[0]
    rows = all_rows(padded, [*prompt, *beams.ids[:-1]])[2:]
    assert beams.score == pytest.approx(rows[np.arange(len(beams.ids)), beams.ids].mean(), abs=1e-5)


def test_log_probabilities_of_an_answer_are_those_of_the_same_text_scored(llm: LLM) -> None:
    made = llm.generate(PROMPT, **DRAWN, logprobs=3, prompt_logprobs=2)
    prompt = llm.tokenizer.encode(PROMPT)
    assert made.logprobs is not None
    assert made.prompt_logprobs is not None
    assert made.logprobs.ids.tolist() == made.ids
    assert made.prompt_logprobs.ids.tolist() == prompt[1:]
    scored = llm.score([*prompt, *made.ids], top=3)
    assert len(scored.logprobs) == len(prompt) + len(made.ids) - 1
    np.testing.assert_array_equal(scored.logprobs.chosen[: len(prompt) - 1], made.prompt_logprobs.chosen)
    np.testing.assert_array_equal(scored.logprobs.chosen[len(prompt) - 1 :], made.logprobs.chosen)
    np.testing.assert_array_equal(scored.logprobs.top[len(prompt) - 1 :], made.logprobs.top)
    assert made.ids == llm.generate(PROMPT, **DRAWN).ids


def test_log_probabilities_of_what_the_chain_left(llm: LLM) -> None:
    options = {**DRAWN, "top_k": 3, "logprobs": 5}
    made = llm.generate(PROMPT, **options, logprobs_of="chain").logprobs
    raw = llm.generate(PROMPT, **options).logprobs
    assert made is not None
    assert raw is not None
    np.testing.assert_allclose(np.exp(made.top).sum(1), 1, rtol=1e-12)
    assert (made.top_ids[:, 3:] == -1).all()
    np.testing.assert_array_equal(made.top_ids[:, :3], raw.top_ids[:, :3])
    assert (made.chosen > raw.chosen).all()
    both = llm.generate(PROMPT, **options, logprobs_of="both")
    assert both.logprobs is not None
    np.testing.assert_array_equal(both.logprobs.top, raw.top)
    np.testing.assert_array_equal(both.logprobs.final, made.top)  # tokens outside the chain: minus infinity
    assert both.as_dict()["logprobs"]["final"][0][3:] == [None, None]
    assert raw.final is None


def test_a_text_scored_after_another_counts_its_own_tokens_only(llm: LLM) -> None:
    whole = llm.score("to see that it rains")
    part = llm.score(" it rains", given="to see that")
    known = len(llm.tokenizer.encode("to see that"))
    assert part.ids == whole.ids
    np.testing.assert_array_equal(part.logprobs.chosen, whole.logprobs.chosen[known - 1 :])
    assert part.total == pytest.approx(part.logprobs.chosen.sum())
    assert part.perplexity == pytest.approx(np.exp(-part.logprobs.chosen.mean()))
    assert in_use(llm) == 0


@pytest.mark.parametrize(
    ("text", "given", "top", "message"),
    [
        ([7], None, 0, "no token to score"),
        ("", None, 0, "text='': must be a text of at least 1 character"),
        ("", "rain", 0, "no token to score"),
        ([7, 8], "rain", 0, "given=.rain.: given and text must both be texts"),
        ("rain", 5, 0, "given=5: given and text must both be texts"),
        ([7] * 129, None, 0, "129 tokens; the context is 128"),
        ("rain in", None, -1, "top=-1"),
        ("rain in", None, 1001, "top=1001.*from 0 to 1,000"),
        ([7, 320], None, 0, "prompt holds a token id=320: must be a whole number from 0 to 319"),
    ],
)
def test_texts_that_cannot_be_scored(llm: LLM, text: Any, given: str | None, top: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        llm.score(text, given=given, top=top)
    assert len(llm.score([7] * 128).logprobs) == 127


def test_a_token_across_the_border_of_what_is_given_counts(llm: LLM) -> None:
    text = "to see that"
    ids = llm.tokenizer.encode(text)
    for cut in range(1, len(text)):
        found = llm.score(text[cut:], given=text[:cut])
        offsets = llm.tokenizer.encode_with_offsets(text).offsets
        assert len(found.logprobs) == min(sum(end > cut for _, end in offsets), len(ids) - 1)
