"""A random GGUF of every architecture is read, and every bias that it has is used."""

from __future__ import annotations

import pytest
from support.metadata import GGUF

from pellucid.errors import PellucidError


@pytest.mark.parametrize("name", GGUF)
def test_every_architecture_is_read_and_planned(name: str) -> None:
    GGUF[name]().lower()


@pytest.mark.parametrize("name", GGUF)
def test_a_bias_that_is_absent_in_all_blocks_changes_the_model_or_is_missed(name: str) -> None:
    checkpoint = GGUF[name]()
    before = checkpoint.read()
    ends = {tensor.split(".", 2)[2] for tensor in checkpoint.tensors if tensor.startswith("blk.0.")}
    for end in sorted(one for one in ends if one.endswith("bias")):
        bare = checkpoint.changed()
        bare.tensors = {key: one for key, one in checkpoint.tensors.items() if not key.endswith(f".{end}")}
        try:
            after = bare.read()
        except PellucidError as error:
            assert "bias" in str(error), end  # noqa: PT017
        else:
            assert (after.spec, after.slots) != (before.spec, before.slots), end
