"""The output of a batch is in order. A kill at any moment loses, duplicates or misplaces no answer."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import InvalidRequest
from pellucid.serve import batch_output
from pellucid.serve.batch_output import DIGITS, EARLY, AnswerId, BatchOutput, hash_of

NAMES = [f"r{number}" for number in range(12)]
REQUESTS = {name: hash_of(name) for name in NAMES}
MODEL, OPTIONS = "a" * DIGITS, "b" * DIGITS


def answer(name: str, status: int = 200, model: str = MODEL, options: str = OPTIONS) -> bytes:
    made = {
        "id": str(AnswerId(REQUESTS[name], model, options)),
        "custom_id": name,
        "response": {"status_code": status, "body": name * (3 + len(name) % 2)},
    }
    return json.dumps(made).encode() + b"\n"


ALL = b"".join(map(answer, NAMES))


def early(target: Path) -> Path:
    return target.with_name(target.name + EARLY)


class Killed(BaseException):
    pass


def write_all(target: Path, rng: random.Random, ended: Callable[[str], object] = lambda name: None) -> set[str]:
    """Write the missing answers in random order, several at a time. Returns their names."""
    output = BatchOutput(target, REQUESTS)
    missing = output.missing
    order = [name for name in NAMES if name in missing]
    rng.shuffle(order)
    with output.opened():
        while order:
            count = rng.randint(1, 3)
            some, order = order[:count], order[count:]
            output.write({name: answer(name) for name in some})
            for name in some:
                ended(name)
    return missing


def appends_to(patch: pytest.MonkeyPatch, kind: type[FileIO]) -> None:
    """Open the files that answers are appended to as ``kind``."""

    def opened(path: Path, mode: str, **options: Any) -> Any:
        return kind(path, "ab+") if mode == "a+b" else open(path, mode, **options)

    patch.setattr(batch_output, "open", opened, raising=False)


def test_answers_are_in_the_order_of_the_requests(tmp_path: Path) -> None:
    for seed in range(20):
        target = tmp_path / f"{seed}.jsonl"
        assert write_all(target, random.Random(seed)) == set(NAMES)
        assert target.read_bytes() == ALL
        assert not early(target).exists()


def test_an_answer_is_on_the_disk_when_it_has_ended(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    output = BatchOutput(target, REQUESTS)
    with output.opened():
        for name in reversed(NAMES[1:]):  # the first request is slow
            output.write({name: answer(name)})
            assert answer(name) in early(target).read_bytes()
        assert target.read_bytes() == b""
        output.write({NAMES[0]: answer(NAMES[0])})
        assert target.read_bytes() == ALL
        assert early(target).read_bytes() == b""
    assert not early(target).exists()


@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 60), max_size=4))
def test_a_kill_at_any_moment_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kills: list[int]
) -> None:
    """``kills`` are numbers of written pieces after which a process dies. Reported answers are there afterwards."""
    rng, told = random.Random(seed), set[str]()
    target = tmp_path_factory.mktemp("killed") / "out.jsonl"
    for kill in kills:
        left, before = kill, set(told)

        class Dying(FileIO):
            """Each write of a whole line stops after a third of it."""

            def write(self, raw: Any) -> int:
                nonlocal left
                if not left:
                    raise Killed
                left -= 1
                piece = bytes(raw)
                return super().write(piece[: len(piece) // 3] if piece.startswith(b"{") else piece)

        with pytest.MonkeyPatch.context() as patch:
            appends_to(patch, Dying)
            with suppress(Killed):
                assert not write_all(target, rng, told.add) & before
    assert not write_all(target, rng) & told, "nothing is made twice"
    assert target.read_bytes() == ALL
    assert not early(target).exists()


def test_an_output_that_was_written_in_another_order_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    begun = b"".join(answer(NAMES[number]) for number in (7, 2, 0))
    target.write_bytes(begun + answer(NAMES[5])[:10])
    assert write_all(target, random.Random(1)) == {*NAMES} - {NAMES[number] for number in (7, 2, 0)}
    rest = [name for number, name in enumerate(NAMES) if number not in (7, 2, 0)]
    assert target.read_bytes() == begun + b"".join(map(answer, rest))


def test_early_answers_alone_end_a_batch(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(answer(NAMES[0]))
    early(target).write_bytes(b"".join(map(answer, reversed(NAMES))))
    assert BatchOutput(target, REQUESTS).missing == set()
    assert target.read_bytes() == ALL
    assert not early(target).exists()


def test_early_answers_of_an_output_that_is_gone_do_not_count(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    early(target).write_bytes(answer(NAMES[3]))
    assert BatchOutput(target, REQUESTS).missing == set(NAMES)
    assert not early(target).exists()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    early(target).write_text("my notes\n")
    with pytest.raises(InvalidRequest, match="not an answer of a batch"):
        BatchOutput(target, REQUESTS)
    assert early(target).read_text() == "my notes\n"


@pytest.mark.parametrize("model", [MODEL, "c" * DIGITS])
@pytest.mark.parametrize("options", [OPTIONS, "d" * DIGITS])
@pytest.mark.parametrize("is_early", [False, True])
def test_answers_of_another_model_or_other_options_are_refused(
    tmp_path: Path, model: str, options: str, is_early: bool
) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(answer(NAMES[0]))
    with open(early(target) if is_early else target, "ab") as file:
        file.write(answer(NAMES[5], model=model, options=options))
    output = BatchOutput(target, REQUESTS)
    other = " and ".join(["another model"] * (model != MODEL) + ["other options"] * (options != OPTIONS))
    if not other:
        output.bind(MODEL, OPTIONS)
        return
    where = r"out\.jsonl\.early, line 1" if is_early else r"out\.jsonl, line 2"
    with pytest.raises(InvalidRequest, match=f"{where}: was answered by a run with {other}: name a new"):
        output.bind(MODEL, OPTIONS)


def test_answers_to_other_requests_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(ALL)
    for requests, said in (
        ({**REQUESTS, "r3": hash_of("changed")}, "line 4: 'r3' is the answer to another request"),
        ({name: REQUESTS[name] for name in NAMES[:8]}, "line 9: 'r8' is the answer to a request that the batch"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            BatchOutput(target, requests)
    assert target.read_bytes() == ALL
    more = {**REQUESTS, "new": hash_of("new")}
    assert BatchOutput(target, more).missing == {"new"}


@pytest.mark.parametrize("content", [b"my notes", b'{"my": "notes"}', b"GGUF\0\0", b'{"id": "batch_1'])
def test_a_file_of_something_else_without_a_line_end_is_not_cut(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "out.jsonl"
    for path in (target, early(target)):
        target.write_bytes(answer(NAMES[0]))
        path.write_bytes(content)
        with pytest.raises(InvalidRequest, match="not an answer of a batch"):
            BatchOutput(target, REQUESTS)
        assert path.read_bytes() == content
        path.unlink()


def test_errors_of_earlier_runs_count(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(answer("r0", status=400) + answer("r1"))
    early(target).write_bytes(answer("r7", status=500) + answer("r0", status=400))
    assert BatchOutput(target, REQUESTS).failed == 2


def test_an_empty_output_of_a_failed_run_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    BatchOutput(target, REQUESTS).remove_if_empty()
    assert not target.exists()
    target.touch()
    BatchOutput(target, REQUESTS).remove_if_empty()  # this run has not created it
    assert target.exists()
    target.unlink()
    output = BatchOutput(target, REQUESTS)
    with output.opened():
        output.write({NAMES[3]: answer(NAMES[3])})
    output.remove_if_empty()
    assert target.exists(), "otherwise the next run would drop the early answers"


def test_a_disk_that_is_full_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FileIO):
        def write(self, raw: Any) -> int:
            raise OSError(28, "No space left on device")

    target = tmp_path / "out.jsonl"
    output = BatchOutput(target, REQUESTS)
    appends_to(monkeypatch, Full)
    for name, path in ((NAMES[0], target), (NAMES[5], early(target))):
        with pytest.raises(InvalidRequest, match=f"{path.name}: cannot be written: No space left"), output.opened():
            output.write({name: answer(name)})


PROGRAM = """
import random, sys, time
from pathlib import Path
from pellucid.serve.batch import Batch
from pellucid.serve.batch_output import AnswerId

