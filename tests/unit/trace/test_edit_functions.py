"""Functions of edits: what they see, what they keep, and that they see each token once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.pages import lose_pages

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import ablate, call, mask, replace, scale, sweep
from pellucid.trace.edits import CallContext

PROMPT = "to see that it rains in the east, in the east"
HOW: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 0}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("functions") / "llama.gguf"
    random_model("llama", path, layers=3, width=64, heads=4, kv_heads=2, context=512)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


def chosen(made: Any) -> bytes:
    return bytes(made.logprobs.chosen.tobytes())


class Seen:
    """Keeps what a function sees."""

    def __init__(self, factor: float = 1.0) -> None:
        self.positions, self.tokens, self.pieces = list[int](), list[int](), list[str]()
        self.phases, self.rows, self.factor = list[str](), list[NDArray[np.float32]](), factor

    def __call__(self, values: NDArray[np.float32], context: CallContext) -> NDArray[np.float32] | None:
        self.positions += context.positions.tolist()
        self.tokens += context.tokens
        self.pieces += context.pieces
        self.phases += [context.phase] * len(values)
        self.rows += list(values.copy())
        return None if self.factor == 1 else values * np.float32(self.factor)


def test_a_function_knows_where_it_is(llm: LLM) -> None:
    seen = Seen()
    with llm.trace("blocks.1.residual") as trace:
        made = llm.generate(PROMPT, edits=[call("blocks.1.residual", seen)], **HOW)
    prompt = llm.inputs.prompt(PROMPT)
    read = [*prompt, *made.ids[:-1]]
    assert seen.positions == list(range(len(read)))
    assert seen.tokens == read
    assert seen.pieces == [llm.tokenizer.piece(token) for token in read]
    assert seen.phases == ["prefill"] * len(prompt) + ["decode"] * (len(made.ids) - 1)
    assert np.stack(seen.rows).tobytes() == trace["blocks.1.residual"][0].tobytes()


def test_layer_point_and_state(llm: LLM) -> None:
    where = list[tuple[str, int | None, int]]()

    def note(values: NDArray[np.float32], context: CallContext) -> None:
        context.state["calls"] = context.state.get("calls", 0) + 1
        where.append((context.point, context.layer, context.state["calls"]))

    once = {**HOW, "max_new_tokens": 1}
    for _ in range(2):  # each request has a state of its own
        where.clear()
        llm.generate(PROMPT, edits=[call("blocks.*.residual", note), call("norm", note)], **once)
        assert where == [(f"blocks.{layer}.residual", layer, layer + 1) for layer in range(3)] + [("norm", None, 4)]


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_each_token_once_whatever_runs(llm: LLM, factor: float) -> None:
    long = PROMPT * 6  # a prefill in several steps, and a text that lookup can draft
    how = {**HOW, "max_new_tokens": 40}
    seen = Seen(factor)
    alone = llm.generate(long, edits=[call("blocks.0.residual", seen)], **how)
    for lookup in (False, True):
        again = Seen(factor)
        requests = [
            llm.request(long if n == 3 else PROMPT + "!" * n, edits=[call("blocks.0.residual", again)] * (n == 3),
                        prompt_lookup=lookup, **how)
            for n in range(8)
        ]  # fmt: skip
        for request in requests:
            request.start()
        for request in requests:
            request.wait()
        assert again.positions == list(range(len(llm.inputs.prompt(long)) + 39))
        assert np.stack(again.rows).tobytes() == np.stack(seen.rows).tobytes()
        assert chosen(requests[3].results()[0]) == chosen(alone)


@pytest.mark.parametrize(
    "where",
    [
        "blocks.1.residual[tokens=4:]",
        "blocks.1.attention.q[heads=3,0; dims=5,1]",
        "blocks.1.attention.scores[heads=3,0; tokens=9:,4; keys=8,0:3]",
    ],
)
def test_a_sequence_that_loses_its_pages_gets_the_results_again(llm: LLM, where: str) -> None:
    seen = Seen(0.5)
    edits = [call(where, seen)]
    plain = llm.generate(PROMPT, edits=edits, **HOW)
    expected = list(seen.positions)
    again = Seen(0.5)
    request = llm.request(PROMPT, edits=[call(where, again)], **HOW)
    for number, _ in enumerate(request):
        if number == 5:
            lose_pages(llm)
    assert chosen(request.results()[0]) == chosen(plain)
    assert again.positions == expected


def test_samples_share_the_state_and_are_numbered(llm: LLM) -> None:
    numbers = dict[int, list[int]]()

    def note(values: NDArray[np.float32], context: CallContext) -> None:
        numbers.setdefault(context.sequence, []).extend(context.positions.tolist())
        assert context.state.setdefault("owner", id(numbers)) == id(numbers)

    with llm.trace(edits=[call("norm", note)]):
        llm.samples(PROMPT, 3, temperature=1.0, seed=5, max_new_tokens=6, ignore_eos=True)
    prompt = len(llm.inputs.prompt(PROMPT))
    assert sorted(numbers) == [0, 1, 2]
    assert numbers[1] == numbers[2] == list(range(prompt, prompt + 5))
    assert numbers[0][-5:] == numbers[1]


def test_a_function_reads_other_points_of_the_step(llm: LLM) -> None:
    """The model runs without its second block: the function undoes the block's addition."""

    def skip(values: NDArray[np.float32], context: CallContext) -> NDArray[np.float32]:
        return context["blocks.0.residual"]

    with llm.trace("blocks.0.residual", "blocks.1.residual") as trace:
        made = llm.generate(PROMPT, edits=[call("blocks.1.residual", skip, reads="blocks.0.residual")], **HOW)
    assert trace["blocks.1.residual"].tobytes() == trace["blocks.0.residual"].tobytes()
    parts = ["blocks.1.attention.output", "blocks.1.feedforward.output"]
    without = llm.generate(PROMPT, edits=[ablate(part) for part in parts], **HOW)
    assert chosen(made) == chosen(without)


