"""Texts of a loaded model: streams, chats, sampling and stop criteria."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pages import in_use
from support.small_llm import CONTEXT, DRAWN, GREEDY, PROMPT
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid.errors import InvalidRequest, KernelError
from pellucid.llm import LLM


@pytest.mark.parametrize("options", [GREEDY, DRAWN])
def test_stream_joins_to_what_generate_gives(llm: LLM, options: dict[str, Any]) -> None:
    whole = llm.generate(PROMPT, **options)
    assert "".join(llm.stream(PROMPT, **options)) == whole.text
    assert whole.text == llm.tokenizer.decode(whole.ids)
    assert (len(whole.ids), whole.finish_reason) == (24, "length")
    assert whole.usage.prompt_tokens == len(llm.tokenizer.encode(PROMPT))
    times = whole.timings
    assert 0 < times.prefill <= times.first_token <= times.total
    assert 0 <= times.queue < times.first_token
    assert 0 < times.model <= times.total


def test_text_and_its_ids_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPT)
    texts = {llm.generate(p, **DRAWN).text for p in (PROMPT, ids, tuple(ids), np.array(ids))}
    assert len(texts) == 1


def test_chat_is_the_template_rendered(llm: LLM) -> None:
    messages = [{"role": "user", "content": "rain?"}]
    ids = llm.tokenizer.encode("<|turn|>user: rain?\n<|turn|>assistant:", parse_special=True)
    assert llm.chat(messages, **GREEDY).ids == llm.generate(ids, **GREEDY).ids
    assert llm.chat("rain?", **GREEDY).ids == llm.generate(ids, **GREEDY).ids


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "^messages is empty: give at least one message$"),
        ("", "^messages='': must be a text of at least 1 character$"),
        (b"rain?", "^messages=b'rain\\?': must be a list of mappings"),
        ([{"role": "user", "content": "rain?"}, "snow?"], r"^messages\[1\]='snow\?': must be a mapping"),
    ],
)
def test_chat_takes_messages(llm: LLM, messages: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        llm.chat(messages)


def test_a_conversation_is_known_by_its_first_message(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"^messages\[1\]=7: must be a mapping"):
        llm.generate([{"role": "user", "content": "rain?"}, 7])  # type: ignore[list-item]


def test_greedy_draws_nothing_and_a_drawn_seed_can_be_used_again(llm: LLM) -> None:
    assert llm.generate(PROMPT, **GREEDY).seed is None
    first = llm.generate(PROMPT, **{**DRAWN, "seed": None})
    assert llm.generate(PROMPT, **{**DRAWN, "seed": first.seed}).ids == first.ids
    assert llm.generate(PROMPT, **{**DRAWN, "seed": 12}).ids != llm.generate(PROMPT, **DRAWN).ids


def test_stop_strings_end_the_text_wherever_tokens_end(llm: LLM) -> None:
    text = llm.generate(PROMPT, **GREEDY).text
    for start in range(len(text) - 4):
        for length in (1, 2, 4):
            stop = text[start : start + length]
            stopped = llm.generate(PROMPT, **GREEDY, stop=["never", stop])
            assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")
            assert "".join(llm.stream(PROMPT, **GREEDY, stop=stop)) == stopped.text


def test_end_token_ends_the_text_and_is_not_part_of_it(llm: LLM, folder: Path, tmp_path: Path) -> None:
    before = llm.generate(PROMPT, **GREEDY)
    end = next(i for i, token in enumerate(before.ids) if token not in before.ids[:i] and i > 2)
    write_llama(tmp_path, context=CONTEXT)
    write_tokenizer(tmp_path, eos_ids=(0, before.ids[end]))
    other = pellucid.load(tmp_path, threads=1)
    made = other.generate(PROMPT, **GREEDY)
    other.close()
    assert (made.finish_reason, made.ids) == ("stop", before.ids[: end + 1])
    assert made.text == llm.tokenizer.decode(before.ids[:end])
    (tmp_path / "generation_config.json").unlink()  # config.json is the fallback, as in transformers
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": before.ids[end]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = pellucid.load(tmp_path, threads=1)
    assert other.generate(PROMPT, **GREEDY).ids == made.ids
    other.close()


def test_logits_that_are_no_numbers_are_an_error_and_leave_nothing_behind(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, forward_all = llm.generate(PROMPT, **GREEDY).ids, llm.runner.forward_all

    def not_numbers(rows: list[np.ndarray]) -> list[np.ndarray]:
        return [np.full_like(row, np.nan) for row in rows]

    with monkeypatch.context() as patched:
        patched.setattr(llm.runner, "forward_all", lambda chunks: not_numbers(forward_all(chunks)))
        with pytest.raises(KernelError, match="token 0: the logit of id 0 is nan"):
            llm.generate(PROMPT, **GREEDY)
    assert llm.generate(PROMPT, **GREEDY).ids == wanted


def test_why_a_text_ended(llm: LLM) -> None:
    greedy = {**GREEDY, "max_new_tokens": 40}
    plain = llm.generate(PROMPT, **greedy)
    assert (plain.finish_reason, plain.stop_reason) == ("length", None)
    token = plain.ids[4]
    stopped = llm.generate(PROMPT, **greedy, stop_token_ids=[token])
    assert (stopped.finish_reason, stopped.stop_reason, stopped.ids[-1]) == ("stop", token, token)
    assert stopped.text == llm.tokenizer.decode(stopped.ids[:-1])
    word = plain.text[3:6]
    by_word = llm.generate(PROMPT, **greedy, stop=[word])
    assert (by_word.finish_reason, by_word.stop_reason) == ("stop", word)
    until = llm.generate(PROMPT, **greedy, until=lambda text: len(text) >= 5)
    assert (until.finish_reason, until.stop_reason, len(until.text) >= 5) == ("until", None, True)
    timed = llm.generate(PROMPT, **greedy, max_time=1e-9)
    assert (timed.finish_reason, len(timed.ids)) == ("time", 1)
    run = llm.start(PROMPT, **greedy)
    next(iter(run))
    assert run.result().finish_reason is None
    with pytest.raises(
        InvalidRequest, match="stop_token_ids holds a token id=320: must be a whole number from 0 to 319"
    ):
        llm.generate(PROMPT, stop_token_ids=[320])


def test_end_tokens_can_be_let_pass_and_kept_away(llm: LLM, tmp_path: Path) -> None:
    first = llm.generate(PROMPT, **GREEDY)
    write_llama(tmp_path, context=CONTEXT)
    write_tokenizer(tmp_path, eos_ids=(first.ids[5],))
    other = pellucid.load(tmp_path, threads=1)
    assert len(other.generate(PROMPT, **GREEDY).ids) <= 6
    assert other.generate(PROMPT, **GREEDY, ignore_eos=True).ids == first.ids
    later = other.generate(PROMPT, **GREEDY, min_new_tokens=10)
    assert first.ids[5] not in later.ids[:10]
    kept = other.generate(PROMPT, **GREEDY, min_new_tokens=10, stop_token_ids=[first.ids[0]])
    assert first.ids[0] not in kept.ids[:10]
    other.close()


def test_watching_changes_nothing_and_tells_of_each_token(llm: LLM) -> None:
    watched = llm.generate(PROMPT, **DRAWN, watch=True)
    assert watched.ids == llm.generate(PROMPT, **DRAWN).ids
    assert watched.trace is not None
    assert [token.token for token in watched.trace] == watched.ids
    assert json.dumps(watched.as_dict())


def test_what_an_own_function_raises_leaves_nothing_behind(llm: LLM) -> None:
    def fails(text: str) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        llm.generate(PROMPT, **GREEDY, until=fails)
    assert in_use(llm) == 0


def test_tokens_without_a_choice_are_read_together_and_change_nothing(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"type": "object", "properties": {"rain": {"type": "integer"}}, "required": ["rain"]}
    schema |= {"additionalProperties": False, "minProperties": 1}
    steps = []
    forward = llm.runner.forward

    def counted(chunks: Any, **how: Any) -> Any:
        steps.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks, **how)

    monkeypatch.setattr(llm.runner, "forward", counted)
    options = {**DRAWN, "max_new_tokens": 40, "json_schema": schema, "logprobs": 2, "watch": True}
    for seed in range(5):
        steps.clear()
        made = llm.generate([7, 8], **{**options, "seed": seed})
        together = len(steps)
        with monkeypatch.context() as patched:
            patched.setattr("pellucid.engine.tasks.generation.MAX_FORCED_TOKENS", 0)
            steps.clear()
            alone = llm.generate([7, 8], **{**options, "seed": seed})
        assert together < len(steps)
        assert (made.ids, made.text, made.trace) == (alone.ids, alone.text, alone.trace)
        assert made.logprobs is not None
        assert alone.logprobs is not None
        np.testing.assert_array_equal(made.logprobs.chosen, alone.logprobs.chosen)
    assert in_use(llm) == 0


def test_a_stop_token_is_not_the_end_of_a_constraint(llm: LLM) -> None:
    """The stop token ends the text anyway, and the stop reason says so."""
    token = llm.tokenizer.encode("c")[-1]
    made = llm.generate(PROMPT, json_schema={"const": "abc"}, stop_token_ids=[token], seed=1, max_new_tokens=20)
    if made.stop_reason is None:
        assert made.text == '"abc"'
    else:
        assert (made.finish_reason, made.stop_reason) == ("stop", token)
