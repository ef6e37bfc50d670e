"""The hub: the choice of files, downloads from a small hub in this process, and quick failures."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub import environment
from support.hub import hub as served_hub

from pellucid.errors import SourceError
from pellucid.weights.sources import huggingface as module
from pellucid.weights.sources.huggingface import SOURCE, HubSpec, choose, parse

SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt"],
            ["config.json", "tokenizer.json", "vocab.txt", "model.safetensors"],
        ),
        (
            ["1_Pooling/config.json", "config.json", "model.safetensors", "onnx/model.onnx", "x.gguf"],
            ["config.json", "1_Pooling/config.json", "model.safetensors"],
        ),
        (["config.json", INDEX, *SHARDS, "extra.safetensors"], ["config.json", INDEX, *SHARDS]),
        (["config.json", INDEX, "model.safetensors", *SHARDS], ["config.json", "model.safetensors"]),
        (["config.json", "weights.safetensors"], ["config.json", "weights.safetensors"]),
        (["only.gguf", "config.json"], ["only.gguf"]),
        (["a-Q8_0.gguf", "a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "mmproj-a-f16.gguf"], ["a-Q4_K_M.gguf"]),
        (["a.q8_0.gguf", "a.q2_k.gguf"], ["a.q8_0.gguf"]),
        (
            ["Q4_0/a-Q4_0-00001-of-00002.gguf", "Q4_0/a-Q4_0-00002-of-00002.gguf", "a-Q8_0.gguf"],
            ["Q4_0/a-Q4_0-00001-of-00002.gguf", "Q4_0/a-Q4_0-00002-of-00002.gguf"],
        ),
        (["a-IQ4_XS.gguf", "a-BF16.gguf", "a-F16.gguf"], ["a-IQ4_XS.gguf"]),
        (["a-Q8_K.gguf", "a-BF16.gguf", "a-F16.gguf"], ["a-F16.gguf"]),
    ],
)
def test_choice(names: list[str], chosen: list[str]) -> None:
    assert choose("o/r", names) == chosen


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "several models, name one: hf:o/r/FILE with a-Q4_K_M.gguf, b-Q4"),
        (["a-IQ1_S.gguf", "a-IQ2_S.gguf"], "several models"),
        (["config.json", "a.safetensors", "b.safetensors"], "several models"),
        (["pytorch_model.bin"], "neither safetensors with a config.json nor GGUF; it has pytorch_model.bin"),
        ([], "it has nothing"),
    ],
)
def test_unclear_choice_lists_what_there_is(names: list[str], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        choose("o/r", names)


def test_spec() -> None:
    assert parse("org/repo") == parse("org/repo/") == parse("org/repo:latest") == HubSpec("org/repo")
    assert parse("org/repo/sub/f.gguf") == HubSpec("org/repo", "sub/f.gguf")
    assert parse("org/repo:Q4_K_M") == HubSpec("org/repo", tag="Q4_K_M")
    assert parse("org/repo:f.gguf") == HubSpec("org/repo", "f.gguf")
    for bad in (
        "repo",
        "-x/y",
        "org/repo/../x",
        "org/repo//x",
        "org/repo/a\\b",
        "o rg/repo",
        "../x",
        "a--b/c",
        "a/b..c",
        "a/b/con",
    ):
        with pytest.raises(SourceError, match="is not"):
            parse(bad)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("hf.co/a/b", "a/b"),
        ("hf.co/a/b:Q4_K_M", "a/b:Q4_K_M"),
        ("huggingface.co/a/b", "a/b"),
        ("https://huggingface.co/a/b/", "a/b"),
        ("http://www.huggingface.co/a/b?library=x", "a/b"),
        ("https://HF.co/a/b/resolve/main/sub/f.gguf?download=true", "a/b/sub/f.gguf"),
        ("https://huggingface.co/a/b/blob/main/f.gguf#top", "a/b/f.gguf"),
        ("https://huggingface.co/a/b/tree/main", "a/b"),
        ("a/b:Q8_0", "a/b:Q8_0"),
        ("a/b", None),
        ("hf:a/b:Q8_0", None),
        ("a:b", None),
        ("https://example.com/a/b/resolve/main/f.gguf", None),
        ("hf.company/a/b", None),
    ],
)
def test_forms_of_a_spec(text: str, rest: str | None) -> None:
    assert SOURCE.spec_of(text) == rest


def test_only_the_main_revision() -> None:
    with pytest.raises(SourceError, match="only the revision main can be fetched: save the file first"):
        SOURCE.spec_of("https://huggingface.co/a/b/resolve/v2/f.gguf")


def test_choice_by_a_tag() -> None:
    files = ["a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a-Q8_0.gguf", "a-UD-Q4_K_XL.gguf", "config.json", "model.safetensors"]
    assert choose("o/r", files, "Q8_0") == ["a-Q8_0.gguf"]
    assert choose("o/r", files, "q4_k_s") == ["a-Q4_K_S.gguf"]
    assert choose("o/r", files, "UD-Q4_K_XL") == ["a-UD-Q4_K_XL.gguf"]
    assert choose("o/r", files) == ["config.json", "model.safetensors"]
    for tag, said in (("Q4_K", "no GGUF file with 'Q4_K' in its name; it has a-Q4_K_M.gguf"), ("a", "several models")):
        with pytest.raises(SourceError, match=said):
            choose("o/r", files, tag)
    with pytest.raises(SourceError, match="neither safetensors with"):
        choose("o/r", ["config.json", "model.safetensors"], "Q8_0")


def test_hub_that_never_answers_costs_the_deadline_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forever, ended = threading.Event(), list[bool]()
    monkeypatch.setattr(module, "DEADLINE", 0.05)
    monkeypatch.setattr("pellucid.weights.sources.hub.Hub.revision", lambda hub: ended.append(forever.wait(600)))
    with pytest.raises(SourceError, match=r"did not answer within 0\.05 seconds"):
        module.SOURCE.fetch("org/repo", tmp_path, _Silent(), None)
    assert not ended
    forever.set()


def test_offline_mode_is_respected(no_hub: None, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"(?i)offline"):
        module.SOURCE.fetch("org/repo", tmp_path, _Silent(), None)
    assert module.SOURCE.cached("org/repo") is None
    assert module.SOURCE.cached("org/repo/file") is None


class _Silent:
    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        pass


SPLIT = [f"sub/m-0000{n}-of-00002.gguf" for n in (1, 2)]
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"no",
    **dict.fromkeys(SPLIT, b"gguf"),
}


@pytest.fixture
def hub() -> Iterator[str]:
    with served_hub({"org/tiny": FILES}) as server:
        yield server.address


RESOLVE = """
import json, sys
from pellucid.errors import PellucidError
from pellucid.weights.store import remove, resolve
calls = []
class Seen:
    def update(self, done, total, label): calls.append([done, total, label])
