"""pellucid verify: its reports of intact, damaged, incomplete and unknown models, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import PROGRAM, Command, pellucid
from support.systems import posix

DATA = b"the bytes of a model " * 1000


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with two models, whose manifests have the format of an older version of Pellucid."""
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path))
    for name in ("mine", "other"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_bytes(DATA)
        manifest = {"source": f"hf:me/{name}", "files": {"model.gguf": len(DATA)}}
        (folder / ".pellucid.json").write_text(json.dumps(manifest))
    return tmp_path / "models"


def damage(path: Path) -> None:
    path.write_bytes(b"x" + path.read_bytes()[1:])


def test_all_models_or_some(command: Command, store: Path) -> None:
    assert command("verify").answer == "mine  ok, 0.0 MB\nother  ok, 0.0 MB\n"
    assert command("verify", "other").answer == "other  ok, 0.0 MB\n"
    assert "'absent' is not in the store; installed: mine, other" in command("verify", "absent").refusal


def test_an_empty_store(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path))
    assert command("verify").answer == ""
    assert command("verify", "--json").document == []


def test_a_damaged_model(command: Command, store: Path) -> None:
    assert command("verify").code == 0  # records all hashes
    damage(store / "mine" / "model.gguf")
    done = command("verify")
    right = hashlib.sha256(DATA).hexdigest()
    wrong = hashlib.sha256((store / "mine" / "model.gguf").read_bytes()).hexdigest()
    what = f"has SHA-256 {wrong[:12]}…, expected {right[:12]}…"
    assert (done.code, done.out) == (2, f"mine  damaged: model.gguf {what}\nother  ok, 0.0 MB\n")
    mend = "remove it (pellucid rm mine) and pull it again"  # pull alone would use another folder name
    assert done.err == f"pellucid: model.gguf: file: {what}: the stored copy of mine is damaged; {mend}\n"

    done = command("verify", "--json")
    assert done.code == 2
    mine, other = json.loads(done.out)
    assert (mine["name"], mine["ok"], other["ok"]) == ("mine", False, True)
    (file,) = mine["files"]
    assert (file["sha256"], file["expected"], file["problem"]) == (wrong, right, what)


def test_an_incomplete_model(command: Command, store: Path) -> None:
    (store / "mine" / "model.gguf").unlink()
    (store / "other" / ".pellucid.json").write_text("{}")
    done = command("verify")
    assert done.code == 2
    assert done.out.startswith("mine  damaged: model.gguf No such file")
    assert "other  damaged: .pellucid.json is missing or is not a valid manifest" in done.out


def test_the_others_are_verified_after_an_error(command: Command, store: Path) -> None:
    done = command("verify", "absent", "mine", "nowhere", "other")
    assert (done.code, done.out) == (2, "mine  ok, 0.0 MB\nother  ok, 0.0 MB\n")
    first, second = done.err.splitlines()
    assert first.startswith("pellucid: 'absent' is not in the store")
    assert second.startswith("pellucid: 'nowhere' is not in the store")


def test_rm_all_removes_every_model_of_the_store(command: Command, store: Path) -> None:
    assert command("rm", "--all").answer == "removed mine\nremoved other\n"
    assert list(store.iterdir()) == []
    assert command("rm", "--all").answer == ""


@posix
def test_a_folder_that_is_a_link(command: Command, store: Path) -> None:
    (store / "mine").rename(store.parent / "elsewhere")
    (store / "mine").symlink_to(store.parent / "elsewhere")
    assert command("verify").answer == "mine  ok, 0.0 MB\nother  ok, 0.0 MB\n"
    assert "'mine' is a link to a folder outside the store: delete" in command("rm", "mine").refusal
    assert (store.parent / "elsewhere" / "model.gguf").exists()


@pytest.mark.parametrize("name", ["run", "info", "tokenize"])
def test_a_damaged_model_is_not_used(command: Command, store: Path, name: str) -> None:
    command("verify")
    damage(store / "mine" / "model.gguf")
    texts = [] if name == "info" else ["hi"]
    assert "the stored copy of mine is damaged; remove it" in command(name, "mine", *texts).refusal


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_while_it_hashes(store: Path) -> None:
    path = store / "mine" / "model.gguf"
    os.truncate(path, 2 << 40)  # sparse: it takes no disk space, but more time to hash than the test waits
    manifest = {"source": "hf:me/mine", "files": {"model.gguf": 2 << 40}}
    (path.parent / ".pellucid.json").write_text(json.dumps(manifest))
    with subprocess.Popen([*PROGRAM, "verify"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"checking mine/model.gguf\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_the_real_program(store: Path) -> None:
    assert pellucid("verify", "mine").answer == "mine  ok, 0.0 MB\n"
