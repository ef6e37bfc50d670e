"""A replica with the pages of a prompt gets it until it has a quarter more than its share."""

from __future__ import annotations

import pytest

from pellucid.cluster.routing import ReplicaLoad, choose
from pellucid.runtime.prefix_cache import page_names

TEXT = list(range(1000))


@pytest.mark.parametrize(
    ("running", "step_seconds", "stays"),
    [
        ((3, 1), (0.0, 0.0), True),  # 5 requests: a share of 2.5, and at most 4
        ((4, 0), (0.0, 0.0), False),
        ((4, 1), (0.0, 0.0), False),  # 6 requests: at most 4
        ((0, 0), (0.0, 0.0), True),
        ((7, 1), (0.01, 0.03), True),  # 9 requests, three of four parts for the faster: at most 9
        ((9, 0), (0.01, 0.03), True),
        ((3, 3), (0.03, 0.01), False),  # 7 requests, one of four parts: at most 3
    ],
)
def test_the_bound_of_a_replica(running: tuple[int, int], step_seconds: tuple[float, float], stays: bool) -> None:
    known, other = (ReplicaLoad(name, step_seconds=one) for name, one in zip("ab", step_seconds))
    known.pages.update(page_names(TEXT))
    known.running, other.running = running
    assert (choose(TEXT, [known, other]).replica is known) == stays