for spec in sys.argv[1:]:
    calls.clear()
    try:
        if spec.startswith("rm "):
            remove(spec[3:])
        print(json.dumps([str(resolve(spec, progress=Seen())), calls]))
    except PellucidError as error:
        print(json.dumps([str(error), calls]))
"""


def run(tmp_path: Path, endpoint: str, *specs: str) -> list[tuple[str, list[Any]]]:
    """Resolve in a fresh process."""
    command = [sys.executable, "-c", RESOLVE, *specs]
    output = subprocess.check_output(command, text=True, env=environment(endpoint, tmp_path), cwd=tmp_path)
    return [tuple(json.loads(line)) for line in output.splitlines()]


def test_fetch_and_find_again_without_the_hub(tmp_path: Path, hub: str) -> None:
    split = f"hf:org/tiny/{SPLIT[1]}"
    (folder, calls), (file, _), (absent, _), (part, _) = run(
        tmp_path, hub, "org/tiny", "hf:org/tiny/config.json", "hf:org/tiny/nope.gguf", split
    )
    got = sorted(p.name for p in Path(folder).iterdir() if p.is_file())
    assert got == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (Path(folder) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert [7000, 7000, "model.safetensors"] in calls
    assert Path(file).read_bytes() == FILES["config.json"]
    assert "has no file 'nope.gguf'; it has config.json" in absent
    assert all((Path(folder) / name).is_file() for name in SPLIT)
    assert Path(part).is_file()
    nowhere = "http://127.0.0.1:9"  # the discard port refuses connections
    (again, none), (failed, _), (part, _) = run(tmp_path, nowhere, "hf:org/tiny", "org/other", split)
    assert (again, none) == (folder, [])
    assert Path(part) == Path(folder) / SPLIT[1]
    assert "there is no file or folder 'org/other'; cannot fetch hf:org/other: the hub cannot be reached" in failed


def test_other_forms_of_a_spec_are_fetched(tmp_path: Path, hub: str) -> None:
    card, file = "https://huggingface.co/org/tiny", SPLIT[1]
    view = f"{card}/blob/main/{file}"
    results = run(tmp_path, hub, "hf.co/org/tiny", card, view, "hf.co/org/tiny:m", "org/tiny:nope", "rm org/tiny:m")
    (folder, _), (same, _), (part, _), (tagged, _), (absent, _), (kept, _) = results
    assert folder == same
    assert sorted(p.name for p in Path(folder).iterdir() if p.is_file())[-1] == "tokenizer.json"
    assert Path(part) == Path(folder) / file
    assert Path(tagged) == Path(folder) / SPLIT[0]
    assert "org/tiny has no GGUF file with 'nope' in its name; it has sub/m-00001-of-00002.gguf" in absent
    assert "it is in the cache of Hugging Face: hf cache rm model/org/tiny removes it" in kept
