"""Invalid input: one line on standard error, exit code 2, no standard output, nothing loaded or compiled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.command import Command, pellucid
from support.fresh import fresh
from support.model_files import gguf, gguf_tensor
from support.tiny import LLAMA_GGUF, LLAMA_GGUF_SHAPES, write_llama_gguf

from pellucid import load
from pellucid.errors import (
    ContextOverflow,
    FileFormatError,
    InvalidRequest,
    ModelNotFound,
    SourceError,
    TemplateError,
    UnsupportedModel,
)
from pellucid.util import trusted_files
from pellucid.util.paths import NOWHERE, home, user_cache

OPTIONS = [
    (("--temperature", "-1"), "temperature=-1.0: must be a number from 0 to 100"),
    (("--temperature", "nan"), "temperature=nan"),
    (("--temperature", "inf"), "temperature=inf"),
    (("--temperature", "abc"), "temperature='abc'"),
    (("--top-p", "1.5"), "top_p=1.5: must be a number from 0 to 1"),
    (("--top-p", "-1"), "top_p=-1.0"),
    (("--samplers", "top_k,nonsense"), "samplers has 'nonsense'; the steps are penalties, "),
    (("--samplers", "top_p", "--top-k", "3"), "top_k=3, but samplers has no top_k: add it"),
    (("--mirostat", "2", "--min-p", "0.1"), "min_p=0.1: mirostat replaces min_p"),
    (("--logit-bias", "5"), "logit_bias='5': must map token ids or texts to numbers"),
    (("--logit-bias", "5=x"), "logit_bias='5=x': must map token ids or texts to numbers"),
    (("--stop-token-ids", "1,x"), "stop_token_ids holds a token id='x'"),
    (("--max-time", "0"), "max_time=0.0: must be a number above 0"),
    (("--top-k", "-1"), "top_k=-1"),
    (("--top-k", "2.5"), "top_k='2.5'"),
    (("--seed", "abc"), "seed='abc': must be a whole number"),
    (("--seed", "-1"), "seed=-1"),
    (("--seed", "9" * 30), "seed=999"),
    (("--seed", "9" * 5000), "seed="),
    (("--max-new-tokens", "0"), "max_new_tokens=0"),
    (("--max-new-tokens", "many"), "max_new_tokens='many'"),
    (("--threads", "0"), "threads=0: must be a whole number from 1 to"),
    (("--pin", "sockets"), "pin='sockets': must be one of none, nodes, cores"),
    (("--pin", "cores", "--threads", "256"), "pin='cores': 256 threads, "),
    (("--threads", "100000"), "threads=100000"),
    (("--kv-cache", "f12"), "kv_cache='f12': must be one of f16, bf16, q8_0, f32"),
    (("--kv-cache", "q4_0"), "kv_cache='q4_0': must be one of f16, bf16, q8_0, f32"),
    (("--context", "0"), "context=0: must be a whole number from 1 to 128"),
    (("--context", "129"), "context=129"),
    (("--stop", ""), "stop='': must be a text of 1 to 4,096 characters"),
    (("--nope",), "No such option: --nope"),
    (("--stop",), "'--stop' requires an argument"),
    (("--seed", "1\x1b[31m\n2"), "seed="),
]


@pytest.fixture(autouse=True)
def nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    yield
    assert not (tmp_path / "home" / "kernels").exists()


@pytest.mark.parametrize(
    ("arguments", "message"), OPTIONS, ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else ""
)
@pytest.mark.parametrize("name", ["run", "chat"])
def test_an_option_out_of_range(
    command: Command, tiny: str, name: str, arguments: tuple[str, ...], message: str
) -> None:
    prompt = ("hi",) if name == "run" else ()
    assert message in command(name, tiny, *prompt, *arguments).refusal


def test_options_are_checked_before_the_model_is_looked_for(command: Command) -> None:
    assert "temperature" in command("run", "nothing", "hi", "--temperature", "-1").refusal
    assert "kv_cache" in command("plan", "nothing", "--kv-cache", "f12").refusal


@pytest.mark.parametrize("name", ["run", "chat", "embed", "pull", "info", "plan", "bench"])
def test_an_unknown_model(command: Command, name: str) -> None:
    text = ("hi",) if name in ("run", "embed") else ()
    assert "no model is called 'smolm2'. Did you mean smollm2?" in command(name, "smolm2", *text).refusal
    assert "there is no file or folder './nowhere'" in command(name, "./nowhere", *text).refusal
    assert "there is no file or folder 'nowhere.gguf'" in command(name, "nowhere.gguf", *text).refusal
    assert "no source 'foo'; known are hf:" in command(name, "foo:bar", *text).refusal
    assert "no model is called ''" in command(name, "", *text).refusal
    for hostile in ("a\nb\x1b[31m\r\t", "./a\nb\x1b[31m", "pypi:a\nb", "hf:a\nb/c\x00", "\udcff\udcfe", "x" * 5000):
        assert len(command(name, hostile, *text).refusal) < 400


def test_a_path_that_holds_no_model(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no model" in command("run", str(tmp_path / "empty"), "hi").refusal
    (tmp_path / "text.gguf").write_text("hello there")
    assert "neither GGUF nor safetensors" in command("run", str(tmp_path / "text.gguf"), "hi").refusal
    (tmp_path / "nothing.gguf").write_bytes(b"")
    assert "nothing.gguf" in command("run", str(tmp_path / "nothing.gguf"), "hi").refusal
    hostile = tmp_path / "two\nlines\x1b[31m"
    hostile.mkdir()
    assert "holds no model" in command("run", str(hostile), "hi").refusal
    (hostile / "model.gguf").write_text("hello there")
    assert "neither" in command("run", str(hostile / "model.gguf"), "hi").refusal


@pytest.mark.skipif(os.name != "posix", reason="permissions and devices of POSIX")
def test_a_file_that_cannot_be_read(command: Command, tmp_path: Path) -> None:
    assert "null: file: is not a regular file" in command("run", "/dev/null", "hi").refusal
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "is not a regular file" in command("run", str(tmp_path / "pipe.gguf"), "hi").refusal
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(b"GGUF")
    secret.chmod(0)
    assert "secret.gguf" in command("run", str(secret), "hi").refusal


def offsets() -> list[int]:
    """50 sizes to truncate a file to: within the header, the metadata, the tensor table and the data."""
    head = len(gguf(LLAMA_GGUF, {}))
    table = head + sum(len(gguf_tensor(name, shape, 0, 0)) for name, shape in LLAMA_GGUF_SHAPES.items())
    data = sum(4 * int(np.prod(shape)) for shape in LLAMA_GGUF_SHAPES.values())
    end = -(-table // 32) * 32 + data
    borders = (0, 24, head, table, end)
    counts = (8, 14, 14, 14)
    parts = (np.linspace(a, b, n, endpoint=False) for a, b, n in zip(borders, borders[1:], counts))
    return [*map(int, np.concatenate([*parts])[:-1]), end - 1]


@pytest.mark.parametrize("size", offsets())
def test_a_truncated_gguf(command: Command, tmp_path: Path, size: int) -> None:
    path = write_llama_gguf(tmp_path / "model.gguf")
    whole = path.stat().st_size
    os.truncate(path, size)
    assert size < whole
    assert command("run", str(path), "hi").refusal.startswith("model.gguf: ")
    with pytest.raises(FileFormatError) as caught:
        load(path)
    assert caught.value.path == path
    assert caught.value.field


def test_fifty_places() -> None:
    assert len(set(offsets())) == 50


@pytest.mark.parametrize("architecture", ["mamba", "ma\nmba\x1b[31m", ""])
def test_an_architecture_that_is_not_known(command: Command, tmp_path: Path, architecture: str) -> None:
    path = write_llama_gguf(tmp_path / "model.gguf", {**LLAMA_GGUF, "general.architecture": architecture})
    refusal = command("run", str(path), "hi").refusal
    assert refusal.endswith("is not supported: `pellucid list --families` shows all that are")
    with pytest.raises(UnsupportedModel):
        load(path)


def test_prompts(command: Command, tiny: str) -> None:
    assert "text='': must be a text of at least 1 character" in command("run", tiny, "").refusal
    long = "to see that it rains in the east"
    assert "the context is 16 and must hold the answer" in command("run", tiny, long, "--context", "16").refusal
    assert "the context is 128" in command("run", tiny, long * 100).refusal
    assert "text='': must be" in pellucid("run", tiny, "-").refusal
    assert "text='': must be" in pellucid("run", tiny).refusal


def test_what_a_model_is_not_made_for(command: Command, tiny: str, mute: str, encoder: str) -> None:
    assert "no chat template" in command("chat", mute, "hi").refusal
    assert "makes sentence vectors, not text" in command("chat", encoder, "hi").refusal
    assert "makes sentence vectors, not text" in command("run", encoder, "hi").refusal
    said = "makes text, not sentence vectors: use pellucid run, or load minilm, or give this model --task embed"
    assert said in command("embed", tiny, "hi").refusal
    assert "or give this model --task classify" in command("rerank", tiny, "a", "b").refusal
    assert "text='': must be a text" in command("embed", encoder, "a", "").refusal
    assert "the text is too long" in command("embed", encoder, "a " * 5000).refusal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "No such command 'nope'. See pellucid --help."),
        (("--nope",), "No such option: --nope"),
        (("run",), "Missing argument 'MODEL'. See pellucid run --help."),
        (("embed", "minilm"), "embed needs texts, or --file FILE and --out FILE. See pellucid embed --help."),
        (("info", "a", "b"), "unexpected extra argument"),
        (("info",), "info takes a model or --machine"),
        (("info", "a", "--machine"), "info takes a model or --machine"),
        (("rm", "nothing"), "'nothing' is not in the store; installed: none"),
        (("rm",), "rm takes names of models, or --all"),
        (("rm", "smollm2", "--all"), "rm takes names of models, or --all"),
        (("rm", ""), "is not in the store"),
        (("rm", "../home"), "is not in the store"),
        (("rm", "a\nb\x1b[31m"), "is not in the store"),
        (("rm", "smollm2"), "is not in the store"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_command_lines(command: Command, arguments: tuple[str, ...], message: str) -> None:
    assert message in command(*arguments).refusal


def test_a_store_that_cannot_be_written(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "file" / "home"))
    assert "set PELLUCID_HOME to use another folder" in command("pull", "smollm2").refusal


HOMES = {
    "~nosuch/x": "PELLUCID_HOME='~nosuch/x': there is no such user",
    "FILE": "is a file: name a folder, or unset it",
    "/dev/null": "is a file",
}


@pytest.mark.skipif(os.name != "posix", reason="paths of POSIX")
@pytest.mark.parametrize("chosen", HOMES, ids=repr)
@pytest.mark.parametrize(
    "arguments", [("list",), ("pull", "smollm2"), ("run", "smollm2", "hi"), ("rm", "smollm2"), ("verify",)]
)
def test_a_home_that_cannot_be(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PELLUCID_HOME", chosen.replace("FILE", str(tmp_path / "file")))
    assert HOMES[chosen] in command(*arguments).refusal


def test_a_home_is_a_path_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PELLUCID_HOME", "store")
    assert home() == tmp_path / "store"
    monkeypatch.setenv("PELLUCID_HOME", "")
    assert home() == user_cache()


@pytest.mark.skipif(os.name != "posix", reason="a working directory that can be deleted")
def test_a_home_below_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("PELLUCID_HOME", "store")
    with pytest.raises(InvalidRequest, match="PELLUCID_HOME='store': is relative, and the working directory"):
        home()
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path))
    assert home() == tmp_path


@pytest.mark.skipif(os.name != "posix", reason="accounts of POSIX")
def test_a_user_without_a_home_folder(
    command: Command, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is a path runs, with kernels for this process. Other models name the remedy."""
    import pwd

    def unknown(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "PELLUCID_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert home() == user_cache() == NOWHERE
    remedy = "no home folder is known: set PELLUCID_HOME to a folder"
    assert command("pull", "smollm2").refusal == f"cannot write the store: {remedy}"
    assert "no model is called 'x'" in command("run", "x", "hi").refusal
    assert command("pull", tiny).answer == f"{tiny}\n"
    assert command("list").code == command("verify").code == 0
    with pytest.warns(RuntimeWarning, match=f"{remedy}; until then no file is kept, and compiled kernels and voc"):
        folder = fresh(trusted_files).TrustedFolder("kernels/x")
    assert (folder.path, folder.keeps, folder.has("a"), folder.read("a")) == (None, False, False, None)
    folder.write("a", b"content")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert command("run", tiny, "to", "--max-new-tokens", "2").code == 0


@pytest.mark.skipif(os.name != "posix", reason="paths of POSIX")
def test_a_home_that_cannot_be_for_a_model_that_lies_elsewhere(
    command: Command, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chosen in ("~nosuch/x", "/dev/null"):
        monkeypatch.setenv("PELLUCID_HOME", chosen)
        assert HOMES[chosen] in command("run", tiny, "hi").refusal
        assert HOMES[chosen] in command("info", "--machine").refusal
    with monkeypatch.context() as patch:  # the real environment cannot contain a NUL character
        patch.setattr(os, "environ", {**os.environ, "PELLUCID_HOME": "/a\0b"})
        with pytest.raises(InvalidRequest, match=r"PELLUCID_HOME='/a\\x00b': has a NUL character"):
            load("smollm2")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder that not even root can write to")
def test_a_home_that_cannot_be_written_to(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_HOME", "/proc/self/home")
    assert "cannot write the store /proc/self/home: " in command("pull", "smollm2").refusal
    assert command("verify").answer == ""


def test_from_python(tiny: str, mute: str, encoder: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="smollm2"):
        load("smolm2")
    with pytest.raises(SourceError, match="no file or folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match="holds no model"):
        load(tmp_path)
    for options in ({"context": 129}, {"threads": 0}, {"precise": 12}):
        with pytest.raises(InvalidRequest, match=next(iter(options))):
            load(tiny, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="sentence vectors"):
        load(encoder, before=lambda inputs: inputs.prompt("hi"))
    with pytest.raises(InvalidRequest, match="makes text"):
        load(tiny, before=lambda inputs: inputs.sentences(["hi"]))
    with pytest.raises(ContextOverflow, match="the context is 16"):
        load(tiny, context=16, before=lambda inputs: inputs.prompt("x" * 400))
    with pytest.raises(TemplateError, match="no chat template"):
        load(mute, before=lambda inputs: inputs.prompt([{"role": "user", "content": "hi"}]))


@pytest.mark.slow
def test_the_real_program_refuses_in_one_line_too(tiny: str, tmp_path: Path) -> None:
    home = {"PELLUCID_HOME": str(tmp_path / "home")}
    assert "Did you mean smollm2?" in pellucid("run", "smolm2", "hi", env=home).refusal
    assert "temperature=-1.0" in pellucid("run", tiny, "hi", "--temperature", "-1").refusal
    assert "no model is called" in pellucid("run", b"\xff\xfe", "hi", env=home).refusal
