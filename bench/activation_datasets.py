"""Tokens per second of a recording of all residual streams of many texts (a dataset of activations).

    python bench/activation_datasets.py [--model smollm2] [--texts 500] [--rounds 3] [--threads N] [--dtype float32]
                                        [--peers PYTHON]

Every round records the texts in a fresh folder, with hashes and on the disk, and runs the same texts without recording
(as prompts that generate one token). `--peers` names an interpreter with torch, transformers and gguf, and optionally
nnsight and TransformerLens: each round then also runs `activation_datasets_peers.py`, whose tools get the token ids of
the same texts, sorted by length, in padded batches of the size that is fastest for each tool, on the same file unpacked
to float32. They keep the values of a batch in memory and write nothing. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pellucid
from pellucid.llm import LLM
from pellucid.measure.roofs import facts
from pellucid.runtime.processors import processors

POINTS = ("blocks.*.residual",)
PEERS = Path(__file__).with_name("activation_datasets_peers.py")
WORDS = 10, 120  # least and most words of a text
SEED = 7


def texts_of(count: int) -> list[str]:
    """Parts of this project's documents, of ``WORDS`` words."""
    documents = sorted(Path(__file__).parents[1].glob("docs/*.md"))
    words = " ".join(path.read_text("utf-8") for path in documents).split()
    draw = random.Random(SEED)
    lengths = [draw.randint(*WORDS) for _ in range(count)]
    starts = [draw.randrange(len(words) - length) for length in lengths]
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths)]


def recorded(llm: LLM, texts: list[str], folder: Path, dtype: str) -> dict[str, float]:
    """Record all texts. Returns the seconds, the rows and the bytes on disk."""
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    data = llm.record_dataset(texts, *POINTS, out=folder, dtype=dtype)
    seconds = time.perf_counter() - start
    assert data is not None
    return {"seconds": seconds, "rows": len(data), "bytes": sum(shard.bytes for shard in data.index.shards)}


def prefilled(llm: LLM, texts: list[str]) -> float:
    """Seconds of the texts as prompts, without the prefix cache of earlier rounds."""
    prompts = [llm.tokenizer.encode(text) for text in texts]
    llm.engine.cache.clear_prefixes()
    start = time.perf_counter()
    llm.generate(prompts, max_new_tokens=1, temperature=0)
    return time.perf_counter() - start


def ask_peers(python: str, llm: LLM, texts: list[str], threads: int) -> dict[str, Any]:
    """Run the peers once. Returns the JSON that they print last."""
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.json"
        ids.write_text(json.dumps([llm.tokenizer.encode(text) for text in texts]))
        done = subprocess.run(
            [python, PEERS, llm.checkpoint.path, str(ids), "--threads", str(threads)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            check=True,
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Measure, and print the medians and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="one for each physical core by default")
    parser.add_argument("--dtype", default="float32", help="of the stored values")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with torch, transformers and gguf")
    asked = parser.parse_args()
    threads = processors().threads if asked.threads is None else asked.threads
    texts, ours, plain = texts_of(asked.texts), list[float](), list[float]()
    peers: dict[str, list[float]] = {}
    megabytes, versions = list[float](), dict[str, str]()
    with tempfile.TemporaryDirectory() as scratch, pellucid.load(asked.model, threads=threads) as llm:
        recorded(llm, texts[:20], Path(scratch) / "data", asked.dtype)
        for number in range(asked.rounds):
            print(f"round {number + 1} of {asked.rounds}", file=sys.stderr, flush=True)
            made = recorded(llm, texts, Path(scratch) / "data", asked.dtype)
            ours.append(made["rows"] / made["seconds"])
            megabytes.append(made["bytes"] / made["seconds"] / 1e6)
            plain.append(made["rows"] / prefilled(llm, texts))
            if asked.peers:
                answer = ask_peers(asked.peers, llm, texts, threads)
                versions = answer["versions"]
                for name, speed in answer["tokens_per_second"].items():
                    peers.setdefault(name, []).append(speed)
    machine = {name: value for name, value in facts().items() if name in ("cpu", "instructions", "pellucid")}
    print(f"{asked.texts} texts, all residual streams of {asked.model}, {machine['cpu']}, threads {threads}")
    speed, rate = statistics.median(ours), statistics.median(megabytes)
    print(f"recorded in {asked.dtype:<20}{speed:>9,.0f} tokens/s{rate:>9,.0f} MB/s")
    print(f"not recorded{'':<20}{statistics.median(plain):>9,.0f} tokens/s")
    for name, speeds in peers.items():
        times = statistics.median(a / b for a, b in zip(ours, speeds))
        print(f"{name:<32}{statistics.median(speeds):>9,.0f} tokens/s, Pellucid is {times:.1f} times as fast")
    document = {
        "model": asked.model,
        "texts": asked.texts,
        "threads": threads,
        "dtype": asked.dtype,
        **machine,
        "tokens_per_second": ours,
        "megabytes_per_second": megabytes,
        "plain_tokens_per_second": plain,
        "peers": {"versions": versions, "tokens_per_second": peers} if peers else None,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
