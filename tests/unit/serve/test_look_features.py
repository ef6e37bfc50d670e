"""Dictionaries of a server: requests change features and ask for active features; the operator names the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import dictionaries
from support.command import pellucid
from support.served import Served, asked, models_folder, refused, serving

from pellucid.errors import InvalidRequest, PellucidError
from pellucid.llm import LLM
from pellucid.load_options import LoadOptions
from pellucid.loading import load_model
from pellucid.serve.look.prompt_fields import MAX_EDITS
from pellucid.trace import features
from pellucid.trace.dictionaries.dictionary import named_dictionaries

PROMPT = "the cat sat on the mat"
HOW = {"temperature": 0, "max_tokens": 6, "ignore_eos": True, "stream": False}
SAE = {"edit": "feature", "dictionary": "sae"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models_folder(tmp_path_factory.mktemp("features"))
    dictionaries.sae(folder / "dictionaries" / "sae", "blocks.1.hook_resid_post")
    dictionaries.cross_layer(folder / "dictionaries" / "clt", 2)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    def load(name: str) -> LLM:
        given = [str(folder / "dictionaries")] if name == "one" else None
        return load_model(folder / name, LoadOptions(threads=2, dictionaries=given))

    with serving(folder, load=load) as found:
        yield found


def tokens_of(served: Served, **fields: Any) -> list[tuple[int, float]]:
    events = asked(served, "generate", prompt=PROMPT, **HOW, **fields)["events"]
    return [(one["token"], one["probability"]) for one in events if one["type"] == "token"]


@pytest.mark.parametrize(
    ("edit", "method", "arguments"),
    [
        ({**SAE, "feature": 7, "clamp": 30.0}, "clamp", (7, 30.0)),
        ({**SAE, "feature": [7, 9], "factor": 5.0, "tokens": "3:"}, "scale", ([7, 9], 5.0)),
        ({**SAE, "feature": 7, "steer": 20}, "steer", (7, 20.0)),
        ({"edit": "feature", "dictionary": "clt", "layer": 0, "feature": 3, "clamp": 40}, "clamp", (3, 40.0)),
        ({"edit": "reconstruct", "dictionary": "clt"}, "reconstruct", ()),
    ],
)
def test_a_request_changes_features(
    served: Served, edit: dict[str, Any], method: str, arguments: tuple[Any, ...]
) -> None:
    plain, changed = tokens_of(served), tokens_of(served, edits=[edit])
    assert changed != plain
    llm = served.llm()
    more = {name: edit[name] for name in ("layer", "tokens") if name in edit}
    edits = getattr(llm.dictionaries[edit["dictionary"]], method)(*arguments, **more)
    assert [token for token, _ in changed] == llm.generate(
        PROMPT, edits=edits, temperature=0, max_new_tokens=6, ignore_eos=True
    ).ids
    assert tokens_of(served) == plain
    assert asked(served, "lens", prompt=PROMPT, edits=[edit])["ids"] != asked(served, "lens", prompt=PROMPT)["ids"]


def test_active_features(served: Served) -> None:
    tokens_of(served)
    found = asked(served, "features", prompt=PROMPT, dictionary="sae", top=4)
    llm = served.llm()
    table = features(llm, PROMPT, llm.dictionaries["sae"])
    assert found["pieces"] == table.pieces
    for position, own in enumerate(found["features"]):
        best = [(one.layer, one.feature, one.activation) for one in table.top(position, 4)]
        assert [(one["layer"], one["feature"], one["activation"]) for one in own] == best
    assert found["explained_variance"] == table.explained()
    assert found["dictionary"]["layers"]["1"]["features"] == 96
    facts = httpx.get(f"{served.url}/look/models/one").json()["dictionaries"]
    assert list(facts) == ["clt", "sae"]
    assert facts["clt"]["layers"]["0"]["writes"] == ["blocks.0.feedforward.output", "blocks.1.feedforward.output"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"edit": "feature", "dictionary": "other", "feature": 1, "clamp": 1}, "must be one of 'clt, sae'"),
        ({"edit": "feature", "feature": 1, "clamp": 1}, "edits[0].dictionary=None"),
        ({**SAE, "feature": 1}, "give a feature, and one of clamp, factor and steer"),
        ({**SAE, "clamp": 1}, "give a feature"),
        ({**SAE, "feature": 1, "clamp": 1, "steer": 2}, "one of clamp"),
        ({**SAE, "feature": 96, "clamp": 1}, "feature=96: must be a whole number from 0 to 95"),
        ({**SAE, "feature": 1, "clamp": 1e40}, "value=1e+40"),
        ({**SAE, "feature": 1, "clamp": 1, "layer": 0}, "layer=0: must be a layer"),
        ({**SAE, "feature": 1, "clamp": 1, "point": "embed"}, "has 'point', which feature does not take"),
        ({**SAE, "feature": list(range(2000)), "clamp": 1}, "1,024"),
        ({**SAE, "feature": 1, "clamp": 1, "tokens": "x"}, "tokens='x'"),
        ({"edit": "reconstruct", "dictionary": "sae", "clamp": 1}, "has 'clamp', which reconstruct does not take"),
        ({"edit": "scale", "point": "embed", "factor": 2, "feature": 1}, "has 'feature', which scale does not take"),
        ({"edit": "ablate"}, "edits[0].point is missing"),
    ],
)  # fmt: skip
def test_wrong_edits_are_refused_in_a_line(served: Served, edit: dict[str, Any], said: str) -> None:
    message = refused(served, "generate", prompt=PROMPT, **HOW, edits=[edit])
    assert said in message
    assert "\n" not in message


def test_limits_and_models_without_dictionaries(served: Served) -> None:
    edit = {"edit": "feature", "dictionary": "clt", "layer": 0, "feature": 1, "clamp": 1}
    message = refused(served, "generate", prompt=PROMPT, **HOW, edits=[edit] * (MAX_EDITS // 2 + 1))
    assert f"the limit is {MAX_EDITS}" in message
    message = refused(served, "features", model="two", prompt=PROMPT, dictionary="sae")
    assert "the server has none: start it with --dictionaries" in message


def test_names_of_dictionaries(served: Served, folder: Path, tmp_path: Path) -> None:
    tokens_of(served)
    llm, sae = served.llm(), str(folder / "dictionaries" / "sae")
    assert list(named_dictionaries([sae], llm)) == ["sae"]
    assert list(named_dictionaries([f"mine={sae}", f"other={sae}/sae_weights.safetensors"], llm)) == ["mine", "other"]
    moved = named_dictionaries([f"mine={sae},reads=blocks.0.residual"], llm)["mine"]
    assert moved.coder().reads.name == "blocks.0.residual"
    for given, said in [
        ([sae, sae], "is given twice"),
        ([f"a b={sae}"], "letters, digits"),
        ([f"={sae}"], "letters, digits"),
        ([str(tmp_path)], "no file of a dictionary is here"),
        (["missing=/no/such"], "there is nothing at /no/such"),
    ]:
        with pytest.raises(PellucidError, match=said):
            named_dictionaries(given, llm)
    with pytest.raises(InvalidRequest, match="dictionaries='a': must be a list"):
        LoadOptions(dictionaries="a")


def test_a_wrong_dictionary_ends_the_command(folder: Path, tmp_path: Path) -> None:
    dictionaries.sae(tmp_path / "wide", "blocks.1.hook_resid_post", D=32)
    given = f"wide={tmp_path / 'wide'}"
    made = pellucid("serve", str(folder / "one"), "--port", "0", "--dictionaries", given)
    assert "it is for another model" in made.refusal
