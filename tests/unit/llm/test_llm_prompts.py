"""Prompts and options that a loaded model refuses, and prompts at the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pages import in_use
from support.small_llm import CONTEXT, GREEDY, PROMPT
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid.errors import ContextOverflow, InvalidRequest
from pellucid.llm import LLM


@pytest.mark.parametrize("size", [270, 322])
def test_a_token_id_has_the_same_limit_wherever_it_comes_in(size: int, tmp_path: Path) -> None:
    """A tokenizer may have fewer tokens than the matrix has rows, or more."""
    write_llama(tmp_path, context=CONTEXT)
    write_tokenizer(tmp_path, size=size)
    llm, limit = pellucid.load(tmp_path, threads=1), min(size, 320)
    try:
        for call in (
            lambda i: llm.generate([7, i], max_new_tokens=1),
            lambda i: llm.score([7, i]),
            lambda i: llm.generate([7], max_new_tokens=1, stop_token_ids=[i]),
            lambda i: llm.generate([7], max_new_tokens=1, logit_bias={i: 1.0}),
            lambda i: llm.generate([7], max_new_tokens=1, banned=[i]),
            lambda i: llm.generate([7], max_new_tokens=1, banned=[[3, i]]),
            lambda i: llm.generate([7], max_new_tokens=1, allowed=[i]),
            lambda i: llm.beam_search([7], max_new_tokens=1, stop_token_ids=[i]),
        ):
            call(limit - 1)
            for wrong in (limit, size, 1 << 30):
                if wrong >= limit:
                    with pytest.raises(
                        InvalidRequest, match=rf"={wrong}: must be a whole number from 0 to {limit - 1}"
                    ):
                        call(wrong)
    finally:
        llm.close()


HALF = "rain \ud800 in"


@pytest.mark.parametrize("text", [HALF, "\udcff", "\ud83d\ude00"])
def test_half_of_a_character_is_no_text_wherever_it_comes_in(llm: LLM, text: str) -> None:
    greedy = {"temperature": 0, "max_new_tokens": 1}
    for call in (
        lambda: llm.generate(text, **greedy),
        lambda: llm.chat([{"role": "user", "content": text}], **greedy),
        lambda: llm.chat([{"role": "user", "content": [{"type": "text", "text": text}]}], **greedy),
        lambda: llm.score(text),
        lambda: llm.score("rain", given=text),
        lambda: llm.generate("rain", stop=[text], **greedy),
        lambda: llm.generate("rain", banned=[text], **greedy),
        lambda: llm.generate("rain", allowed=[text], **greedy),
        lambda: llm.generate("rain", logit_bias={text: 1.0}, **greedy),
        lambda: llm.generate("rain", dry_multiplier=0.8, dry_sequence_breakers=[text], **greedy),
        lambda: llm.generate("rain", choices=[text], **greedy),
        lambda: llm.generate("rain", regex=text, **greedy),
        lambda: llm.beam_search(text, max_new_tokens=1),
    ):
        with pytest.raises(InvalidRequest, match=r"has the surrogate U\+D[0-9A-F]{3} at character \d"):
            call()
    with pytest.raises(InvalidRequest, match="json_schema"):
        llm.generate("rain", json_schema={"enum": [HALF]}, **greedy)


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1, 10 * CONTEXT])
def test_prompt_at_the_border_of_the_context(llm: LLM, length: int) -> None:
    ids = [7] * length
    if length < CONTEXT:
        made = llm.generate(ids, temperature=0, max_new_tokens=50)
        assert (len(made.ids), made.finish_reason) == (1, "length")
    else:
        with pytest.raises(ContextOverflow, match=rf"{length:,} tokens.*{CONTEXT}"):
            llm.generate(ids, **GREEDY)


def test_the_end_of_the_context_is_a_clean_end(llm: LLM) -> None:
    made = llm.generate([7] * 100, temperature=0)
    assert (len(made.ids), made.finish_reason) == (CONTEXT - 100, "length")


@pytest.mark.parametrize(
    "prompt",
    ["", [], (), [320], [-1], [2**70], [1.0], [True], ["a", 3], [{"role": "user"}, 3], 5, None, b"ab", {"a": 1}, [None],
     np.array(5), np.zeros((2, 2), int), np.array([1.5])],
)  # fmt: skip
def test_prompt_that_is_none(llm: LLM, prompt: Any) -> None:
    for call in (llm.generate, llm.stream):
        with pytest.raises(pellucid.errors.PellucidError) as caught:
            call(prompt, **GREEDY)
        assert "\n" not in str(caught.value)
    assert in_use(llm) == 0


def test_options_are_refused_before_the_first_piece(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="did you mean temperature"):
        llm.stream(PROMPT, temprature=1)
    with pytest.raises(InvalidRequest, match="top_p"):
        llm.stream(PROMPT, top_p=1.5)


def test_an_encoder_does_not_generate_and_a_decoder_does_not_embed(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="use generate"):
        llm.embed(["a"])
