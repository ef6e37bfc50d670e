"""Names of TransformerLens in selections and edits. The golden lists what TransformerLens has for each tiny model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from support.small_llm import PROMPT
from support.tiny import DECODERS, GOLDENS, TINY, opened

import pellucid
from pellucid import pipeline
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.plan.bind import layouts
from pellucid.plan.points import Point
from pellucid.testing import random_model
from pellucid.trace import ablate, call
from pellucid.trace.selection import select
from pellucid.trace.transformer_lens_names import ABSENT, HOOKS, MARK, hooks_of

GOLDEN: dict[str, dict[str, list[str]]] = json.loads((GOLDENS.parent / "trace" / "hooks.json").read_text())
"""For each name the points that have its values, and the models; "": models where Pellucid has no such value."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("hooks") / "llama.gguf"
    random_model("llama", path)
    llm = pellucid.load(path, threads=1)
    yield llm
    llm.close()


@cache
def points_of(model: str) -> dict[str, Point]:
    with opened(TINY[model]) as (checkpoint, own):
        return dict(pipeline.build_plan(own.spec, layouts(checkpoint, own)).points)


def kinds(model: str) -> dict[str, set[str]]:
    """The points of each name, with N for the number of the block."""
    found: dict[str, set[str]] = {}
    for hook, point in hooks_of(points_of(model)).items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
        if match:
            block = int(match[1])
            hook = f"blocks.N.{match[2]}"
            point = point.replace(f"blocks.{block}.", "blocks.N.").replace(f"blocks.{block - 1}.", "blocks.N-1.")
        found.setdefault(hook, set()).add(point)
    return found


@pytest.mark.parametrize("model", DECODERS)
def test_names_have_the_points_whose_values_transformer_lens_has(model: str) -> None:
    found = kinds(model)
    for hook, of_hook in GOLDEN.items():
        expected = {point for point, models in of_hook.items() if model in models and point}
        if expected:
            assert expected <= found[hook], hook
        elif model in of_hook.get("", []) and not any("router" in point for point in points_of(model)):
            # Mixtures may have dense blocks, whose names in TransformerLens are others.
            assert hook not in found, hook


def test_the_golden_has_each_name_and_most_models() -> None:
    assert set(GOLDEN) == set(HOOKS)
    assert all(any(point and models for point, models in of_hook.items()) for of_hook in GOLDEN.values())
    assert len({model for of_hook in GOLDEN.values() for models in of_hook.values() for model in models}) > 100


@pytest.mark.parametrize("model", DECODERS)
def test_no_point_has_a_name_like_a_hook(model: str) -> None:
    assert not [name for name in points_of(model) if MARK in name]


def test_a_name_without_a_value_says_why() -> None:
    points = points_of("llama")
    for last, reason in ABSENT.items():
        with pytest.raises(InvalidRequest, match="no point has this name") as caught:
            select(points, [f"blocks.0.attn.{last}"])
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("granite", "blocks.0.hook_attn_out"),  # TransformerLens' value has the factor of the residual stream
        ("gemma2", "hook_unembed"),  # before the cap of the logits
        ("gptj", "blocks.0.hook_resid_mid"),  # attention and feed-forward read the same norm
        ("gpt2", "blocks.0.mlp.hook_pre_linear"),  # no gates
        ("mixtral", "blocks.0.mlp.hook_pre"),
        ("deepseek_v2", "blocks.0.attn.hook_q"),
        ("qwen3_next", "blocks.0.attn.hook_z"),
        ("gemma3n", "blocks.1.hook_resid_post"),  # several residual streams
    ],
)
def test_a_value_that_would_differ_is_refused(model: str, name: str) -> None:
    with pytest.raises(InvalidRequest, match="no point has this name"):
        select(points_of(model), [name])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blocks.*.attn.hook_pattern", ["blocks.0.attention.pattern", "blocks.1.attention.pattern"]),
        ("blocks.-1.hook_resid_post", ["blocks.1.residual"]),
        ("blocks.0.hook_resid_pre", ["embed"]),
        ("blocks.*.hook_resid_*", ["embed", "blocks.0.attention.residual", "blocks.0.residual",
                                   "blocks.1.attention.residual", "blocks.1.residual"]),
        ("**.hook_z", ["blocks.0.attention.heads", "blocks.1.attention.heads"]),
        ("ln_final.hook_out", ["norm"]),
    ],
)  # fmt: skip
def test_what_users_write(text: str, expected: list[str]) -> None:
    assert [part.name for part in select(points_of("llama"), [text])] == expected


def test_a_bracket_selects_as_in_the_name_of_the_point() -> None:
    points = points_of("llama")
    bracket = "[heads=2,0; tokens=1:3]"
    assert select(points, [f"blocks.1.attn.hook_z{bracket}"]) == select(points, [f"blocks.1.attention.heads{bracket}"])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("blocks.1.attn.hook_patern", "blocks.1.attn.hook_pattern"),
        ("blocks.1.resid_post", "blocks.1.hook_resid_post"),
        ("blocks.1.atention.pattern", "blocks.1.attention.pattern"),
    ],
)
def test_the_nearest_names_are_of_both_kinds(name: str, near: str) -> None:
    with pytest.raises(InvalidRequest, match=f"the nearest are .*{re.escape(near)}"):
        select(points_of("llama"), [name])


def test_traces_and_edits_take_names_of_transformer_lens(llm: LLM) -> None:
    pairs = {"blocks.1.attn.hook_pattern": "blocks.1.attention.pattern", "blocks.1.hook_resid_pre": "blocks.0.residual"}
    with llm.trace(*pairs) as own:
        plain = llm.generate(PROMPT, temperature=0, max_new_tokens=4)
    with llm.trace(*pairs.values()) as named:
        llm.generate(PROMPT, temperature=0, max_new_tokens=4)
    for hook, point in pairs.items():
        assert np.array_equal(own[hook], named[point], equal_nan=True), hook
        assert np.array_equal(own[point], named[hook], equal_nan=True), hook
        assert np.array_equal(own.sequences[0].at(hook, 2), named.sequences[0].at(point, 2)), hook
    edits = [[ablate(f"blocks.1.{name}[heads=1]")] for name in ("attn.hook_z", "attention.heads")]
    with llm.trace("project.logits") as t:
        made = [llm.generate(PROMPT, edits=one, temperature=0, max_new_tokens=4) for one in edits]
    assert np.array_equal(t["project.logits"][0], t["project.logits"][1])
    assert made[0].ids == made[1].ids

    seen = []

    def read(values: np.ndarray, context: object) -> None:
        seen.append(context["blocks.1.hook_resid_pre"])  # type: ignore[index]

    llm.generate(
        PROMPT,
        edits=[call("blocks.1.hook_resid_post", read, reads="blocks.1.hook_resid_pre")],
        temperature=0,
        max_new_tokens=4,
    )
    assert np.array_equal(np.concatenate(seen), own["blocks.0.residual"][0])
    assert plain.ids
