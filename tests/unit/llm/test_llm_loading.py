"""Loading a model with options, and closing it."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_llm import CONTEXT, GREEDY, PROMPT
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.llm import LLM
from pellucid.load_options import LOAD_OPTIONS, LoadOptions
from pellucid.testing import random_model


@pytest.mark.parametrize("value", [0, -1, CONTEXT + 1, 1.5, "x", True, pytest.param(10**5000, id="huge")])
def test_context_out_of_range(folder: Path, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"context=.*1 to {CONTEXT}"):
        pellucid.load(folder, context=value)


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("threads", 257), ("threads", "2"), ("threads", True)])
def test_load_options_out_of_range(folder: Path, name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name):
        pellucid.load(folder, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("threads", 0),
            ("pin", "here"),
            ("precise", "yes"),
            ("activations", 12),
            ("activations", True),
            ("kv_cache", "q4"),
            ("cache_memory", -1),
        ),
        *(("chat_template", 5), ("cap_context", None), ("pulls", 1)),
    ],
)
def test_options_are_refused_before_the_model_is_looked_for(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}="):
        pellucid.load("no-such-model", **{name: value})


@pytest.mark.parametrize("value", [8, 0, "yes", None])
def test_precise_is_yes_or_no(folder: Path, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"precise=.*: must be True or False"):
        pellucid.load(folder, precise=value)


@pytest.mark.parametrize("form", ["q4_0", "F16", 8, ""])
def test_forms_of_the_cache_that_are_not_there(folder: Path, form: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"kv_cache=.*must be one of f16, bf16, q8_0, f32"):
        pellucid.load(folder, kv_cache=form)


def test_load_has_every_load_option() -> None:
    """``load`` has the fields as keywords, so that editors and ``help`` show them."""
    of_load = inspect.signature(pellucid.load).parameters
    of_options = inspect.signature(LoadOptions).parameters
    assert {name: of_load[name].default for name in of_options} == {
        name: one.default for name, one in of_options.items()
    }
    declared = inspect.get_annotations(LoadOptions)
    assert all(declared[name].startswith(f"Annotated[{of_load[name].annotation}, LoadOption(") for name in of_options)
    assert of_options.keys() == LOAD_OPTIONS.keys()
    lines = [line.strip() for line in (pellucid.load.__doc__ or "").splitlines()]
    assert all(any(line.startswith(f"{name}: ") for line in lines) for name in of_load if name in LOAD_OPTIONS)
    assert "--" not in (pellucid.load.__doc__ or ""), "options have their names in Python"
    # Callables and the private key stay in this process.
    others = {"source", "progress", "compiling", "before", "make", "receipt_key", "unknown"}
    assert set(of_load) == {*of_options, *others}


def test_load_options_travel_to_another_process() -> None:
    options = LoadOptions(
        context=100, threads=2, pin="cores", activations=16, kv_cache="q8_0", cache_memory=0.5, chat_template="{{ x }}",
        draft=Path("small.gguf"), cap_context=True, pulls=False, task="embed", adapter="separation",
        dictionaries=["a=b"],
    )  # fmt: skip
    others = {*LoadOptions.__struct_fields__} - {"precise"}  # it has activations of its own
    assert all(getattr(options, name) != getattr(LoadOptions(), name) for name in others)
    assert pickle.loads(pickle.dumps(options)) == options
    exact = LoadOptions(precise=True)
    assert pickle.loads(pickle.dumps(exact)) == exact


def test_activations_of_16_bits_are_between_the_default_and_precise(tmp_path: Path) -> None:
    logits, folder = [], random_model("llama", tmp_path / "quantised.gguf", form="Q4_0")
    for options in ({"activations": 8}, {"activations": 16}, {"precise": True}):
        with pellucid.load(folder, threads=1, **options) as llm, llm.trace("project.logits") as trace:
            llm.generate(list(range(40)), max_new_tokens=1)
        logits.append(trace["project.logits"][0].astype(np.float64))
    default, middle, exact = logits
    # Keys and values in bfloat16 round too.
    assert 0 < np.abs(middle - exact).max() < 0.5 * np.abs(default - exact).max()
    with pytest.raises(InvalidRequest, match="activations=16 beside precise, which has 24 bits"):
        pellucid.load(folder, activations=16, precise=True)


def test_an_impossible_home_is_refused_even_if_nothing_is_read_from_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pellucid.load(folder).close()  # the process has all kernels now
    monkeypatch.setenv("PELLUCID_HOME", os.devnull)
    with pytest.raises(InvalidRequest, match="PELLUCID_HOME"):
        pellucid.load(folder)


def test_a_head_narrower_than_a_scale_of_the_cache_is_padded(folder: Path) -> None:
    with pellucid.load(folder, kv_cache="q8_0") as llm, pellucid.load(folder, precise=True) as exact:
        assert {layer.head_dim for layer in llm.plan.layers} == {32}
        got, wanted = (one.score("Hello, world").logprobs.chosen for one in (llm, exact))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=0.05)


def test_numbers_may_be_numpys(folder: Path) -> None:
    llm = pellucid.load(folder, threads=np.int64(1), context=np.uint16(64), precise=np.bool_(True))
    options = {"temperature": np.float32(0.5), "top_k": np.int64(3), "top_p": np.float64(0.9), "seed": np.uint8(7)}
    mine = llm.generate(PROMPT, max_new_tokens=np.int16(5), **options)
    plain = {name: value.item() for name, value in options.items()}
    assert mine.ids == llm.generate(PROMPT, max_new_tokens=5, **plain).ids
    assert (len(mine.ids), type(mine.seed)) == (5, int)
    assert llm.generate(PROMPT, temperature=np.float32(0), max_new_tokens=1).seed is None
    llm.close()


def test_smaller_context(folder: Path) -> None:
    llm = pellucid.load(folder, context=10)
    assert len(llm.generate([5] * 4, temperature=0).ids) == 6
    llm.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_model_that_was_loaded_before_a_fork_says_so(llm: LLM) -> None:
    llm.generate(PROMPT, **GREEDY)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # the child must not run pytest code
        try:
            llm.generate(PROMPT, **GREEDY)
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    assert said.startswith("InvalidRequest: this model was loaded before a fork")
    assert len(llm.generate(PROMPT, **GREEDY).ids) == 24


def test_closing_twice_is_harmless_and_a_closed_model_says_so(folder: Path) -> None:
    llm = pellucid.load(folder, threads=2)
    llm.generate(PROMPT, **GREEDY)
    llm.close()
    llm.close()
    with pytest.raises(InvalidRequest, match="closed"):
        llm.generate(PROMPT, **GREEDY)


def test_a_model_that_nobody_holds_stops_its_threads(folder: Path) -> None:
    before = threading.enumerate()
    llm = pellucid.load(folder, threads=3)
    llm.generate(PROMPT, **GREEDY)
    workers = [thread for thread in threading.enumerate() if thread not in before]
    assert {thread.name for thread in workers} >= {"pellucid-1", "pellucid-2"}
    del llm
    for worker in workers:
        worker.join(5)
    assert not any(worker.is_alive() for worker in workers)


def test_weights_that_are_no_numbers_are_refused_in_one_line(tmp_path: Path) -> None:
    """Also signalling NaNs, which cause warnings in arithmetic."""
    folder = write_llama(tmp_path / "tiny")
    write_tokenizer(folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8 : 8 + size])["model.norm.weight"]["data_offsets"]
    signalling = (0x7FA00000).to_bytes(4, "little") * ((end - begin) // 4)
    path.write_bytes(content[: 8 + size + begin] + signalling + content[8 + size + end :])
    with pytest.raises(FileFormatError, match=r"model\.norm\.weight .*NaN or infinite: the file is damaged"):
        pellucid.load(folder, threads=1)
