"""Sweeps and their targets, against requests that run one by one."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import (
    ablate,
    ablation_sweep,
    add,
    attribution_patch,
    call,
    causal_trace,
    divergence,
    knockout_sweep,
    log_probability,
    logit_difference,
    mask,
    patch_sweep,
    path_patch,
    probability,
    replace,
    sweep,
)

CLEAN, CORRUPTED = "the cat sat on the mat", "the dog sat on the mat"
ONCE: dict[str, Any] = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("sweeps") / "llama.gguf"
    random_model("llama", path, layers=3, width=64, heads=4, kv_heads=2, context=1024)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


def logits_of(llm: LLM, prompt: str, *edits: Any) -> NDArray[np.float32]:
    """The logits after a prompt, of a request of its own."""
    with llm.trace("project.logits[tokens=-1]") as trace:
        llm.generate(prompt, edits=list(edits), **ONCE)
    found: NDArray[np.float32] = trace["project.logits"][0, 0]
    return found


def test_targets(llm: LLM) -> None:
    logits, other = logits_of(llm, CLEAN), logits_of(llm, CORRUPTED)
    x, y = logits.astype(np.float64), other.astype(np.float64)
    p, q = (np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in (x, y))
    assert logit_difference(llm, 65, 66)(logits) == x[65] - x[66]
    assert probability(llm, 65)(logits) == pytest.approx(p[65], rel=1e-9)
    assert log_probability(llm, 65)(logits) == pytest.approx(math.log(p[65]), rel=1e-9)
    assert divergence(logits)(other) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-9)
    assert divergence(logits)(logits) == 0
    with pytest.raises(InvalidRequest, match="3 logits; this model has"):
        divergence(logits[:3])(logits)


def test_a_sweep_is_many_requests(llm: LLM) -> None:
    def copies(layer: int, head: int) -> Any:
        return None if (layer, head) == (1, 2) else ablate(f"blocks.{layer}.attention.heads[heads={head}]")

    told = list[tuple[int, int]]()
    over = {"layer": range(3), "head": range(4)}
    target = logit_difference(llm, 65, 66)
    found = sweep(llm, CLEAN, copies, target, over=over, told=lambda *now: told.append(now))
    assert found.unedited == target(logits_of(llm, CLEAN))
    for layer in range(3):
        for head in range(4):
            edit = copies(layer, head)
            value = found.values[layer, head]
            assert np.isnan(value) if edit is None else value == target(logits_of(llm, CLEAN, edit))
    assert told == [(done, 11) for done in range(1, 12)]
    layer, head, value = found.top(1)[0]
    assert abs(value - found.unedited) == np.nanmax(np.abs(found.values - found.unedited))
    assert found.top(12)[-1][:2] == (1, 2)  # NaN comes last
    assert np.isnan(found.top(12)[-1][-1])
    assert f"layer {str(layer)!r}" in repr(found) or f"layer {layer!r}" in repr(found)
    assert found.as_dict()["values"][1][2] is None
    assert found.as_dict()["labels"]["head"] == ["0", "1", "2", "3"]
    assert found.values[layer, head] == value
    assert "<table" in found._repr_html_()
    (exported,) = found.labelled()
    assert [(axis.name, axis.letter, list(axis.labels)) for axis in exported.axes] == [
        ("layer", "L", [0, 1, 2]),
        ("head", "H", [0, 1, 2, 3]),
    ]


def test_a_list_of_copies_with_edits_of_the_prompt(llm: LLM) -> None:
    base = add("embed[tokens=2]", np.ones(64))
    copies = [ablate("blocks.1.residual[tokens=4]"), [mask("blocks.0.attention.scores[keys=0; tokens=3:]")], []]
    target = probability(llm, 65)
    found = sweep(llm, CLEAN, copies, target, edits=[base])
    assert found.unedited == target(logits_of(llm, CLEAN, base)) == found.values[2]
    assert found.values[0] == target(logits_of(llm, CLEAN, base, copies[0]))
    assert found.values[1] == target(logits_of(llm, CLEAN, base, *copies[1]))
    with llm.trace(edits=[base]):
        assert sweep(llm, CLEAN, copies, target).values.tolist() == found.values.tolist()


def test_long_prompts_and_neighbours(llm: LLM) -> None:
    """A prompt of several steps, beside requests whose bits stay the same."""
    long, how = CLEAN * 20, {"max_new_tokens": 24, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    neighbours = [f"a neighbour {n}" for n in range(6)]
    alone = [llm.generate(one, **how).logprobs.chosen.tobytes() for one in neighbours]  # type: ignore[union-attr]
    found = list[bytes]()

    def generate() -> None:
        for one in neighbours:
            made = llm.generate(one, **how).logprobs
            assert made is not None
            found.append(made.chosen.tobytes())

    count = len(llm.inputs.prompt(long))
    assert count > 256
    thread = threading.Thread(target=generate)
    thread.start()
    edits = [add(f"blocks.{layer}.residual[tokens={at}]", np.ones(64)) for layer in range(3) for at in (0, 100, 300)]
    target = logit_difference(llm, 65, 66)
    swept = sweep(llm, long, edits, target)
    thread.join()
    assert found == alone
    assert swept.values.tolist() == [target(logits_of(llm, long, edit)) for edit in edits]


def test_patching_every_position_restores_the_clean_run(llm: LLM) -> None:
    told, target = list[tuple[int, int]](), logit_difference(llm, 65, 66)
    found = patch_sweep(llm, CLEAN, CORRUPTED, target, told=lambda *now: told.append(now))
    ids = llm.inputs.prompt(CLEAN)
    same = [a == b for a, b in zip(ids, llm.inputs.prompt(CORRUPTED))]
    first = same.index(False)
    assert found.values.shape == (3, len(ids))
    assert (found.values[:, :first] == 0).all()
    assert found.values[2, -1] == 1.0
    assert (found.values[2, :-1] == 0.0).all()
    assert told[-1] == (3 * (len(ids) - first),) * 2
    low, high = target(logits_of(llm, CORRUPTED)), target(logits_of(llm, CLEAN))
    with llm.trace("blocks.*.residual", "blocks.*.attention.heads") as trace:
        llm.generate(CLEAN, **ONCE)
    edit = replace(f"blocks.1.residual[tokens={first}]", trace["blocks.1.residual"][0, first])
    assert found.values[1, first] == (target(logits_of(llm, CORRUPTED, edit)) - low) / (high - low)
    heads = patch_sweep(llm, CLEAN, CORRUPTED, target, by="head")
    assert heads.values.shape == (3, 4)
    values = trace["blocks.1.attention.heads"][0, :, 2:3]
    edit = replace("blocks.1.attention.heads[heads=2]", values)
    assert heads.values[1, 2] == (target(logits_of(llm, CORRUPTED, edit)) - low) / (high - low)
    with pytest.raises(InvalidRequest, match="equal length"):
        patch_sweep(llm, CLEAN, CLEAN + "!", target)
    with pytest.raises(InvalidRequest, match="the two runs give the same target"):
        patch_sweep(llm, CLEAN, CLEAN, target)
    with pytest.raises(InvalidRequest, match="no point has this name"):
        patch_sweep(llm, CLEAN, CORRUPTED, target, kind="atention.output")


def test_ablation(llm: LLM) -> None:
    target, count = logit_difference(llm, 65, 66), len(llm.inputs.prompt(CLEAN))
    zero = ablation_sweep(llm, CLEAN, target)
    assert zero.values[2, 1] == target(logits_of(llm, CLEAN, ablate("blocks.2.attention.heads[heads=1]")))
    with llm.trace("blocks.1.feedforward.output") as trace:
        llm.generate([CLEAN, CORRUPTED], **ONCE)
    rows = np.concatenate([one["blocks.1.feedforward.output"] for one in trace.sequences])
    texts = [CLEAN, CORRUPTED]
    for values in ("mean", "resample"):
        found = ablation_sweep(
            llm,
            CLEAN,
            target,
            kind="feedforward.output",
            by="layer",
            values=values,
            texts=texts,
            seed=3,  # type: ignore[arg-type]
        )
        instead = rows.mean(0, dtype=np.float64).astype(np.float32)
        if values == "resample":
            instead = rows[np.random.default_rng(3).integers(0, len(rows), count)]
        where = f"blocks.1.feedforward.output[tokens=:{count}]"
        assert found.values[1] == target(logits_of(llm, CLEAN, ablate(where, instead)))
    by_token = ablation_sweep(llm, CLEAN, target, kind="attention.output", by="token")
    assert by_token.values[0, 3] == target(logits_of(llm, CLEAN, ablate("blocks.0.attention.output[tokens=3]")))
    with pytest.raises(InvalidRequest, match="texts is empty: values='mean' needs a list of prompts"):
        ablation_sweep(llm, CLEAN, target, values="mean")
    with pytest.raises(InvalidRequest, match="it has no heads"):
        ablation_sweep(llm, CLEAN, target, kind="residual")


def test_attention_knock_out(llm: LLM) -> None:
    target = logit_difference(llm, 65, 66)
    found = knockout_sweep(llm, CLEAN, target)
    last = len(llm.inputs.prompt(CLEAN)) - 1
    assert found.values.shape == (3, last)
    edit = mask(f"blocks.1.attention.scores[tokens={last}; keys=2]")
    assert found.values[1, 2] == target(logits_of(llm, CLEAN, edit))
    wide = knockout_sweep(llm, CLEAN, target, query=5, window=3)
    edits = [mask(f"blocks.{layer}.attention.scores[tokens=5; keys=1]") for layer in range(3)]
    assert wide.values.shape == (3, 5)
    assert wide.values[1, 1] == target(logits_of(llm, CLEAN, *edits))
    assert wide.values[0, 1] == target(logits_of(llm, CLEAN, *edits[:2]))


def test_causal_tracing(llm: LLM) -> None:
    target = logit_difference(llm, 65, 66)
    found = causal_trace(llm, CLEAN, "cat", target, samples=2, seed=5)
    with llm.trace("embed", "blocks.*.residual") as trace:
        llm.generate(CLEAN, **ONCE)
    pieces = trace.sequences[0].pieces
    start = "".join(pieces).index("cat")
    ends = np.cumsum([len(piece) for piece in pieces])
    first, last = int(np.argmax(ends > start)), int(np.argmax(ends >= start + 3))
    random, sigma = np.random.default_rng(5), 3 * float(trace["embed"][0].std())
    low, restored = list[float](), list[float]()
    at = len(pieces) - 1
    for _ in range(2):
        rows = sigma * random.standard_normal((last - first + 1, 64)).astype(np.float32)
        noise = add(f"embed[tokens={first}:{last + 1}]", rows)
        patch = replace(f"blocks.1.residual[tokens={at}]", trace["blocks.1.residual"][0, at])
        low.append(target(logits_of(llm, CLEAN, noise)))
        restored.append(target(logits_of(llm, CLEAN, noise, patch)))
    high = target(logits_of(llm, CLEAN))
    expected = (np.mean(restored) - np.mean(low)) / (high - np.mean(low))
    assert found.values[1, at] == pytest.approx(float(expected), rel=1e-12)
    assert found.values[2, -1] == pytest.approx(1.0)
    with pytest.raises(InvalidRequest, match="does not occur in the prompt"):
        causal_trace(llm, CLEAN, "horse", target)


def test_path_patching(llm: LLM) -> None:
    """Direct paths to the logits are linear, and paths to a later block's queries go through the residual stream."""
    target = logit_difference(llm, 65, 66)
    found = path_patch(llm, CLEAN, CORRUPTED, target)
    outputs = ["attention.output", "feedforward.output"]
    names = [f"blocks.{layer}.{part}" for layer in range(3) for part in outputs]
    with llm.trace("blocks.*.attention.heads") as clean:
        llm.generate(CLEAN, **ONCE)
    with llm.trace("blocks.*.attention.heads", *names) as corrupted:
        llm.generate(CORRUPTED, **ONCE)
    heads = corrupted["blocks.1.attention.heads"][0].copy()
    heads[:, 2] = clean["blocks.1.attention.heads"][0, :, 2]
    after = ["blocks.1.feedforward.output", "blocks.2.attention.output", "blocks.2.feedforward.output"]
    edits = [replace("blocks.1.attention.heads", heads), *(replace(name, corrupted[name][0]) for name in after)]
    low, high = target(logits_of(llm, CORRUPTED)), target(logits_of(llm, CLEAN))
    assert found.values[1, 2] == (target(logits_of(llm, CORRUPTED, *edits)) - low) / (high - low)
    receiver = "blocks.2.attention.q[heads=3]"
    through = path_patch(llm, CLEAN, CORRUPTED, target, receivers=[receiver])
    with llm.trace(receiver) as received:
        llm.generate(CORRUPTED, edits=edits[:2], **ONCE)
    edit = replace(receiver, received["blocks.2.attention.q"][0])
    assert through.values[1, 2] == (target(logits_of(llm, CORRUPTED, edit)) - low) / (high - low)
    assert np.isnan(through.values[2]).all()  # the last block's heads come after its queries
    with pytest.raises(InvalidRequest, match="no point has this name"):
        path_patch(llm, CLEAN, CORRUPTED, target, receivers=["blocks.2.attention.nothing"])


