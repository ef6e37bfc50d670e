"""A request gives the same bits in any batch, with any prefill chunks and with any number of threads.

Covers the tiny models of every family, and a Llama in every format that discovery finds, with activations of 8 and 24
bits, for every dtype of the KV cache. Discovery covers new families and formats too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import environment, python, run
from support.schedule import LENGTHS, QUANTISED, Model, Play, write_quantised_llama
from support.tiny import DECODERS, OF_FAMILY, SOURCES, TINY, model_runner, opened

from pellucid.kernels.attention import kv_layout
from pellucid.kernels.core import isa
from pellucid.kernels.core.host import host
from pellucid.model.family import known_families
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

CASES = [
    *[(name, 24 if name.endswith("-mxfp4") else 2, None) for name in DECODERS],  # activation bits do not affect floats
    *[(name, activation_bits, None) for name in (*QUANTISED, "mixed") for activation_bits in (8, 16, 24)],
    *[("mixed", 24, form) for form in kv_layout.KV_DTYPES if form != "f16"],
]
few = settings(max_examples=6)
threads = st.integers(1, 4)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    name, activation_bits, kv_cache = request.param
    path = TINY.get(name)
    if path is None:
        file = tmp_path_factory.mktemp("bits") / f"{name}.gguf"
        path = write_quantised_llama(file, *(() if name == "mixed" else (name,)))
    model = Model(path, activation_bits, kv_cache=kv_cache)
    yield model
    model.close()


def test_every_family_is_here() -> None:
    read = set()
    for path in {**TINY, **OF_FAMILY, **SOURCES}.values():
        with opened(path) as (_, model):
            read.add(model.spec.family)
    assert read == set(known_families()), "a family without a tiny model (tests/oracles/tiny_oracle.py)"


@few
@given(st.lists(st.integers(1, 70), min_size=1, max_size=20), threads)
def test_a_prompt_in_any_chunks(model: Model, chunks: list[int], threads: int) -> None:
    with Play(model, threads) as play:
        for count in chunks:
            play.step({0: count})
        play.step({0: play.left(0)})


def test_one_token_at_a_time(model: Model) -> None:
    with Play(model) as play:
        for _ in range(LENGTHS[1]):
            play.step({1: 1})


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_any_number_of_threads(model: Model, threads: int) -> None:
    with Play(model, threads) as play:
        play.step({0: 140})
        for _ in range(10):
            play.step({0: 1})
        play.step({1: 100, 2: 70, 7: 1})


steps = st.dictionaries(st.integers(0, len(LENGTHS) - 1), st.sampled_from([1, 1, 2, 3, 7, 30]), min_size=1)


@few
@given(st.lists(steps, min_size=1, max_size=12), threads)
def test_beside_any_others(model: Model, steps: list[dict[int, int]], threads: int) -> None:
    with Play(model, threads) as play:
        for counts in steps:
            play.step(counts)


def test_a_past_of_several_pieces(model: Model) -> None:
    with Play(model, 2) as play:
        for count in (250, 250, 11, 1, 1, 1):
            play.step({8: count, 1: 1})
        play.step({8: play.left(8)})


def test_any_batch_size(model: Model) -> None:
    for sequences in range(1, 18):
        with Play(model, 2) as play:
            for count in (9, 1, 1, 5):
                play.step(dict.fromkeys(range(sequences), count))


@few
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 150)), min_size=1, max_size=6), threads)
def test_after_any_truncation_and_refill(model: Model, turns: list[tuple[int, int]], threads: int) -> None:
    with Play(model, threads) as play:
        for grow, keep in turns:
            play.step({0: grow, 2: 5})
            play.cut(0, keep)
        play.step({0: play.left(0)})


def test_after_what_an_earlier_text_has_left(model: Model) -> None:
    for counts in ((128, 15), (64, 64, 1), (100,), (7,) * 13):
        with Play(model, 2) as play:
            for count in counts:
                play.step({0: count, 3: 1})
            assert play.begin_again(0) == sum(counts)
            play.step({0: 5, 3: 1})
            assert play.begin_again(0) == sum(counts) + 5
            play.step({0: play.left(0)})


def test_on_scattered_pages_that_others_have_used(model: Model) -> None:
    with Play(model) as play:
        for _ in range(5):  # the sequences allocate pages in turn
            play.step({1: 20, 2: 20, 3: 20})
        play.cut(1, 0)
        play.cut(3, 0)
        for _ in range(3):
            play.step({0: 50, 3: 30})
        play.cut(2, 0)
        play.step({1: 100})


@pytest.mark.parametrize("name", sorted(set(OF_FAMILY) - set(DECODERS)))
@pytest.mark.parametrize("activation_bits", [8, 24])
@few
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), threads)
def test_a_sentence_beside_any_others(name: str, activation_bits: int, lengths: list[int], threads: int) -> None:
    rng = np.random.default_rng(1)
    texts, path = [rng.integers(0, 128, n).tolist() for n in lengths], OF_FAMILY[name]
    with (
        model_runner(path, tokens=256, activation_bits=activation_bits) as alone,
        model_runner(path, tokens=256, threads=threads, context=512, activation_bits=activation_bits) as net,
    ):
        together = net.forward([Chunk(BlockTable(), text, 0) for text in texts])
        for row, text in zip(together, texts):
            sequence = BlockTable()
            assert np.array_equal(alone.forward([Chunk(sequence, text, 0)])[0], row)
            alone.cache.truncate(sequence, 0)


@pytest.mark.model
@pytest.mark.parametrize("activation_bits", [8, 24])
def test_a_real_model(activation_bits: int) -> None:
    from pellucid.weights.store import resolve

    model = Model(resolve("smollm2"), activation_bits, threads=(1, 2))
    try:
        for threads in (1, 2):
            with Play(model, threads) as play:
                for count in (1, 40, 3, 64, 1, 17):
                    play.step({0: count, 1: 5, 5: 2, 6: 1})
                play.cut(0, 65)
                play.step({0: play.left(0), 3: 64})
                for _ in range(4):
                    play.step({1: 1, 4: 3})
    finally:
        model.close()


# Program: write the logits of four sequences, computed with a single instruction set.
LOGITS = """
import sys
import numpy as np
from pathlib import Path
from support.schedule import Model

model = Model(Path(sys.argv[1]), int(sys.argv[2]), threads=(1,))
np.save(sys.argv[3], np.concatenate([model.truth(i) for i in range(4)]))
model.close()
"""


@pytest.mark.long
@pytest.mark.skipif(not host().features & {"fma", "neon"}, reason="without fused multiply-adds sums round differently")
@pytest.mark.parametrize(("name", "activation_bits"), [("quantised", 8), ("gemma3-softcap", 24)])
def test_any_instruction_set(name: str, activation_bits: int, tmp_path: Path) -> None:
    # Covers minima, scales of 16 values, a table with powers of two and a zero point. Each kernel compiles for seconds.
    few = ("Q2_K", "Q6_K", "MXFP4", "Q8_0", "F16")
    path = TINY.get(name) or write_quantised_llama(tmp_path / "mixed.gguf", *few)
    files = {known.name: tmp_path / f"{known.name}.npy" for known in (*isa.possible(), *isa.emulated())}
    commands = {one: python(LOGITS, str(path), str(activation_bits), str(file)) for one, file in files.items()}
    run([(command, environment(PELLUCID_ISA=one)) for one, command in commands.items()])
    logits = {one: np.load(file) for one, file in files.items()}
    best, *others = files
    for one in others:
        off = np.abs(logits[one] - logits[best]).max()
        assert logits[one].tobytes() == logits[best].tobytes(), f"{one} is {off} off {best}"