def test_functions_of_scores_and_patterns(llm: LLM) -> None:
    point, shapes = "blocks.1.attention.scores[heads=1:3]", list[tuple[int, ...]]()

    def later(scores: NDArray[np.float32], context: CallContext) -> NDArray[np.float32]:
        shapes.append(scores.shape)
        assert context.heads == (1, 2)
        changed = scores.copy()
        changed[:, 0, 2] = -np.inf
        return changed

    made = llm.generate(PROMPT, edits=[call(f"{point[:-1]}; tokens=3:]", later)], **HOW)
    hidden = llm.generate(PROMPT, edits=[mask("blocks.1.attention.scores[heads=1; tokens=3:; keys=2]")], **HOW)
    assert chosen(made) == chosen(hidden) != chosen(llm.generate(PROMPT, **HOW))
    prompt = len(llm.inputs.prompt(PROMPT))
    assert shapes == [(prompt - 3, 2, prompt), *((1, 2, prompt + n) for n in range(1, 12))]
    first = np.zeros(256, np.float32)
    first[0] = 1
    pinned = replace("blocks.1.attention.pattern[heads=0]", first)

    def look_at_first(pattern: NDArray[np.float32]) -> NDArray[np.float32]:
        changed = np.zeros_like(pattern)
        changed[:, :, 0] = 1
        return changed

    with llm.trace("blocks.1.attention.pattern[heads=0]") as trace:
        called = llm.generate(PROMPT, edits=[call("blocks.1.attention.pattern[heads=0]", look_at_first)], **HOW)
    assert (trace["blocks.1.attention.pattern"][0, 0, :, 0] == 1).all()
    assert chosen(called) == chosen(llm.generate(PROMPT, edits=[pinned], **HOW))


