"""Damaged model files: GGUF v2 and v3, whole and split, and safetensors with config.json, single and sharded.

Each case changes a small valid model: bits, bytes and lengths anywhere; truncated or extended files; counts and offsets
overwritten with extreme numbers; values of other types; duplicated, removed or reordered records; overlapping tensors;
contradicting shards; JSON with changed structure or values. The case opens the model with its metadata, spec and
tokenizer. Every fourth accepted model is loaded and runs one token.

Any outcome other than success or a `PellucidError` of one line of at most 500 characters is a finding.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.damage import CHANGES, VOCABULARY, parted
from support.model_files import gguf, safetensors
from support.tiny import LLAMA_GGUF, LLAMA_GGUF_SHAPES, TINY, random_weights, write_llama
from support.tokenizer_file import gguf_tokenizer, write_tokenizer

import pellucid
from pellucid.errors import PellucidError
from pellucid.model.read import read_model
from pellucid.tokenize import load_tokenizer
from pellucid.weights.open import open_checkpoint

SECONDS = 5.0
MEMORY = 6 << 30  # includes address space that LLVM and threads reserve but do not use
SMALL = 1000
LONG = 100_000

LONGEST = 500  # characters of a message
ODDS_OF_RUNNING = 4
Q8_0 = 8

Files = dict[str, bytes]
"""Files of a folder by name. A case opens the folder if it has a config.json, otherwise the first file."""


@functools.cache
def models() -> dict[str, Files]:
    """The valid models."""
    shapes = {**LLAMA_GGUF_SHAPES, "token_embd.weight": (VOCABULARY, 32)}
    metadata, weights = LLAMA_GGUF | gguf_tokenizer(VOCABULARY), random_weights(shapes)
    tensors: dict[str, Any] = {name: (w.shape, 0, w.tobytes()) for name, w in weights.items()}
    blocks = np.tile(np.frombuffer(b"\0\x20" + bytes(range(32)), np.uint8), (VOCABULARY, 1))
    tensors["token_embd.weight"] = ((VOCABULARY, 32), Q8_0, blocks.tobytes())
    names = list(tensors)
    found = {f"gguf v{version}": {"m.gguf": gguf(metadata, tensors, version=version)} for version in (2, 3)}
    split = {"split.count": np.uint16(2), "split.tensors.count": np.int32(len(names))}
    found["gguf split"] = {
        f"m-0000{number + 1}-of-00002.gguf": gguf(
            {**(metadata if number == 0 else {}), **split, "split.no": np.uint16(number)},
            {name: tensors[name] for name in names[number::2]},
        )
        for number in range(2)
    }
    with tempfile.TemporaryDirectory() as folder:
        write_llama(Path(folder), VOCABULARY)
        write_tokenizer(Path(folder), VOCABULARY)
        files = _files(Path(folder))
    found["safetensors"] = files
    header, data = parted(files["model.safetensors"])
    halves: list[dict[str, Any]] = [{}, {}]
    for index, (name, record) in enumerate(header.items()):
        begin, end = record["data_offsets"]
        halves[index % 2][name] = (record["dtype"], record["shape"], data[begin:end])
    shards = {f"model-0000{n + 1}-of-00002.safetensors": safetensors(half) for n, half in enumerate(halves)}
    where = {name: shard for shard, half in zip(shards, halves) for name in half}
    index_file = {"model.safetensors.index.json": json.dumps({"weight_map": where}).encode()}
    rest = {name: content for name, content in files.items() if name != "model.safetensors"}
    found["safetensors sharded"] = {**shards, **index_file, **rest}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "to", "see", *(f"##{c}" for c in "abcdefgh")]
    words += [f"word{i}" for i in range(128 - len(words))]
    found["bert"] = {**_files(TINY["bert"]), "vocab.txt": "\n".join(words).encode()}
    pieces = ["<unk>", "<s>", "</s>", "▁", *(f"<0x{byte:02X}>" for byte in range(64)), *"tosehari", "▁to", "▁see"]
    pieces += [f"▁word{i}" for i in range(128 - len(pieces))]
    unigram = {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [[piece, -float(i)] for i, piece in enumerate(pieces)]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "added_tokens": [{"id": i, "content": pieces[i], "special": True} for i in range(3)],
    }
    found["gemma3"] = {**_files(TINY["gemma3"]), "tokenizer.json": json.dumps(unigram).encode()}
    return found


def _files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".npz"}


def prepare(folder: Path) -> None:
    """Compile the kernels of the models, which takes longer than the limit of a case."""
    for files in models().values():
        _write(folder, files)
        _use(_opened(folder, files), True)


def case(random: Random, folder: Path) -> str | None:
    files = dict(models()[random.choice(list(models()))])
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        name = random.choice(list(files))
        kind = "json" if name.endswith(".json") else name.rpartition(".")[2]
        change = random.choice(CHANGES.get(kind, []) + CHANGES["any"])
        files[name] = change(random, files[name])
    if random.random() < 0.03:
        _mix(random, files)
    _write(folder, files)
    try:
        _use(_opened(folder, files), random.random() < 1 / ODDS_OF_RUNNING)
    except PellucidError as error:
        message = str(error)
        if not message.isprintable() or not 0 < len(message) <= LONGEST:
            return f"message of {len(message)} characters: {message[:150]!r}"
    return None


def _write(folder: Path, files: Files) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _opened(folder: Path, files: Files) -> Path:
    return folder if "config.json" in files else folder / next(iter(files))


def _use(path: Path, runs: bool) -> None:
    checkpoint = open_checkpoint(path)
    try:
        spec = read_model(checkpoint).spec
        tokenizer = load_tokenizer(checkpoint)
        ids = tokenizer.encode("to see that it rains")
        tokenizer.decode([*ids, 0])
    finally:
        checkpoint.close()
    if runs:
        llm = pellucid.load(path, threads=1)
        try:
            if spec.generates:
                llm.generate("to see", temperature=0, max_new_tokens=1)
            else:
                llm.embed(["to see"])
        finally:
            llm.close()


def _mix(random: Random, files: Files) -> None:
    """Swap two files or remove one."""
    one, other = random.choice(list(files)), random.choice(list(files))
    if random.random() < 0.5:
        files[one], files[other] = files[other], files[one]
    elif len(files) > 1:
        del files[one]
