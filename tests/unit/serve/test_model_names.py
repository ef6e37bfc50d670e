"""Names of models in requests: they show no path, and they are unique."""

from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.errors import InvalidRequest
from pellucid.serve.pool import served_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "a/some-1.5B-q4.gguf",
        "b/some-1.5B-q4.gguf",
        "c/big-00001-of-00003.gguf",
        "d/Qwen2.5-0.5B/config.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_files_and_folders_have_their_own_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [str(folder / name) for name in ("a/some-1.5B-q4.gguf", "c/big-00001-of-00003.gguf", "d/Qwen2.5-0.5B")]
    assert served_names(models) == dict(zip(("some-1.5B-q4", "big", "Qwen2.5-0.5B"), models))
    monkeypatch.chdir(folder / "d" / "Qwen2.5-0.5B")
    assert served_names([".", "../../a/some-1.5B-q4.gguf"]) == {
        "Qwen2.5-0.5B": ".", "some-1.5B-q4": "../../a/some-1.5B-q4.gguf"
    }  # fmt: skip


def test_other_names_stay() -> None:
    models = ["smollm2", "hf:org/repo/file.gguf", "org/repo", "pypi:name==1.0/some.gguf"]
    assert served_names([*models, "smollm2"]) == dict(zip(models, models))


def test_aliases(folder: Path) -> None:
    one, other = str(folder / "a/some-1.5B-q4.gguf"), str(folder / "b/some-1.5B-q4.gguf")
    assert served_names([one, other], [f"gpt={other}"]) == {"some-1.5B-q4": one, "gpt": other}
    assert served_names(["smollm2"], [f"gpt={one}"]) == {"smollm2": "smollm2", "gpt": one}
    assert served_names([], ["a/b=smollm2"]) == {"a/b": "smollm2"}
    assert served_names([one], [f"gpt={one}", f"gpt={one}"]) == {"gpt": one}


def test_what_is_refused(folder: Path) -> None:
    one, other = str(folder / "a/some-1.5B-q4.gguf"), str(folder / "b/some-1.5B-q4.gguf")
    for models, aliases, said in (
        ([one, other], [], "would both be called 'some-1.5B-q4': name one of them, --alias NAME="),
        (["smollm2"], [f"smollm2={one}"], "would both be called 'smollm2'"),
        ([], ["smollm2"], "must be NAME=FILE"),
        ([], ["=smollm2"], "must be NAME=FILE"),
        ([], ["gpt="], "must be NAME=FILE"),
        (["smollm2", "no/such.gguf"], [], "there is no file 'no/such.gguf'"),
        ([], ["gpt=such.safetensors"], "there is no file 'such.safetensors'"),
        ([one], [f"a={one}", f"b={one}"], "a model has one name"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            served_names(models, aliases)
