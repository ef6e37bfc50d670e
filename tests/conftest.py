"""Shared fixtures. The location of this file puts tests/ on the import path, so that tests can import ``support``."""

import io
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support.command import Command, Outcome

import pellucid
from pellucid.cli.main import main
from pellucid.kernels.core import background
from pellucid.llm import LLM

settings.register_profile("pellucid", derandomize=True, deadline=None)
settings.register_profile("quick", settings.get_profile("pellucid"), max_examples=5)
settings.load_profile("pellucid")

# A command that a shell starts in the background may ignore Ctrl-C, and processes of the tests would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:  # all cores have work already
    background.MIN_SOURCE_BYTES = 1 << 40

FASTEST_FIRST = ("unit", "fuzz", "contract", "accuracy")
MANY_MODELS = 40
"""A test with more tiny models is a test over all tiny models; a test with fewer chooses its models."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-models", action="store_true", help="no tiny model makes a test slow (support/cover.py)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run fast tests first and, within a folder, tests without a real model first.

    With several processes, pytest-xdist orders the files.
    Only tests in ``unit/`` without a real model are quick, unless they are marked as slow or long. Of tests over all
    tiny models, only the tests of the cover set (``support/cover.py``) are quick.
    """
    for item in items:
        if "unit" not in item.path.parts or any(map(item.get_closest_marker, ("model", "long"))):
            item.add_marker("slow")
    if not config.getoption("all_models"):
        for item in outside_the_cover(items):
            item.add_marker("slow")
    items.sort(
        key=lambda item: (
            next((i for i, folder in enumerate(FASTEST_FIRST) if folder in item.path.parts), 0),
            item.get_closest_marker("model") is not None,
        )
    )


def outside_the_cover(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield the cases of tests over all tiny models whose model is outside the cover set."""
    cases = defaultdict[str, dict[pytest.Item, set[str]]](dict)
    for item in items:
        if callspec := getattr(item, "callspec", None):
            words = {value for value in callspec.params.values() if isinstance(value, str)}
            cases[item.nodeid.partition("[")[0]][item] = words
    large = [found for found in cases.values() if len(found) > MANY_MODELS]
    if not large:
        return
    from support.cover import COLLECTIONS, others  # reads all tiny models

    models, outside = {name for models in COLLECTIONS.values() for name in models}, others()
    for found in large:
        if len(models & set[str]().union(*found.values())) > MANY_MODELS:
            yield from (item for item, words in found.items() if words & outside)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command line in this process; ``given`` is its standard input."""

    def run(*arguments: str | bytes, given: str | bytes = "", errors: str = "strict") -> Outcome:
        data = given if isinstance(given, bytes) else given.encode()
        stream = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors=errors)
        monkeypatch.setattr(sys, "stdin", stream)
        code = main([os.fsdecode(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def smollm2() -> Iterator[LLM]:
    llm = pellucid.load("smollm2")
    yield llm
    llm.close()


@pytest.fixture
def conditions_of_main(monkeypatch: pytest.MonkeyPatch) -> list[threading.Condition]:
    """The Conditions that the main thread enters: Ctrl-C could leave each of them locked, and other threads waiting."""
    entered, enter, main = list[threading.Condition](), threading.Condition.__enter__, threading.get_ident()

    def record(one: threading.Condition) -> bool:
        # No other thread uses the Conditions of filelock.
        if threading.get_ident() == main and not sys._getframe(1).f_globals["__name__"].startswith("filelock"):
            entered.append(one)
        return enter(one)

    monkeypatch.setattr(threading.Condition, "__enter__", record)
    return entered