def test_axes_that_do_not_exist(llm: LLM) -> None:
    target = logit_difference(llm, 65, 66)
    calls: list[tuple[Callable[..., Any], tuple[Any, ...], str, str]] = [
        (ablation_sweep, (CLEAN, target), "x", "by='x': must be head, token or layer"),
        (patch_sweep, (CLEAN, CORRUPTED, target), "neuron", "by='neuron': must be token or head"),
        (attribution_patch, (CLEAN, CORRUPTED, target), "x", "by='x': must be token or head"),
    ]
    for function, given, by, said in calls:
        with pytest.raises(InvalidRequest, match=said):
            function(llm, *given, by=by)
    twice = sweep(llm, CLEAN, [ablate("blocks.0.attention.output")] * 2, target)
    assert repr(twice).startswith("Sweep(2 copies:")
    assert " keys:" in repr(knockout_sweep(llm, CLEAN, target))


@pytest.mark.parametrize(
    ("copies", "target", "over", "problem"),
    [
        (lambda layer: ablate("embed"), lambda x: 0.0, None, "over: name the axes"),
        ([], lambda x: 0.0, None, "a sweep of 0 copies"),
        (lambda a, b: ablate("embed"), lambda x: 0.0, {"a": range(2000), "b": range(2000)}, "a sweep of 2000 x 2000"),
        ([ablate("embed")], lambda x: "no number", None, "must return a number for logits"),
        ([ablate("embed")], lambda x: x, None, "must return a number for logits"),
        ([ablate("nothing")], lambda x: 0.0, None, "no point has this name"),
        ([ablate("embed[tokens=999]")], lambda x: 0.0, None, "it begins at position 999"),
        ([call("norm", lambda x: 1 / 0)], lambda x: 0.0, None, "the function fails: ZeroDivisionError"),
        ([add("blocks.2.residual", np.full(64, 3e38)), add("blocks.2.residual", np.full(64, 3e38))],
         lambda x: 0.0, None, ""),
    ],
)  # fmt: skip
def test_what_is_refused(llm: LLM, copies: Any, target: Any, over: Any, problem: str) -> None:
    if not problem:
        copies = [copies]
        problem = "the outputs are not finite because of the request's edits"
    with pytest.raises(InvalidRequest, match=problem) as raised:
        sweep(llm, CLEAN, copies, target, over=over)
    assert "\n" not in str(raised.value)
    assert llm.generate(CLEAN, **ONCE).ids
