"""Loaded models, from text to text: a random Llama that takes milliseconds, and SmolLM2 if it is installed."""

from __future__ import annotations

import gc
import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pages import in_use
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid.errors import (
    CacheFull,
    ContextOverflow,
    InvalidRequest,
    KernelError,
    NothingLeft,
)
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.llm import LLM
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

CONTEXT = 128
PROMPT = "to see that it rains in the east"
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 24}
DRAWN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 11, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_llama(tmp_path_factory.mktemp("models") / "tiny", context=CONTEXT)
    write_tokenizer(path)
    return path


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    llm = pellucid.load(folder, threads=2)
    yield llm
    llm.close()


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


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "^messages is empty: give at least one message$"),
        ("rain?", "^messages='rain\\?': must be a list of mappings"),
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
    (tmp_path / "generation_config.json").unlink()  # then config.json has it, as in transformers
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": before.ids[end]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = pellucid.load(tmp_path, threads=1)
    assert other.generate(PROMPT, **GREEDY).ids == made.ids
    other.close()


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model whose tokenizer has 270 tokens and whose matrix has 320 rows."""
    folder = write_llama(tmp_path_factory.mktemp("models") / "padded", context=CONTEXT)
    write_tokenizer(folder, size=270)
    llm = pellucid.load(folder, threads=1)
    yield llm
    llm.close()


def all_rows(llm: LLM, ids: list[int]) -> np.ndarray:
    """Log-probabilities over all rows of the matrix, of the token after each of the ids."""
    sequence = BlockTable()
    rows = [llm.runner.forward([Chunk(sequence, [token])])[0].astype(np.float64) for token in ids]
    llm.runner.release(sequence)
    return np.array([row - np.logaddexp.reduce(row) for row in rows])


def test_rows_of_the_matrix_that_are_no_tokens_are_never_sampled(padded: LLM) -> None:
    made = padded.generate([7] * 9, **{**DRAWN, "temperature": 5, "max_new_tokens": None})
    assert (len(made.ids), max(made.ids) < 270) == (CONTEXT - 9, True)


def test_rows_of_the_matrix_that_are_no_tokens_count_in_log_probabilities(padded: LLM) -> None:
    prompt = [7, 8, 9]
    made = padded.generate(
        prompt,
        seed=3,
        max_new_tokens=9,
        logprobs=300,
        prompt_logprobs=2,
        watch=True,
        samplers=["top_k"],
        top_k=200,
    )
    wanted = all_rows(padded, [*prompt, *made.ids[:-1]])
    assert made.logprobs is not None
    np.testing.assert_allclose(made.logprobs.chosen, wanted[2 + np.arange(9), made.ids], atol=1e-5)
    assert np.exp(made.logprobs.top[:, :270]).sum(1).max() < 0.97  # the rest is in rows without tokens
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


def test_abandoned_stream_gives_its_pages_back(llm: LLM) -> None:
    wanted = llm.generate(PROMPT, **DRAWN).text
    for taken in (0, 1, 5):
        stream = llm.stream(PROMPT, **DRAWN)
        for _ in range(taken):
            next(stream)
        del stream
        gc.collect()
        assert llm.generate(PROMPT, **DRAWN).text == wanted
        assert in_use(llm) == 0
    assert len(llm.generate([9] * 100, temperature=0).ids) == 28


def leave_two_pages(llm: LLM) -> None:
    """Occupy all but two pages of the cache."""
    llm.runner.cache.allocate(BlockTable(), (llm.runner.cache.free_pages - 2) * PAGE)


def test_what_is_kept_makes_way_for_what_runs(llm: LLM) -> None:
    leave_two_pages(llm)
    wanted = llm.generate([7] * 60, temperature=0, max_new_tokens=20).ids
    run = llm.start([7] * 60, temperature=0, max_new_tokens=20)
    pieces = iter(run)
    next(pieces)
    llm.generate([9] * 30, **GREEDY)
    assert len(list(pieces)) == 19
    assert run.ids == wanted


def test_a_request_that_waits_for_its_reader_makes_way_and_goes_on_as_if_nothing_had_been(llm: LLM) -> None:
    alone = [llm.generate(prompt, **GREEDY).ids for prompt in ([7] * 60, [9] * 100)]
    leave_two_pages(llm)
    run = llm.start([7] * 60, **GREEDY)
    pieces = iter(run)
    next(pieces)
    assert llm.generate([9] * 100, **GREEDY).ids == alone[1]
    assert len(list(pieces)) == 23
    assert run.ids == alone[0]


def test_pages_that_nobody_gives_back_are_an_error_that_says_so(llm: LLM) -> None:
    leave_two_pages(llm)
    llm.runner.cache.allocate(BlockTable(), 1)
    with pytest.raises(CacheFull, match=r"2 more pages.* 1 of 128 are free"):
        llm.generate([9] * 100, **GREEDY)
    assert len(llm.generate([9] * 30, **GREEDY).ids) == 24


def test_rows_that_a_chunk_has_not(llm: LLM) -> None:
    sequence = BlockTable()
    for outputs in (3, -1):
        with pytest.raises(InvalidRequest, match=rf"2 tokens .*logits of {outputs}"):
            llm.runner.forward([Chunk(sequence, [5, 6], outputs)])
    assert (sequence.length, sequence.blocks) == (0, [])


def test_threads_that_generate_at_once_get_what_they_would_alone(llm: LLM) -> None:
    prompts = ["rain in", "the east", "a stone or"]
    options = {**DRAWN, "max_new_tokens": 16}
    alone = {p: llm.generate(p, **options).ids for p in prompts}
    roomy = pellucid.load(llm.checkpoint.path, threads=2)
    found: dict[str, list[list[int]]] = {p: [] for p in prompts[:2]}

    def work(prompt: str) -> None:
        for _ in range(10):
            found[prompt].append(roomy.generate(prompt, **options).ids)

    workers = [threading.Thread(target=work, args=(p,)) for p in found]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    roomy.close()
    assert found == {p: [alone[p]] * 10 for p in found}


def test_a_follow_up_begins_where_the_last_request_ended_and_gives_the_same(llm: LLM, folder: Path) -> None:
    first = llm.generate(PROMPT, **DRAWN)
    prompt = llm.tokenizer.encode(PROMPT)
    follow_up = [*prompt, *first.ids, *llm.tokenizer.encode(" or so")]
    cached = llm.generate(follow_up, **DRAWN)
    assert cached.usage.cached_tokens == len(prompt) + len(first.ids) - 1
    again = llm.generate(PROMPT, **DRAWN)
    assert (again.usage.cached_tokens, again.ids) == (len(prompt) - 1, first.ids)
    fresh = pellucid.load(folder, threads=1)
    whole = fresh.generate(follow_up, **DRAWN)
    fresh.close()
    assert (whole.usage.cached_tokens, whole.ids) == (0, cached.ids)


def test_an_encoder_does_not_generate_and_a_decoder_does_not_embed(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="use generate"):
        llm.embed(["a"])


@pytest.mark.parametrize("value", [0, -1, CONTEXT + 1, 1.5, "x", True, pytest.param(10**5000, id="huge")])
def test_context_out_of_range(folder: Path, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"context=.*1 to {CONTEXT}"):
        pellucid.load(folder, context=value)


@pytest.mark.parametrize(
    ("name", "value"), [("threads", 0), ("threads", 257), ("threads", "2"), ("threads", True)]
)
def test_load_options_out_of_range(folder: Path, name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name):
        pellucid.load(folder, **{name: value})


@pytest.mark.parametrize("value", [8, 0, "yes", None])
def test_precise_is_yes_or_no(folder: Path, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"precise=.*: must be True or False"):
        pellucid.load(folder, precise=value)


@pytest.mark.parametrize("form", ["q4_0", "F16", 8, ""])
def test_forms_of_the_cache_that_are_not_there(folder: Path, form: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"kv_cache=.*must be one of f16, bf16, q8_0, f32"):
        pellucid.load(folder, kv_cache=form)


def test_a_head_narrower_than_a_scale_of_the_cache_is_padded(folder: Path) -> None:
    with pellucid.load(folder, kv_cache="q8_0") as llm, pellucid.load(folder, precise=True) as exact:
        assert {layer.head_dim for layer in llm.plan.layers} == {32}
        got, wanted = (one.score("Hello, world").logprobs.chosen for one in (llm, exact))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=0.05)


def test_numbers_may_be_numpys(folder: Path) -> None:
    llm = pellucid.load(folder, threads=np.int64(1), context=np.uint16(64), precise=np.bool_(True))
    options = {
        "temperature": np.float32(0.5),
        "top_k": np.int64(3),
        "top_p": np.float64(0.9),
        "seed": np.uint8(7),
    }
    mine = llm.generate(PROMPT, max_new_tokens=np.int16(5), **options)
    plain = {name: value.item() for name, value in options.items()}
    assert mine.ids == llm.generate(PROMPT, max_new_tokens=5, **plain).ids
    assert (len(mine.ids), type(mine.seed)) == (5, int)
    assert llm.generate(PROMPT, temperature=np.float32(0), max_new_tokens=1).seed is None
    llm.close()


def test_smaller_context(folder: Path) -> None:
    llm = pellucid.load(folder, context=10)
    assert len(llm.generate([5] * 4, temperature=0).ids) == 6
    llm.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_model_that_was_loaded_before_a_fork_says_so(llm: LLM) -> None:
    llm.generate(PROMPT, **GREEDY)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # the child must not run pytest code
        try:
            llm.generate(PROMPT, **GREEDY)
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    assert said.startswith("InvalidRequest: this model was loaded before a fork")
    assert len(llm.generate(PROMPT, **GREEDY).ids) == 24


def test_closing_twice_is_harmless_and_a_closed_model_says_so(folder: Path) -> None:
    llm = pellucid.load(folder, threads=2)
    llm.generate(PROMPT, **GREEDY)
    llm.close()
    llm.close()
    with pytest.raises(InvalidRequest, match="closed"):
        llm.generate(PROMPT, **GREEDY)


def test_a_model_that_nobody_holds_stops_its_threads(folder: Path) -> None:
    before = threading.enumerate()
    llm = pellucid.load(folder, threads=3)
    llm.generate(PROMPT, **GREEDY)
    workers = [thread for thread in threading.enumerate() if thread not in before]
    assert len(workers) == 2
    del llm
    for worker in workers:
        worker.join(5)
    assert not any(worker.is_alive() for worker in workers)


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
        messages += [
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": "And of Italy?"},
        ]
        assert smollm2.chat(messages, **GREEDY).usage.cached_tokens > answer.usage.prompt_tokens

    def test_stop_string_across_tokens(self, smollm2: LLM) -> None:
        text = smollm2.generate("Count: one, two, three,", **GREEDY).text
        stop = text[2:9]
        assert (
            smollm2.generate("Count: one, two, three,", **GREEDY, stop=stop).text == text[: text.index(stop)]
        )

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

    @pytest.mark.parametrize("texts", [[], "text", [""], ["ok", ""], [3], 5, None])
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
        with pytest.raises(ContextOverflow, match=r"602 tokens.*512: shorten it, or have it cut"):
            minilm.embed([long])
        assert minilm.embed([long, "short"], truncate=True).shape == (2, 384)
        np.testing.assert_array_equal(minilm.embed([long], truncate=True), minilm.embed(["word " * 510]))


@pytest.mark.model
def test_threads_that_embed_take_turns() -> None:
    from concurrent.futures import ThreadPoolExecutor

    llm = pellucid.load("minilm")
    texts = ["word " * 400]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: llm.embed(texts), range(12)))
    assert all((vectors == llm.embed(texts)).all() for vectors in many)


@pytest.mark.model
def test_a_character_cut_by_the_limit_stays_out() -> None:
    llm = pellucid.load("smollm2")
    for limit in range(1, 41):
        made = llm.generate("Emoji: 😀😃😄😁 more:", temperature=0, max_new_tokens=limit)
        assert "\ufffd" not in made.text


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
        ([7, 8], "rain", 0, "given=.rain.: must be a text, before a text"),
        ("rain", 5, 0, "given=5: must be a text"),
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
    for name, value in {
        "stop": "a",
        "logprobs": 2,
        "watch": True,
        "until": bool,
        "prompt_logprobs": 1,
    }.items():
        with pytest.raises(InvalidRequest, match=f"beams have no {name}; leave it out"):
            llm.beam_search(PROMPT, **{name: value})
    with pytest.raises(InvalidRequest, match="did you mean num_beams"):
        llm.beam_search(PROMPT, num_beam=3)
    assert in_use(llm) == 0


def test_tokens_without_a_choice_are_read_together_and_change_nothing(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"type": "object", "properties": {"rain": {"type": "integer"}}, "required": ["rain"]}
    schema |= {"additionalProperties": False, "minProperties": 1}
    steps = []
    forward = llm.runner.forward

    def counted(chunks: Any) -> Any:
        steps.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks)

    monkeypatch.setattr(llm.runner, "forward", counted)
    options = {**DRAWN, "max_new_tokens": 40, "json_schema": schema, "logprobs": 2, "watch": True}
    for seed in range(5):
        steps.clear()
        made = llm.generate([7, 8], **{**options, "seed": seed})
        together = len(steps)
        with monkeypatch.context() as patched:
            patched.setattr("pellucid.engine.sequence.MAX_FORCED_TOKENS", 0)
            steps.clear()
            alone = llm.generate([7, 8], **{**options, "seed": seed})
        assert together < len(steps)
        assert (made.ids, made.text, made.trace) == (alone.ids, alone.text, alone.trace)
        assert made.logprobs is not None
        assert alone.logprobs is not None
        np.testing.assert_array_equal(made.logprobs.chosen, alone.logprobs.chosen)
    assert in_use(llm) == 0


def test_an_abandoned_request_gives_its_pages_back_without_the_garbage_collector(llm: LLM) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(60):
            run = llm.start([7] * 70, **DRAWN)
            next(iter(run))
            del run
            assert in_use(llm) == 0
    finally:
        gc.enable()


def test_many_long_answers_have_room(llm: LLM) -> None:
    made = llm.samples([7] * 60, 16, temperature=5.0, ignore_eos=True, seed=1)
    assert [len(one.ids) for one in made] == [CONTEXT - 60] * 16
    found = llm.beam_search([7] * 60, num_beams=16, ignore_eos=True)
    assert len(found.texts[0].ids) == CONTEXT - 60


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
    with pytest.raises(NothingLeft, match="leaves no token that may come"):
        llm.beam_search(PROMPT, allowed=[5], banned=[5])
    with pytest.raises(InvalidRequest, match="temperature=0 with do_sample=True"):
        llm.beam_search(PROMPT, do_sample=True, temperature=0)
    with pytest.raises(InvalidRequest, match="mirostat=2: it follows one text"):
        llm.beam_search(PROMPT, do_sample=True, mirostat=2)
    with pytest.raises(InvalidRequest, match="beams have no logprobs"):
        llm.beam_search(PROMPT, logprobs=0)


def test_the_tree_of_beams_does_not_grow_with_the_ends(llm: LLM) -> None:
    found = llm.beam_search(PROMPT, num_beams=4, max_new_tokens=5, stop_token_ids=list(range(100, 300)))
    assert len(found.tree) <= 1 + 5 * 4 * 12


def test_a_stop_token_is_not_the_end_of_a_constraint(llm: LLM) -> None:
    """The stop token ends the text anyway, and the stop reason says so."""
    token = llm.tokenizer.encode("c")[-1]
    made = llm.generate(
        PROMPT, json_schema={"const": "abc"}, stop_token_ids=[token], seed=1, max_new_tokens=20
    )
    if made.stop_reason is None:
        assert made.text == '"abc"'
    else:
        assert (made.finish_reason, made.stop_reason) == ("stop", token)


def test_a_token_across_the_border_of_what_is_given_counts(llm: LLM) -> None:
    text = "to see that"
    ids = llm.tokenizer.encode(text)
    for cut in range(1, len(text)):
        found = llm.score(text[cut:], given=text[:cut])
        offsets = llm.tokenizer.encode_with_offsets(text).offsets
        assert len(found.logprobs) == min(sum(end > cut for _, end in offsets), len(ids) - 1)


def test_weights_that_are_no_numbers_are_loaded_without_a_word(tmp_path: Path) -> None:
    """Also signalling NaNs, which cause warnings in arithmetic."""
    folder = write_llama(tmp_path / "tiny")
    write_tokenizer(folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8 : 8 + size])["model.norm.weight"]["data_offsets"]
    signalling = (0x7FA00000).to_bytes(4, "little") * ((end - begin) // 4)
    path.write_bytes(content[: 8 + size + begin] + signalling + content[8 + size + end :])
    pellucid.load(folder, threads=1).close()
