"""Fixture of the real models. Each model is loaded once per module, in precise mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from real_models import Subject, load


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    llm = load(request.param, precise=True)
    yield Subject(request.param, llm)
    llm.close()
