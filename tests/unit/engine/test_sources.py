"""Requests to encoder-decoders: sources, their pages, preemption, and options that do not apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.sources import LETTERS, source_model
from support.tiny import SOURCES

import pellucid
from pellucid.engine.request import run_together
from pellucid.errors import CacheFull, ContextOverflow, InvalidRequest, PellucidError
from pellucid.llm import LLM
from pellucid.measure.suite import SuiteOptions, suite
from pellucid.plan.pipeline_stages import cut
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.trace.edits import ablate
from pellucid.trace.lenses import attribution
from pellucid.trace.lenses.logit_lens import logit_lens

SOURCE = "".join(LETTERS[10:40])
OTHERS = ["".join(LETTERS[20:50]), "".join(LETTERS[60:64]), "".join(LETTERS[10:41])]
SAMPLED: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5, "logprobs": 2, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_model("marian", tmp_path_factory.mktemp("sources"))


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder, threads=2) as loaded:
        yield loaded


def result(generation: Any) -> tuple[list[int], bytes]:
    """The ids of an answer, and the bits of its log-probabilities."""
    return generation.ids, generation.logprobs.chosen.tobytes() + generation.logprobs.top.tobytes()


def test_an_answer_has_the_same_bits_in_every_company(llm: LLM, folder: Path) -> None:
    alone = result(llm.generate(SOURCE, **SAMPLED))
    llm.runner.encoder.cache.clear_prefixes()
    batch = llm.generate([SOURCE, *OTHERS, SOURCE], **SAMPLED)
    assert result(batch[0]) == result(batch[-1]) == alone
    with llm.trace("blocks.*.cross.heads", "project.logits"):
        assert result(llm.generate(SOURCE, **SAMPLED)) == alone
    samples = llm.samples(SOURCE, 3, **SAMPLED)
    assert result(samples[0]) == alone
    assert len({tuple(one.ids) for one in samples}) == 3
    with pellucid.load(folder, threads=1) as other:
        assert result(other.generate(SOURCE, **SAMPLED)) == alone


def test_a_source_is_encoded_once_for_all_answers(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = list[int]()
    forward = llm.runner.encoder.forward

    def counted(chunks: Any, **how: Any) -> Any:
        encoded.extend(len(chunk.tokens) for chunk in chunks)
        return forward(chunks, **how)

    monkeypatch.setattr(llm.runner.encoder, "forward", counted)
    llm.samples(SOURCE, 5, **SAMPLED)
    llm.beam_search(SOURCE, num_beams=4, max_new_tokens=6)
    assert encoded == [31]
    again = llm.generate(SOURCE, **SAMPLED)
    assert (again.usage.prompt_tokens, again.usage.cached_tokens) == (31, 31)
    # A longer source and a shorter source are other sources: their tokens depend on all tokens.
    assert [llm.generate(text, **SAMPLED).usage.cached_tokens for text in (SOURCE[:-1], OTHERS[2])] == [0, 0]
    assert encoded == [31, 30, 32]
    llm.generate([OTHERS[1]] * 3, **SAMPLED)  # in the same step, equal sources are encoded once
    assert encoded == [31, 30, 32, 5]


def test_answers_do_not_share_pages_of_other_sources(llm: LLM) -> None:
    """The decoder's first tokens are equal, but their keys and values depend on the source."""
    llm.generate(SOURCE, **{**SAMPLED, "max_new_tokens": 60})
    other = llm.generate(OTHERS[0], **SAMPLED)
    llm.runner.cache.clear_prefixes()
    llm.runner.encoder.cache.clear_prefixes()
    assert result(llm.generate(OTHERS[0], **SAMPLED)) == result(other)


def shrink(pools: Any, pages: int) -> None:
    for pool in pools:
        pool.reserve(pages)


