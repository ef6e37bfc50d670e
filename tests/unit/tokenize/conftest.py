"""Fixtures for the tokenizer tests. The folder has no __init__.py: as a package it would hide Python's tokenize."""

from __future__ import annotations

import json

import pytest
from tokenizer_cases import GOLDENS


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return json.loads((GOLDENS / "texts.json").read_text())
