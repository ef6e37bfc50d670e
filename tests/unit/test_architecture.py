"""The map of docs/architecture.md: its functions exist, and a run of the interpreter calls them in its order."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import pellucid
from pellucid.testing import random_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WAY = PAGE.split("## The way of a token", 1)[1].split("Four nouns", 1)[0]
ROWS = re.findall(r"^\|.*\| `([\w.]+)` \| `([\w/]+)\.py` \|$", WAY, re.M)
MOST_FILES = 12


def named(name: str, path: str) -> Any:
    """A class, a function or a value of a module, which the page names."""
    return reduce(getattr, name.split("."), import_module("pellucid." + path.replace("/", ".")))


def test_the_way_of_a_token_has_a_dozen_files() -> None:
    assert len(ROWS) > 10
    assert len({path for _, path in ROWS}) <= MOST_FILES


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_calls_the_functions_in_the_order_of_the_page(tmp_path: Path, threads: int) -> None:
    codes = [named(*row).__code__ for row in ROWS]
    seen: list[CodeType] = []
    listed = set(codes)

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in listed and frame.f_code not in seen:
            seen.append(frame.f_code)

    def watching(on: Callable[..., Any] | None) -> None:
        threading.setprofile(on)  # type: ignore[arg-type]  # the engine's thread, which starts with the request
        sys.setprofile(on)

    with pellucid.load(random_model("llama", tmp_path / "tiny.gguf"), threads=threads) as llm:
        watching(watch)
        try:
            llm.generate("The capital of France is", max_new_tokens=2)
        finally:
            watching(None)
    assert [code.co_name for code in seen] == [code.co_name for code in codes]


def test_the_classes_of_the_four_nouns_exist() -> None:
    nouns = PAGE.split("Four nouns", 1)[1].split("\n- ", 1)[0]
    found = re.findall(r"`(\w+)` \(`([\w/]+)\.py`\)", nouns)
    assert len(found) >= 4
    assert all(isinstance(named(*one), type) for one in found)


def test_the_answers_of_where_is_exist() -> None:
    answers = PAGE.split("## Where is …?", 1)[1].split("## ", 1)[0]
    found = re.findall(r"\| `([\w.]+)` \| `([\w/]+)\.py` \|$", answers, re.M)
    assert len(found) >= 12
    for one in found:
        named(*one)


def test_all_files_and_folders_of_the_page_exist() -> None:
    named_paths = set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?|\w+\.py)`", PAGE))
    assert len(named_paths) > 80
    roots = (ROOT / "src" / "pellucid", *(ROOT / "src" / "pellucid").rglob("*"), ROOT)
    assert {one for one in named_paths if not any((root / one).exists() for root in roots)} == set()
