"""A draft model never changes a text, follows the accepted tokens, and frees all of its pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.served import with_control_tokens

import pellucid
from pellucid.engine.speculation import PATIENCE, DraftGain, DraftModel, DraftSequence
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model

PROMPTS = [[5, 6, 7, 8, 9] * 8, list(range(2, 60)), [7] * 300, [3]]
WAYS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 0.3, "seed": 4, "repetition_penalty": 1.1, "top_p": 0.9},
    {"temperature": 0, "stop": "a", "logprobs": 2},
    {"temperature": 0, "prompt_lookup": False},
    {"seed": 2, "regex": "[a-f]{40}"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("draft")
    random_model("llama", made / "model.gguf", vocabulary=320, context=1024)
    random_model("gemma3", made / "other.gguf", vocabulary=320, context=512, seed=5)
    random_model("qwen3_next", made / "recurrent.gguf", vocabulary=320, context=1024)
    random_model("llama", made / "larger.gguf", vocabulary=400, context=1024, seed=6)
    other = Path(random_model("llama", made / "words", kind="safetensors", vocabulary=320, context=1024))
    with_control_tokens(other, ["<word>"])
    return made


@pytest.fixture(scope="module", params=["model", "other", "larger"])
def llm(request: pytest.FixtureRequest, folder: Path) -> Iterator[LLM]:
    """A model with itself as draft, so that drafts are accepted, or with an unrelated draft model."""
    with pellucid.load(folder / "model.gguf", threads=2, draft=folder / f"{request.param}.gguf") as made:
        yield made


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DraftGain, "most", lambda self, costs, others: len(costs) - 1)
    monkeypatch.setattr(DraftGain, "least", lambda self, costs: 0.0)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way))
def test_no_text_changes(llm: LLM, way: dict[str, Any]) -> None:
    options = {"max_new_tokens": 120, "ignore_eos": "regex" not in way, **way}
    plain = [llm.generate(prompt, draft=False, **{**options, "prompt_lookup": False}) for prompt in PROMPTS]
    for made in (
        [llm.generate(prompt, **options) for prompt in PROMPTS],
        llm.generate(PROMPTS, **options),
        [llm.samples(prompt, 3, **options)[0] for prompt in PROMPTS],
    ):
        for one, wanted in zip(made, plain):
            assert (one.ids, one.text, one.finish_reason) == (wanted.ids, wanted.text, wanted.finish_reason)
            if one.logprobs is not None and wanted.logprobs is not None:
                assert (one.logprobs.chosen == wanted.logprobs.chosen).all()
    assert sum(one.usage.proposed_tokens for one in made) > 0
    assert all(one.usage.proposed_tokens == 0 for one in plain)
    assert llm.draft is not None
    for runner in (llm.runner, llm.draft.runner):
        llm.engine.settle()
        runner.cache.clear_prefixes()
        assert runner.cache.kv.free_pages == runner.cache.kv.pages


@pytest.mark.usefixtures("always")
def test_what_the_model_drafts_for_itself_is_kept(llm: LLM, folder: Path) -> None:
    own = llm.draft is not None and llm.draft.checkpoint.path.name == "model.gguf"
    made = llm.generate(PROMPTS[0], temperature=0, max_new_tokens=100, ignore_eos=True, prompt_lookup=False)
    kept = made.usage.accepted_tokens / made.usage.proposed_tokens
    assert kept > 0.95 if own else kept < 0.5


def test_a_text_that_goes_is_given_up(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[0], max_new_tokens=500, ignore_eos=True)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert llm.draft is not None
    llm.engine.settle()
    llm.draft.runner.cache.clear_prefixes()
    assert llm.draft.runner.cache.kv.free_pages == llm.draft.runner.cache.kv.pages


texts = st.lists(st.integers(2, 300), min_size=1, max_size=40)


@given(texts, st.lists(st.tuples(st.integers(0, 7), texts), max_size=5))
def test_it_reads_the_text_that_is_made(llm: LLM, text: list[int], more: list[tuple[int, list[int]]]) -> None:
    assert llm.draft is not None
    draft = DraftSequence(DraftModel(llm.draft.runner, 320, llm.draft.checkpoint))
    for most, new in [(3, list[int]()), *more]:
        text = [*text, *new]
        found = draft.propose(text, most, 0.0, 1.0)
        if found is None:  # prefill of a long text runs in chunks
            assert len(text) > 16
            continue
        again = DraftSequence(DraftModel(llm.draft.runner, 320, llm.draft.checkpoint))
        wanted = None
        while wanted is None:
            wanted = again.propose(text, most, 0.0, 1.0)
        assert found == wanted
        again.close()
    draft.close()


def test_it_is_asked_where_it_pays() -> None:
    class Runner:
        pass

    model = DraftModel(Runner(), 9, None)  # type: ignore[arg-type]
    gain = DraftGain(model)
    cheap = [1 + 0.05 * count for count in range(8)]
    assert gain.most([0.0] * 8, 0) == 0, "nothing is known yet"
    assert gain.most(cheap, 0) == 7
    assert gain.most(cheap, 30) == 0, "others would wait for it"
    for _ in range(40):
        gain.record(7, 7, 0)
    tries = [bool(gain.most(cheap, 0)) for _ in range(200)]
    assert 2 <= sum(tries) <= 5, "less and less often"
    assert tries.index(True) <= PATIENCE
    gain.most(cheap, 0)
    for _ in range(3 * 200):
        if most := gain.most(cheap, 0):
            gain.record(most, most, most)
    assert gain.most(cheap, 0) == 7, "it is asked again when it is right again"


def test_a_draft_that_cannot_be_one(folder: Path) -> None:
    for draft, word in (("words", "vocabulary differs from"), ("recurrent.gguf", "cannot be rolled back")):
        with pytest.raises(InvalidRequest, match=word):
            pellucid.load(folder / "model.gguf", threads=1, draft=folder / draft)
    with pytest.raises(InvalidRequest, match="cannot be rolled back"):
        pellucid.load(folder / "recurrent.gguf", threads=1, draft=folder / "model.gguf")
    with pellucid.load(folder / "model.gguf", threads=1) as llm, pytest.raises(InvalidRequest, match="draft=5"):
        llm.generate("a", draft=5)