@pytest.mark.parametrize("small", ["sources", "answers", "both"])
def test_requests_that_lose_their_pages_compute_source_and_answer_again(folder: Path, small: str) -> None:
    with pellucid.load(folder, threads=1) as llm:
        texts = [SOURCE, *OTHERS, *(text[::-1] for text in OTHERS)]
        alone = [result(llm.generate(text, **SAMPLED)) for text in texts]
    with pellucid.load(folder, threads=1, cache_memory=0) as llm:
        if small != "answers":
            shrink(llm.runner.encoder.cache.kv.pools, 3)
        if small != "sources":
            shrink(llm.runner.cache.kv.pools, 2)
        requests = [llm.request(text, **SAMPLED) for text in texts]
        run_together(requests)
        assert [result(one.result()) for one in requests] == alone
        assert llm.state().pages_in_use == 0
        assert llm.engine.preemptions > 0 or small == "sources"


def test_a_source_that_does_not_fit_is_refused(folder: Path) -> None:
    with pellucid.load(folder, threads=1) as llm:
        shrink(llm.runner.encoder.cache.kv.pools, 0)
        with pytest.raises(CacheFull, match="need 1 more pages"):
            llm.generate(SOURCE)


def test_pages_are_free_after_every_kind_of_end(llm: LLM) -> None:
    stream = llm.stream(SOURCE, **{**SAMPLED, "max_new_tokens": 50})
    next(stream)
    stream.close()
    request = llm.request(SOURCE, max_new_tokens=40, until=lambda text: len(text) > 3, ignore_eos=True)
    run_together([request])
    assert request.result().finish_reason == "until"
    llm.score(OTHERS[0], given=SOURCE)
    llm.engine.settle()
    assert llm.state().pages_in_use == 0
    for cache in (llm.runner.cache, llm.runner.encoder.cache):
        cache.clear_prefixes()
        assert cache.kv.free_pages == cache.kv.pages


def test_a_stream_gives_the_text_of_generate(llm: LLM) -> None:
    assert "".join(llm.stream(SOURCE, **SAMPLED)) == llm.generate(SOURCE, **SAMPLED).text


def test_scores_are_the_log_probabilities_of_the_answer(llm: LLM) -> None:
    answer = llm.generate(SOURCE, max_new_tokens=8, temperature=0, logprobs=0, ignore_eos=True)
    scored = llm.score(answer.ids, given=SOURCE)
    assert scored.ids == [127, *answer.ids]
    np.testing.assert_array_equal(scored.logprobs.chosen, answer.logprobs.chosen)
    text = llm.score(OTHERS[1], given=SOURCE)
    assert text.ids == [127, *llm.tokenizer.encode(OTHERS[1])]
    assert len(text.logprobs.chosen) == 5
    assert llm.score(OTHERS[1], given=OTHERS[0]).logprobs.chosen.tolist() != text.logprobs.chosen.tolist()


def test_an_answer_continues_after_its_first_tokens(llm: LLM) -> None:
    whole = llm.generate(SOURCE, max_new_tokens=8, temperature=0)
    rest = llm.request(SOURCE, max_new_tokens=5, temperature=0, resumed=whole.ids[:3])
    run_together([rest])
    assert rest.result().ids == whole.ids[3:]


def test_forced_tokens(llm: LLM) -> None:
    first = llm.generate(
        SOURCE, max_new_tokens=4, forced_bos_token_id=9, forced_eos_token_id=8, temperature=1.0, seed=3
    )
    assert (first.ids[0], first.ids[-1], len(first.ids)) == (9, 8, 4)
    assert llm.generate(SOURCE, max_new_tokens=3, target_language="fra_Latn").ids[0] == 5
    assert llm.generate(SOURCE, max_new_tokens=3, target_language="de").ids[0] == 6
    beams = llm.beam_search(SOURCE, num_beams=3, max_new_tokens=4, target_language="de", num_return_sequences=3)
    assert {one.ids[0] for one in beams.texts} == {6}
    assert llm.generate(SOURCE, max_new_tokens=2).ids[-1] == 0  # the file recommends its end token
    with pytest.raises(InvalidRequest, match="target_language='xx': the model has no token of this language"):
        llm.generate(SOURCE, target_language="xx")
    with pytest.raises(InvalidRequest, match="forced_bos_token_id holds a token id=128"):
        llm.generate(SOURCE, forced_bos_token_id=128)


