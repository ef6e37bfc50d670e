"""Linear probes: scores beside tokens equal the values of a trace, change no bit, and may end a text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pages import lose_pages

import pellucid
from pellucid.engine.request import run_together
from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import LinearProbe, scale
from pellucid.trace.linear_probe import write_vectors

PROMPT = "to see that it rains in the east, in the east"
HOW: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 0}
WEIGHTS = np.random.default_rng(1).normal(size=64).astype(np.float32)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("probes") / "llama.gguf"
    random_model("llama", path, layers=3, width=64, heads=4, kv_heads=2, context=1024)
    with pellucid.load(path, threads=2) as llm:
        yield llm


def probe(name: str = "toxic", point: str = "blocks.1.residual", **more: Any) -> LinearProbe:
    return LinearProbe(name, point, more.pop("weights", WEIGHTS), **more)


def scores(made: Any, name: str = "toxic") -> list[float]:
    return list(made.probe_scores[name])


def test_scores_are_of_the_position_that_a_token_is_predicted_from(llm: LLM) -> None:
    with llm.trace("blocks.1.residual") as trace:
        plain = llm.generate(PROMPT, **HOW)
    made = llm.generate(PROMPT, probes=[probe(bias=-0.5), probe("sigmoid", sigmoid=True, bias=-0.5)], **HOW)
    assert plain.probe_scores is None
    assert made.ids == plain.ids
    assert made.logprobs is not None
    assert plain.logprobs is not None
    assert made.logprobs.chosen.tobytes() == plain.logprobs.chosen.tobytes()
    rows = trace["blocks.1.residual"][0][-len(made.ids) :].astype(np.float64)
    wanted = [math.fsum(row * WEIGHTS) - 0.5 for row in rows]
    assert scores(made) == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    assert scores(made, "sigmoid") == pytest.approx([1 / (1 + math.exp(-one)) for one in wanted], rel=1e-9)
    assert made.as_dict()["probe_scores"] == dict(made.probe_scores or {})


def test_scores_of_heads_see_the_edits_of_the_request(llm: LLM) -> None:
    point = "blocks.1.attention.heads[heads=2]"
    own = probe(point=point, weights=np.ones(16, np.float32))
    plain = llm.generate(PROMPT, probes=[own], max_new_tokens=1)
    doubled = llm.generate(PROMPT, probes=[own], edits=[scale(point, 2.0)], max_new_tokens=1)
    assert scores(doubled)[0] == pytest.approx(2 * scores(plain)[0], rel=1e-5)


def test_scores_do_not_depend_on_batch_chunks_speculation_or_pages(llm: LLM) -> None:
    text = "rain, rain, rain, rain, rain, rain, rain, " * 8
    wanted = scores(llm.generate(text, probes=[probe()], prompt_lookup=False, **HOW))
    looked = llm.generate(text, probes=[probe()], prompt_lookup=True, **HOW)
    assert scores(looked) == wanted
    assert looked.usage.cached_tokens > 0  # only the last token of the prompt is computed again
    requests = [
        llm.request(text, probes=[probe()], **HOW),
        llm.request(PROMPT, probes=[probe("other", "blocks.2.residual")], **HOW),
        llm.request(PROMPT, **HOW),
    ]
    run_together(requests)
    assert scores(requests[0].result()) == wanted
    assert requests[2].result().probe_scores is None
    request = llm.request(text, probes=[probe()], **HOW)
    tokens = iter(request)
    for _ in range(4):
        next(tokens)
    lose_pages(llm)
    for _ in tokens:
        pass
    assert scores(request.result()) == wanted


def test_each_sample_has_its_scores(llm: LLM) -> None:
    how = {"max_new_tokens": 6, "temperature": 1.5, "seed": 3, "ignore_eos": True}
    samples = llm.samples(PROMPT, 3, probes=[probe()], **how)  # type: ignore[arg-type]
    assert [len(scores(one)) for one in samples] == [6, 6, 6]
    assert len({scores(one)[0] for one in samples}) == 1  # all begin after the same prompt
    assert len({scores(one)[-1] for one in samples}) == 3
    assert scores(llm.generate(PROMPT, probes=[probe()], **how)) == scores(samples[0])  # type: ignore[call-overload]


def test_scores_inside_a_trace_leave_the_trace_as_it_is(llm: LLM) -> None:
    with llm.trace("blocks.0.residual", "blocks.1.residual[tokens=2:4]") as plain:
        llm.generate(PROMPT, **HOW)
    with llm.trace("blocks.0.residual", "blocks.1.residual[tokens=2:4]") as trace:
        made = llm.generate(PROMPT, probes=[probe()], **HOW)
    for name in plain:
        assert np.array_equal(plain[name], trace[name]), name
    assert scores(made) == scores(llm.generate(PROMPT, probes=[probe()], **HOW))


def test_a_score_above_its_limit_ends_the_text_before_the_token(llm: LLM) -> None:
    plain = llm.generate(PROMPT, probes=[probe()], **HOW)
    values = scores(plain)
    highest = int(np.argmax(values))
    assert highest > 0
    limit = (sorted(values)[-1] + sorted(values)[-2]) / 2
    stopped = llm.generate(PROMPT, probes=[probe("calm", "blocks.0.residual"), probe().stopping(limit)], **HOW)
    assert (stopped.finish_reason, stopped.stop_reason) == ("probe", "toxic")
    assert stopped.ids == plain.ids[: highest + 1]
    assert scores(stopped) == values[: highest + 1]
    before = llm.generate(PROMPT, **{**HOW, "max_new_tokens": highest})
    assert stopped.text == before.text
    assert llm.generate(PROMPT, probes=[probe().stopping(max(values))], **HOW).finish_reason == "length"


def test_a_file_keeps_a_probe(tmp_path: Path) -> None:
    path = tmp_path / "toxicity.safetensors"
    probe(bias=-1.25, sigmoid=True).save(path)
    found = LinearProbe.open(path)
    assert (found.name, found.point, found.bias, found.sigmoid) == ("toxicity", "blocks.1.residual", -1.25, True)
    assert np.array_equal(found.weights, WEIGHTS)
    # The tensors of scikit-learn: float64, with a row.
    write_vectors(path, {"weights": WEIGHTS[None], "bias": np.zeros(1, np.float32)}, {"point": "norm"})
    assert not LinearProbe.open(path).sigmoid


@pytest.mark.parametrize(
    ("arrays", "metadata", "said"),
    [
        ({"weights": WEIGHTS}, {}, "has no point"),
        ({"weights": WEIGHTS}, {"point": "norm", "sigmoid": "yes"}, "must be true or false"),
        ({"bias": WEIGHTS[:1]}, {"point": "norm"}, "must be weights"),
        ({"weights": WEIGHTS, "bias": WEIGHTS[:2]}, {"point": "norm"}, "a bias of one number"),
        ({"weights": WEIGHTS, "scale": WEIGHTS}, {"point": "norm"}, "is neither weights nor bias"),
        ({"weights": np.array([np.nan], np.float32)}, {"point": "norm"}, "not finite"),
    ],
)
def test_wrong_files(arrays: Any, metadata: dict[str, str], said: str, tmp_path: Path) -> None:
    write_vectors(tmp_path / "x.safetensors", arrays, metadata)
    with pytest.raises(FileFormatError, match=said):
        LinearProbe.open(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("blocks.1.attention.pattern", "has no float32 vector for each token"),
        ("blocks.*.residual", "is 3 points: name one"),
        ("project.logits", "has no float32 vector for each token"),
        ("blocks.1.attention.heads[heads=2]", "has width 16 in this model, and the weights have 64"),
        ("blocks.9.residual", "no point has this name"),
    ],
)
def test_points_that_a_probe_cannot_read(llm: LLM, point: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        llm.generate(PROMPT, probes=[probe(point=point)], **HOW)


def test_probes_that_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="must be a list of probes"):
        llm.generate(PROMPT, probes=[3], **HOW)
    with pytest.raises(InvalidRequest, match="the limit is 64"):
        llm.generate(PROMPT, probes=[probe(f"p{n}") for n in range(65)], **HOW)
    with pytest.raises(InvalidRequest, match="beam search has no scores of tokens"):
        llm.beam_search(PROMPT, probes=[probe()])
    with pytest.raises(InvalidRequest, match="takes no probes"), llm.trace("norm", on=print):
        llm.generate(PROMPT, probes=[probe()], **HOW)
    with pytest.raises(InvalidRequest, match="takes no probes"):
        llm.request_with_values(PROMPT, ["norm"], probes=[probe()])
    with pytest.raises(InvalidRequest, match="printable"):
        probe("two\nlines")
