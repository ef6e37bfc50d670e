"""The hub's client: the layout of the cache against huggingface-hub, interrupted downloads, tokens, hostile answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub import COMMIT, HubServer, hash_of, hub

from pellucid.errors import DownloadInterrupted, SourceError
from pellucid.weights.sources import http_download
from pellucid.weights.sources import hub as module
from pellucid.weights.sources.hub import HTTP, Hub, HubFile, snapshot
from pellucid.weights.sources.huggingface import SOURCE
from pellucid.weights.sources.source import Silent

MODEL = bytes(range(256)) * 2000
FILES = {"config.json": b'{"a": 1}', "sub/m.gguf": MODEL, "a b%.json": b"[]", "model.safetensors": MODEL}
REPO = "org/tiny"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; no settings of the user."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(http_download, "PAUSE", 0.0)
    return tmp_path / "hf" / "hub"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub({REPO: FILES}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        yield served


def fetch(rest: str = f"{REPO}/sub/m.gguf", limit: int | None = None) -> Path:
    return SOURCE.fetch(rest, Path(), Silent(), limit)


def snapshot_file(cache: Path, name: str) -> Path:
    return cache / "models--org--tiny" / "snapshots" / COMMIT / name


def test_layout_of_the_cache(server: HubServer, cache: Path) -> None:
    path = fetch()
    folder = cache / "models--org--tiny"
    assert path == snapshot_file(cache, "sub/m.gguf")
    assert (folder / "refs" / "main").read_bytes() == COMMIT.encode()
    blob = folder / "blobs" / hash_of("m.gguf", MODEL)
    assert [*(folder / "blobs").iterdir()] == [blob]
    assert blob.read_bytes() == MODEL
    assert os.readlink(path) == os.path.join("..", "..", "..", "blobs", blob.name)
    assert (cache / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    other = fetch(f"{REPO}/a b%.json")
    assert other.read_bytes() == b"[]"
    assert other.resolve().name == hash_of("a b%.json", b"[]")
    assert [path for _, path, *_ in server.requests if path.startswith("/org")] == [
        f"/org/tiny/resolve/{COMMIT}/sub/m.gguf",
        f"/org/tiny/resolve/{COMMIT}/a%20b%25.json",
    ]


CLIENT = """
import sys, huggingface_hub as h
print(h.hf_hub_download(*sys.argv[2:]) if sys.argv[1] == "get" else h.try_to_load_from_cache(*sys.argv[2:]))
"""


def real_client(*arguments: str) -> str:
    """What huggingface-hub answers, in a fresh process: it reads its settings when it is imported."""
    command = [sys.executable, "-W", "ignore", "-c", CLIENT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_huggingface_hub_finds_our_files_and_we_find_its_files(
    server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    ours = fetch()
    assert real_client("find", REPO, "sub/m.gguf") == str(ours)
    assert real_client("get", REPO, "sub/m.gguf") == str(ours)
    assert not [path for method, path, *_ in server.requests[2:] if method == "GET" and "resolve" in path]
    layout = sorted(path.relative_to(cache) for path in cache.rglob("*") if ".locks" not in path.parts)
    links = [os.readlink(ours)]
    shutil.rmtree(cache)
    assert SOURCE.cached(f"{REPO}/sub/m.gguf") is None
    theirs = real_client("get", REPO, "sub/m.gguf")
    assert SOURCE.cached(f"{REPO}/sub/m.gguf") == Path(theirs) == ours
    found = {path.relative_to(cache) for path in cache.rglob("*") if ".locks" not in path.parts}
    assert set(layout) <= found
    assert [os.readlink(theirs)] == links
    before = len(server.requests)
    assert fetch() == ours
    assert len(server.requests) == before + 1  # the list of files


@pytest.mark.parametrize(
    ("variables", "cache_of"),
    [
        ({"HF_HUB_CACHE": "{}/a", "HUGGINGFACE_HUB_CACHE": "{}/b", "HF_HOME": "{}/c"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/b", "HF_HOME": "{}/c"}, "b"),
        ({"HF_HOME": "{}/c", "XDG_CACHE_HOME": "{}/d"}, "c/hub"),
        ({"HF_HOME": "$PLACE/c"}, "c/hub"),
        ({"XDG_CACHE_HOME": "{}/d"}, "d/huggingface/hub"),
        ({"HOME": "{}/e", "USERPROFILE": "{}/e"}, ".cache/huggingface/hub"),
    ],
)
def test_place_of_the_cache_is_that_of_huggingface_hub(
    variables: dict[str, str], cache_of: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("PLACE", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    found = module.cache_folder()
    assert found == tmp_path / ("e" if "HOME" in variables else "") / cache_of
    pytest.importorskip("huggingface_hub")
    code = "import huggingface_hub.constants as c; print(c.HF_HUB_CACHE); print(c.HF_TOKEN_PATH)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert str(found) == theirs[0]
    token = Path(theirs[1])
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text("a token\n")
    with pytest.raises(SourceError, match=re.escape(f"the token in {token} has other characters")):
        fetch(f"{REPO}/config.json")


def test_without_links_files_are_moved_or_copied(
    server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = fetch(f"{REPO}/config.json")
    monkeypatch.setattr(os, "symlink", lambda *_: (_ for _ in ()).throw(OSError("no privilege")))
    path = fetch()
    blobs = cache / "models--org--tiny" / "blobs"
    assert not path.is_symlink()
    assert path.read_bytes() == MODEL
    assert [*blobs.iterdir()] == [kept.resolve()]  # moved: a model is not stored twice
    kept.unlink()
    copied = fetch(f"{REPO}/config.json")  # the blob may belong to other commits
    assert not copied.is_symlink()
    assert copied.read_bytes() == FILES["config.json"]
    assert len([*blobs.iterdir()]) == 1
    assert SOURCE.cached(f"{REPO}/sub/m.gguf") == path


def test_a_download_continues_in_a_later_call(server: HubServer, cache: Path) -> None:
    server.breaks = [1000, 0, 0, 0]
    with pytest.raises(DownloadInterrupted, match=r"the hub cannot be reached .*; the same command continues"):
        fetch()
    assert SOURCE.cached(f"{REPO}/sub/m.gguf") is None
    assert snapshot(REPO) is None  # the earlier commit stays the last one until all files are in
    (part,) = (cache / "models--org--tiny" / "blobs").iterdir()
    assert part.name == hash_of("m.gguf", MODEL) + ".incomplete"
    server.breaks, server.requests = [], []
    assert fetch().read_bytes() == MODEL
    assert server.requests[-1][2] == "bytes=1000-"
    assert not part.exists()


def test_a_changed_file_is_refused(server: HubServer, cache: Path) -> None:
    for name, stated, said in (
        ("sub/m.gguf", {"size": len(MODEL), "lfs": {"sha256": "a" * 64}}, r"SHA256 \w{12}…, expected aaaa"),
        ("config.json", {"size": 8, "blobId": "b" * 40}, r"GIT-SHA1 \w{12}…, expected bbbb"),
        ("config.json", {"size": 9}, "has 8 bytes, expected 9"),
        ("config.json", {"size": 7}, "longer than the 7 bytes that the hub states"),
    ):
        server.stated = {name: stated}
        with pytest.raises(SourceError, match=said):
            fetch(f"{REPO}/{name}")
        assert not snapshot_file(cache, name).exists()
        shutil.rmtree(cache)


def test_sizes_and_limits(server: HubServer, cache: Path) -> None:
    with pytest.raises(SourceError, match=r"has 512,000 bytes, expected at most 10"):
        fetch(limit=10)
    server.stated = {"sub/m.gguf": {}}
    with pytest.raises(SourceError, match=r"does not state the size of sub/m.gguf"):
        fetch(limit=10)
    assert not cache.exists()
    assert fetch().read_bytes() == MODEL  # another hub may state neither sizes nor hashes


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>", "answer about org/tiny is damaged"),
        (b"[" * 100_000, "answer about org/tiny is damaged"),
        (b'{"siblings": []}', "damaged: .*sha"),
        (b'{"sha": "../../x", "siblings": []}', "damaged: .*sha"),
        (json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "a.gguf", "size": -1}]}), "damaged: .*size"),
        (
            json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "a.gguf", "blobId": "../" * 13 + "x"}]}),
            "damaged: .*blobId",
        ),
        (
            json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "a.gguf", "lfs": {"sha256": "A" * 64}}]}),
            "damaged: .*sha256",
        ),
        *(
            (json.dumps({"sha": COMMIT, "siblings": [{"rfilename": name}]}), "is not a name of a file on every")
            for name in ("../x.gguf", "/x.gguf", "..\\x.gguf", "a/../../x.gguf", "C:/x.gguf", "con.gguf", "a\n.gguf")
        ),
    ],
)
def test_hostile_answers(server: HubServer, cache: Path, answer: bytes | str, said: str) -> None:
    server.answer = answer.encode() if isinstance(answer, str) else answer
    with pytest.raises(SourceError, match=said) as caught:
        fetch(REPO)
    assert str(caught.value).isprintable()
    assert not cache.exists()


def test_an_endless_answer_ends(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)
    server.answer = b" " * 2000
    with pytest.raises(SourceError, match="a page of the hub has more than 1,000 bytes"):
        fetch()


def test_a_token_goes_to_the_hub_only(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    with hub({REPO: FILES}) as storage:
        server.storage = storage.address
        assert fetch().read_bytes() == MODEL
        assert [authorization for *_, authorization in server.requests] == ["Bearer hf_secret"] * 2
        assert [authorization for *_, authorization in storage.requests] == [None]


@pytest.mark.parametrize(
    ("variables", "stored", "expected"),
    [
        ({"HF_TOKEN": "a", "HUGGING_FACE_HUB_TOKEN": "b"}, "c", "a"),
        ({"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "b"}, "c", "b"),
        ({}, "c\n", "c"),
        ({"HF_TOKEN_PATH": "{}/elsewhere"}, "c", "e"),
        ({"HF_TOKEN": "a", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, "c", None),
        ({}, None, None),
    ],
)
def test_the_token_of_the_user(
    variables: dict[str, str],
    stored: str | None,
    expected: str | None,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").write_text("e")
    cache.parent.mkdir()
    if stored:
        (cache.parent / "token").write_text(stored)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert Hub(REPO).token == expected


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HF_ENDPOINT": "ftp://x"}, "HF_ENDPOINT='ftp://x': is not an address: use https://HOST"),
        ({"HF_ENDPOINT": "https://x:port"}, "is not an address"),
        ({"HF_TOKEN": "hf_a\r\nX: y"}, "the token of HF_TOKEN has other characters"),
        ({"HF_TOKEN_PATH": "/"}, r"the token in .* cannot be read"),
        ({"HF_HUB_OFFLINE": "yes"}, "HF_HUB_OFFLINE is set, so nothing is downloaded"),
        ({"TRANSFORMERS_OFFLINE": "1"}, "TRANSFORMERS_OFFLINE is set"),
    ],
)
def test_variables_that_are_not_valid(
    variables: dict[str, str], said: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match=said) as caught:
        fetch()
    assert "hf_a" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "token", "said"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "", r"org/tiny is gated: .*/org/tiny, and set HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, "t", r"org/tiny is gated: accept its terms at \S*/org/tiny$"),
        (401, {"X-Error-Code": "RepoNotFound"}, "", "no repository org/tiny, or it needs HF_TOKEN: check"),
        (404, {"X-Error-Code": "RepoNotFound"}, "t", "no repository org/tiny, or the token may not read it"),
        (401, {}, "", "no repository org/tiny, or it needs HF_TOKEN"),
        (401, {}, "t", "does not accept the token: set HF_TOKEN to a valid token, or unset it"),
        (403, {}, "t", "HTTP 403: the token may not read org/tiny"),
        (403, {"X-Error-Code": "DisabledRepo"}, "", "org/tiny has been disabled by the hub"),
        (429, {"Retry-After": "55"}, "", "limits the number of requests: wait 55 seconds, or set HF_TOKEN"),
        (429, {"Retry-After": "soon"}, "t", "limits the number of requests: try again later$"),
        (418, {}, "", "the hub answers HTTP 418"),
        (503, {}, "", r"the hub cannot be reached \(HTTP 503\)"),
    ],
)
def test_refusals(
    status: int, headers: dict[str, str], token: str, said: str, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    server.replies = [(status, headers)] * 2
    with pytest.raises(SourceError, match=said) as caught:
        fetch()
    assert isinstance(caught.value, DownloadInterrupted) == (status in (429, 503))


def test_a_gated_file_of_a_public_list(server: HubServer) -> None:
    server.replies = [None, (401, {"X-Error-Code": "GatedRepo"})]
    with pytest.raises(SourceError, match="org/tiny is gated: accept its terms"):
        fetch()


def test_the_cache_helps_when_the_hub_does_not(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch()
    server.replies = [(503, {})] * 2
    assert fetch() == path
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch() == path


def test_a_new_commit_shares_blobs(server: HubServer, cache: Path) -> None:
    old = fetch()
    server.commit, server.requests = "f" * 40, []
    new = fetch()
    assert new != old
    assert new.resolve() == old.resolve()
    assert len(server.requests) == 1
    assert snapshot(REPO) == cache / "models--org--tiny" / "snapshots" / ("f" * 40)


def test_https_does_not_lead_to_http(cache: Path, tmp_path: Path) -> None:
    import httpx

    def answer(request: httpx.Request) -> httpx.Response:
        hops = {"a": "http://b/file", "b": "https://c/file"}
        if target := hops.get(request.url.host):
            return httpx.Response(302, headers={"Location": target})
        return httpx.Response(200, stream=httpx.ByteStream(b"x"))

    with HTTP() as http:
        http.client = httpx.Client(transport=httpx.MockTransport(answer), follow_redirects=True)
        with pytest.raises(SourceError, match="leads from HTTPS to HTTP"):
            http.download("https://a/file", tmp_path / "file", Silent(), "file")
        http.download("https://c/file", tmp_path / "file", Silent(), "file")


def test_names_of_files_are_checked_beside_the_choice(server: HubServer, cache: Path) -> None:
    with Hub(REPO) as client, pytest.raises(SourceError, match="is not a name of a file on every system"):
        client.fetch(COMMIT, HubFile("../../../x"), Silent())


def test_a_cache_that_cannot_be_written(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(SourceError, match=r"cannot write sub/m.gguf to .*models--org--tiny: "):
        fetch()
    monkeypatch.setenv("HF_HUB_CACHE", "~nobody-of-this-name/hub")
    with pytest.raises(SourceError, match="no home folder is known: set HF_HOME to a folder"):
        fetch()


def test_a_full_disk_names_the_hubs_variable(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type(shutil.disk_usage(os.curdir))(10, 10, 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(SourceError, match=r"needs 512,000 bytes: no space left, .*: set HF_HOME to use another"):
        fetch()


def test_a_running_download_is_waited_for(server: HubServer, cache: Path) -> None:
    from filelock import FileLock

    lock = FileLock(cache / ".locks" / "models--org--tiny" / f"{hash_of('m.gguf', MODEL)}.lock")
    Path(lock.lock_file).parent.mkdir(parents=True)
    lock.acquire()
    seen: list[str] = []

    class Seen:
        def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
            seen.append(label)
            if "waiting" in label:
                assert not [path for _, path, *_ in server.requests if "resolve" in path]
                lock.release()

    path = SOURCE.fetch(f"{REPO}/sub/m.gguf", Path(), Seen(), None)
    assert path.read_bytes() == MODEL
    assert "sub/m.gguf: waiting for another process" in seen
