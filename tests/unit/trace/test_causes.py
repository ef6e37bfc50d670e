"""Causes of a token: what is reported was measured with the part taken out, and heads are ranked by what they read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import ablate, causes, find_heads, raised_tokens

PROMPT = "to see a b c"
FAMILIES = ("llama", "gpt2", "gemma3", "qwen2moe", "qwen3next")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("causes")


def loaded(folder: Path, family: str) -> LLM:
    path = folder / f"{family}.gguf"
    if not path.exists():
        random_model(family, path, context=1024)
    return pellucid.load(path, threads=1)


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[LLM]:
    with loaded(folder, "llama") as llm:
        yield llm


def logits_of(llm: LLM, edits: Any = ()) -> NDArray[np.float64]:
    """The last logits of a request with edits: another way than the copies that ``causes`` runs."""
    with llm.trace("project.logits[tokens=-1]") as trace:
        llm.generate(PROMPT, max_new_tokens=1, temperature=0, edits=list(edits))
    return trace.sequences[0]["project.logits"][-1].astype(np.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_raised_tokens_fall_most_without_the_part(family: str, folder: Path) -> None:
    with loaded(folder, family) as llm:
        points = ["embed[tokens=1]", "blocks.1.residual[tokens=-1; dims=2,5]"]
        plain = logits_of(llm)
        likely = np.argsort(-plain, kind="stable")[:50]
        for point, tokens in zip(points, raised_tokens(llm, PROMPT, points), strict=True):
            falls = (plain - logits_of(llm, [ablate(point)]))[likely]
            assert np.allclose(np.sort(falls)[-3:][::-1], [falls[likely == one][0] for one in tokens], atol=1e-5)
        for wrong in ([], ["blocks.1.nothing"]):
            with pytest.raises(InvalidRequest):
                raised_tokens(llm, PROMPT, wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_causes_are_what_requests_without_the_parts_say(family: str, folder: Path) -> None:
    with loaded(folder, family) as llm:
        found = causes(llm, PROMPT, top=4, tried=6)
        plain = logits_of(llm)
        order = np.argsort(-plain, kind="stable")
        assert (found.token, found.against) == tuple(order[:2])
        assert found.lead == pytest.approx(plain[order[0]] - plain[order[1]])
        assert len(found.tokens) == len(llm.inputs.prompt(PROMPT))
        assert found.tried["heads"] >= len(found.heads)
        for one in (*found.tokens, *found.heads, *found.neurons):
            left = logits_of(llm, [ablate(one.point)])
            shares = np.exp(left - left.max()) / np.exp(left - left.max()).sum()
            assert one.lead == pytest.approx(left[found.token] - left[found.against], abs=1e-5), one.point
            assert one.probability == pytest.approx(shares[found.token], rel=1e-5)
            assert one.says == left.argmax()
            assert one.says_probability == pytest.approx(shares.max(), rel=1e-5)
            falls = (plain - left)[order[:50]]
            assert np.allclose(falls[np.isin(order[:50], one.raises)].min(), np.sort(falls)[-3], atol=1e-5)
        for some in (found.tokens, found.heads, found.neurons):
            assert [one.lead for one in some] == sorted(one.lead for one in some), "the largest effect first"
        for one in found.heads:
            with llm.trace(f"blocks.{one.layer}.attention.pattern") as trace:
                llm.generate(PROMPT, max_new_tokens=1, temperature=0)
            row = trace.sequences[0][f"blocks.{one.layer}.attention.pattern"][one.unit, one.token]
            assert (one.key, one.weight) == (row.argmax(), pytest.approx(row.max()))
        assert all(one.token > 0 for one in found.neurons)


def test_causes_of_a_chosen_token_with_edits(llama: LLM) -> None:
    edits = [ablate("blocks.0.attention.heads[heads=0]")]
    found = causes(llama, PROMPT, 70, against=71, edits=edits)
    left = logits_of(llama, edits)
    assert (found.token, found.against) == (70, 71)
    assert found.lead == pytest.approx(left[70] - left[71], abs=1e-5)
    best = found.heads[0]
    both = logits_of(llama, [*edits, ablate(best.point)])
    assert best.lead == pytest.approx(both[70] - both[71], abs=1e-5)
    assert found.as_dict()["heads"][0]["point"] == best.point


@pytest.mark.parametrize("family", ["llama", "bert", "gemma3"])
def test_heads_are_ranked_by_what_they_read_beside_other_positions(family: str, folder: Path) -> None:
    with loaded(folder, family) as llm:
        if llm.spec.generates:
            with llm.trace("blocks.*.attention.pattern") as trace:
                llm.generate(PROMPT, max_new_tokens=1, temperature=0)
        else:
            with llm.trace("blocks.*.attention.pattern") as trace:
                llm.embed(PROMPT)
        sequence = trace.sequences[0]
        wanted = list[tuple[float, int, int, int]]()
        for layer in range(len(llm.spec.blocks)):
            for head, pattern in enumerate(sequence[f"blocks.{layer}.attention.pattern"]):
                count = len(pattern)
                for key in range(count):
                    if key == 3:
                        continue
                    others = [
                        float(pattern[row, key])
                        for row in range(1, count)
                        if row not in (3, key) and (not llm.spec.generates or row > key)
                    ]
                    wanted.append((float(pattern[3, key]) - sum(others) / max(1, len(others)), layer, head, key))
        best = max(wanted)
        found = find_heads(llm, PROMPT, 3, top=5)
        assert (found[0].layer, found[0].head, found[0].key) == best[1:]
        assert found[0].weight - found[0].mean == pytest.approx(best[0], abs=1e-6)
        scores = [one.weight - one.mean for one in found]
        assert scores == sorted(scores, reverse=True)
        assert {one.key for one in find_heads(llm, PROMPT, 3, key=1, top=32)} == {1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top": 0}, "top=0"),
        ({"tried": 9999}, "tried=9999"),
        ({"token": 70, "against": 70}, "another token"),
        ({"token": 10**9}, "token holds a token id"),
    ],
)
def test_what_is_refused(llama: LLM, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        causes(llama, PROMPT, **options)


def test_refused_texts(llama: LLM) -> None:
    with pytest.raises(InvalidRequest, match="the limit is 512"):
        causes(llama, [70] * 600)
    with pytest.raises(InvalidRequest, match="a search needs 2 to 512"):
        find_heads(llama, [70])
    with pytest.raises(InvalidRequest, match="token="):
        find_heads(llama, PROMPT, 99)
