"""The sampler steps against transformers and llama.cpp (``tests/oracles/samplers_oracle.py``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.sampling import Words, softmax

from pellucid.sample.candidates import Candidates
from pellucid.sample.chain import Sampler
from pellucid.sample.options import Options
from pellucid.tokenize import load_tokenizer
from pellucid.weights.store import resolve

GOLDEN = json.loads((Path(__file__).parents[2] / "goldens" / "sample" / "steps.json").read_text())
LOGITS = {
    name: np.array([-np.inf if x is None else x for x in values], np.float32)
    for name, values in GOLDEN["logits"].items()
}
CASES = [(f"{case['by']}-{case['step']}-{at}", case) for at, case in enumerate(GOLDEN["cases"])]
PLAIN = [pytest.param(case, id=name) for name, case in CASES if case["step"] not in ("dry", "mirostat")]


def sampler(case: dict[str, Any], words: Any) -> Sampler:
    options = dict(case["options"])
    ends = frozenset(options.pop("eos_ids", ()))
    if "logit_bias" in options:
        options["logit_bias"] = {int(token): bias for token, bias in options["logit_bias"].items()}
    options.setdefault("samplers", [case["step"]])
    made = Options.of(**options, seed=0).chain().start(words, case["prompt"], ends)
    for token in case["generated"]:
        made.history.append(token)
    return made


def check(left: Candidates, kept: list[int], logits_after: list[float]) -> None:
    found = left.keep(np.flatnonzero(left.raw > -np.inf))
    order = np.argsort(found.ids_at())
    assert found.ids_at()[order].tolist() == kept
    np.testing.assert_allclose(found.probabilities()[order], softmax(np.array(logits_after)), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("case", PLAIN)
def test_steps_and_chains(case: dict[str, Any]) -> None:
    logits = LOGITS[case["logits"]]
    made = sampler(case, Words(len(logits)))
    left, _ = made.apply_steps(Candidates.of(logits, "golden"))
    if made.greedy:
        left = left.keep(np.array([left.best]))
    if case["by"] == "transformers" and case["step"] in ("top_k", "typical"):
        left = Candidates.of(logits, "golden").keep(
            np.flatnonzero(np.isin(logits, left.raw))
        )  # transformers keeps ties
    if case["options"].get("dynatemp_range") and case["by"] == "llama.cpp" and np.isinf(logits).any():
        pytest.skip("it counts tokens that are forbidden")
    check(left, case["kept"], case["logits_after"])


@pytest.mark.parametrize("case", [case for _, case in CASES if case["step"] == "mirostat"])
def test_mirostat_turn_by_turn(case: dict[str, Any]) -> None:
    made = sampler(case, Words(40))
    for turn, token, kept, after in zip(case["turns"], case["chosen"], case["kept"], case["logits_after"]):
        left, _ = made.apply_steps(Candidates.of(LOGITS[turn], "golden"))
        check(left, kept, after)
        place = left.positions(np.array([token]))[0]
        made.steps[0].accept(token, left.probabilities()[place])


@pytest.mark.model
def test_dry_with_a_real_vocabulary() -> None:
    tokenizer = load_tokenizer(resolve("smollm2"))
    cases = [case for _, case in CASES if case["step"] == "dry"]
    assert len(cases) > 30
    zeros = np.zeros(tokenizer.vocab_size, np.float32)
    for case in cases:
        if case["options"]["dry_base"] < 1 or case["options"]["dry_multiplier"] < 0:
            continue  # disabled, or a reward: Pellucid refuses both
        left, _ = sampler(case, tokenizer).apply_steps(Candidates.of(zeros, "golden"))
        changed = np.flatnonzero(left.raw)
        wanted = {int(token): delta for token, delta in case["changed"].items()}
        assert set(changed.tolist()) == set(wanted), case
        for token, delta in wanted.items():
            assert left.raw[token] == pytest.approx(delta, rel=1e-5)
