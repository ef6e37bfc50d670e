"""Encoding speed beside tokenizers, tiktoken and sentencepiece on the same texts and vocabularies, alternating.

    python bench/encode.py [--rounds N] [--only NAME ...]    (make bench-encode; needs pip install pellucid[oracles])

The texts are 16 MB of the downloads of ``tests/oracles/tokenizers_long.py fetch`` (manual pages in seven languages,
translations in twenty more, source code), in pieces of 4,000 characters in random order. All encoders use one thread
unless noted. ``tokenizers`` has two figures: ``encode``, text by text as in Pellucid, and ``encode_batch_fast``, all
texts in one call without offsets. Pellucid also has figures for ``encode_arrays`` on one and two threads, and for
``encode_batch`` on two threads. Figures are medians of the rounds: MB of UTF-8 per second, and seconds to open a
vocabulary. The last line is JSON.
"""

from __future__ import annotations

import os

os.environ["RAYON_NUM_THREADS"] = "1"  # read when tokenizers is imported

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pellucid.tokenize import load_tokenizer
from pellucid.util.paths import home

FOLDER = home() / "oracles"
BYTES, PIECE = 16_000_000, 4_000
VOCABULARIES = {
    **{name: FOLDER / "npm" / name / "tokenizer.json" for name in ("gpt2", "llama3", "qwen3", "deepseek_v3", "gptoss")},
    **{name: FOLDER / "tiktoken" / f"{name}.tiktoken" for name in ("cl100k_base", "o200k_base")},
    "gemma3": FOLDER / "npm" / "gemma3" / "tokenizer.json",
}
Encode = Callable[[list[str]], Any]
AT_ONCE = 1024  # texts of a batch; bounds the memory for results


def texts() -> list[str]:
    """Pieces of the texts in random order, with about as much text of each language until its texts are used up."""
    rng, pieces = random.Random(11), []
    languages: dict[str, str] = {}
    for path in sorted((FOLDER / "texts").glob("*.json")):
        languages |= {name: "".join(some) for name, some in json.loads(path.read_text()).items()}
    shares = []
    for text in languages.values():
        cut = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
        rng.shuffle(cut)
        shares.append(cut)
    size = 0
    while size < BYTES and any(shares):
        for share in shares:
            if share and size < BYTES:
                pieces.append(share.pop())
                size += len(pieces[-1].encode())
    rng.shuffle(pieces)
    return pieces


def each(encode: Callable[[str], Any]) -> Encode:
    """An encoder that takes one text after the other."""

    def run(texts: list[str]) -> None:
        for text in texts:
            encode(text)

    return run


def batches(encode: Encode) -> Encode:
    """An encoder that takes AT_ONCE texts per call."""

    def run(texts: list[str]) -> None:
        for at in range(0, len(texts), AT_ONCE):
            encode(texts[at : at + AT_ONCE])

    return run


def hugging_face(path: Path) -> Any:
    """The peer's tokenizer of a ``tokenizer.json``."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def alternating(rounds: int, works: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each function, measured in turn."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for taken, work in zip(seconds, works):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def given(what: str) -> tuple[int, dict[str, Path]]:
    """The rounds and the vocabularies that the command line selects. Only vocabularies on this machine are used."""
    from pellucid.weights.store import resolve

    parser = argparse.ArgumentParser(description=what.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    paths = {**VOCABULARIES, "minilm": resolve("minilm") / "tokenizer.json"}
    trained = FOLDER / "trained"
    paths |= {path.stem: path for path in sorted(trained.glob("t5*.model"))}
    paths |= {f"{path.parent.name} (json)": path for path in sorted(trained.glob("*/tokenizer.json"))}
    return asked.rounds, {
        name: path for name, path in paths.items() if path.is_file() and (not asked.only or name in asked.only)
    }


def peers(name: str, path: Path) -> dict[str, Encode]:
    """The peers' encoders of a vocabulary."""
    if path.suffix == ".tiktoken":
        import base64

        import tiktoken
        from tiktoken_ext import openai_public

        ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in path.open("rb")}
        openai_public.load_tiktoken_bpe = lambda *_, **__: ranks
        theirs = tiktoken.Encoding(**getattr(openai_public, name)())
        return {"tiktoken": each(theirs.encode_ordinary)}
    if path.suffix == ".model":
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=str(path))
        return {"sentencepiece": each(processor.encode)}
    tokenizer = hugging_face(path)
    return {
        "tokenizers": each(lambda text: tokenizer.encode(text, add_special_tokens=False)),
        "tokenizers, batch": batches(lambda some: tokenizer.encode_batch_fast(some, add_special_tokens=False)),
    }


def measure(name: str, path: Path, pieces: list[str], rounds: int) -> dict[str, float]:
    """MB per second of each encoder, and the seconds that Pellucid takes to open the vocabulary."""
    size = sum(len(text.encode()) for text in pieces) / 1e6
    load_tokenizer(path)  # fills the cache of parsed vocabularies
    start = time.perf_counter()
    ours = load_tokenizer(path)
    opened = time.perf_counter() - start
    encoders: dict[str, Encode] = {
        "Pellucid": each(lambda text: ours.encode(text, add_special=False)),
        "Pellucid, 2 threads": batches(lambda some: ours.encode_batch(some, add_special=False, threads=2)),
        **{
            f"Pellucid, arrays, {threads}": batches(
                lambda some, threads=threads: ours.encode_arrays(some, add_special=False, threads=threads)  # type: ignore[misc]
            )
            for threads in (1, 2)
        },
        **peers(name, path),
    }
    assert ours._compiled is not None or ours.model.kernel is None  # switches to the compiled encoder
    taken = alternating(rounds, [partial(encode, pieces) for encode in encoders.values()])
    return {which: size / seconds for which, seconds in zip(encoders, taken)} | {"opening": opened}


def main() -> None:
    rounds, paths = given(__doc__ or "")
    if not (FOLDER / "texts").is_dir() or not paths:
        sys.exit(f"no texts in {FOLDER}: run python tests/oracles/tokenizers_long.py fetch train")
    pieces, found = texts(), {}
    for name, path in paths.items():
        found[name] = speeds = measure(name, path, pieces, rounds)
        ours = speeds["Pellucid"]
        others = {w: s for w, s in speeds.items() if w != "opening" and not w.startswith("Pellucid")}
        shown = [f"{which} {speed:.1f} (x{ours / speed:.1f})" for which, speed in others.items()]
        two, one_array, two_arrays = (speeds[f"Pellucid, {which}"] for which in ("2 threads", "arrays, 1", "arrays, 2"))
        print(f"{name}: Pellucid {ours:.1f} MB/s, {', '.join(shown)}; 2 threads {two:.1f} (x{two / ours:.2f}); "
              f"arrays {one_array:.1f}, 2 threads {two_arrays:.1f} (x{two_arrays / one_array:.2f}); "
              f"opens in {speeds['opening']:.3f} s", flush=True)  # fmt: skip
    print(json.dumps({name: {which: round(speed, 3) for which, speed in each.items()} for name, each in found.items()}))


if __name__ == "__main__":
    main()
