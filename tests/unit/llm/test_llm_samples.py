"""Several answers to a prompt: samples, the best of them, beams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.pages import in_use
from support.small_llm import DRAWN, GREEDY, PROMPT

from pellucid.errors import InvalidRequest, NothingLeft
from pellucid.llm import LLM


def test_samples_are_what_each_would_be_alone(llm: LLM) -> None:
    alone = llm.generate(PROMPT, **DRAWN)
    made = llm.samples(PROMPT, 3, **DRAWN)
    assert made[0].ids == alone.ids
    assert len({tuple(one.ids) for one in made}) == 3
    assert [one.ids for one in llm.samples(PROMPT, 2, **DRAWN)] == [one.ids for one in made[:2]]
    assert {one.seed for one in made} == {11}
    assert made[0].text == alone.text
    assert llm.samples(PROMPT, 2, **GREEDY)[1].ids == llm.generate(PROMPT, **GREEDY).ids
    assert in_use(llm) == 0


def test_more_samples_than_a_step_holds(llm: LLM) -> None:
    options = {**DRAWN, "max_new_tokens": 3}
    assert [one.ids for one in llm.samples(PROMPT, 40, **options)][:9] == [
        one.ids for one in llm.samples(PROMPT, 9, **options)
    ]


def test_samples_end_each_for_itself(llm: LLM) -> None:
    made = llm.samples(PROMPT, 6, **DRAWN, stop=["e"], logprobs=1)
    assert {one.finish_reason for one in made} == {"stop", "length"}
    for one in made:
        assert one.logprobs is not None
        assert len(one.logprobs) == len(one.ids)


def test_best_of_keeps_the_likeliest(llm: LLM) -> None:
    every = llm.samples(PROMPT, 8, **DRAWN, logprobs=0)
    best = llm.samples(PROMPT, 2, best_of=8, **DRAWN)
    ranked = sorted(every, key=lambda one: -one.mean_logprob)
    assert [one.ids for one in best] == [one.ids for one in ranked[:2]]
    assert [one.logprobs for one in best] == [None, None]
    assert all(one.logprobs for one in llm.samples(PROMPT, 2, best_of=8, **DRAWN, logprobs=0))


@pytest.mark.parametrize(
    ("n", "best_of", "message"),
    [(0, None, "n=0"), (257, None, "n=257: must be a whole number from 1 to 256"), (10**9, None, "n=1000000000"),
     (2.0, None, "n=2.0"), (3, 2, "best_of=2: must be a whole number from 3 to 256"), (1, 10**9, "best_of=")],
)  # fmt: skip
def test_numbers_of_samples_out_of_range(llm: LLM, n: Any, best_of: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        llm.samples(PROMPT, n, best_of=best_of)


def test_beams_find_texts_at_least_as_likely_as_the_greedy_one(llm: LLM) -> None:
    greedy = llm.generate(PROMPT, **GREEDY, logprobs=0)
    found = llm.beam_search(PROMPT, num_beams=6, num_return_sequences=4, max_new_tokens=24)
    assert greedy.logprobs is not None
    assert found.texts[0].score >= greedy.mean_logprob
    assert [one.score for one in found.texts] == sorted((one.score for one in found.texts), reverse=True)
    ids = [*llm.tokenizer.encode(PROMPT), *found.texts[0].ids]
    assert llm.score(ids).logprobs.chosen[-24:].mean() == pytest.approx(found.texts[0].score, abs=1e-5)
    assert found.text == llm.tokenizer.decode(found.texts[0].ids)
    assert (found.usage.prompt_tokens, found.seed) == (len(llm.tokenizer.encode(PROMPT)), None)
    assert llm.beam_search(PROMPT, num_beams=1, max_new_tokens=24).texts[0].ids == greedy.ids
    assert json.dumps(found.as_dict())
    assert in_use(llm) == 0


def test_beams_with_other_options(llm: LLM) -> None:
    drawn = {"num_beams": 4, "do_sample": True, "seed": 4, "max_new_tokens": 8, "temperature": 2.0}
    first, again = llm.beam_search(PROMPT, **drawn), llm.beam_search(PROMPT, **drawn)
    assert (again.texts, again.tree) == (first.texts, first.tree)
    assert first.seed == 4
    banned = llm.beam_search(PROMPT, num_beams=4, max_new_tokens=8, banned=[first.texts[0].ids[0]])
    assert first.texts[0].ids[0] not in banned.texts[0].ids
    timed = llm.beam_search(PROMPT, num_beams=4, max_new_tokens=20, max_time=1e-9)
    assert (len(timed.texts[0].ids), timed.texts[0].finish_reason) == (1, "time")
    chosen = llm.beam_search(PROMPT, num_beams=4, choices=["rain", "east"], max_new_tokens=20)
    assert chosen.text in ("rain", "east")
    for name, value in {"stop": "a", "logprobs": 2, "watch": True, "until": bool, "prompt_logprobs": 1}.items():
        with pytest.raises(InvalidRequest, match=f"beams have no {name}; leave it out"):
            llm.beam_search(PROMPT, **{name: value})
    with pytest.raises(InvalidRequest, match="did you mean num_beams"):
        llm.beam_search(PROMPT, num_beam=3)
    assert in_use(llm) == 0


def test_time_for_all_samples_together(llm: LLM) -> None:
    made = llm.samples(PROMPT, 40, **{**DRAWN, "max_time": 1e-9})
    assert {(one.finish_reason, len(one.ids)) for one in made} == {("time", 1)}


def test_the_model_is_not_counted_twice(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"rain": {"type": "integer"}}, "required": ["rain"]}
    for made in llm.samples([7, 8], 5, **{**DRAWN, "json_schema": {**schema, "additionalProperties": False}}):
        assert made.timings.model <= made.timings.total


def test_beams_end_where_a_constraint_is_complete(llm: LLM) -> None:
    found = llm.beam_search(PROMPT, regex="the", ignore_eos=True, num_beams=3, max_new_tokens=20)
    assert (found.text, found.texts[0].finish_reason) == ("the", "stop")
    later = llm.beam_search(PROMPT, choices=["rain", "stone"], num_beams=3, min_new_tokens=50)
    assert later.text in ("rain", "stone")
    with pytest.raises(NothingLeft, match="forbids every token"):
        llm.beam_search(PROMPT, allowed=[5], banned=[5])
    with pytest.raises(InvalidRequest, match="temperature=0 with do_sample=True"):
        llm.beam_search(PROMPT, do_sample=True, temperature=0)
    with pytest.raises(InvalidRequest, match="mirostat=2: it applies to a single text"):
        llm.beam_search(PROMPT, do_sample=True, mirostat=2)
    with pytest.raises(InvalidRequest, match="beams have no logprobs"):
        llm.beam_search(PROMPT, logprobs=0)


def test_the_tree_of_beams_does_not_grow_with_the_ends(llm: LLM) -> None:
    found = llm.beam_search(PROMPT, num_beams=4, max_new_tokens=5, stop_token_ids=list(range(100, 300)))
    assert len(found.tree) <= 1 + 5 * 4 * 12
