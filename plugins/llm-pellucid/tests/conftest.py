"""LLM with this plugin alone, without an installation, and with an empty home for each test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["LLM_LOAD_PLUGINS"] = ""

import llm.plugins
import llm_pellucid

# LLM asks for the commands of plugins once, when its command line is imported.
llm.plugins.load_plugins()
if not llm.plugins.pm.is_registered(llm_pellucid):
    llm.plugins.pm.register(llm_pellucid)


@pytest.fixture(autouse=True)
def user_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of LLM's settings."""
    (tmp_path / "llm").mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    return tmp_path / "llm"
