"""pellucid record: the output, corpora of each kind, parts, interruption, refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.command import PROGRAM, Command

import pellucid
from pellucid.trace import ActivationDataset

TEXTS = [f"to see that it rains {'in the east ' * (i % 5)}" for i in range(30)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)))
    return path


def test_record(command: Command, tiny: str, corpus: Path) -> None:
    out = corpus.with_name("data")
    given = ("record", tiny, str(corpus), "--points", "blocks.*.residual", "--points", "embed", "--out", str(out))
    found = command(*given, "--json").document
    data = ActivationDataset.open(out)
    assert found["computed"].pop("seconds") > 0
    assert found == {
        "folder": str(out),
        "complete": True,
        "rows": len(data),
        "shards": 1,
        "bytes": data.index.shards[0].bytes,
        "sha256": data.sha256,
        "computed": {"rows": len(data), "shards": 1, "bytes": len(data) * 4 * (3 + 3 * 32)},
    }
    assert list(data.points) == ["blocks.0.residual", "blocks.1.residual", "embed"]
    again = command(*given)
    assert (
        again.answer == f"{len(data):,} rows of 3 points, {found['bytes'] / 1e6:,.1f} MB: {out}\nsha256 {data.sha256}\n"
    )
    with pellucid.load(tiny, threads=1) as llm, llm.trace("blocks.1.residual") as trace:
        llm.generate(TEXTS[9], max_new_tokens=1)
    np.testing.assert_array_equal(data["blocks.1.residual"][data.rows_of(9)], trace["blocks.1.residual"][0])


def test_speed_is_printed(command: Command, tiny: str, corpus: Path) -> None:
    given = ("record", tiny, str(corpus), "--points", "embed", "--dtype", "float16", "--out", str(corpus.parent / "d"))
    ran = command(*given)
    assert " rows/s, " in ran.answer
    assert ran.err.splitlines()[-1] == "recording activations"  # no bars, because it is no terminal


def test_parts(command: Command, encoder: str, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "b").mkdir(parents=True)
    for number in range(12):
        (folder / "b" / f"{number:02}.txt").write_text("a sentence word1\n" * 30)
    (folder / "a.md").write_text("another\nsentence")
    (folder / "image.png").write_bytes(b"\xff")
    given = ("record", encoder, str(folder), "--points", "blocks.*.residual", "--dtype", "float16", "--truncate")
    whole = command(*given, "--out", str(tmp_path / "whole"), "--json").document
    first = command(*given, "--out", str(tmp_path / "parts"), "--part", "2/2", "--json").document
    assert (first["complete"], first["sha256"], first["computed"]["shards"]) == (False, None, whole["shards"] // 2)
    printed = command(*given, "--out", str(tmp_path / "parts"), "--part", "2/2").answer
    assert printed == f"0 shards with 0 rows. Shards of other parts are missing: {tmp_path / 'parts'}\n"
    last = command(*given, "--out", str(tmp_path / "parts"), "--part", "1/2", "--json").document
    assert last["sha256"] == whole["sha256"]
    assert ActivationDataset.open(tmp_path / "parts").texts[-1] == 12


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c(command: Command, endless: str, tmp_path: Path) -> None:
    """Ctrl-C ends a run without a traceback, and leaves whole shards. The next run continues."""
    corpus, out = tmp_path / "corpus.txt", tmp_path / "data"
    corpus.write_text("\n".join(TEXTS * 300))
    given = ["record", endless, str(corpus), "--points", "**.residual", "--points", "embed", "--out", str(out)]
    given += ["--shard-size", "1", "--context", "128"]
    run = subprocess.Popen([*PROGRAM, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not list(out.glob("*.safetensors")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    said, errors = run.communicate(timeout=60)
    assert (run.returncode, said) == (130, ""), errors
    assert "Traceback" not in errors
    left = {one.name: one.stat().st_mtime_ns for one in out.iterdir()}
    assert left
    assert all(name.endswith(".safetensors") for name in left)
    found = command(*given, "--json").document
    assert found["computed"]["shards"] == found["shards"] - len(left) > 0
    assert {name: (out / name).stat().st_mtime_ns for name in left} == left
    ActivationDataset.open(out).verify()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "record needs --points POINT and --out FOLDER. See pellucid record --help."),
        (("--points", "embed", "--out", "OUT", "--dtype", "int8"), "dtype='int8': must be one of float32, "),
        (("--points", "embed", "--out", "OUT", "--format", "csv"), "format='csv': must be one of safetensors, "),
        (("--points", "embed", "--out", "OUT", "--part", "0/2"), "part=0: must be"),
        (("--points", "embed", "--out", "OUT", "--shard-size", "0"), "shard_size=0: must be"),
        (("--points", "embed", "--out", "OUT", "--field", "body"), "has no field 'body' (fields: id, text)"),
    ],
)
def test_refused_before_the_model_is_looked_for(
    command: Command, corpus: Path, options: tuple[str, ...], words: str
) -> None:
    out = str(corpus.parent / "data")
    given = [out if option == "OUT" else option for option in options]
    assert words in command("record", "./no-model", str(corpus), *given).refusal
    assert not Path(out).exists()


def test_refused(command: Command, tiny: str, corpus: Path, tmp_path: Path) -> None:
    given = ("record", tiny, str(corpus), "--out")
    out = tmp_path / "data"
    assert "no point has this name" in command(*given, str(out), "--points", "blocks.7.residual").refusal
    missing = command("record", tiny, str(tmp_path / "none.txt"), "--points", "embed", "--out", str(out)).refusal
    assert "none.txt: cannot be read: No such file" in missing
    (tmp_path / "file").write_text("")
    ran = command(*given, str(tmp_path / "file"), "--points", "embed")
    assert ran.code == 2
    assert "cannot be written" in ran.err
    corpus.write_text('{"text": "to"}\n{"text": "' + "rain " * 300 + '"}')
    ran = command(*given, str(out), "--points", "embed")
    assert "corpus.jsonl, line 2: the text is too long" in ran.err
    assert command(*given, str(out), "--points", "embed", "--truncate").code == 0
