"""Missing keys of Gemma 4's configuration have the defaults of transformers."""

from __future__ import annotations

from typing import Any

import pytest
from support.metadata import Metadata
from support.tiny import TINY

from pellucid.errors import FileFormatError
from pellucid.model.config import Config
from pellucid.model.family import known_families
from pellucid.model.spec import Attention, ModelSpec

FULL = {"head_dim": 40, "num_key_value_heads": 2}


def read(**changes: Any) -> ModelSpec:
    checkpoint = Metadata.of(TINY["gemma4-odd"]).changed(**changes)
    config = Config(checkpoint.metadata, checkpoint.path)
    return known_families()["gemma4"].safetensors["gemma4_text"](checkpoint, config).spec


def full(**changes: Any) -> Attention:
    """The attention of the last layer."""
    return read(**changes).attentions[-1]


def rotating(**rope: Any) -> int:
    """Number of rotated pairs in the last layer's heads."""
    rotary = full(**rope).rotary
    assert rotary is not None
    return sum(factor == 1 for factor in rotary.factors) if rotary.factors else rotary.dims // 2


def test_full_layers_are_as_the_others_if_a_table_says_nothing_of_them() -> None:
    assert (full().head_dim, full().kv_heads) == (40, 2)
    assert (full(per_layer_config={}).head_dim, full(per_layer_config={}).kv_heads) == (24, 3)


def test_older_files_state_the_width_of_full_layers_by_itself() -> None:
    older = {"per_layer_config": None, "global_head_dim": 40, "num_global_key_value_heads": 2}
    assert read(**older) == read()
    assert full(**older, attention_k_eq_v=False).kv_heads == 3
    assert full(per_layer_config=None, num_global_key_value_heads=2).head_dim == 512


def test_a_table_of_positions_replaces_all_defaults() -> None:
    sliding = {"rope_type": "default", "rope_theta": 1e4}
    base = {"rope_theta": 1e6}
    assert rotating(rope_parameters=None) == 5
    for table, pairs in (
        ({**base, "rope_type": "proportional", "partial_rotary_factor": 0.5}, 10),
        ({**base, "rope_type": "proportional"}, 20),
        (base, 20),
    ):
        assert rotating(rope_parameters={"sliding_attention": sliding, "full_attention": table}) == pairs


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"0": FULL, "2": FULL}, "an entry '0'"),
        ({"x": FULL}, "an entry 'x'"),
        ({"9" * 9999: FULL, "x": 1}, "an entry 'x'"),
        ({"2": 3}, r"per_layer_config\.2"),
        ({"2": {"head_dim": 0}}, r"per_layer_config\.2\.head_dim"),
    ],
)
def test_a_table_of_layers_that_does_not_fit(table: Any, words: str) -> None:
    with pytest.raises(FileFormatError, match=words):
        read(per_layer_config=table)


@pytest.mark.parametrize("changes", [{"head_dim": 25}, {"per_layer_config": {"2": {"head_dim": 41}}}])
def test_heads_of_odd_width(changes: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError, match=r"head_dim: is ..; it must be an even number"):
        read(**changes)


def test_layers_of_one_kind_that_differ() -> None:
    with pytest.raises(FileFormatError, match="differs between layers"):
        read(layer_types=["full_attention"] * 3, per_layer_config={"0": FULL, "1": FULL})
