"""Activation datasets: the recorded values, equal bytes for any threads, parts and interruptions, and the reader."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from support.processes import environment, python

import pellucid
from pellucid.errors import ContextOverflow, FileFormatError, InvalidRequest, KernelError
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import ActivationDataset, ablate
from pellucid.trace.dataset import activation_dataset, shard_recorder
from pellucid.trace.dataset.columns import StoredColumn, widened
from pellucid.trace.dataset.shard_file import ShardLayout, ShardWriter
from pellucid.trace.dataset.shard_recorder import Survey

WORDS = ["to", "see", "that", "it", "rains", "in", "the", "east", "and", "the", "west"]
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 1 + i % 7]) + "." * (i % 3) for i in range(40)]
POINTS = ("blocks.*.residual", "blocks.1.attention.heads[heads=1,0]", "blocks.0.feedforward.hidden[dims=3:7]")
SMALL: dict[str, Any] = {"shard_bytes": 50_000}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dataset") / "llama.gguf"
    random_model("llama", path, layers=2, context=128)
    return path


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with pellucid.load(path, threads=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def data(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> ActivationDataset:
    made = llm.record_dataset(TEXTS, *POINTS, out=tmp_path_factory.mktemp("recorded") / "data", **SMALL)
    assert made is not None
    return made


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder."""
    return {
        one.relative_to(folder).as_posix(): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(folder.rglob("*"))
    }


def test_rows_are_the_values_of_a_trace(llm: LLM, data: ActivationDataset) -> None:
    assert len(data.index.shards) > 2
    assert list(data.points) == [
        "blocks.0.residual",
        "blocks.1.residual",
        "blocks.1.attention.heads",
        "blocks.0.feedforward.hidden",
    ]
    assert data.points["blocks.1.attention.heads"]["heads"] == [1, 0]
    for number, text in enumerate(TEXTS):
        with llm.trace(*POINTS) as trace:
            llm.generate(text, max_new_tokens=1, temperature=0)
        rows = data.rows_of(number)
        ids = llm.tokenizer.encode(text)
        assert data.token_ids[rows].tolist() == ids
        assert data.positions[rows].tolist() == list(range(len(ids)))
        assert set(data.texts[rows].tolist()) == {number}
        for name in data.points:
            np.testing.assert_array_equal(data[name][rows], trace[name][0])
    assert len(data) == rows.stop
    assert data["blocks.1.attention.heads"].shape == (len(data), 2, data.points["blocks.1.attention.heads"]["shape"][1])


def test_ctrl_c_can_leave_no_lock_of_a_recording_locked(
    llm: LLM, tmp_path: Path, conditions_of_main: list[threading.Condition]
) -> None:
    assert llm.record_dataset(TEXTS, *POINTS, out=tmp_path / "data", **SMALL) is not None
    assert not conditions_of_main


def test_a_shard_is_a_safetensors_file(data: ActivationDataset) -> None:
    """Its header has the names, types and extents that other readers of the format expect."""
    first = data.index.shards[0]
    raw = (data.path / first.file).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header["__metadata__"].keys() == {"pellucid.activations"}
    record = header["blocks.1.residual"]
    assert (record["dtype"], record["shape"][0]) == ("F32", first.rows)
    start, stop = (8 + length + offset for offset in record["data_offsets"])
    assert start % 4 == 0
    values = np.frombuffer(raw[start:stop], "<f4").reshape(record["shape"])
    np.testing.assert_array_equal(values, data["blocks.1.residual"][: first.rows])
    assert max(record["data_offsets"][1] for record in list(header.values())[1:]) + 8 + length == len(raw)


