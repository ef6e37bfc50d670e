"""A pytest plugin that adapts llama.cpp's tests to a model that generates other texts.

Texts match every pattern, and prompts and texts may have any number of tokens. The file named by ADAPTED gets a line of
JSON for each test: its outcome, and the skipped comparisons. Defaults that llama-server takes as options (--seed,
--temp, --n-predict, --verbose) are added to each request of the tests.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

spared: set[str] = set()
NUMBERS = ("n_prompt", "n_predicted")
GENERATING = ("completion", "chat", "responses", "messages", "infill")
LIMITS = ("n_predict", "max_tokens", "max_completion_tokens", "max_output_tokens")


class AnyNumber(int):
    """A number of tokens that equals every number."""

    def __eq__(self, other: object) -> bool:
        spared.add("numbers")
        return True

    __hash__ = int.__hash__


def pytest_configure(config: pytest.Config) -> None:
    import utils  # type: ignore[import-not-found]

    def match_regex(pattern: str, text: str) -> bool:
        spared.add("texts")
        return isinstance(text, str)

    def with_defaults(server: Any, path: str, data: Any) -> Any:
        made = any(word in path for word in GENERATING) and not path.endswith("tokens")
        if not isinstance(data, dict) or not made:
            return data
        usual = {"seed": server.seed, "temperature": server.temperature}
        if server.n_predict is not None and not any(name in data for name in LIMITS):
            usual["n_predict"] = server.n_predict
        if server.debug and "messages" in data and "message" not in path.split("/")[-1]:
            usual["verbose"] = True
        return {**usual, **data}

    kind = utils.ServerProcess
    request, stream = kind.make_request, kind.make_stream_request

    def make_request(self: Any, method: str, path: str, data: Any = None, *more: Any, **named: Any) -> Any:
        return request(self, method, path, with_defaults(self, path, data), *more, **named)

    def make_stream_request(self: Any, method: str, path: str, data: Any = None, *more: Any, **named: Any) -> Any:
        return stream(self, method, path, with_defaults(self, path, data), *more, **named)

    kind.make_request, kind.make_stream_request = make_request, make_stream_request
    utils.match_regex = match_regex
    utils.ServerPreset.load_all = staticmethod(lambda: None)  # it downloads


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        for name in NUMBERS:
            if name in parameters:
                parameters[name] = AnyNumber(parameters[name])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    outcome = yield
    report = outcome.get_result()
    if report.when == "setup":
        spared.clear()
    if report.when == "call" or report.outcome != "passed":
        why = str(call.excinfo.value).splitlines()[:1] if call.excinfo else []
        line = {
            "file": item.path.name, "test": item.name, "when": report.when, "outcome": report.outcome,
            "spared": sorted(spared), "why": why,
        }  # fmt: skip
        with open(os.environ["ADAPTED"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
