"""Runs every fuzzer briefly; ``make fuzz`` runs them for longer."""

from __future__ import annotations

import pytest
from support import fuzzing


@pytest.mark.parametrize("name", fuzzing.known())
def test_fuzzer_finds_nothing(name: str) -> None:
    assert fuzzing.run(name, seed=1, cases=range(fuzzing.load(name).SMALL)) == []
