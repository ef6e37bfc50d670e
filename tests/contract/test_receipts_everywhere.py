"""Receipts of one instruction set are equal on every other, and no changed receipt is equal on any.

The quick test replays a few receipts of each kind of model. The long test replays 1,000 on each instruction set, and
verifies 10,000 changed receipts.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from support import receipts as cases
from support.processes import environment, python, run

import pellucid
from pellucid.kernels.core import isa
from pellucid.receipts.receipt import Receipt

REPLAY = """
import json, sys
from pathlib import Path
import pellucid
path, file, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
found = []
with pellucid.load(path, threads=threads) as llm:
    for line in file.read_text().splitlines():
        found.append(llm.verify_receipt(json.loads(line)).message)
print(json.dumps(found))
"""
PLANS = """
import json
from pellucid import pipeline
from pellucid.plan.bind import layouts
from pellucid.receipts.issuer import plan_hash
from support.tiny import SOURCES, TINY, opened
found = {}
for name, path in {**TINY, **SOURCES}.items():
    with opened(path) as (checkpoint, model):
        for bits, dtype in ((8, None), (24, None), (8, "q8_0")):
            plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), bits, dtype)
            found[f"{name} {bits} {dtype}"] = plan_hash(plan)
print(json.dumps(found))
"""
OTHERS = [one.name for one in (*isa.possible(), *isa.emulated()) if one != isa.choose()]


def written(folder: Path, name: str, seed: int, count: int) -> tuple[Path, Path, list[Receipt]]:
    """A model's path, a file with ``count`` receipts of it, and the receipts."""
    (folder / name).mkdir()
    path = cases.MODELS[name](folder / name)
    with pellucid.load(path, threads=2) as llm:
        made = cases.receipts(llm, Random(seed), count, name)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(one.as_dict()) + "\n" for one in made))
    return path, file, made


def replayed(path: Path, file: Path, sets: list[str], threads: int) -> list[list[str]]:
    """The messages of the replays on each instruction set."""
    command = python(REPLAY, str(path), str(file), str(threads))
    return [json.loads(text) for text in run([(command, environment(PELLUCID_ISA=one)) for one in sets])]


@pytest.mark.parametrize("name", cases.MODELS)
def test_receipts_are_equal_on_every_instruction_set(name: str, tmp_path: Path) -> None:
    path, file, made = written(tmp_path, name, 3, 10)
    assert OTHERS
    for messages in replayed(path, file, OTHERS, 1):
        assert [one.split(":")[0] for one in messages] == ["equal"] * len(made)


def test_plans_have_one_hash_on_every_instruction_set() -> None:
    """Also: the hash depends on the bits of activations, and on the dtype of keys and values."""
    sets = [isa.choose().name, *OTHERS]
    first, *others = run([(python(PLANS), environment(PELLUCID_ISA=one)) for one in sets])
    assert others == [first] * len(OTHERS)
    hashes = json.loads(first)
    by_model: dict[str, set[str]] = {}
    for name, own in hashes.items():
        by_model.setdefault(name.split(" ")[0], set()).add(own)
    assert len(by_model) > 100
    assert {len(own) for own in by_model.values()} == {3}


@pytest.mark.long
def test_a_thousand_honest_receipts_are_equal_on_every_instruction_set(tmp_path: Path) -> None:
    each = 1000 // len(cases.MODELS)
    sets, counts = [isa.choose().name, *OTHERS], Counter[tuple[str, str]]()
    for name in cases.MODELS:
        path, file, made = written(tmp_path, name, 11, each)
        for own, messages in zip(sets, replayed(path, file, sets, 1)):
            counts.update((own, message.split(":")[0]) for message in messages)
            assert len(messages) == len(made)
    print(dict(counts))
    assert counts == {(own, "equal"): 1000 for own in sets}


@pytest.mark.long
def test_ten_thousand_changed_receipts_are_noticed(tmp_path: Path) -> None:
    from support.receipts import write_key

    random, found, kinds = Random(17), Counter[tuple[str, str]](), list(cases.TAMPERS)
    key = write_key(tmp_path / "key.pem")
    each = 9600 // len(cases.MODELS)
    for name in cases.MODELS:
        (tmp_path / name).mkdir()
        path = cases.MODELS[name](tmp_path / name)
        for signs in (True, False):
            with pellucid.load(path, threads=2, receipt_key=key if signs else None) as llm:
                honest = cases.receipts(llm, random, 60, name)
                for number in range(each // 2):
                    kind, receipt = kinds[number % len(kinds)], random.choice(honest)
                    mends = kind in cases.HEADER and random.random() < 0.5
                    if signs and kind != "signature" and random.random() < 0.5:
                        receipt = Receipt.of({k: v for k, v in receipt.as_dict().items() if k != "signature"})
                    changed = cases.tampered(receipt, kind, random, mends_header=mends)
                    found[kind, cases.checked(llm, changed)] += 1
    found.update(flipped(tmp_path, random, 400))
    print(dict(found))
    assert sum(found.values()) == 10_000
    assert not [kind for kind, part in found if not part]


def flipped(folder: Path, random: Random, count: int) -> Counter[tuple[str, str]]:
    """Verify receipts on models with one changed bit of a weight. ``count`` models are loaded."""
    found, path = Counter[tuple[str, str]](), folder / "floats"
    with pellucid.load(path, threads=1) as llm:
        honest = cases.receipts(llm, random, 20)
    other = folder / "flipped"
    shutil.copytree(path, other)
    (file,) = other.glob("*.safetensors")
    whole = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(count):
        at, bit = random.randrange(start, len(whole)), random.randrange(8)
        raw = bytearray(whole)
        raw[at] ^= 1 << bit
        file.write_bytes(raw)
        with pellucid.load(other, threads=1) as llm:
            found["weight", cases.checked(llm, random.choice(honest))] += 1
    return found
