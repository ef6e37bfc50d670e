"""Calls with options that type checkers accept, and calls that they refuse.

`make check` runs mypy on this file, which reports an unused ``type: ignore``: so each call in ``refused`` must be an
error. Nothing runs this file.
"""

from __future__ import annotations

from typing import assert_type

from pellucid.engine.output import Beams, Generation
from pellucid.llm import LLM


def accepted(llm: LLM) -> None:
    assert_type(llm.generate("Hi", temperature=0, top_k=5, max_new_tokens=8, stop="."), Generation)
    assert_type(llm.generate(["Hi", "Ho"], seed=1, priority=1, deadline=2.5), list[Generation])
    assert_type(llm.chat([{"role": "user", "content": "Hi"}], logit_bias={5: -1.0}, json_schema={}), Generation)
    assert_type(llm.beam_search("Hi", num_beams=2, early_stopping="never", top_p=0.5), Beams)
    for _ in llm.stream("Hi", until=lambda text: len(text) > 5, banned=["no", 7]):
        pass


def refused(llm: LLM) -> None:
    llm.generate("Hi", temprature=0)  # type: ignore[call-overload]
    llm.generate("Hi", max_new_tokens="8")  # type: ignore[call-overload]
    llm.generate(["Hi", "Ho"], max_tokens=8)  # type: ignore[call-overload]
    llm.stream("Hi", temprature=0)  # type: ignore[call-arg]
    llm.stream("Hi", top_p="0.5")  # type: ignore[arg-type]
    llm.astream("Hi", temprature=0)  # type: ignore[call-arg]
    llm.start("Hi", temprature=0)  # type: ignore[call-arg]
    llm.chat([{"role": "user", "content": "Hi"}], temprature=0)  # type: ignore[call-arg]
    llm.samples("Hi", 2, temprature=0)  # type: ignore[call-arg]
    llm.generate("Hi", num_beams=2)  # type: ignore[call-overload]
    llm.beam_search("Hi", num_beam=2)  # type: ignore[call-arg]
    llm.record("Hi", "embed", temprature=0)  # type: ignore[call-arg]
