"""Options that a model's file recommends are checked and used as defaults. A request overrides them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pellucid
from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.sample.options import Options
from pellucid.sample.recommended import JSON_KEYS, recommended, with_recommended
from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint

QWEN = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
KNOWN = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05, "min_p": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("qwen2", tmp_path_factory.mktemp("r") / "m", kind="safetensors")


def of_json(folder: Path, values: Any) -> dict[str, Any]:
    (folder / "generation_config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    checkpoint = open_checkpoint(folder)
    try:
        return recommended(checkpoint)
    finally:
        checkpoint.close()
        (folder / "generation_config.json").unlink()


def test_generation_config_json_is_read(folder: Path) -> None:
    assert of_json(folder, QWEN) == KNOWN
    assert of_json(folder, {"eos_token_id": 2, "max_length": 20}) == {}
    assert of_json(folder, {"temperature": 0.6, "min_p": 0.1}) == {"temperature": 0.6, "min_p": 0.1}
    assert of_json(folder, {"do_sample": False}) == {"temperature": 0.0}


def test_gguf_keys_are_read(tmp_path: Path) -> None:
    metadata = {
        "general.sampling.temp": np.float32(0.7).item(),
        "general.sampling.top_k": 20,
        "general.sampling.top_p": np.float32(0.8).item(),
        "general.sampling.penalty_repeat": np.float32(1.05).item(),
    }
    path = random_model("qwen2", tmp_path / "m.gguf", metadata=metadata)
    with pellucid.load(path) as llm:
        assert llm.recommended == KNOWN
        request = llm.start("Hi", seed=1, max_new_tokens=2)
        list(request)
        steps = {step.name: step for step in request.result().chain}
        assert (steps["temperature"].temperature, steps["top_k"].top_k, steps["top_p"].top_p) == (0.7, 20, 0.8)
        assert "min_p" not in steps
        greedy = llm.generate("Hi", temperature=0, max_new_tokens=2)
        assert greedy.seed is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -1), ("top_p", 7), ("top_k", "40"), ("top_p", float("nan")), ("min_p", True), ("top_k", [1])],
)
def test_a_value_that_no_step_accepts_is_named_and_left_out(folder: Path, key: str, value: Any) -> None:
    with pytest.warns(UserWarning, match=rf"m/generation_config.json: {key} = .* is not used"):
        assert key not in of_json(folder, {key: value})


def test_a_damaged_file_is_refused(folder: Path) -> None:
    with pytest.raises(FileFormatError, match=r"generation_config\.json"):
        of_json(folder, "{")


def test_a_request_comes_first() -> None:
    assert with_recommended({"top_k": 5}, KNOWN) == {**KNOWN, "top_k": 5}
    assert with_recommended({"samplers": ["top_k"], "top_k": 5}, KNOWN) == {"samplers": ["top_k"], "top_k": 5}
    chain = Options.of(**with_recommended({"mirostat": 2}, KNOWN)).chain()
    assert [step.name for step in chain.steps] == ["penalties", "temperature", "mirostat"]
    with pytest.raises(InvalidRequest):
        Options.of(**with_recommended({"top_q": 1}, KNOWN))


def test_a_recommended_step_that_stands_in_for_others_excludes_them(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(JSON_KEYS, "mirostat", "mirostat")
        found = of_json(folder, {"mirostat": 2, "top_k": 40, "temperature": 0.7})
    assert found == {"mirostat": 2, "temperature": 0.7}
    assert [step.name for step in Options.of(**with_recommended({}, found)).chain().steps] == [
        "temperature",
        "mirostat",
    ]
    asked = Options.of(**with_recommended({"top_p": 0.5}, found)).chain()
    assert "mirostat" not in [step.name for step in asked.steps]


@pytest.mark.parametrize(("stated", "token"), [({}, 0), ({"forced_bos_token_id": 7}, 7)])
def test_an_older_config_forces_the_first_token_by_a_flag(stated: dict[str, Any], token: int) -> None:
    """As in transformers: BART's older files say only that the first token is the one that begins a text."""
    flag = {"force_bos_token_to_be_generated": True, "bos_token_id": 0, **stated}
    checkpoint = SimpleNamespace(kind="safetensors", path=Path("none/config.json"), metadata=flag)
    assert recommended(checkpoint, sources=True)["forced_bos_token_id"] == token
    checkpoint.metadata = {**flag, "force_bos_token_to_be_generated": False, "forced_bos_token_id": None}
    assert "forced_bos_token_id" not in recommended(checkpoint, sources=True)