def test_edits_by_words_and_from_the_end(llm: LLM) -> None:
    prompt = llm.inputs.prompt(PROMPT)
    pieces = [llm.tokenizer.piece(token) for token in prompt]
    start = "".join(pieces).index("rains")
    ends = np.cumsum([len(piece) for piece in pieces])
    first, last = int(np.argmax(ends > start)), int(np.argmax(ends >= start + len("rains")))
    plain = llm.generate(PROMPT, **HOW)
    by_word = llm.generate(PROMPT, edits=[ablate('blocks.0.residual[tokens="rains"]')], **HOW)
    by_number = llm.generate(PROMPT, edits=[ablate(f"blocks.0.residual[tokens={first}:{last + 1}]")], **HOW)
    assert chosen(by_word) == chosen(by_number) != chosen(plain)
    last = len(prompt) - 1
    from_end = llm.generate(PROMPT, edits=[ablate("blocks.0.residual[tokens=-1]")], **HOW)
    assert chosen(from_end) == chosen(llm.generate(PROMPT, edits=[ablate(f"blocks.0.residual[tokens={last}]")], **HOW))
    with llm.trace("blocks.0.residual", "norm[tokens=0,-1]", "blocks.2.residual[tokens=generated]",
                   "blocks.1.attention.pattern[tokens=-1; keys=0,2]") as trace:  # fmt: skip
        made = llm.generate([PROMPT, PROMPT + "!!"], **HOW)
    with llm.trace("norm", "blocks.2.residual", "blocks.1.attention.pattern") as whole:
        llm.generate([PROMPT, PROMPT + "!!"], **HOW)
    for sequence, every in zip(trace.sequences, whole.sequences):
        count = len(sequence) - 11
        assert sequence["norm"].tobytes() == every["norm"][[0, count - 1]].tobytes()
        assert sequence["blocks.2.residual"].tobytes() == every["blocks.2.residual"][count:].tobytes()
        expected = every["blocks.1.attention.pattern"][:, count - 1 : count][:, :, [0, 2]]
        assert sequence["blocks.1.attention.pattern"].tobytes() == expected.tobytes()
        assert sequence.at("norm", count - 1).tobytes() == every["norm"][count - 1].tobytes()
        with pytest.raises(InvalidRequest, match="position=1: norm was not recorded there"):
            sequence.at("norm", 1)
    assert len(made) == 2


def test_an_edit_may_use_cached_tokens_before_it(llm: LLM) -> None:
    long = "A prompt that the cache holds. " + PROMPT * 5
    count = len(llm.inputs.prompt(long))
    edit = ablate(f"blocks.1.residual[tokens={count - 9}:]", 0.25)
    llm.engine.cache.clear_prefixes()
    alone = llm.generate(long, edits=[edit], **HOW)
    assert alone.usage.cached_tokens == 0
    plain = llm.generate(long, **HOW)
    assert plain.usage.cached_tokens == 0  # the edited request left nothing in the cache
    hit = llm.generate(long, edits=[edit], **HOW)
    assert hit.usage.cached_tokens >= (count - 9) // 32 * 32 > 0
    assert chosen(hit) == chosen(alone) != chosen(plain)
    assert chosen(llm.generate(long, **HOW)) == chosen(plain)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (call("norm", lambda x, c: c["embed"]), r"the function reads 'embed', which is not in reads=\[\]"),
        (call("norm", lambda x, c: 1 / 0), "the function fails: ZeroDivisionError"),
        (call("norm", lambda x, c: x * np.nan), "a value is not finite"),
        (call("embed", lambda x: x[:2]), r"the function returns 2 rows for \d+ positions"),
        (call("norm", lambda x, c: None, reads="nothing"), "no point has this name"),
        (call("embed", lambda x, c: None, reads="norm"), "cannot read norm, which is computed after embed"),
        (call("norm", lambda x, c: None, reads="embed[tokens=3]"), r"cannot read embed\[tokens=3\]"),
        (call("blocks.0.attention.pattern[keys=900]", lambda x: x), "it selects token 900"),
        (
            call("blocks.0.attention.pattern[keys=2,0]", lambda x: x[:, :, :0]),
            r"of shape \(\d+, 4, 0\) for \(n, 4, 2\)",
        ),
        (call("blocks.0.attention.pattern[heads=3,0]", lambda x: x[:, :1]), r"for \(n, 2, \d+\)"),
        (replace("blocks.0.attention.pattern[tokens=2; keys=4,1]", [1, 0]), "attends to token 4, which comes after"),
        (call("blocks.0.attention.pattern", lambda x: x[:, :, :2]), r"the function returns values of shape"),
        (mask("blocks.0.residual"), "name a point such as blocks.3.attention.scores"),
        (mask("blocks.0.attention.pattern"), "hides keys in attention scores"),
        (mask("blocks.0.attention.scores[tokens=2; keys=5]"), "no selected position sees a selected key"),
        (mask("blocks.0.attention.scores[keys=900]"), "it selects token 900"),
        (mask("blocks.0.residual[keys=3]"), "has no keys"),
    ],
)
def test_edits_that_are_refused(llm: LLM, edit: Any, problem: str) -> None:
    neighbour = llm.request("another prompt", **HOW)
    neighbour.start()
    with pytest.raises(InvalidRequest, match=problem) as raised:
        llm.generate(PROMPT, edits=[edit], **HOW)
    assert "\n" not in str(raised.value)
    neighbour.wait()
    assert chosen(neighbour.results()[0]) == chosen(llm.generate("another prompt", **HOW))