@pytest.mark.parametrize(("threads", "piece", "tasks"), [(1, 8192, 2), (2, 1, 1), (2, 20, 5)])
def test_threads_and_batches_change_no_byte(
    path: Path,
    data: ActivationDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    piece: int,
    tasks: int,
) -> None:
    monkeypatch.setattr(shard_recorder, "PIECE", piece)
    monkeypatch.setattr(shard_recorder, "TASKS", tasks)
    with pellucid.load(path, threads=threads, context=64) as llm:
        made = llm.record_dataset(TEXTS, *POINTS, out=tmp_path / "again", **SMALL)
    assert made is not None
    assert made.sha256 == data.sha256
    assert hashes(tmp_path / "again") == hashes(data.path)


def test_parts_make_the_same_files(llm: LLM, data: ActivationDataset, tmp_path: Path) -> None:
    """On a shared disk the last part writes the index; folders of several machines are put together."""
    made = [llm.record_dataset(TEXTS, *POINTS, out=tmp_path / "shared", part=f"{n}/3", **SMALL) for n in (2, 3, 1)]
    assert made[:2] == [None, None]
    assert hashes(tmp_path / "shared") == hashes(data.path)
    joined = tmp_path / "joined"
    joined.mkdir()
    for number in (1, 2):
        own = tmp_path / f"machine{number}"
        assert llm.record_dataset(TEXTS, *POINTS, out=own, part=f"{number}/2", **SMALL) is None
        for file in own.iterdir():
            shutil.move(file, joined / file.name)
    before = {file.name: file.stat().st_mtime_ns for file in joined.iterdir()}
    made = [llm.record_dataset(TEXTS, *POINTS, out=joined, **SMALL)]
    assert made[0] is not None
    assert hashes(joined) == hashes(data.path)
    assert {name: (joined / name).stat().st_mtime_ns for name in before} == before  # no shard was computed again


def test_finished_shards_are_kept(llm: LLM, data: ActivationDataset, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data.path, folder)
    names = [shard.file for shard in data.index.shards]
    (folder / names[1]).unlink()
    (folder / "dataset.json").unlink()
    (folder / f"{names[1]}.part").write_bytes(b"what a killed process left")
    kept = (folder / names[0]).stat().st_mtime_ns
    with pytest.raises(FileFormatError, match=r"is missing: run the same command again to finish it"):
        ActivationDataset.open(folder)
    assert llm.record_dataset(TEXTS, *POINTS, out=folder, **SMALL) is not None
    assert hashes(folder) == hashes(data.path)
    assert (folder / names[0]).stat().st_mtime_ns == kept