def test_a_generation_config_recommends(tmp_path: Path) -> None:
    own = {"max_length": 9, "min_length": 4, "bad_words_ids": [[43], [9, 8]], "num_beams": 3, "length_penalty": 0.5}
    own |= {"early_stopping": True, "no_repeat_ngram_size": 2, "forced_bos_token_id": 11}
    with pellucid.load(source_model("marian", tmp_path, **own)) as llm:
        assert llm.recommended == {
            "max_new_tokens": 8, "min_new_tokens": 3, "banned": [[43], [9, 8]], "no_repeat_ngram_size": 2,
            "forced_bos_token_id": 11, "forced_eos_token_id": 0, "temperature": 0.0,
        }  # fmt: skip
        assert llm.recommended_beams == {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True}
        answer = llm.generate(SOURCE)
        assert len(answer.ids) <= 8
        assert answer.ids[0] == 11
        assert 43 not in answer.ids
        own = {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True}
        texts = llm.beam_search(SOURCE, num_return_sequences=3).texts
        assert texts == llm.beam_search(SOURCE, num_return_sequences=3, **own).texts
        assert texts != llm.beam_search(SOURCE, num_return_sequences=3, **own | {"length_penalty": 2.0}).texts
        assert {one.ids[0] for one in texts} == {11}


def test_wrong_recommendations_are_reported(tmp_path: Path) -> None:
    path = source_model("marian", tmp_path, num_beams=-1, max_length=1)
    with pytest.warns(UserWarning, match="is not used") as warned:
        llm = pellucid.load(path)
    with llm:
        assert llm.recommended_beams == {}
        assert "max_new_tokens" not in llm.recommended
    said = [str(one.message) for one in warned]
    assert [line.partition(":")[0] for line in said] == [
        "marian/generation_config.json",
        "marian/generation_config.json",
    ]
    assert "max_length = 1 is not used" in said[0]
    assert "num_beams = -1 is not used" in said[1]