def test_scores_and_pattern_of_a_head_change_together(llm: LLM) -> None:
    name, seen = "blocks.0.attention", list[tuple[int, ...]]()

    def double(values: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(values.shape)
        return values * 2

    masked = mask(f"{name}.scores[heads=1; tokens=3:; keys=0]")
    with llm.trace(f"{name}.pattern", edits=[masked]) as before:
        llm.generate(PROMPT, **HOW)
    edits = [call(f"{name}.pattern[heads=3,1; keys=2,1]", double), masked, scale(f"{name}.pattern", 0.5)]
    with llm.trace(f"{name}.pattern") as after:
        llm.generate(PROMPT, edits=edits, **HOW)
    count = len(llm.inputs.prompt(PROMPT))
    expected = before[f"{name}.pattern"][0, :, :count] * np.float32(0.5)
    for head in (3, 1):
        expected[head][:, [1, 2]] *= 2
    assert np.array_equal(after[f"{name}.pattern"][0, :, :count], expected)
    assert seen[0][1:] == (2, 2)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("states") / "lfm2"
    random_model("lfm2", path, kind="safetensors", layers=4, context=512)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


def test_states_can_be_replaced(recurrent: LLM) -> None:
    """The state of another run after a token, and the state of a run itself, which changes nothing."""
    llm = recurrent
    states = [name for name, point in llm.points.items() if point.kind == "state"]
    assert states
    plain = llm.generate(PROMPT, **HOW)
    count = len(llm.inputs.prompt(PROMPT))
    with llm.trace(*(f"{name}[tokens=5]" for name in states), edits=[scale(f"{states[0]}[tokens=5]", 1.0)]) as trace:
        assert chosen(llm.generate(PROMPT, **HOW)) == chosen(plain)
    own = [replace(f"{name}[tokens=5]", trace[name][0, 0]) for name in states]
    assert chosen(llm.generate(PROMPT, edits=own, **HOW)) == chosen(plain)
    seen = list[tuple[int, tuple[int, ...]]]()

    def empty(values: NDArray[np.float32], context: CallContext) -> NDArray[np.float32]:
        seen.extend((int(at), values.shape) for at in context.positions)
        return 0 * values

    zero = llm.generate(PROMPT, edits=[ablate(f"{states[0]}[tokens=7,-1]")], **HOW)
    called = llm.generate(PROMPT, edits=[call(f"{states[0]}[tokens=7,-1]", empty)], **HOW)
    assert chosen(zero) == chosen(called) != chosen(plain)
    assert [at for at, _ in seen] == [7, count - 1]
    requests = [llm.request(PROMPT + "!" * n, edits=own if n == 2 else [], **HOW) for n in range(4)]
    requests[1] = llm.request(PROMPT, edits=[ablate(f"{states[0]}[tokens=7,-1]")], **HOW)
    for request in requests:
        request.start()
    for request in requests:
        request.wait()
    assert chosen(requests[1].results()[0]) == chosen(zero)
    assert chosen(requests[0].results()[0]) == chosen(plain)
    generated = llm.generate(PROMPT, edits=[ablate(f"{states[0]}[tokens=generated]")], **HOW)
    assert chosen(generated) != chosen(plain)
    assert generated.ids[0] == plain.ids[0]
    for edit, problem in (
        (ablate(f"{states[0]}[dims=2]"), "has no parts"),
        (replace(f"{states[0]}[tokens=5]", np.zeros(3)), r"values of shape \(3,\)"),
    ):
        with pytest.raises(InvalidRequest, match=problem):
            llm.generate(PROMPT, edits=[edit], **HOW)
    with pytest.raises(InvalidRequest, match="sweeps and gradients do not take edits of states"):
        sweep(llm, PROMPT, [ablate(f"{states[0]}[tokens=5]")], lambda logits: 0.0)