RECORD = """
import json, sys
import pellucid
path, out, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with pellucid.load(path, threads=1) as llm:
    print("begins", flush=True)
    llm.record_dataset(given["texts"], *given["points"], out=out, shard_bytes=50_000)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_kill_at_any_time(path: Path, llm: LLM, tmp_path: Path) -> None:
    """A run that is killed again and again ends with the same bytes as an uninterrupted run."""
    texts = TEXTS * 25
    whole = llm.record_dataset(texts, *POINTS, out=tmp_path / "whole", **SMALL)
    assert whole is not None
    killed, draw, finished = tmp_path / "killed", random.Random(5), list[int]()
    command = python(RECORD, str(path), str(killed), json.dumps({"texts": texts, "points": POINTS}))
    for _ in range(5):
        run = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert run.stdout is not None
        run.stdout.readline()
        before, deadline = finished[-1] if finished else 0, time.monotonic() + 60
        while run.poll() is None and time.monotonic() < deadline:
            if len(list(killed.glob("*.safetensors"))) > before:
                break
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        run.kill()
        run.communicate()
        finished.append(len(list(killed.glob("*.safetensors"))))
    shards = len(whole.index.shards)
    assert finished == sorted(finished), finished  # each run kept the shards before it
    assert 0 < finished[0] < shards, (finished, shards)
    assert llm.record_dataset(texts, *POINTS, out=killed, **SMALL) is not None
    assert hashes(killed) == hashes(tmp_path / "whole")


def test_an_error_leaves_whole_shards(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while a step is written, as on a full disk, ends the run; the next run continues."""
    put, calls = ShardWriter.put, 0

    def fails(self: ShardWriter, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 150:
            raise InvalidRequest("activations: cannot be written: No space left on device")
        put(self, *arguments)

    monkeypatch.setattr(ShardWriter, "put", fails)
    with pytest.raises(InvalidRequest, match="No space left on device"):
        llm.record_dataset(TEXTS, *POINTS, out=tmp_path / "data", **SMALL)
    left = sorted(one.name for one in (tmp_path / "data").iterdir())
    assert left
    assert all(name.endswith(".safetensors") for name in left)
    assert llm.generate("to", max_new_tokens=2).ids  # the engine runs on
    assert llm.record_dataset(TEXTS, *POINTS, out=tmp_path / "data", **SMALL) is not None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smaller_types(llm: LLM, data: ActivationDataset, tmp_path: Path, dtype: str) -> None:
    made = llm.record_dataset(TEXTS, *POINTS, out=tmp_path / "data", dtype=dtype)
    assert made is not None
    exact, found = data["blocks.1.residual"][:], made["blocks.1.residual"][:]
    assert made["blocks.1.residual"].stored_dtype == dtype
    if dtype == "float16":
        np.testing.assert_array_equal(found, exact.astype(np.float16))
    else:
        assert found.dtype == np.float32
        assert 0 < np.abs(found - exact).max() <= np.abs(exact).max() / 256
        np.testing.assert_array_equal(found.view(np.uint32) & 0xFFFF, 0)
    assert made.index.shards[0].bytes < sum(shard.bytes for shard in data.index.shards) * 0.6


def test_rounding_of_bfloat16_is_to_even_and_float16_refuses_large_values() -> None:
    values = np.float32([[1 + 2**-8, 1 + 3 * 2**-8, -1.5, np.inf]])
    column = StoredColumn("x", (4,), "bfloat16")
    assert widened(column.stored(values), "bfloat16").tolist() == [[1.0, 1 + 2**-6, -1.5, np.inf]]
    half = StoredColumn("x", (1,), "float16")
    with pytest.raises(InvalidRequest, match=r"x has the value 70,000, and float16 ends at 65,504: use bfloat16"):
        half.stored(np.float32([[70_000]]))


def test_tokens_of_each_text(llm: LLM, tmp_path: Path) -> None:
    texts = ["to see that", "it rains in the east"]
    lengths = [len(llm.tokenizer.encode(text)) for text in texts]
    made = llm.record_dataset(texts, "blocks.0.residual[tokens=-2:-1]", out=tmp_path / "last")
    assert made is not None
    assert made.positions[:].tolist() == [length - 2 for length in lengths]
    with llm.trace("blocks.0.residual") as trace:
        llm.generate(texts[1], max_new_tokens=1)
    np.testing.assert_array_equal(made["blocks.0.residual"][1], trace["blocks.0.residual"][0, lengths[1] - 2])
    with pytest.raises(InvalidRequest, match="text 0: tokens=' rains': this text does not occur in the prompt"):
        llm.record_dataset(texts, 'embed[tokens=" rains"]', out=tmp_path / "none")


def test_texts_of_several_steps_and_lost_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text runs in several steps. A sequence that loses its pages computes and writes its rows again."""
    path = random_model("llama", tmp_path / "llama.gguf", layers=2, context=1024)
    texts = ["to see that it rains " * 30, "rain", "in the east " * 50]
    with pellucid.load(path, threads=2) as llm:
        made = llm.record_dataset(texts, "blocks.1.residual", out=tmp_path / "a")
        assert made is not None
        with llm.trace("blocks.1.residual") as trace:
            llm.generate(texts[2], max_new_tokens=1)
        rows = made.rows_of(2)
        assert rows.stop - rows.start > 256
        np.testing.assert_array_equal(made["blocks.1.residual"][rows], trace["blocks.1.residual"][0])
        put, before = ShardWriter.put, llm.engine.preemptions

        def preempts(self: ShardWriter, column: str, row: int, values: np.ndarray) -> None:
            put(self, column, row, values)
            if column == "blocks.1.residual" and llm.engine.preemptions < before + 2:
                llm.engine.between_steps(llm.engine.preempt)

        monkeypatch.setattr(ShardWriter, "put", preempts)
        again = llm.record_dataset(texts, "blocks.1.residual", out=tmp_path / "b")
        assert llm.engine.preemptions > before
        assert again is not None
        assert again.sha256 == made.sha256


def test_logits_of_all_tokens(llm: LLM, tmp_path: Path) -> None:
    made = llm.record_dataset(TEXTS[:6], "norm", "project.logits[dims=0:5]", out=tmp_path / "logits")
    assert made is not None
    with llm.trace("norm", "project.logits[dims=0:5]") as trace:
        llm.score(TEXTS[3])  # reads all tokens but the last
    rows = made.rows_of(3)
    np.testing.assert_array_equal(made["norm"][rows][:-1], trace["norm"][0])
    np.testing.assert_array_equal(made["project.logits"][rows][:-1], trace["project.logits"][0])


def test_chosen_experts_are_whole_numbers(tmp_path: Path) -> None:
    path = random_model("qwen3moe", tmp_path / "model", layers=2)
    with pellucid.load(path, threads=1) as llm:
        made = llm.record_dataset(
            TEXTS[:5], "blocks.0.feedforward.experts", "embed", out=tmp_path / "x", dtype="float16"
        )
        assert made is not None
        with llm.trace("blocks.0.feedforward.experts") as trace:
            llm.generate(TEXTS[4], max_new_tokens=1)
    assert made["blocks.0.feedforward.experts"].dtype == np.int32
    np.testing.assert_array_equal(
        made["blocks.0.feedforward.experts"][made.rows_of(4)], trace["blocks.0.feedforward.experts"][0]
    )


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_encoders(family: str, tmp_path: Path) -> None:
    path = random_model(family, tmp_path / "model", kind="safetensors")
    with pellucid.load(path, threads=2, task="embed") as llm:
        made = llm.record_dataset(TEXTS, "blocks.*.residual", out=tmp_path / "tokens", **SMALL)
        vectors = llm.record_dataset(TEXTS, "pool", out=tmp_path / "texts")
        assert made is not None
        assert vectors is not None
        with llm.trace("blocks.1.residual", "pool") as trace:
            llm.embed([TEXTS[7]])
        np.testing.assert_array_equal(made["blocks.1.residual"][made.rows_of(7)], trace["blocks.1.residual"][0])
        np.testing.assert_array_equal(vectors["pool"][7], trace["pool"][0].reshape(-1))
        assert vectors.texts[:].tolist() == list(range(len(TEXTS)))
        with pytest.raises(InvalidRequest, match="pool and embed have different rows"):
            llm.record_dataset(TEXTS, "pool", "embed", out=tmp_path / "x")
        with pytest.raises(InvalidRequest, match=r"pool has one value for each text: leave the tokens out"):
            llm.record_dataset(TEXTS, "pool[tokens=0]", out=tmp_path / "x")


def test_masked_language_models(tmp_path: Path) -> None:
    names = {"architectures": ["XForMaskedLM"]}
    path = random_model("bert", tmp_path / "model", kind="safetensors", metadata=names)
    (path / "special_tokens_map.json").write_text(json.dumps({"mask_token": "_"}))
    with pellucid.load(path, threads=2) as llm:
        made = llm.record_dataset(["one _ here"], "blocks.0.residual", out=tmp_path / "a")
        heads = llm.record_dataset(["one _ here"], "output.0", out=tmp_path / "b")
        assert made is not None
        assert heads is not None
        with llm.trace("blocks.0.residual", "output.0[tokens=0:]") as trace:
            llm.encode(llm.inputs.texts(["one _ here"]))
        np.testing.assert_array_equal(made["blocks.0.residual"][:], trace["blocks.0.residual"][0])
        np.testing.assert_array_equal(heads["output.0"][:], trace["output.0"][0])


def test_long_texts_are_refused_or_cut(llm: LLM, tmp_path: Path) -> None:
    texts = ["to see", "rain " * 400]
    with pytest.raises(ContextOverflow, match=r"text 1: the text is too long: .* the context is 128 tokens"):
        llm.record_dataset(texts, "embed", out=tmp_path / "data")
    assert not (tmp_path / "data").exists()
    made = llm.record_dataset(texts, "embed", out=tmp_path / "data", truncate=True)
    assert made is not None
    assert made.positions[made.rows_of(1)].tolist() == list(range(128))


@pytest.mark.parametrize(
    ("points", "options", "words"),
    [
        (("blocks.0.attention.pattern",), {}, "has no value of one size for each token (pattern): record a trace"),
        (("cache.pages",), {}, "has no value of one size for each token (output)"),
        ((), {}, "points: none is given"),
        (("blocks.9.residual",), {}, "no point has this name"),
        (("embed[tokens=0]", "norm"), {}, "embed and norm select different tokens"),
        (("embed[dims=0]", "embed[dims=1]"), {}, "two parts of this point are selected"),
        (("embed",), {"dtype": "int8"}, "dtype='int8': must be one of float32, float16, bfloat16"),
        (("embed",), {"format": "csv"}, "format='csv': must be one of safetensors, parquet"),
        (("embed",), {"part": "3/2"}, "part=3: must be a whole number from 1 to 2"),
        (("embed",), {"part": "2"}, "part='2': must be the number of a part and the number of parts"),
        (("embed",), {"shard_bytes": 3}, "shard_bytes=3: must be"),
        (("embed",), {"field": "body"}, "field='body': a list has no fields"),
    ],
)
def test_refused(llm: LLM, tmp_path: Path, points: tuple[str, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        llm.record_dataset(TEXTS, *points, out=tmp_path / "data", **options)
    assert words in str(error.value)
    assert not (tmp_path / "data").exists()


def test_refused_corpora(llm: LLM, tmp_path: Path) -> None:
    for corpus, words in (([], "corpus=[]"), (["a", ""], "text 1: '' is not a text"), (["a", 3], "text 1: 3 is")):
        with pytest.raises(InvalidRequest, match=words.replace("[]", r"\[\]")):
            llm.record_dataset(corpus, "embed", out=tmp_path / "data")  # type: ignore[arg-type]


def test_edits_are_refused(llm: LLM, tmp_path: Path) -> None:
    with llm.trace(edits=[ablate("embed")]), pytest.raises(InvalidRequest, match="a dataset takes no edits"):
        llm.record_dataset(TEXTS, "embed", out=tmp_path / "data")


def test_a_disk_that_is_too_small(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(activation_dataset.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InvalidRequest, match=r"the dataset needs 0\.0\d\d GB, and 0\.000 GB are free: name a folder"):
        llm.record_dataset(TEXTS, "embed", out=tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_with_another_dataset(llm: LLM, data: ActivationDataset, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data.path, folder)
    before = hashes(folder)
    for texts, options, words in (
        (TEXTS[1:], SMALL, "another corpus: delete"),
        (TEXTS, {"dtype": "float16", **SMALL}, "another points and another dtype: delete"),
        (TEXTS, {"shard_bytes": 60_000}, "another shard_bytes: delete"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            llm.record_dataset(texts, *POINTS, out=folder, **options)
    shard = folder / data.index.shards[0].file
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InvalidRequest, match="the file is damaged: delete it, and run the same command again"):
        llm.record_dataset(TEXTS, *POINTS, out=folder, **SMALL)
    shard.unlink()
    llm.record_dataset(TEXTS, *POINTS, out=folder, **SMALL)
    assert hashes(folder) == before
    (folder / "dataset.json").unlink()
    with pytest.raises(InvalidRequest, match=r"activations-00000-of-.*: is of a dataset with another corpus"):
        llm.record_dataset(TEXTS[1:], *POINTS, out=folder, **SMALL)
    shard.write_bytes(b"no shard")
    with pytest.raises(InvalidRequest, match="is damaged, or no shard of a dataset: delete this file"):
        llm.record_dataset(TEXTS, *POINTS, out=folder, **SMALL)
    assert hashes(folder).keys() == before.keys() - {"dataset.json"}


def test_a_folder_that_another_process_writes(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with (
        FileLock(tmp_path / "data" / ".part-1-of-1.lock"),
        pytest.raises(InvalidRequest, match="another process records part 1/1 in this folder: wait for it"),
    ):
        llm.record_dataset(TEXTS, "embed", out=tmp_path / "data")


def test_a_corpus_that_changes_during_the_run(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS))
    survey = activation_dataset.CorpusReader.survey

    def then_changes(*arguments: Any) -> Survey:
        found = survey(*arguments)
        corpus.write_text("\n".join(TEXTS[:-1]))
        return found

    monkeypatch.setattr(activation_dataset.CorpusReader, "survey", then_changes)
    with pytest.raises(InvalidRequest, match="corpus: changed during the run"):
        llm.record_dataset(corpus, "embed", out=tmp_path / "data")


def test_a_missing_value_is_a_bug(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a", ShardLayout([StoredColumn("x", (2,), "float32")], 3, "{}"))
    writer.put("x", 0, np.zeros((2, 2), np.float32))
    with pytest.raises(KernelError, match="a: values of x were not computed"):
        writer.finish()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_shards_have_whole_texts() -> None:
    survey = Survey([3, 3, 10, 1, 0], [3, 3, 10, 1, 2], "")
    shards = survey.shards(10, 60)
    assert [(one.texts, one.rows) for one in shards] == [
        (range(2), range(6)),
        (range(2, 3), range(6, 16)),  # a text that is larger than a shard
        (range(3, 5), range(16, 17)),
    ]


def test_rows_are_chosen_as_in_numpy(data: ActivationDataset) -> None:
    column = data["blocks.0.residual"]
    every = np.asarray(column)
    assert every.shape == column.shape
    border = data.index.shards[0].rows
    for rows in (
        *(3, -1, np.int64(5)),
        *(slice(None), slice(2, 5), slice(border - 1, border + 1), slice(5, 2), slice(None, None, 7), slice(9, 2, -3)),
        *([5, 0, -1, 5], np.array([], np.int64), np.arange(0, len(column), 9), np.arange(len(column)) % 4 == 1),
    ):
        np.testing.assert_array_equal(column[rows], every[rows])
    assert column[[]].shape == (0, *column.shape[1:])
    assert isinstance(column[1:3], np.memmap)  # not copied
    assert not column[1:3].flags.writeable
    with pytest.raises(IndexError, match="there are"):
        column[len(column)]
    with pytest.raises(InvalidRequest, match="give one for each row"):
        column[np.array([True])]
    with pytest.raises(InvalidRequest, match="must be a number, a slice, or a list of row numbers"):
        column["a"]
    with pytest.raises(InvalidRequest, match=r"it is not in this dataset; it has blocks.0.residual"):
        data["blocks.5.residual"]


def test_batches(data: ActivationDataset) -> None:
    every = data["blocks.0.residual"][:]
    np.testing.assert_array_equal(np.concatenate(list(data.batches("blocks.0.residual", size=7))), every)
    shuffled = [np.concatenate(parts) for parts in zip(*data.batches("blocks.0.residual", "texts", size=9, seed=3))]
    assert not np.array_equal(shuffled[0], every)
    order = np.lexsort(every.T)
    np.testing.assert_array_equal(shuffled[0][np.lexsort(shuffled[0].T)], every[order])  # each row once
    again = np.concatenate(list(data.batches("blocks.0.residual", size=50, seed=3)))
    np.testing.assert_array_equal(again, shuffled[0])  # the order does not depend on the size
    two = list(data.batches("texts", size=len(data), seed=3, epochs=2))
    assert len(two) == 2
    assert not np.array_equal(*two)
    endless = data.batches("texts", size=len(data), epochs=None)
    assert [len(next(endless)) for _ in range(3)] == [len(data)] * 3
    for wrong in ({"size": 0}, {"seed": -1}, {"epochs": 0}):
        with pytest.raises(InvalidRequest):
            data.batches("texts", **wrong)
    with pytest.raises(InvalidRequest, match="no column is named"):
        data.batches()


def test_a_dataset_can_be_sent_to_another_process(data: ActivationDataset) -> None:
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again["blocks.0.residual"][5:9], data["blocks.0.residual"][5:9])
    assert repr(again) == repr(data)
    assert "rows of 40 texts, 4 points" in repr(data)


def test_damaged_datasets(data: ActivationDataset, tmp_path: Path) -> None:
    data.verify()
    folder, name = tmp_path / "data", data.index.shards[1].file
    shutil.copytree(data.path, folder)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=r"sha256.*the file is damaged"):
        ActivationDataset.open(folder).verify()
    content[20] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match="is not the shard that the index describes"):
        ActivationDataset.open(folder)["blocks.0.residual"][:]
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(FileFormatError, match=r"size.*and the index says"):
        ActivationDataset.open(folder)
    (folder / name).unlink()
    with pytest.raises(FileFormatError, match="cannot be read: No such file"):
        ActivationDataset.open(folder)
    with pytest.raises(FileFormatError, match="is missing: name the folder of a dataset"):
        ActivationDataset.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version"),
        ({"rows": 3}, "rows"),
        ({"sha256": "0"}, "is not the hash of the index"),
        ({"shards": []}, "shards"),
        ({"columns": 3}, "index"),
        ({"run": {}}, "lacks the format"),
        (None, "cannot be read"),
    ],
)
def test_damaged_indexes(data: ActivationDataset, tmp_path: Path, change: Any, words: str) -> None:
    facts = json.loads((data.path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text("{" if change is None else json.dumps({**facts, **change}))
    with pytest.raises(FileFormatError, match=words):
        ActivationDataset.open(tmp_path)
    facts["shards"][0]["file"] = "../secret.safetensors"
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(FileFormatError, match="a name is no file in the folder"):
        ActivationDataset.open(tmp_path)


def test_parquet(llm: LLM, data: ActivationDataset, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    made = llm.record_dataset(TEXTS, *POINTS, out=tmp_path / "a", format="parquet", **SMALL)
    assert made is not None
    assert {one.suffix for one in (tmp_path / "a").iterdir()} == {".parquet", ".json"}
    table = parquet.read_table(tmp_path / "a" / made.index.shards[0].file)
    assert table.column("token_ids").to_pylist() == data.token_ids[: len(table)].tolist()
    found = np.float32(table.column("blocks.0.residual").to_pylist())
    np.testing.assert_array_equal(found, data["blocks.0.residual"][: len(table)])
    for name in (*data.points, "texts", "positions", "token_ids"):
        np.testing.assert_array_equal(made[name][:], data[name][:])
    (tmp_path / "a" / made.index.shards[1].file).unlink()
    before = hashes(tmp_path / "a")
    again = llm.record_dataset(TEXTS, *POINTS, out=tmp_path / "a", format="parquet", **SMALL)
    assert again is not None
    assert again.sha256 == made.sha256
    assert before.items() < hashes(tmp_path / "a").items()
    with pytest.raises(InvalidRequest, match="Parquet has no bfloat16: use float16 or float32"):
        llm.record_dataset(TEXTS, "embed", out=tmp_path / "b", format="parquet", dtype="bfloat16")
    made = llm.record_dataset(TEXTS, "embed", out=tmp_path / "c", format="parquet", dtype="float16")
    assert made is not None
    assert made["embed"][:].dtype == np.float16


def test_parquet_without_pyarrow(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InvalidRequest, match="format='parquet': needs pyarrow: pip install pyarrow, or use format"):
        llm.record_dataset(TEXTS, "embed", out=tmp_path / "data", format="parquet")


def test_torch(llm: LLM, data: ActivationDataset, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(data.torch("blocks.0.residual", "texts"), batch_size=16)
    values, texts = zip(*loader)
    np.testing.assert_array_equal(torch.cat(values).numpy(), data["blocks.0.residual"][:])
    np.testing.assert_array_equal(torch.cat(texts).numpy(), data.texts[:])
    assert data.torch("blocks.0.residual")[3].shape == data["blocks.0.residual"].shape[1:]
    made = llm.record_dataset(TEXTS, "embed", out=tmp_path / "data", dtype="bfloat16")
    assert made is not None
    rows = made.torch("embed")
    assert rows[0].dtype == torch.bfloat16
    np.testing.assert_array_equal(rows[2].float().numpy(), made["embed"][2])


@pytest.mark.filterwarnings("ignore")
def test_sae_lens_trains_on_batches(data: ActivationDataset) -> None:
    """As docs/guides/see-activation-datasets.md says."""
    torch, sae_lens = pytest.importorskip("torch"), pytest.importorskip("sae_lens")
    config = pytest.importorskip("sae_lens.config")
    trainer = pytest.importorskip("sae_lens.training.sae_trainer")
    values = torch.from_numpy(data["blocks.1.residual"][:])
    sae = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(d_in=values.shape[1], d_sae=128, k=8))
    batches = map(torch.from_numpy, data.batches("blocks.1.residual", size=128, seed=0, epochs=None))
    options = config.SAETrainerConfig(
        total_training_samples=200 * 128, train_batch_size_samples=128, lr=3e-3, lr_end=3e-4
    )
    before = float(((sae(values) - values) ** 2).mean())
    trainer.SAETrainer(options, sae, batches).fit()
    assert float(((sae(values) - values) ** 2).mean()) < before / 2


def test_without_torch(data: ActivationDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "pellucid.trace.dataset.torch_rows", raising=False)
    with pytest.raises(InvalidRequest, match=r"torch: is not installed: pip install torch, or use batches\(\)"):
        data.torch("blocks.0.residual")


def test_steps_wait_for_a_slow_disk(
    llm: LLM, data: ActivationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one block at a time the files are the same. An error of the disk ends the recording at once."""
    monkeypatch.setattr(shard_recorder, "WAITING", 1)
    put, calls, unwritten, most = ShardWriter.put, list[str](), list[object](), 0

    class Pool(ThreadPoolExecutor):
        def submit(self, function: Any, *given: Any) -> Any:
            nonlocal most
            task = super().submit(function, *given)
            if isinstance(given[-1], np.ndarray):
                unwritten.append(task)
                most = max(most, len(unwritten))
                task.add_done_callback(unwritten.remove)
            return task

    def slow(self: ShardWriter, column: str, row: int, values: Any) -> None:
        time.sleep(0.002)
        put(self, column, row, values)

    monkeypatch.setattr(shard_recorder, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(ShardWriter, "put", slow)
    llm.record_dataset(TEXTS, *POINTS, out=tmp_path / "slow", **SMALL)
    assert hashes(tmp_path / "slow") == hashes(data.path)
    assert most == 1, "no other block waits"

    def fails(self: ShardWriter, column: str, row: int, values: Any) -> None:
        calls.append(column)
        if len(calls) > 12:
            time.sleep(0.05)
            raise InvalidRequest("the disk is full")
        put(self, column, row, values)

    monkeypatch.setattr(ShardWriter, "put", fails)
    with pytest.raises(InvalidRequest, match="the disk is full"):
        llm.record_dataset(TEXTS * 20, *POINTS, out=tmp_path / "full", **SMALL)
    assert not list((tmp_path / "full").glob("*.part"))
    assert len(calls) < 200
    assert llm.generate(TEXTS[0], max_new_tokens=1).ids
