"""Each object of a trace shows what it holds in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import ablate, add, attribute, call, head_scores, logit_lens, replace, scale

PROMPT, OTHER = "the cat sat", "the dog sat"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = random_model("llama", tmp_path_factory.mktemp("shown") / "llama.gguf", layers=2, context=256)
    with pellucid.load(path, threads=2) as llm:
        yield llm


def test_edits() -> None:
    assert repr(scale("embed", 2)) == "Edit('embed': 2 x)"
    assert repr(ablate("embed")) == "Edit('embed': 0 x)"
    assert repr(ablate("embed", 0.5)) == "Edit('embed': 0 x + values ())"
    assert repr(add("embed", np.ones(4), 3.0)) == "Edit('embed': 1 x + values (4,))"
    assert repr(replace("embed", np.ones((2, 4)))) == "Edit('embed': 0 x + values (2, 4))"
    assert repr(call("embed", abs)) == "call('embed', <built-in function abs>)"
    with pytest.raises(InvalidRequest, match="function='x': must be a function of an array"):
        call("embed", "x")  # type: ignore[arg-type]


def test_traces(llm: LLM) -> None:
    with llm.trace("embed", "blocks.0.residual") as trace:
        made = llm.generate(PROMPT, max_new_tokens=2, temperature=0, ignore_eos=True)
    tokens = made.usage.prompt_tokens + 1  # the last token is not computed
    assert repr(trace.sequences[0]) == f"SequenceTrace({tokens} tokens, 2 points)"
    assert re.fullmatch(r"Trace\(2 points, 1 sequences, 0\.0 of [\d,.]+ MB\)", repr(trace))
    room = (tokens + 5) * 4 * llm.spec.embedding.width
    with llm.trace("embed", budget=room) as dropped:
        llm.generate(PROMPT, max_new_tokens=100, temperature=0, ignore_eos=True)
    assert re.search(r"MB, \d+ blocks dropped\)$", repr(dropped))
    assert re.fullmatch(r"Generation\('.*', \d+ \+ 2 tokens, finish_reason='length', [\d.]+ tokens/s\)", repr(made))


def test_lenses(llm: LLM) -> None:
    lens = logit_lens(llm, PROMPT)
    assert repr(lens) == (
        f"LogitLens({len(lens.layers)} layers, {len(lens.pieces)} positions, says {lens.top(-1)[0][0]!r} after "
        f"{lens.pieces[-1]!r})"
    )
    found = attribute(llm, PROMPT)
    first = max(found.contributions, key=lambda one: one.value)
    assert repr(found) == f"Attribution({found.token!r}: {found.logit:.3f}, most by {first.name} {first.value:+.3f})"
    assert f"{found.token!r} against " in repr(attribute(llm, PROMPT, against=65))
    assert re.match(r"HeadScores\(best heads: \w+ \d\.\d \(\d\.\d\d\), ", repr(head_scores(llm)))
