"""Traces and edits of requests: recorded values, unchanged outputs and refused arguments."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.endless import never_endless
from support.pages import lose_pages

import pellucid
from pellucid.engine.request import run_together
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import ablate, add, call, forbid_expert, forbid_token, force_expert, force_token, replace, scale
from pellucid.trace.budget import ReservedBytes, TraceBudget
from pellucid.trace.traced_model import ModelWeights
from pellucid.util.probabilities import softmax

PROMPT = "to see that it rains in the east, in the east"
HOW: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 0}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("trace") / "llama.gguf"
    random_model("llama", path, layers=3, width=64, heads=4, kv_heads=2, context=256)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


def chosen(made: Any) -> bytes:
    return bytes(made.logprobs.chosen.tobytes())


def test_a_generation_is_recorded_and_does_not_change(llm: LLM) -> None:
    plain = llm.generate(PROMPT, **HOW)
    with llm.trace("blocks.*.residual", "blocks.1.attention.pattern[heads=0,3]", "project.logits") as trace:
        made = llm.generate(PROMPT, **HOW)
    assert (made.ids, chosen(made)) == (plain.ids, chosen(plain))
    (sequence,) = trace.sequences
    prompt = llm.inputs.prompt(PROMPT)
    assert sequence.ids == [*prompt, *made.ids[:-1]]
    read = re.sub(r"<0x(..)>", lambda found: chr(int(found[1], 16)), "".join(sequence.pieces)).encode("latin-1")
    assert read.decode(errors="replace") == llm.tokenizer.decode(sequence.ids, skip_special=False)
    T = len(sequence)
    assert trace["blocks.0.residual"].shape == (1, T, 64)
    assert trace["blocks.1.attention.pattern"].shape == (1, 2, T, T)
    assert trace["project.logits"].shape == (1, T, llm.runner.width)
    assert np.allclose(trace["blocks.1.attention.pattern"].sum(-1), 1, atol=1e-5)
    assert np.array_equal(np.triu(trace["blocks.1.attention.pattern"][0, 0], 1), np.zeros((T, T)))
    best = trace["project.logits"][0, len(prompt) - 1 :].argmax(-1)
    assert best.tolist() == made.ids
    assert len(repr(trace).splitlines()) == len(repr(sequence).splitlines()) == 1


def test_speculation_and_the_prefix_cache_change_no_recorded_bit(llm: LLM) -> None:
    found = []
    for lookup in (True, False, True):
        with llm.trace("**") as trace:
            llm.generate(PROMPT * 3, prompt_lookup=lookup, **{**HOW, "max_new_tokens": 40})
        found.append({name: trace[name].tobytes() for name in trace if name != "timings.tokens"})
    assert found[0] == found[1] == found[2]


def test_positions_that_are_not_recorded_may_come_from_the_prefix_cache(llm: LLM) -> None:
    long = PROMPT * 4
    llm.generate(long, **HOW)
    last = len(llm.inputs.prompt(long)) - 1
    with llm.trace(f"blocks.0.residual[tokens={last}:]") as trace:
        made = llm.generate(long, **HOW)
    assert made.usage.cached_tokens >= 64
    with llm.trace("blocks.0.residual") as whole:
        again = llm.generate(long, **HOW)
    assert again.usage.cached_tokens == 0
    assert np.array_equal(trace["blocks.0.residual"], whole["blocks.0.residual"][:, last:])


def test_nothing_of_an_edited_request_is_found_by_another(llm: LLM) -> None:
    long = "Not what others have read. " + PROMPT * 3
    edit = scale("blocks.0.residual", 0.5)
    edited = llm.generate(long, edits=[edit], **HOW)
    plain = llm.generate(long, **HOW)
    assert plain.usage.cached_tokens == 0
    assert chosen(edited) != chosen(plain)
    again = llm.generate(long, edits=[edit], **HOW)
    assert again.usage.cached_tokens == 0
    assert chosen(again) == chosen(edited)


def test_one_edited_request_beside_fifteen_plain_ones(llm: LLM) -> None:
    edit = add("blocks.1.residual[tokens=3:]", np.linspace(-1, 1, 64), 3.0)
    prompts = [PROMPT + "!" * n for n in range(16)]
    plain = [chosen(llm.generate(one, **HOW)) for one in prompts]
    alone = chosen(llm.generate(prompts[7], edits=[edit], **HOW))
    groups = [llm.request(one, edits=[edit] if n == 7 else [], **HOW) for n, one in enumerate(prompts)]
    run_together(groups)
    found = [chosen(group.results()[0]) for group in groups]
    assert found == [*plain[:7], alone, *plain[8:]]
    assert alone != plain[7]


def test_a_clean_run_restores_a_corrupted_one(llm: LLM) -> None:
    clean, corrupted = "the cat sat on the mat", "the dog sat on the mat"
    with llm.trace("blocks.0.residual", "project.logits") as trace:
        llm.generate(clean, **HOW)
    wanted = f"project.logits[tokens={len(llm.inputs.prompt(clean)) - 1}]"
    patch = replace("blocks.0.residual", trace["blocks.0.residual"][:, : len(llm.inputs.prompt(clean))])
    with llm.trace(wanted) as restored:
        llm.generate(corrupted, edits=[patch], **{**HOW, "max_new_tokens": 1})
    with llm.trace(wanted) as broken:
        llm.generate(corrupted, **{**HOW, "max_new_tokens": 1})
    at = len(llm.inputs.prompt(clean)) - 1
    good = trace["project.logits"][0, at].tobytes()
    assert restored["project.logits"][0, 0].tobytes() == good
    assert broken["project.logits"][0, 0].tobytes() != good


def test_answers_to_one_prompt_are_sequences_of_their_own(llm: LLM) -> None:
    with llm.trace("blocks.2.residual") as trace:
        made = llm.samples(PROMPT, 3, temperature=1.0, seed=5, max_new_tokens=6, ignore_eos=True)
    assert len(trace.sequences) == 3
    for sequence, one in zip(trace.sequences, made):
        with llm.trace("blocks.2.residual") as alone:
            llm.score(sequence.ids + one.ids[-1:])
        assert np.array_equal(sequence["blocks.2.residual"], alone["blocks.2.residual"][0])


def test_the_texts_of_a_beam_search_are_recorded(llm: LLM) -> None:
    how: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 6, "ignore_eos": True}
    plain = llm.beam_search(PROMPT, **how)
    with llm.trace("blocks.*.residual", "blocks.1.attention.pattern") as trace:
        beams = llm.beam_search(PROMPT, **how)
    assert [one.ids for one in beams.texts] == [one.ids for one in plain.texts]
    prompt = llm.inputs.prompt(PROMPT)
    assert [one.ids for one in trace.sequences[:3]] == [[*prompt, *text.ids[:-1]] for text in beams.texts]
    for sequence, text in zip(trace.sequences, beams.texts):
        with llm.trace("blocks.*.residual", "blocks.1.attention.pattern") as alone:
            llm.score([*prompt, *text.ids])
        for name in alone:
            assert np.array_equal(sequence[name], alone[name][0]), name
    edit = ablate("blocks.0.attention.output")
    assert llm.beam_search(PROMPT, edits=[edit], **how).texts[0].score != plain.texts[0].score


def test_texts_that_are_scored_are_recorded(llm: LLM) -> None:
    with llm.trace("project.logits", "blocks.0.attention.q") as trace:
        score = llm.score(PROMPT)
    logits = trace["project.logits"][0].astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    own = expected[np.arange(len(logits)), score.ids[1:]]
    assert np.allclose(own, score.logprobs.chosen, atol=1e-5)


def test_sequences_of_other_lengths_are_filled_up(llm: LLM) -> None:
    with llm.trace("blocks.0.residual") as trace:
        llm.generate([PROMPT, PROMPT + " again and again"], **HOW)
    short, long = (len(one) for one in trace.sequences)
    values = trace["blocks.0.residual"]
    assert values.shape == (2, long, 64)
    assert np.isnan(values[0, short:]).all()
    assert not np.isnan(values[0, :short]).any()


def test_only_what_runs_inside_is_recorded(llm: LLM) -> None:
    with llm.trace("blocks.0.residual") as trace:
        other = threading.Thread(target=llm.generate, args=(PROMPT,), kwargs=HOW)
        other.start()
        other.join()
    llm.generate(PROMPT, **HOW)
    assert not trace.sequences
    with pytest.raises(InvalidRequest, match="no sequence ran inside the trace"):
        trace["blocks.0.residual"]


def test_edits_of_a_trace_and_of_a_request_both_count(llm: LLM) -> None:
    first, second = ablate("blocks.0.attention.heads[heads=1]"), scale("blocks.2.feedforward.output", 0.0)
    both = chosen(llm.generate(PROMPT, edits=[first, second], **HOW))
    with llm.trace("blocks.2.residual", edits=[first]) as trace:
        found = chosen(llm.generate(PROMPT, edits=[second], **HOW))
        alone = chosen(llm.generate(PROMPT, **HOW))
    assert found == both != alone
    assert len(trace.sequences) == 2


def test_a_pinned_pattern_decides_what_a_head_gathers(llm: LLM) -> None:
    name, T = "blocks.1.attention", len(llm.inputs.prompt(PROMPT))
    random = np.random.default_rng(4)
    pattern = np.tril(random.random((2, T, T))).astype(np.float32)
    pattern /= pattern.sum(-1, keepdims=True)
    edit = replace(f"{name}.pattern[heads=1,3]", pattern)
    how = {**HOW, "max_new_tokens": 1}
    with llm.trace(f"{name}.heads", f"{name}.v", f"{name}.pattern") as trace:
        llm.generate(PROMPT, edits=[edit], **how)
    values = np.repeat(trace[f"{name}.v"][0].astype(np.float64), 2, 1)
    for which, head in enumerate((1, 3)):
        expected = pattern[which].astype(np.float64) @ values[:, head]
        assert np.allclose(trace[f"{name}.heads"][0, :, head], expected, atol=2e-3)
        assert np.allclose(trace[f"{name}.pattern"][0, head], pattern[which], atol=1e-6)
    half = scale(f"{name}.pattern[heads=3,2; tokens=2:; keys=1]", 0.5)
    with llm.trace(f"{name}.heads", f"{name}.v", f"{name}.pattern") as trace:
        llm.generate(PROMPT, edits=[edit, half], **how)
    composed = pattern.copy()
    composed[1, 2:, 1] *= np.float32(0.5)
    expected = composed[1].astype(np.float64) @ values[:, 3]
    assert trace[f"{name}.pattern"][0, 3].tobytes() == composed[1].tobytes()
    assert np.allclose(trace[f"{name}.heads"][0, :, 3], expected, atol=2e-3)


def test_edits_without_points_count(llm: LLM) -> None:
    edit = scale("blocks.0.residual", 0.1)
    edited = chosen(llm.generate(PROMPT, edits=[edit], **HOW))
    with llm.trace(edits=[edit]) as outer:
        assert chosen(llm.generate(PROMPT, **HOW)) == edited
        with llm.trace() as inner:
            assert chosen(llm.generate(PROMPT, **HOW)) == edited
        other = ablate("blocks.1.feedforward.output")
        both = chosen(llm.generate(PROMPT, edits=[other], **HOW))
    assert both == chosen(llm.generate(PROMPT, edits=[edit, other], **HOW)) != edited
    assert outer
    assert inner.edits == [edit]
    assert chosen(llm.generate(PROMPT, **HOW)) != edited


def test_a_trace_is_a_mapping_of_its_names(llm: LLM) -> None:
    with llm.trace("blocks.-1.residual", "blocks.0.attention.q[heads=1]") as trace:
        llm.generate(PROMPT, **HOW)
    assert "blocks.2.residual" in trace
    assert "nope" not in trace
    assert trace.get("nope") is None
    assert trace == trace
    assert np.array_equal(trace["blocks.-1.residual"], trace["blocks.2.residual"])
    assert trace["blocks.0.attention.q[heads=1]"].shape == trace["blocks.0.attention.q"].shape
    with llm.trace("blocks.0.residual[tokens=500:]"), pytest.raises(InvalidRequest, match="selects position 500"):
        llm.generate(PROMPT, **HOW)


def test_names_with_many_stars_take_no_time(llm: LLM) -> None:
    for name in ("blocks.*.attention." + "*" * 900 + "!", "**." * 300 + "x", "*a" * 400):
        with never_endless(), pytest.raises(InvalidRequest, match="no point has this name"), llm.trace(name):
            pass
    with llm.trace("bl*ks.*.at*n.*_r*y") as trace:
        pass
    assert len(trace) == 6


def test_what_does_not_fit_of_a_pattern_is_no_number(llm: LLM) -> None:
    prompt = len(llm.inputs.prompt(PROMPT))
    budget = 4 * 4 * prompt * prompt + 2000
    with llm.trace("blocks.0.attention.pattern", budget=budget) as trace:
        llm.generate(PROMPT, prompt_lookup=False, **HOW)
    pattern = trace["blocks.0.attention.pattern"][0]
    assert trace.dropped
    assert np.allclose(pattern[:, :prompt].sum(-1), 1, atol=1e-5)
    assert np.isnan(pattern[:, -1]).all()


def test_a_budget_is_for_all_prompts_together(llm: LLM) -> None:
    needed = 4 * 64 * len(llm.inputs.prompt(PROMPT))
    with pytest.raises(InvalidRequest, match="budget="), llm.trace("blocks.0.residual", budget=2 * needed):
        llm.generate([PROMPT] * 3, **HOW)


def test_a_list_with_a_prompt_that_is_refused_leaves_nothing(llm: LLM) -> None:
    with llm.trace("blocks.0.residual") as trace:
        with pytest.raises(PellucidError):
            llm.generate([PROMPT, "x" * 10_000], **HOW)
        llm.request(PROMPT, **HOW)  # a request that never starts
        made = llm.generate(PROMPT, **HOW)
    (sequence,) = trace.sequences
    assert sequence.ids[-11:] == made.ids[:-1]


def test_what_is_recorded_again_takes_its_room_once(llm: LLM) -> None:
    long, how = PROMPT * 3, {**HOW, "max_new_tokens": 40}
    names = ("blocks.*.residual", "blocks.1.attention.pattern")
    with llm.trace(*names) as whole:
        llm.generate(long, prompt_lookup=False, **how)
    with llm.trace(*names) as trace:
        request = llm.start(long, prompt_lookup=False, until=lambda text: False, **how)
        outputs = iter(request)
        for _ in range(10):
            next(outputs)
        lose_pages(llm)
        for _ in outputs:
            pass
    assert len(trace.sequences[0]) == len(whole.sequences[0])
    for name in whole:
        assert np.array_equal(trace[name], whole[name]), name
    rows = 4 * (3 * 64 + 4 * 32 * -(-len(trace.sequences[0]) // 32)) * len(trace.sequences[0])
    assert trace.nbytes <= rows + 4096
    with llm.trace(*names) as guessed:  # rejected tokens are recorded until accepted tokens replace them
        llm.generate(long, **how)
    assert guessed.nbytes <= rows + 4096 * 4


def test_beams_that_end_give_their_room_back(llm: LLM) -> None:
    how: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 20, "ignore_eos": True}
    with llm.trace("blocks.*.residual") as trace:
        llm.beam_search(PROMPT, **how)
    tokens = len(llm.inputs.prompt(PROMPT)) + 4 * 20
    assert trace.nbytes <= 4 * 64 * 3 * tokens
    assert len(trace.sequences) == 1
    with pytest.raises(InvalidRequest, match="on: beam search"), llm.trace("embed", on=print):
        llm.beam_search(PROMPT, **how)


def test_probabilities_pages_and_prefix_hits(llm: LLM) -> None:
    names = ("project.probabilities", "project.logits", "cache.pages", "cache.prefix_hit", "detokenize.held")
    long = PROMPT * 4
    llm.generate(long, **HOW)
    first = len(llm.inputs.prompt(long)) - 1
    with llm.trace(*(f"{name}[tokens={first}:]" for name in names[:2]), *names[2:]) as trace:
        made = llm.generate(long, stop=["never said"], **HOW)
    # Computed in float64 and rounded once. The bits of NumPy's exp in float32 depend on the processor.
    wanted = np.array([softmax(row) for row in trace["project.logits"][0]], np.float32)
    assert np.array_equal(trace["project.probabilities"][0], wanted)
    assert trace["cache.prefix_hit"].tolist() == [[made.usage.cached_tokens]]
    assert made.usage.cached_tokens > 0
    page = 64
    pages = [-(-(first + 1 + step) // page) for step in range(12)]
    assert trace["cache.pages"][0].tolist() == pages
    assert trace["detokenize.held"].shape == (1, 12)
    with llm.trace("project.probabilities[dims=3,5]", on=(frames := []).append) as part:
        llm.generate(PROMPT, **HOW)
    assert part["project.probabilities"].shape[-1] == 2
    assert frames
    assert all(frame.values.shape[-1] == 2 for frame in frames)
    with pytest.raises(InvalidRequest, match="change the logits"):
        llm.generate(PROMPT, edits=[scale("project.probabilities", 2)], **HOW)


def test_an_error_of_a_function_ends_its_request_alone(llm: LLM) -> None:
    def fails(values: np.ndarray) -> np.ndarray:
        raise ValueError("no")

    groups = [llm.request(PROMPT, **HOW), llm.request(PROMPT, edits=[call("blocks.1.residual", fails)], **HOW)]
    with pytest.raises(InvalidRequest, match=r"blocks\.1\.residual.*the function fails.*no"):
        run_together(groups[1:])
    run_together(groups[:1])
    assert chosen(groups[0].results()[0]) == chosen(llm.generate(PROMPT, **HOW))

    def exits(values: np.ndarray) -> np.ndarray:
        raise SystemExit(3)

    def changes_in_place(values: np.ndarray) -> None:
        values *= 2

    for function, problem in ((exits, "SystemExit: 3"), (changes_in_place, "read-only")):
        groups = [llm.request(PROMPT, **HOW), llm.request(PROMPT, edits=[call("blocks.1.residual", function)], **HOW)]
        for group in groups:
            group.start()
        with pytest.raises(InvalidRequest, match=problem):
            groups[1].wait()
        groups[0].wait()
        assert chosen(groups[0].results()[0]) == chosen(llm.generate(PROMPT, **HOW))
    with pytest.raises(InvalidRequest, match=r"values of shape \(3,\); the selected part takes \(64,\)"):
        llm.generate(PROMPT, edits=[call("blocks.1.residual", lambda values: values[0, :3])], **HOW)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("blocks.0.atention.q", "nearest are blocks.0.attention.q"),
        ("", "must be a name"),
        ("blocks.7.residual", "no point has this name"),
        ("blocks.0.residual[heads=0]", "has no heads"),
        ("blocks.0.attention.q[heads=4]", "there are 4 heads, numbered from 0"),
        ("blocks.0.attention.q[heads=x]", "must be a number or a range"),
        ("blocks.0.attention.q[head=1]", "not one of heads, dims, tokens"),
        ("blocks.0.attention.q[heads=1", "is not closed"),
        ("blocks.0.attention.q[1]", "write"),
        ("blocks.0.attention.pattern[dims=1]", "has no dims"),
        ("blocks.0.residual[dims=64:70]", "there are 64"),
        ("blocks.0.residual[tokens=5:5]", "the range is empty"),
        (7, "must be a name"),
    ],
)
def test_names_that_stand_for_nothing(llm: LLM, name: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as raised, llm.trace(name):
        pass
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (replace("blocks.0.residual", np.zeros(63)), r"shape \(63,\); the selected part takes \(64,\) or \(T, 64\)"),
        (replace("blocks.0.residual", np.zeros((2, 3, 64))), "shape"),
        (replace("blocks.0.residual", "text"), "not numbers"),
        (replace("blocks.0.residual", [float("nan")] * 64), "not finite"),
        (replace("blocks.0.residual", [float("inf")] * 64), "not finite"),
        (replace("blocks.0.residual", np.zeros((0, 64))), "there are no values"),
        (replace("blocks.0.residual", np.zeros(64, complex)), "not numbers"),
        (ablate("project.probabilities"), "probabilities cannot be changed"),
        (replace("blocks.0.attention.pattern", np.zeros((3, 5))), r"a pattern takes \(keys,\), \(4, keys\)"),
        (ablate("blocks.9.residual"), "no point has this name"),
        ("blocks.0.residual", "must be made by"),
    ],
)
def test_edits_that_do_not_fit(llm: LLM, edit: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        llm.generate(PROMPT, edits=[edit], **HOW)
    assert llm.generate(PROMPT, **HOW).ids


def test_a_budget_that_is_too_small_is_refused_before_anything_runs(llm: LLM) -> None:
    with (
        pytest.raises(InvalidRequest, match=r"budget=1,000: a trace of \d+ tokens takes"),
        llm.trace("**", budget=1000),
    ):
        llm.generate(PROMPT, **HOW)


def test_what_does_not_fit_is_counted_and_the_text_goes_on(llm: LLM) -> None:
    prompt = len(llm.inputs.prompt(PROMPT))
    with llm.trace("blocks.0.residual", budget=(prompt + 5) * 64 * 4) as trace:
        made = llm.generate(PROMPT, prompt_lookup=False, **HOW)
    assert len(made.ids) == 12
    assert trace.dropped == 6
    assert "6 blocks dropped" in repr(trace)
    values = trace["blocks.0.residual"][0]
    assert np.isnan(values[prompt + 5 :]).all()
    assert not np.isnan(values[: prompt + 5]).any()


@pytest.mark.parametrize(
    "wanted", ["dims=3", "dims=0:5,9", "tokens=4:9", "heads=1", "heads=0,2:4; dims=1:3; tokens=2:"]
)
def test_a_part_of_a_point_is_that_part(llm: LLM, wanted: str) -> None:
    name = "blocks.1.attention.q" if "heads" in wanted else "blocks.1.residual"
    with llm.trace(name) as whole, pytest.raises(PellucidError):
        llm.generate(PROMPT, edits=["none"], **HOW)
    with llm.trace(name) as whole:
        llm.generate(PROMPT, **HOW)
    with llm.trace(f"{name}[{wanted}]") as part:
        llm.generate(PROMPT, **HOW)
    keys = dict(one.strip().split("=") for one in wanted.split(";"))
    values = whole[name][0]
    first, _, last = keys.get("tokens", "0:").partition(":")
    values = values[int(first) : int(last) if last else None]

    def numbers(text: str) -> list[int]:
        found: list[int] = []
        for one in text.split(","):
            low, colon, high = one.partition(":")
            found += range(int(low), int(high) if colon else int(low) + 1)
        return found

    if "heads" in keys:
        values = values[:, numbers(keys["heads"])]
    if "dims" in keys:
        values = values[..., numbers(keys["dims"])]
    assert np.array_equal(part[name][0], values)


def test_what_the_chain_does_is_recorded(llm: LLM) -> None:
    how: dict[str, Any] = {**HOW, "max_new_tokens": 9, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 4}
    watched = llm.generate(PROMPT, watch=True, **how)
    with llm.trace("sample.*", "detokenize.ids", "timings.tokens") as trace:
        made = llm.generate(PROMPT, **how)
    assert (made.ids, made.trace) == (watched.ids, None)
    assert trace["detokenize.ids"].tolist() == [made.ids]
    assert watched.trace is not None
    for name in ("entropy", "probability", "rank", "final_probability", "number"):
        expected = [getattr(one, name) for one in watched.trace]
        assert np.allclose(trace[f"sample.{name}"][0], expected)
    kept = [next(step.left for step in one.steps if step.name == "top_k") for one in watched.trace]
    assert trace["sample.top_k"].shape == (1, 9, 6)
    assert trace["sample.top_k"][0, :, 1].tolist() == kept
    assert np.isnan(trace["sample.dry"]).all()
    times = trace["timings.tokens"][0]
    assert (np.diff(times) >= 0).all()
    with pytest.raises(InvalidRequest, match="has no parts"), llm.trace("sample.top_k[dims=1]"):
        pass
    with pytest.raises(InvalidRequest, match="an output cannot be changed"):
        llm.generate(PROMPT, edits=[ablate("sample.top_k")], **HOW)


def test_a_function_hears_of_values_while_they_are_computed(llm: LLM) -> None:
    heard: list[Any] = []
    with llm.trace("blocks.1.residual", "blocks.0.attention.pattern[heads=2]", on=heard.append) as trace:
        llm.generate(PROMPT, prompt_lookup=False, **HOW)
    assert trace.stream is not None
    assert trace.stream.dropped == 0
    for frame in heard:
        assert len(repr(frame).splitlines()) == 1
        expected = trace[frame.selected.name][0]
        where = slice(frame.positions.start, frame.positions.stop)
        if frame.selected.point.kind == "pattern":
            length = frame.values.shape[-1]
            assert np.array_equal(frame.values[:, 0], expected[0, where, :length])
        else:
            assert np.array_equal(frame.values, expected[where])
    seen = sum(len(frame.positions) for frame in heard if frame.selected.name == "blocks.1.residual")
    assert seen == len(trace.sequences[0])

    def fails(frame: Any) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), llm.trace("blocks.1.residual", on=fails):
        llm.generate(PROMPT, **HOW)

    def both_fail() -> None:
        with llm.trace("blocks.1.residual", on=fails):
            llm.generate(PROMPT, **HOW)
            raise KeyError

    with pytest.raises(KeyError):
        both_fail()
    with pytest.raises(InvalidRequest, match="cannot be streamed"), llm.trace("sample.entropy", on=heard.append):
        pass
    with pytest.raises(InvalidRequest, match="on=3"), llm.trace("embed", on=3):  # type: ignore[arg-type]
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "pellucid-frames"]


def test_points_say_what_they_are(llm: LLM) -> None:
    points = llm.points
    assert next(iter(points)) == "embed"
    assert list(points)[-1] == "timings.tokens"
    assert points["blocks.0.attention.q"].shape == "(B, T, H 4, K 16)"
    assert points["blocks.0.attention.pattern"].shape == "(B, H 4, T, T')"
    assert all(len(repr(point).splitlines()) == 1 for point in points.values())


def test_experts_and_tokens_are_forced_and_forbidden(tmp_path: Path) -> None:
    path = random_model("qwen2moe", tmp_path / "moe.gguf", layers=2, context=256)
    with pellucid.load(path, threads=2) as mixture:
        name, how = "blocks.1.feedforward.experts", {**HOW, "max_new_tokens": 4}
        with mixture.trace(name) as trace:
            mixture.generate(PROMPT, **how)
        often = int(np.bincount(trace[name][0].ravel()).argmax())
        rare = int(np.bincount(trace[name][0].ravel(), minlength=8).argmin())
        with mixture.trace(name) as trace:
            mixture.generate(PROMPT, edits=[forbid_expert(1, often)], **how)
        assert not (trace[name] == often).any()
        with mixture.trace(name, name.replace("experts", "expert_weights")) as trace:
            mixture.generate(PROMPT, edits=[force_expert(1, rare, "3:9")], **how)
        chosen_here = (trace[name][0] == rare).any(-1)
        assert chosen_here[3:9].all()
        last = len(mixture.inputs.prompt(PROMPT)) - 1
        made = mixture.generate(PROMPT, edits=[force_token(70, str(last))], **how)
        assert made.ids[0] == 70
        plain = mixture.generate(PROMPT, **how)
        other = mixture.generate(PROMPT, edits=[forbid_token(plain.ids[0])], **how)
        assert plain.ids[0] not in other.ids


def test_each_chosen_expert_is_recorded_and_changed(tmp_path: Path) -> None:
    path = random_model("qwen2moe", tmp_path / "moe.gguf", layers=2, context=256)
    with pellucid.load(path, threads=2, precise=True, kv_cache="f32") as mixture:
        weights, how, at = (
            ModelWeights(mixture.checkpoint, mixture.model),
            {**HOW, "max_new_tokens": 4},
            "blocks.1.feedforward",
        )
        with mixture.trace(f"{at}.**") as trace:
            plain = mixture.generate(PROMPT, **how)
        x, chosen_experts = trace[f"{at}.norm"][0], trace[f"{at}.experts"][0]
        gate, up, down = (weights.values(f"{at}.experts.{part}.weight") for part in ("gate", "up", "down"))
        for part, matrix in (("up", up), ("gate", gate)):
            wanted = np.einsum("td,tcfd->tcf", x, matrix[chosen_experts])
            assert np.allclose(trace[f"{at}.experts.{part}"][0], wanted, atol=1e-4)
        hidden = wanted / (1 + np.exp(-wanted)) * np.einsum("td,tcfd->tcf", x, up[chosen_experts])
        assert np.allclose(trace[f"{at}.experts.hidden"][0], hidden, atol=1e-4)
        results = np.einsum("tcf,tcdf->tcd", hidden, down[chosen_experts])
        assert np.allclose(trace[f"{at}.experts.output"][0], results, atol=1e-4)
        summed = (results * trace[f"{at}.expert_weights"][0][:, :, None]).sum(1)
        assert np.allclose(trace[f"{at}.output"][0], summed, atol=1e-4)

        first = f"{at}.experts.output[heads=0]"  # the first choice of a token
        with mixture.trace(f"{at}.output") as ablated:
            mixture.generate(PROMPT, edits=[ablate(first)], **how)
        weight = trace[f"{at}.expert_weights"][0]
        prompt = len(mixture.inputs.prompt(PROMPT))
        rest = (results[:prompt] * weight[:prompt, :, None])[:, 1]
        assert np.allclose(ablated[f"{at}.output"][0, :prompt], rest, atol=1e-4)
        neurons = f"{at}.experts.hidden[heads=1; dims=3,5:7; tokens=2:9]"
        with mixture.trace(neurons) as part:
            assert mixture.generate(PROMPT, **how).ids == plain.ids
        same = trace[f"{at}.experts.hidden"][0, 2:9, 1:2][:, :, [3, 5, 6]]
        assert part[f"{at}.experts.hidden"][0].tobytes() == np.ascontiguousarray(same).tobytes()
        with mixture.trace(first) as doubled:
            mixture.generate(PROMPT, edits=[call(first, lambda values: 2 * values)], **how)
        again = doubled[f"{at}.experts.output"][0, :prompt]
        assert np.array_equal(again, 2 * trace[f"{at}.experts.output"][0, :prompt, :1])


def test_a_trace_of_an_encoder(tmp_path: Path) -> None:
    path = random_model("bert", tmp_path / "bert", kind="safetensors", layers=2, width=32, heads=2)
    with pellucid.load(path, threads=2) as encoder:
        plain = encoder.embed(["one text", "and another one"])
        with encoder.trace("**") as trace:
            made = encoder.embed(["one text", "and another one"])
        assert np.array_equal(made, plain)
        assert np.array_equal(trace["normalize"].reshape(2, -1), plain)
        edited = encoder.embed(["one text", "and another one"], edits=[ablate("blocks.0.attention.output")])
        assert not np.array_equal(edited, plain)


def test_room_is_taken_from_what_is_reserved_and_given_back() -> None:
    budget = TraceBudget(100)
    first, second = budget.reserve(40), budget.reserve(40)
    assert isinstance(first, ReservedBytes)
    assert isinstance(second, ReservedBytes)
    assert budget.reserve(30) == 20
    values = [budget.take(10, first) for _ in range(6)]
    assert all(values)
    assert (budget.taken, first.left) == (60, 0)
    assert budget.take(1, first) is None, "the rest is the second's"
    assert budget.take(40, second)
    del values[:]
    assert budget.taken == 0
    del first, second
    assert isinstance(budget.reserve(100), ReservedBytes)


def test_a_row_of_an_encoders_pattern_has_all_tokens(tmp_path: Path) -> None:
    """A query sees the tokens after it: a selection of positions does not cut the keys."""
    path = random_model("bert", tmp_path / "bert", kind="safetensors", layers=2, width=32, heads=2)
    names = ("blocks.1.attention.pattern", "blocks.1.attention.scores")
    with pellucid.load(path, threads=2) as llm:
        with llm.trace(*names) as whole:
            llm.embed(["abcde"])
        with llm.trace(*(f"{name}[heads=1; tokens=2]" for name in names)) as some:
            llm.embed(["abcde"])
    for name in names:
        row = some.sequences[0][name]
        assert row.shape == (1, 1, whole.sequences[0][name].shape[-1])
        assert np.array_equal(row[0, 0], whole.sequences[0][name][1, 2])
    assert np.allclose(some.sequences[0][names[0]].sum(), 1, atol=1e-5)
