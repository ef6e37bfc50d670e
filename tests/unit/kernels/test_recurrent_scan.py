"""The recurrence against NumPy, with the same bits for any division of sequences into steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import Batch, assert_close, call, guarded, numbers, seeds, threads
from support.recurrent import cuts, in_steps, lengths

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import recurrent

SHAPES = st.sampled_from([(1, 1, 16, 16), (4, 2, 16, 64), (6, 3, 24, 80), (2, 1, 128, 128), (3, 3, 5, 32)])


@settings(max_examples=60)
@given(lengths, cuts, seeds, SHAPES, st.booleans(), st.booleans(), st.booleans(), threads)
def test_scan(
    lengths: list[int],
    cuts: list[int],
    seed: int,
    shape: tuple[int, ...],
    delta: bool,
    skipped: bool,
    tiled: bool,
    threads: int,
) -> None:
    (H, G, K, V), T = shape, sum(lengths)
    neighbours = 1 if tiled else H // G
    q, k = (numbers("normal", seed + i, T, G, K) for i in range(2))
    if delta:
        k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, skip = numbers("normal", seed + 2, T, H, V), numbers("normal", seed + 3, H)
    rng = np.random.default_rng(seed)
    padded = -(-H // 16) * 16
    a, b = (rng.uniform(0, 1, (T, padded)).astype(np.float32) for _ in range(2))

    def step(batch: Batch, rows: np.ndarray, state: int) -> np.ndarray:
        out = guarded((len(rows), H, V))
        call(
            KernelKey("scan", delta=delta), batch, threads, **{
                name: np.ascontiguousarray(x[rows])
                for name, x in (("q", q), ("k", k), ("v", v), ("decays", a), ("factors", b))
            },
            head_stride=4 * padded, skip=skip if skipped else 0, heads=H, groups=G, neighbours=neighbours,
            key_dim=K, value_dim=V, key_stride=4 * G * K, group_stride=4 * K, state=state,
            page_bytes=4 * H * K * V, out=out,
        )  # fmt: skip
        return out

    whole = in_steps(step, lengths, [], H * K * V)
    assert whole.tobytes() == in_steps(step, lengths, cuts, H * K * V, seed % 1000).tobytes()
    for first, count in zip(np.cumsum([0, *lengths]), lengths):
        part = slice(first, first + count)
        want = recurrent.scan_reference(
            q[part],
            k[part],
            v[part],
            a[part, :H],
            b[part, :H],
            skip if skipped else None,
            delta=delta,
            neighbours=neighbours,
        )
        assert_close(whole[part], want, 2e-5 * (1 + np.abs(want).max()))


@pytest.mark.parametrize("delta", [False, True])
def test_the_references_take_in_a_token_after_another(delta: bool) -> None:
    """References against numbers by hand: one head, one key, two tokens."""
    q, k = np.ones((2, 1, 1)), np.array([[[1.0]], [[2.0]]])
    v, a, b = np.array([[[3.0]], [[5.0]]]), np.array([[0.5], [0.5]]), np.ones((2, 1))
    out = recurrent.scan_reference(q, k, v, a, b, delta=delta)
    second = 1.5 + 2 * (5 - 1.5 * 2) if delta else 1.5 + 2 * 5
    assert out.ravel().tolist() == [3.0, second]