REFUSED: dict[str, tuple[Callable[[LLM], object], str]] = {
    "log-probabilities of the source": (
        lambda llm: llm.generate(SOURCE, prompt_logprobs=2),
        "prompt_logprobs=2: the encoder reads the prompt",
    ),
    "a score without a source": (lambda llm: llm.score(SOURCE), "use score"),
    "a long text": (lambda llm: llm.inputs.corpus(SOURCE), "use score"),
    "messages": (lambda llm: llm.chat([{"role": "user", "content": SOURCE}]), "template"),
    "sentence vectors": (lambda llm: llm.embed([SOURCE]), "makes text, not sentence vectors"),
    "a lens on a prompt": (lambda llm: logit_lens(llm, SOURCE), "trace an answer"),
    "a benchmark": (lambda llm: suite(llm.spec, llm.context, SuiteOptions()), "only its requests can be timed"),
    "a profile": (
        lambda llm: llm.runner.profile([Chunk(BlockTable(), [1])]),
        "the steps of an encoder-decoder cannot be profiled",
    ),
    "tokens without a source": (lambda llm: llm.runner.forward([Chunk(BlockTable(), [1])]), "encode a source first"),
    "pipeline stages": (lambda llm: cut(llm.plan, 2), "a step runs a whole source"),
    "an empty source": (lambda llm: llm.generate([]), "empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_apply_is_refused_in_one_line(llm: LLM, name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(PellucidError, match=message) as error:
        call(llm)
    assert "\n" not in str(error.value)


def test_a_source_fills_the_context_and_not_more(llm: LLM) -> None:
    assert llm.generate([9] * 64, max_new_tokens=2).usage.prompt_tokens == 64
    with pytest.raises(ContextOverflow, match="65 tokens; the context is 64: shorten"):
        llm.generate([9] * 65)
    assert len(llm.generate([9] * 64, ignore_eos=True).ids) == 63  # the first token of the decoder counts


def test_a_context_beyond_the_stated_one_needs_relative_positions(tmp_path: Path) -> None:
    path = source_model("t5", tmp_path)
    with pellucid.load(path, context=700, precise=True) as longer, pellucid.load(path, precise=True) as usual:
        assert (usual.context, longer.context) == (512, 700)
        ids = [9 + i % 90 for i in range(500)]
        same = {"max_new_tokens": 6, "temperature": 0, "logprobs": 0}
        assert result(longer.generate(ids, **same)) == result(usual.generate(ids, **same))
        assert len(longer.generate([*ids, *ids[:199]], **same).ids) == 6
    with pytest.raises(InvalidRequest, match="context"):
        pellucid.load(source_model("marian", tmp_path), context=65)


def test_a_logit_of_an_answer_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    with pellucid.load(source_model("t5-odd", tmp_path), precise=True) as llm:
        with llm.trace(*attribution.needed(llm), "blocks.*.residual") as trace:
            llm.generate(SOURCE, max_new_tokens=4, temperature=0)
        found = attribution.attribute(llm, trace.sequences[0])
        crossed = max(found.ranked("cross"), key=lambda one: abs(one.value))
        rounding = [one.value for one in found.contributions if one.kind == "rounding"]
        assert abs(crossed.value) > 0.01
        assert max(map(abs, rounding)) < 1e-4
        lens = logit_lens(llm, trace.sequences[0])
        assert len(lens.pieces) == 4


def test_an_edit_of_cross_attention_changes_the_answer(llm: LLM) -> None:
    plain = llm.generate(SOURCE, **SAMPLED)
    edited = llm.generate(SOURCE, **SAMPLED, edits=[ablate("blocks.*.cross.heads")])
    other = llm.generate(OTHERS[1], **SAMPLED, edits=[ablate("blocks.*.cross.heads")])
    assert result(edited) != result(plain)
    assert result(edited) == result(other)  # without cross attention, the source does not matter


@pytest.mark.parametrize("name", ["t5-odd", "bart", "t5gemma"])
@pytest.mark.parametrize("precise", [True, False])
def test_patterns_of_cross_attention_are_those_of_transformers(name: str, precise: bool, tmp_path: Path) -> None:
    with np.load(SOURCES[name] / "expected.npz") as file:
        source, ids, wanted = (file[key] for key in ("source_ids", "decoder_ids", "pattern"))
    with pellucid.load(source_model(name, tmp_path), precise=precise) as llm:
        with llm.trace("blocks.0.cross.pattern", "blocks.0.cross.scores", "blocks.0.attention.pattern") as trace:
            llm.score(ids[1:].tolist(), given=source.tolist())
            llm.score([9, 8], given=SOURCE[:3])  # a shorter source
        pattern = trace.sequences[0]["blocks.0.cross.pattern"]
        np.testing.assert_allclose(pattern, wanted[:, :-1], rtol=0, atol=2e-3 if precise else 2e-2)
        scores = trace.sequences[0]["blocks.0.cross.scores"]
        assert scores.shape == pattern.shape
        shorter = trace.sequences[1]["blocks.0.cross.pattern"]
        assert shorter.shape[1:] == (2, len(llm.tokenizer.encode(SOURCE[:3])))
        np.testing.assert_allclose(shorter.sum(-1), 1, rtol=0, atol=1e-5)
        assert trace.sequences[0]["blocks.0.attention.pattern"].shape[1:] == (23, 23)
        assert "<h4>blocks.0.cross.pattern, head 0</h4>" in trace.sequences[1]._repr_html_()


def test_patterns_of_answers_in_the_same_steps(llm: LLM) -> None:
    with llm.trace("blocks.*.cross.pattern[heads=1,3]") as trace:
        llm.generate([SOURCE, OTHERS[1]], **SAMPLED)
    with llm.trace("blocks.*.cross.pattern[heads=1,3]") as alone:
        llm.generate(OTHERS[1], **SAMPLED)
    name = "blocks.1.cross.pattern"
    assert trace.sequences[0][name].shape == (2, 12, 31)
    np.testing.assert_array_equal(trace.sequences[1][name], alone.sequences[0][name])
