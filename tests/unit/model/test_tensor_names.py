"""The notation of tensor names, and the two forms of sliding layers in GGUF."""

from __future__ import annotations

import pytest
from support.metadata import GGUF, Metadata
from support.tiny import TINY

from pellucid.errors import FileFormatError
from pellucid.model.metadata import GGUF_PATTERN, GGUF_WINDOW
from pellucid.model.tensor_names import TensorNames, places


def test_commas_join_places_that_share_a_tensor() -> None:
    assert places("attention.q,k", "norm") == {"attention.q", "attention.k", "norm"}
    assert places("attention,recurrent.norm") == {"attention.norm", "recurrent.norm"}
    assert places("experts.gate,up.weight") == {"experts.gate.weight", "experts.up.weight"}


def test_names_are_replaced_place_by_place() -> None:
    fused = TensorNames({"attention.q,k,v": "qkv", "model.embed": "wte"}, "h")
    split = fused | {"attention.k,v": "kv", "model.norm": "ln_f"}
    assert split.names == {
        "attention.q": "qkv",
        "attention.k": "kv",
        "attention.v": "kv",
        "model.embed": "wte",
        "model.norm": "ln_f",
    }
    assert split.prefix == fused.prefix
    assert fused.names["attention.k"] == "qkv"


@pytest.mark.parametrize("name", ["cohere2", "gemma2", "gemma3", "gpt-oss", "olmo2"])
def test_gguf_states_a_period_or_each_sliding_layer(name: str) -> None:
    checkpoint = GGUF[name]().changed(**{f"{name}.{GGUF_WINDOW}": 8})
    layers = checkpoint.metadata[f"{name}.block_count"]
    by_period = checkpoint.changed(**{f"{name}.{GGUF_PATTERN}": 2}).read().spec
    by_layer = checkpoint.changed(**{f"{name}.{GGUF_PATTERN}": [layer % 2 == 0 for layer in range(layers)]})
    assert by_layer.read().spec == by_period
    assert [bool(one.window) for one in by_period.attentions] == [layer % 2 == 0 for layer in range(layers)]


@pytest.mark.parametrize("name", ["cohere2", "gemma3"])
def test_a_period_that_contradicts_the_layer_types_is_refused(name: str) -> None:
    checkpoint = Metadata.of(TINY[name]).changed(sliding_window_pattern=5)
    with pytest.raises(FileFormatError, match="sliding_window_pattern: is 5, but layer_types has another"):
        checkpoint.read()