BOUND = "a" * 12, "b" * 12

class Slow(Batch):
    def _answer(self, llm, line):
        time.sleep(2.0 if line.number == 1 else random.random() * 0.04)
        status = 400 if line.number % 5 == 0 else 200
        answer_id = str(AnswerId(self._hashes[line.custom_id], *BOUND))
        response = {"status_code": status}
        return {"id": answer_id, "custom_id": line.custom_id, "response": response, "made": line.number}

batch = Slow(Path(sys.argv[1]), Path(sys.argv[2]), "any", 4)
batch.bind(*BOUND)
print(batch.answered, flush=True)
batch.run(None, lambda done, total: print(done, flush=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_processes_that_are_killed(tmp_path: Path) -> None:
    """The first request takes longer than each process lives, and some others fail."""
    source, target, count = tmp_path / "in.jsonl", tmp_path / "out.jsonl", 400
    source.write_text(
        "".join(json.dumps({"custom_id": f"r{n}", "url": "/v1/completions"}) + "\n" for n in range(count))
    )
    command, rng, before = [sys.executable, "-c", PROGRAM, str(source), str(target)], random.Random(4), 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= before, "what was told to be there is there"
        time.sleep(rng.random() * 0.8)
        process.kill()
        before = int(([str(before), *process.communicate()[0].split()])[-1])
    assert 0 < before < count
    assert target.read_bytes() == b"", "the first one was never there"
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [one["made"] for one in found] == list(range(1, count + 1))
    assert [one["response"]["status_code"] for one in found] == [200, 200, 200, 200, 400] * (count // 5)
    assert not early(target).exists()
