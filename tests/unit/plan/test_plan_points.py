"""Builders declare a hook point for each value that they compute."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_cases import ALL, plans

COPIES = {"quantize", "pick", "heads", "cache_write", "group"}
"""Kernels that copy or convert values, or write no value of a token."""
ALPHABET = set("CDEFGHKLPSTV")


@pytest.mark.parametrize("name", ALL)
def test_every_value_is_a_point(name: str, tmp_path: Path) -> None:
    _, plain, optimized = plans(name, tmp_path)
    found = {point.operation for point in plain.points.values()}
    missing = [
        op.stage
        for number, op in enumerate(plain.operations)
        if number not in found and op.kernel.name not in COPIES and plain.output not in op.writes
    ]
    assert missing == []
    assert optimized.points == plain.points


@pytest.mark.parametrize("name", ALL)
def test_points_are_described_in_the_order_of_the_pipeline(name: str, tmp_path: Path) -> None:
    _, plain, _ = plans(name, tmp_path)
    points = list(plain.points.values())
    assert [point.name for point in points] == list(plain.points)
    assert [point.operation for point in points] == sorted(point.operation for point in points)
    for point in points:
        assert point.about, point.name
        assert set(point.letters) <= ALPHABET, point
        op = plain.operations[point.operation]
        if point.kind in ("value", "probabilities"):
            assert point.view == op.views[point.write], point
            assert point.dtype == plain.buffers[op.writes[point.write]].dtype, point
            assert point.shape.startswith("(B, T") is (point.rows != "sequences"), point
    last = "project.probabilities" if "project.logits" in plain.points else "normalize"
    assert points[-1].name == last
