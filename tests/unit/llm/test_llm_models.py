"""SmolLM2 and MiniLM, if they are installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.small_llm import GREEDY

import pellucid
from pellucid.errors import ContextOverflow, InvalidRequest
from pellucid.llm import LLM


@pytest.mark.model
class TestSmolLM2:
    def test_capital_of_france(self, smollm2: LLM) -> None:
        made = smollm2.generate("The capital of France is", **GREEDY)
        assert made.text.startswith(" Paris")
        assert "".join(smollm2.stream("The capital of France is", **GREEDY)) == made.text

    def test_chat_ends_by_itself_and_a_follow_up_reuses_it(self, smollm2: LLM) -> None:
        messages = [{"role": "user", "content": "Answer in one word: what is the capital of France?"}]
        answer = smollm2.chat(messages, temperature=0, max_new_tokens=60)
        assert "Paris" in answer.text
        assert (answer.finish_reason, answer.ids[-1] in smollm2.tokenizer.eos_ids) == ("stop", True)
        messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And of Italy?"}]
        assert smollm2.chat(messages, **GREEDY).usage.cached_tokens > answer.usage.prompt_tokens

    def test_stop_string_across_tokens(self, smollm2: LLM) -> None:
        text = smollm2.generate("Count: one, two, three,", **GREEDY).text
        stop = text[2:9]
        assert smollm2.generate("Count: one, two, three,", **GREEDY, stop=stop).text == text[: text.index(stop)]

    def test_makes_no_sentence_vectors(self, smollm2: LLM) -> None:
        with pytest.raises(InvalidRequest, match="sentence vectors"):
            smollm2.embed(["a"])


@pytest.fixture(scope="module")
def minilm() -> Iterator[LLM]:
    llm = pellucid.load("minilm")
    yield llm
    llm.close()


@pytest.mark.model
class TestMiniLM:
    def test_makes_no_text(self, minilm: LLM) -> None:
        with pytest.raises(InvalidRequest, match="use embed"):
            minilm.generate("a")

    def test_more_texts_than_a_step_holds_are_the_same_as_one_by_one(self, minilm: LLM) -> None:
        texts = [f"{'word ' * (i % 40)}number {i}" for i in range(60)]
        together = minilm.embed(texts)
        np.testing.assert_array_equal(together, np.concatenate([minilm.embed([text]) for text in texts]))

    @pytest.mark.parametrize("texts", [[], "", [""], ["ok", ""], [3], 5, None])
    def test_texts_that_are_none(self, minilm: LLM, texts: Any) -> None:
        with pytest.raises(InvalidRequest):
            minilm.embed(texts)

    def test_control_tokens_in_a_sentence_are_tokens(self, minilm: LLM) -> None:
        mask = minilm.tokenizer.id_of("[MASK]")
        assert minilm.inputs.sentences(["the [MASK] token"]) == [
            [*minilm.tokenizer.encode("the")[:-1], mask, *minilm.tokenizer.encode("token")[1:]]
        ]

    def test_longer_than_the_context(self, minilm: LLM) -> None:
        long = "word " * 600
        with pytest.raises(ContextOverflow, match=r"602 tokens.*256 tokens: shorten the text, .*or set truncate"):
            minilm.embed([long])
        assert minilm.embed([long, "short"], truncate=True).shape == (2, 384)
        np.testing.assert_array_equal(minilm.embed([long], truncate=True), minilm.embed(["word " * 254]))


@pytest.mark.model
def test_threads_that_embed_take_turns() -> None:
    from concurrent.futures import ThreadPoolExecutor

    llm = pellucid.load("minilm")
    texts = ["word " * 250]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: llm.embed(texts), range(12)))
    assert all((vectors == llm.embed(texts)).all() for vectors in many)


@pytest.mark.model
def test_a_character_cut_by_the_limit_stays_out() -> None:
    llm = pellucid.load("smollm2")
    for limit in range(1, 41):
        made = llm.generate("Emoji: 😀😃😄😁 more:", temperature=0, max_new_tokens=limit)
        assert "\ufffd" not in made.text
