"""The driver of TransformerLens, where it is installed (``make test-transformer-lens``): against its own bridge."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformer_lens")
    transformers = pytest.importorskip("transformers")
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.driver_protocol import Driver, validate_driver
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config

    from pellucid.integrations.transformer_lens import PellucidDriver, bridge

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILIES = ("llama", "gpt2", "gemma2", "qwen2")
IDS = [[3, 17, 5, 40, 2, 77, 9, 31], [8, 60, 4, 11, 200, 7, 99, 1]]
CLOSE = 1e-4
RAMP = np.linspace(-1, 1, 64, dtype=np.float32)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("driver") / request.param
    random_model(request.param, path, kind="safetensors")
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    llm = pellucid.load(folder, threads=1, precise=True, kv_cache="f32")
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """TransformerLens' own bridge of the model in transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    architecture = determine_architecture_from_hf_config(model.config)
    config = build_bridge_config_from_hf(model.config, architecture, str(folder), torch.float32)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    adapter.cfg.device = "cpu"
    adapter.prepare_model(model)
    return TransformerBridge(model, adapter, None)


def apart(mine: Any, other: Any) -> float:
    """The largest difference, relative to the range of the other values; masked scores are left out."""
    a, b = mine.numpy(), other.detach().float().numpy()
    assert a.shape == b.shape
    seen = b > -1e30
    return float(np.abs(a[seen] - b[seen]).max() / np.ptp(b[seen]))


def test_the_driver_passes_the_checks_of_transformer_lens(llm: LLM) -> None:
    driver = PellucidDriver(llm)
    validate_driver(driver)
    validate_driver(bridge(llm)._driver, after_bridge_construction=True)
    assert isinstance(driver, Driver)
    assert "blocks.1.attn.hook_pattern" in driver.supported_hook_points


def test_a_cache_has_the_values_of_transformer_lens(llm: LLM, theirs: Any) -> None:
    mine, ids = bridge(llm), torch.tensor(IDS)
    logits, cache = mine.run_with_cache(ids)
    with torch.no_grad():
        expected, other = theirs.run_with_cache(ids)
    assert apart(logits, expected) <= CLOSE
    names = {name: hook.name for name, hook in theirs.hook_dict.items()}
    shared = [name for name in cache if names.get(name, name) in other]
    assert len(shared) > 40
    for name in shared:
        assert apart(cache[name], other[names.get(name, name)]) <= CLOSE, name


@pytest.mark.parametrize("position", [None, -1, [2, 5]])
@pytest.mark.parametrize(
    ("hook", "spec", "change"),
    [
        ("blocks.0.hook_out", {"op": "scale", "factor": 0.5}, lambda x: x * 0.5),
        ("blocks.1.attn.hook_z", {"op": "suppress"}, lambda x: x * 0),
        ("blocks.0.hook_in", {"op": "add", "value": RAMP}, lambda x: x + torch.tensor(RAMP)),
        ("blocks.1.hook_in", {"op": "set", "value": RAMP}, lambda x: torch.tensor(RAMP).expand_as(x)),
        ("blocks.1.mlp.hook_post", {"op": "set", "value": 0.5}, lambda x: torch.full_like(x, 0.5)),
    ],
)  # fmt: skip
def test_interventions_are_those_of_transformer_lens(
    llm: LLM, theirs: Any, hook: str, spec: dict[str, Any], change: Any, position: Any
) -> None:
    ids = torch.tensor(IDS)
    mine = bridge(llm).forward(ids, intervene={hook: {**spec, "pos": position}})
    chosen = slice(None) if position is None else [position] if isinstance(position, int) else position

    def edit(value: Any, hook: Any) -> Any:
        changed = value.clone()
        changed[:, chosen] = change(value[:, chosen])
        return changed

    with torch.no_grad():
        expected = theirs.run_with_hooks(ids, fwd_hooks=[(hook, edit)])
        plain = theirs(ids)
    assert apart(mine, expected) <= CLOSE
    assert float((expected - plain).abs().max()) > 0.01


def test_texts_have_the_tokens_of_the_model(llm: LLM) -> None:
    mine = bridge(llm)
    text = "to see that it rains"
    assert mine.to_tokens(text).tolist() == [llm.inputs.prompt(text)]
    assert mine.forward(text).shape == (1, len(llm.inputs.prompt(text)), llm.spec.output_width)
    assert mine.tokenizer.decode(mine.to_tokens(text)[0], skip_special_tokens=True) == text
    assert float(mine.forward(text, return_type="loss")) > 0


def test_new_tokens_are_the_likeliest(llm: LLM) -> None:
    result = PellucidDriver(llm).forward(IDS, capture=["blocks.0.hook_resid_post"], max_new_tokens=3)
    assert result.new_tokens.shape == (2, 3)
    assert result.new_tokens[:, 0].tolist() == result.logits[:, -1].argmax(-1).tolist()
    assert result.captured["blocks.0.hook_resid_post"].shape == (2, 8, llm.spec.embedding.width)
    assert PellucidDriver(llm).forward(IDS, return_logits=False).logits is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"input_ids": None}, "must be token ids"),
        ({"input_ids": [[0.5]]}, "must be token ids"),
        ({"capture": ["blocks.0.hook_resid"]}, "no such hook"),
        ({"attention_mask": [[0] + [1] * 7] * 2}, "no padding"),
        ({"intervene": {"blocks.0.hook_resid": {"op": "suppress"}}}, "no such hook"),
        ({"intervene": {"blocks.0.hook_out": {"op": "double"}}}, "must be one of suppress, scale, add, set"),
        ({"intervene": {"blocks.0.hook_out": {"op": "scale"}}}, "needs a factor"),
        ({"intervene": {"blocks.0.hook_out": {"op": "set"}}}, "needs a value"),
        ({"intervene": {"blocks.0.hook_out": {"op": "suppress", "pos": 8}}}, "positions below 8"),
    ],
)
def test_mistakes_are_refused(llm: LLM, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        PellucidDriver(llm).forward(**{"input_ids": IDS, **arguments})


def test_functions_and_other_arguments_are_refused(llm: LLM) -> None:
    driver = PellucidDriver(llm)
    with pytest.raises(NotImplementedError, match=r"use pellucid\.trace\.call"):
        driver.forward(IDS, intervene={"blocks.0.hook_out": lambda x: x})
    with pytest.raises(NotImplementedError, match="takes token ids alone"):
        driver.forward(IDS, inputs_embeds=[[1.0]])
    with pytest.raises(NotImplementedError, match="cannot fire"):
        bridge(llm).run_with_hooks(torch.tensor(IDS), fwd_hooks=[(unfired(driver), lambda value, hook: None)])


def unfired(driver: PellucidDriver) -> str:
    return min(driver.non_fireable_hook_points)


def test_a_bridge_closes_the_model_that_it_loaded(folder: Path, llm: LLM) -> None:
    with bridge(folder, threads=1) as mine:
        assert mine.forward(torch.tensor(IDS)).shape[0] == 2
    with pytest.raises(Exception, match="closed"):
        mine.forward(torch.tensor(IDS))
    bridge(llm).close()
    assert llm.generate("to see", max_new_tokens=1, temperature=0).ids
    with pytest.raises(InvalidRequest, match="the model is loaded"):
        bridge(llm, precise=True)
