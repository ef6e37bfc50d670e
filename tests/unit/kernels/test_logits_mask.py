"""Logits under a bit mask, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from support.kernels import assert_guards, guarded

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops.logits import MaskRecord, mask_reference
from pellucid.runtime.executor import Call
from pellucid.runtime.memory import address

KERNEL = "logits.mask"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("n", [16, 17, 31, 32, 33, 100, 1000, 49_152, 262_144])
def test_only_allowed_ones_keep_their_logit(n: int, share: float) -> None:
    random = np.random.default_rng(n)
    logits = np.float32(random.normal(size=n))
    bits = random.random(-(-n // 32) * 32) < share
    mask = np.packbits(bits, bitorder="little").view(np.uint32)
    out = guarded(n)
    Call(KernelKey(KERNEL), MaskRecord)(logits=address(logits), count=n, mask=address(mask), out=address(out))
    assert_guards(out)
    np.testing.assert_array_equal(out, mask_reference(logits, mask))
    assert ((out > -np.inf) == bits[:n]).all()
