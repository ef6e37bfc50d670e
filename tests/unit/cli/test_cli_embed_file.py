"""pellucid embed --file: formats, interrupted runs, refusals."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import PROGRAM, Command

import pellucid
from pellucid.cli.output_file import VectorFile
from pellucid.errors import InvalidRequest
from pellucid.util.text_file import TextFile

TEXTS = [f"a sentence word{i} another" for i in range(30)] + ["naïve\u2028café", "x" * 70]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)) + "\n\n")
    return path


@pytest.fixture(scope="module")
def vectors(encoder: str) -> np.ndarray:
    with pellucid.load(encoder, threads=1) as llm:
        return llm.embed(TEXTS)


def written(path: Path) -> list[str]:
    """The names of the files beside a path, without the corpora."""
    return sorted(one.name for one in path.parent.iterdir() if not one.name.startswith("corpus"))


def test_an_array(command: Command, encoder: str, corpus: Path, vectors: np.ndarray) -> None:
    out = corpus.with_name("vectors.npy")
    out.write_text("an earlier file")
    found = command("embed", encoder, "--file", str(corpus), "--out", str(out), "--json").document
    assert found == {"texts": len(TEXTS), "dimensions": vectors.shape[1], "file": str(out)}
    stored = np.load(out, mmap_mode="r")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, vectors)
    assert written(out) == ["vectors.npy"]
    line = command("embed", encoder, "--file", str(corpus), "--out", str(out)).answer
    assert line == f"32 vectors of {vectors.shape[1]} components: {out}\n"


def test_lines_of_json(command: Command, encoder: str, corpus: Path, vectors: np.ndarray) -> None:
    out = corpus.with_name("vectors.jsonl")
    assert command("embed", encoder, "--file", str(corpus), "--out", str(out)).code == 0
    records = [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]]
    assert [record["text"] for record in records] == TEXTS
    np.testing.assert_array_equal(np.float32([record["vector"] for record in records]), vectors)
    assert written(out) == ["vectors.jsonl"]


def test_texts_of_each_kind_of_file(tmp_path: Path) -> None:
    texts = ["one", "two, with a comma", 'a "quote"', "naïve\u2028line", " spaces "]
    (tmp_path / "a.txt").write_bytes(("\ufeff" + "\r\n".join(texts)).encode())
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text, "n": 1}) for text in texts) + "\n\n \n")
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "body"])
        rows.writerows([[i, text] for i, text in enumerate([*texts, "two\nlines"])])
    for name, field, wanted in (
        ("a.txt", None, texts),
        ("a.jsonl", "body", texts),
        ("a.csv", "body", [*texts, "two\nlines"]),
    ):
        source = TextFile(tmp_path / name, field)
        assert [text for _, text in source.texts()] == wanted
        assert [text for _, text in source.texts(2)] == wanted[2:]
        assert source.count() == len(wanted)
    assert next(TextFile(tmp_path / "a.jsonl", "body").texts(1))[0] == "a.jsonl, line 2"


def test_a_folder_of_texts(command: Command, encoder: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "corpus", tmp_path / "vectors.npy"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "2.txt").write_bytes("\ufeffa sentence\nanother".encode())
    (folder / "b" / "10.MD").write_text("word1")
    (folder / "a.png").write_bytes(b"\xff")
    source = TextFile(folder)
    assert list(source.texts()) == [("corpus, b/10.MD", "word1"), ("corpus, b/2.txt", "a sentence\nanother")]
    before = source.sha256()
    assert command("embed", encoder, "--file", str(folder), "--out", str(out)).code == 0
    with pellucid.load(encoder, threads=1) as llm:
        np.testing.assert_array_equal(np.load(out), llm.embed(["word1", "a sentence\nanother"]))
    (folder / "c.txt").write_bytes(b"a\xff")
    with pytest.raises(InvalidRequest, match=r"corpus, c\.txt: is not UTF-8"):
        source.count()
    (folder / "c.txt").write_text("more")
    assert source.sha256() != before
    with pytest.raises(InvalidRequest, match="field='x': a folder has no fields"):
        TextFile(folder, "x")


def test_parquet(command: Command, encoder: str, tmp_path: Path, vectors: np.ndarray) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    source, out = tmp_path / "corpus.parquet", tmp_path / "vectors.parquet"
    parquet.write_table(arrow.table({"id": list(range(len(TEXTS))), "body": TEXTS}), source, row_group_size=7)
    assert [text for _, text in TextFile(source, "body").texts(20)] == TEXTS[20:]
    with pytest.raises(InvalidRequest, match=r"has no field 'text' \(fields: id, body\)"):
        TextFile(source).count()
    given = ("embed", encoder, "--file", str(source), "--field", "body", "--out", str(out))
    assert command(*given).code == 0
    table = parquet.read_table(out)
    assert table.column("text").to_pylist() == TEXTS
    np.testing.assert_array_equal(np.float32(table.column("vector").to_pylist()), vectors)
    source.write_bytes(b"PAR1 and nothing else PAR1")
    assert "corpus.parquet: is not Parquet: " in command(*given).refusal


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InvalidRequest, match=r"a\.parquet: Parquet files need pyarrow: pip install pyarrow, or"):
        TextFile(tmp_path / "a.parquet")
    with pytest.raises(InvalidRequest, match=r"b\.parquet: Parquet files need pyarrow"):
        VectorFile(tmp_path / "b.parquet", TextFile(tmp_path / "a.txt"))


def test_texts_are_read_in_pieces(encoder: str, tmp_path: Path) -> None:
    """In their order, and no further than the piece that runs, so that memory is bounded."""
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS))
    source, read = TextFile(path), list[str]()
    with pellucid.load(encoder, threads=1) as llm:
        sentences = llm.inputs.sentences

        class Reading:
            @staticmethod
            def sentences(texts: list[str], *options: Any) -> list[list[int]]:
                read.extend(texts)
                return sentences(texts, *options)

        pieces = []
        for piece in source.encoded(Reading, 3, "", False, piece=40):  # type: ignore[arg-type]
            assert len(read) == sum(map(len, pieces)) + len(piece)
            pieces.append(piece)
        assert [ids for piece in pieces for ids in piece] == sentences(TEXTS[3:])
    tokens = [sum(map(len, piece)) for piece in pieces]
    assert len(tokens) > 3
    assert all(40 <= count < 60 for count in tokens[:-1])


RUN = {"model": "m", "--truncate": False, "--dimensions": 3}


def started(folder: Path, name: str = "out.npy", **changes: Any) -> tuple[VectorFile, Any]:
    (folder / "corpus.txt").write_text("one\ntwo\nthree\nfour\n")
    file = VectorFile(folder / name, TextFile(folder / "corpus.txt"))
    return file, file.opened({**RUN, **changes}, 4, 3)


ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_an_interrupted_run_continues(tmp_path: Path, name: str) -> None:
    file, opened = started(tmp_path, name)
    with pytest.raises(KeyboardInterrupt), opened:  # noqa: PT012
        file.append(ROWS[:1])
        file.append(ROWS[1:3])
        raise KeyboardInterrupt
    assert written(tmp_path / name) == [f"{name}.part", f"{name}.part.json"]
    with open(tmp_path / f"{name}.part", "ab") as part:  # a row that was not complete when the process died
        part.write(b"12345")
    file, opened = started(tmp_path, name, **{"--truncate": True})
    with opened:
        assert file.done == 3
        file.append(ROWS[3:])
    file.finish()
    assert written(tmp_path / name) == [name]
    if name == "out.npy":
        np.testing.assert_array_equal(np.load(tmp_path / name), ROWS)
    else:
        records = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [(one["text"], one["vector"]) for one in records][3] == ("four", [9.0, 10.0, 11.0])


def test_what_an_interrupted_run_refuses(tmp_path: Path) -> None:
    file, opened = started(tmp_path)
    with opened:
        file.append(ROWS[:2])
    before = (tmp_path / "out.npy.part").read_bytes()
    for changes, words in (
        ({"model": "n"}, "with another model: delete it to begin again, or name another --out"),
        ({"--dimensions": 2}, "with another --dimensions:"),
        ({"model": "n", "--dimensions": 2}, "with another model and another --dimensions:"),
    ):
        _, opened = started(tmp_path, **changes)
        with pytest.raises(InvalidRequest, match=f"out.npy.part.json: is of an interrupted run {words}"), opened:
            pass
    assert (tmp_path / "out.npy.part").read_bytes() == before
    stated = (tmp_path / "out.npy.part.json").read_text()
    short = "says that 99 of 4 vectors are done, and out.npy.part has fewer"
    for damage, words in (
        *((one, "is damaged") for one in ("{}", "[]", "", "no JSON", stated[:20], '{"run": 1, "done": 1}')),
        ('{"run": {}, "done": 1}', "is damaged"),
        (stated.replace('"done": 2', '"done": null'), "is damaged"),
        (stated.replace('"done": 2', '"done": 99'), short),
    ):
        (tmp_path / "out.npy.part.json").write_text(damage)
        _, opened = started(tmp_path)
        with pytest.raises(InvalidRequest, match=f"{words}: delete it to begin again"), opened:
            pass
    (tmp_path / "out.npy.part.json").unlink()
    file, opened = started(tmp_path)
    with opened:
        assert file.done == 0


def test_a_manifest_without_vectors(tmp_path: Path) -> None:
    """A run that was killed between its two last steps leaves a manifest. The next run begins again."""
    file, opened = started(tmp_path)
    with opened:
        file.append(ROWS)
    manifest = (tmp_path / "out.npy.part.json").read_text()
    file.finish()
    (tmp_path / "out.npy.part.json").write_text(manifest)
    file, opened = started(tmp_path, model="n")
    with opened:
        assert file.done == 0
        assert not (tmp_path / "out.npy.part.json").exists()
    assert written(tmp_path / "out.npy") == ["out.npy"]


@pytest.mark.parametrize("count", [3, 5])
def test_a_file_that_changes_during_the_run(tmp_path: Path, count: int) -> None:
    file, opened = started(tmp_path)
    with opened:
        file.append(np.zeros((count, 3), np.float32))
    with pytest.raises(InvalidRequest, match=f"corpus.txt: had 4 texts, and now has {count}: the file changed"):
        file.finish()
    assert not (tmp_path / "out.npy").exists()


def test_a_part_that_is_shorter_than_its_manifest_is_refused(tmp_path: Path) -> None:
    file, opened = started(tmp_path)
    with opened:
        file.append(ROWS[:2])
    os.truncate(tmp_path / "out.npy.part", 130)
    file, opened = started(tmp_path)
    with pytest.raises(InvalidRequest, match="says that 2 of 4 vectors are done, and"), opened:
        pass


def test_a_second_run_is_refused_before_it_computes(command: Command, encoder: str, tmp_path: Path) -> None:
    file, opened = started(tmp_path)
    given = ("embed", encoder, "--file", str(tmp_path / "corpus.txt"), "--out", str(tmp_path / "out.npy"))
    with file.locked():
        with opened:
            file.append(ROWS)
        before = (tmp_path / "out.npy.part").read_bytes()
        refused = command(*given).refusal
        assert ": another run writes this file: wait for its end, or name another file" in refused
        assert (tmp_path / "out.npy.part").read_bytes() == before
        file.finish()
    assert written(tmp_path / "out.npy") == ["out.npy"]
    assert command(*given).code == 0
    assert written(tmp_path / "out.npy") == ["out.npy"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c(command: Command, encoder: str, tmp_path: Path) -> None:
    """Ctrl-C ends a run without a traceback. The next run continues, and computes only the missing vectors."""
    source, out = tmp_path / "corpus.txt", tmp_path / "vectors.npy"
    lines = [f"a sentence word{i % 40} " + "another " * 50 for i in range(8000)]
    source.write_text("\n".join(lines))
    given = ["embed", encoder, "--file", str(source), "--out", str(out)]
    manifest, part = tmp_path / "vectors.npy.part.json", tmp_path / "vectors.npy.part"
    run = subprocess.Popen([*PROGRAM, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not manifest.exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    said, errors = run.communicate(timeout=60)
    assert (run.returncode, said) == (130, ""), errors
    assert "Traceback" not in errors
    done = json.loads(manifest.read_text())["done"]
    assert 0 < done < len(lines)
    assert not out.exists()
    source.write_text("\n".join([*lines[:50], "changed", *lines[51:]]))
    assert "with another file of texts: delete it" in command(*given).refusal
    source.write_text("\n".join(lines))
    assert "with another option of loading: delete it" in command(*given, "--precise").refusal
    with open(part, "r+b") as file:  # a mark that is still there if the run does not compute the vector again
        np.lib.format.read_magic(file)
        (_, width), _, _ = np.lib.format.read_array_header_1_0(file)
        file.seek(4 * (done * width - 1), os.SEEK_CUR)  # the file may end with rows that do not count yet
        file.write(np.float32(7).tobytes())
    assert command(*given).code == 0
    vectors = np.load(out)
    assert vectors[done - 1, -1] == 7
    sample = [0, done - 2, done, len(lines) - 1]
    with pellucid.load(encoder, threads=1) as llm:
        np.testing.assert_array_equal(vectors[sample], llm.embed([lines[i] for i in sample]))


def test_prompt_dimensions_and_long_texts(command: Command, encoder: str, tmp_path: Path) -> None:
    source, out = tmp_path / "corpus.txt", tmp_path / "vectors.npy"
    source.write_text("a sentence\n" + "another " * 3000 + "\nword1")
    given = ("embed", encoder, "--file", str(source), "--out", str(out))
    refused = command(*given)
    assert refused.code == 2
    assert "\npellucid: corpus.txt, line 2: the text is too long: 3,002 tokens" in refused.err
    assert written(source) == []
    assert command(*given, "--prompt", "word2 word3 ", "--truncate").code == 0
    with pellucid.load(encoder, threads=1) as llm:
        lines = source.read_text().splitlines()
        wanted = llm.embed(lines, prompt="word2 word3 ", truncate=True)
        assert not np.array_equal(wanted, llm.embed(lines, truncate=True))
    np.testing.assert_array_equal(np.load(out), wanted)
    assert "no prompt of this name" in command(*given, "--prompt", "query").refusal
    assert "dimensions=5: the vectors have" in command(*given, "--dimensions", "5").refusal
    assert "dimensions=0: must be" in command(*given, "--dimensions", "0").refusal


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("c.md", b"a", (), "its name must end with .txt, .jsonl, .csv, .parquet"),
        ("c.txt", b"a", ("--field", "x"), "field='x': a .txt file has no fields: leave it out"),
        ("c.txt", b"", (), "has no texts: give a file with at least one text"),
        ("c.txt", b"a\n\nb", (), "c.txt, line 2: has no text: give each record a text"),
        ("c.txt", b"a\nb\xff\n", (), "c.txt, line 2: is not UTF-8: convert the file first"),
        ("c.jsonl", b'{"text": "a"}\n{"text": 3}', (), "c.jsonl, line 2: 3 is not a text: give each record"),
        ("c.jsonl", b'{"text": "a"}\n{"text": null}', (), "c.jsonl, line 2: has no text"),
        ("c.jsonl", b'{"body": "a", "id": 1}', (), "line 1: has no field 'text' (fields: body, id): choose one"),
        ("c.jsonl", b'{"text": "a"}\n\n \n{"text": "b"}', (), "c.jsonl, line 2: is blank: give each line a record"),
        ("c.jsonl", b'\n{"text": "a"}', (), "c.jsonl, line 1: is blank"),
        ("c.jsonl", b'["a"]', (), "line 1: has no field 'text' (fields: none)"),
        ("c.jsonl", b"{", (), "c.jsonl, line 1: is not JSON: "),
        ("c.csv", b"id,body\n1,a", (), "c.csv, line 1: has no field 'text' (fields: id, body)"),
        ("c.csv", b"id,text\n1,a\n2", (), "c.csv, line 3: has no text"),
        ("c.csv", b'id,text\n1,"a"b', (), "c.csv, line 2: is not CSV: "),
        ("c.csv", b"id,text\n1,\xff", (), "c.csv, line 2: is not UTF-8"),
        ("c.csv", b"", (), "has no field 'text' (fields: none)"),
        ("none.txt", None, (), "none.txt: cannot be read: No such file"),
    ],
)
def test_files_that_are_refused(
    command: Command, tmp_path: Path, name: str, content: bytes | None, options: tuple[str, ...], words: str
) -> None:
    """Before the model is looked for."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    given = ("embed", "./no-model", "--file", str(tmp_path / name), "--out", str(tmp_path / "o.npy"))
    assert words in command(*given, *options).refusal
    assert not (tmp_path / "o.npy").exists()


def test_command_lines_that_are_refused(command: Command, tiny: str, corpus: Path) -> None:
    folder, file = corpus.parent, str(corpus)
    for given, words in (
        (("m", "--file", file), "--file FILE and --out FILE belong together"),
        (("m", "a text", "--out", "o.npy"), "--file FILE and --out FILE belong together"),
        (("m", "a text", "--file", file, "--out", "o.npy"), "belong together, without TEXT"),
        (("m",), "embed needs texts, or --file FILE and --out FILE"),
        (("m", "--prompt", "a text"), "embed needs texts, which --prompt is put before, or --file FILE"),
        (("m", "--file", file, "--out", "o.bin"), "out='o.bin': its name must end with .npy, .jsonl, .parquet"),
        (("m", "--file", file, "--out", file), "is the same file as"),
        (("m", "--file", file, "--out", str(folder / "none" / "o.npy")), "cannot be written"),
        ((tiny, "--file", file, "--out", str(folder / "o.npy")), "makes text, not sentence vectors"),
    ):
        assert words in command("embed", *given).refusal
    assert written(corpus) == []
