"""`random_model`: a model of every family, in both file formats, whose logits equal the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reference import Reference
from support.tiny import model_runner, opened

import pellucid
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.model.family import architectures
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.testing import random_model
from pellucid.weights.quant.format import formats

IDS = [(7 * i + 3) % 256 for i in range(20)]
EVERY = [(kind, name) for kind in ("gguf", "safetensors") for name in sorted(architectures(kind))]


def where(folder: Path, kind: str) -> Path:
    return folder / ("model.gguf" if kind == "gguf" else "model")


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_model_of_every_architecture_runs(kind: Any, name: str, tmp_path: Path) -> None:
    path = random_model(name, where(tmp_path, kind), kind=kind)
    with opened(path) as (checkpoint, model), model_runner(path) as net:
        reference, source = Reference(checkpoint, model, source=IDS[::-1]), None
        if model.spec.encoder:
            source = BlockTable()
            net.forward([Chunk(source, IDS[::-1], 0, encodes=True)])
        head = bool(model.spec.head)
        got = net.forward([Chunk(BlockTable(), IDS, len(IDS) if head else 0, source)])
        wanted = reference.logits(IDS) if head else reference.rows(IDS).mean(0, keepdims=True)
    if not head:
        wanted = wanted / np.linalg.norm(wanted)
    assert 0.01 < np.abs(wanted).std() < 30
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("form", sorted(formats()))
def test_a_model_in_every_format_keeps_the_scale_of_activations(form: str, tmp_path: Path) -> None:
    shape = {"width": 256, "feed_forward": 512, "head_dim": 64}
    path = random_model("llama", tmp_path / "m.gguf", form=form, **shape)  # type: ignore[arg-type]
    with opened(path) as (checkpoint, _), model_runner(path) as net:
        assert {tensor.format for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2} == {form}
        got = net.forward([Chunk(BlockTable(), IDS, outputs=len(IDS))])
    assert 0.1 < got.std() < 10


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_the_same_arguments_make_the_same_file(kind: Any, tmp_path: Path) -> None:
    made = [
        random_model("qwen3", where(tmp_path / str(i), kind), kind=kind, seed=seed)
        for i, seed in enumerate((5, 5, 6))
        if (tmp_path / str(i)).mkdir() is None
    ]
    files = [path if kind == "gguf" else path / "model.safetensors" for path in made]
    first, same, other = (file.read_bytes() for file in files)
    assert first == same != other


def test_it_writes_text(tmp_path: Path) -> None:
    for kind in ("gguf", "safetensors"):
        path = random_model("qwen3_moe" if kind == "safetensors" else "qwen3moe", where(tmp_path, kind), kind=kind)  # type: ignore[arg-type]
        with pellucid.load(path) as llm:
            assert len(llm.generate("Hi", max_new_tokens=4, temperature=0, ignore_eos=True).ids) == 4
            assert llm.tokenizer.decode(llm.tokenizer.encode("déjà vu")) == "déjà vu"


def test_a_mixture_of_any_shape(tmp_path: Path) -> None:
    shape = {"experts": 5, "chosen": 3, "expert_width": 24, "layers": 3}
    path = random_model("llama", tmp_path / "m.gguf", tied=False, **shape)  # type: ignore[arg-type]
    with opened(path) as (checkpoint, model):
        assert "E=5 of which 3" in repr(model.spec)
        assert checkpoint.tensors["blk.2.ffn_up_exps.weight"].shape == (5, 24, 64)
        assert "output.weight" in checkpoint.tensors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"family": "lama"}, ("lama", "llama")),
        ({"depth": 3}, ("depth", "layers")),
        ({"vocabulary": 100}, ("100", "258")),
        ({"form": "Q9"}, ("Q9", "Q4_K")),
        ({"kv_heads": 3}, ("head_count_kv", "3")),
        ({"family": "mistral", "kind": "gguf"}, ("mistral",)),
    ],
)
def test_refusals_name_what_is_wrong(arguments: dict[str, Any], words: tuple[str, ...], tmp_path: Path) -> None:
    given = {"family": "llama", **arguments}
    with pytest.raises(PellucidError) as caught:
        random_model(given.pop("family"), tmp_path / "m.gguf", **given)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "m.gguf").exists()
    assert isinstance(caught.value, InvalidRequest) or words[0] in ("Q9", "head_count_kv")
