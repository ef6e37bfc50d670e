"""Texts per second of sentence encoders: Pellucid beside sentence-transformers, ONNX Runtime, OpenVINO and llama.cpp.

    python bench/encoders.py [--models minilm FOLDER...] [--peers NAME...] [--texts 2000] [--rounds 3] [--threads N]

`make bench-peers PEERS=encoders` installs the peers. A model is a name of the catalogue or a folder with safetensors,
its tokenizer and its sentence-transformers modules. Every round measures each engine once, in turn, so that a busy
moment affects all engines equally. All engines get the same texts, of 8 to 220 words, with the same maximum length, and
tokenize them in the measured time. Peers sort texts by length and run batches of 32, as their libraries do; Pellucid
gets one list in any order.

For each engine: texts per second, the time of a query of 12 words, how many times as fast Pellucid is (the median of
the rounds' ratios), the mean and the least cosine to torch's float32 vectors, and the rank correlation (Spearman) of
the similarities of 500 pairs of texts with the part of the words that the pair shares. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from peers import ENCODERS, FOLDER, HERE, LLAMA_CPP, LLAMA_CPP_PYTHON, PeerError, Script

import pellucid
from pellucid.errors import PellucidError
from pellucid.measure.roofs import REST, facts
from pellucid.runtime.processors import processors
from pellucid.weights.store import resolve

OURS, PRECISE, REFERENCE, SERVER = "Pellucid", "Pellucid precise", "torch float32", "llama.cpp"
SCRIPTED = ("torch float32", "torch bfloat16", "ONNX Runtime float32", "ONNX Runtime int8", "OpenVINO")
WORDS = 8, 220  # least and most words of a text
QUERY_WORDS, QUERIES = 12, 20  # words of a query; queries of an engine in a round
PAIRS = 500
Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """A model in an engine."""

    def embed(self, texts: Sequence[str]) -> tuple[float, Vectors]:
        """The seconds that the texts took, and their vectors (B, D)."""

    def query(self, text: str) -> float:
        """The seconds of one text."""

    def close(self) -> None:
        """Release the model."""


class Pellucid:
    """A model in this process."""

    def __init__(self, model: Path, threads: int, precise: bool) -> None:
        self._llm = pellucid.load(model, threads=threads, precise=precise)
        self.context, self.close = self._llm.context, self._llm.close

    def embed(self, texts: Sequence[str]) -> tuple[float, Vectors]:
        start = time.perf_counter()
        vectors = self._llm.embed(texts, truncate=True)
        return time.perf_counter() - start, vectors

    def query(self, text: str) -> float:
        return self.embed([text])[0]


class Scripted:
    """A model in ``encoder_peer.py``."""

    def __init__(self, engine: str, model: Path, threads: int, context: int, keep: Path) -> None:
        cache = FOLDER / "onnx" / model.name
        self._script = Script(ENCODERS, threads, model, threads, engine, context, cache)
        self._texts, self._vectors = keep / "texts.json", keep / "vectors.npy"
        self.close = self._script.close

    def embed(self, texts: Sequence[str]) -> tuple[float, Vectors]:
        self._texts.write_text(json.dumps(list(texts)), "utf-8")
        answer = self._script.ask(embed=str(self._texts), out=str(self._vectors))
        return answer["seconds"], np.load(self._vectors).astype(np.float32)

    def query(self, text: str) -> float:
        return float(self._script.ask(query=text)["seconds"])


class LlamaServer:
    """A model in llama-server, as F16. Requests have 32 texts, sorted by length."""

    BATCH = 32

    def __init__(self, model: Path, threads: int, context: int, keep: Path) -> None:
        binary = LLAMA_CPP.binaries / "llama-server"
        if not binary.exists():
            raise PeerError("llama-server is not built: run make bench-peers PEERS=llama.cpp")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address, tokens = f"http://127.0.0.1:{port}", 8 * context
        options = {"-m": gguf_of(model), "-t": threads, "-tb": threads, "--port": port, "-np": 8}
        options |= {"-c": tokens, "-b": tokens, "-ub": tokens}
        words = [str(binary), "--embedding", *(str(word) for pair in options.items() for word in pair)]
        with open(keep / "llama-server.log", "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                words, stdout=log, stderr=log, env={**os.environ, "LD_LIBRARY_PATH": str(binary.parent)}
            )
        self._limit = context
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self._address}/health", timeout=5):
                    return
            except OSError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.1)
        raise PeerError("llama-server did not start")

    def embed(self, texts: Sequence[str]) -> tuple[float, Vectors]:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        found: list[Any] = [None] * len(texts)
        start = time.perf_counter()
        for first in range(0, len(texts), self.BATCH):
            numbers = order[first : first + self.BATCH]
            for number, vector in zip(numbers, self._vectors([texts[i] for i in numbers])):
                found[number] = vector
        return time.perf_counter() - start, np.array(found, np.float32)

    def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        body = json.dumps({"input": list(texts)}).encode()
        request = urllib.request.Request(f"{self._address}/v1/embeddings", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            data = json.load(answer)["data"]
        return [one["embedding"] for one in sorted(data, key=lambda one: one["index"])]

    def query(self, text: str) -> float:
        return self.embed([text])[0]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def gguf_of(model: Path) -> Path:
    """The model as a GGUF file of llama.cpp's converter."""
    file = FOLDER / "onnx" / model.name / "f16.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        source = FOLDER / "source" / f"llama_cpp_python-{LLAMA_CPP_PYTHON}" / "vendor" / "llama.cpp"
        converter = source / "convert_hf_to_gguf.py"
        words = [ENCODERS.python, converter, model, "--outfile", file, "--outtype", "f16"]
        path = str(source / "gguf-py")
        done = subprocess.run(
            [str(word) for word in words], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        if done.returncode:
            raise PeerError(f"the converter failed: {done.stderr.strip().splitlines()[-1]}")
    return file


@dataclass
class Result:
    """The results of an engine, by round; and its accuracy."""

    seconds: list[float] = field(default_factory=list)
    queries: list[float] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)


def words_of_docs() -> list[str]:
    """The words of this repository's pages, without markup."""
    pages = sorted((HERE.parent / "docs").rglob("*.md"))
    text = " ".join(page.read_text("utf-8") for page in (HERE.parent / "README.md", *pages))
    return re.findall(r"[A-Za-z][A-Za-z'-]*[.,;:]?", text)


def texts_of(words: Sequence[str], count: int, draw: random.Random) -> list[str]:
    """Runs of 8 to 220 words."""
    texts = []
    for _ in range(count):
        length = draw.randint(*WORDS)
        first = draw.randrange(len(words) - length)
        texts.append(" ".join(words[first : first + length]))
    return texts


def pairs_of(words: Sequence[str], draw: random.Random) -> tuple[list[str], list[str], list[float]]:
    """Pairs of texts of 24 words, and the part of the words that each pair shares."""
    left, right, shared = [], [], []
    for _ in range(PAIRS):
        first, other = (draw.randrange(len(words) - 24) for _ in range(2))
        part = draw.random()
        kept = [draw.random() < part for _ in range(24)]
        own, another = words[first : first + 24], words[other : other + 24]
        left.append(" ".join(own))
        right.append(" ".join(a if keep else b for a, b, keep in zip(own, another, kept)))
        shared.append(sum(kept) / 24)
    return left, right, shared


def cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """The cosine of each row of a with the same row of b."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation of the ranks of two lists; equal values have their mean rank."""

    def ranks(values: Sequence[float]) -> NDArray[np.float64]:
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[places]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


class Bench:
    """A model in every engine that reads it. ``notes`` lists engines that are left out, and the reasons."""

    def __init__(self, model: Path, wanted: Sequence[str], threads: int, notes: list[str]) -> None:
        self._notes, self._keep = notes, ExitStack()
        self.engines: dict[str, Encoder] = {}
        folder = Path(self._keep.enter_context(tempfile.TemporaryDirectory()))
        try:
            ours = Pellucid(model, threads, precise=False)
            self._add(OURS, lambda: ours)
            self._add(PRECISE, lambda: Pellucid(model, threads, precise=True))
            for name in wanted:
                progress(f"{model.name}: opening the model in {name}")
                if name == SERVER:
                    self._add(name, lambda: LlamaServer(model, threads, ours.context, folder))
                else:
                    self._add(name, lambda name=name: Scripted(name, model, threads, ours.context, folder))  # type: ignore[misc]
        except BaseException:
            self.close()
            raise

    def _add(self, name: str, open_engine: Callable[[], Encoder]) -> None:
        try:
            engine = open_engine()
        except (PeerError, OSError) as error:
            self._notes.append(f"{name} is left out: {error}")
            return
        self._keep.callback(engine.close)
        self.engines[name] = engine

    def close(self) -> None:
        """Release the models and end the peers' processes."""
        self._keep.close()

    def run(self, count: int, rounds: int) -> dict[str, Result]:
        """Measure all engines; results by name."""
        draw, words = random.Random(1), words_of_docs()
        texts, (left, right, shared) = texts_of(words, count, draw), pairs_of(words, draw)
        query = " ".join(words[:QUERY_WORDS])
        vectors: dict[str, Vectors] = {}
        results: dict[str, Result] = {}
        for name, engine in list(self.engines.items()):
            progress(f"similarities of {name}")
            try:
                both = engine.embed([*left, *right])[1]
            except (PeerError, OSError) as error:
                self._notes.append(f"{name} is left out: {error}")
                del self.engines[name]
                continue
            results[name] = Result()
            results[name].accuracy["spearman"] = spearman(list(cosines(both[:PAIRS], both[PAIRS:])), shared)
        for number in range(rounds):
            for name, engine in self.engines.items():
                progress(f"round {number + 1} of {rounds}: {name}")
                time.sleep(REST)
                seconds, vectors[name] = engine.embed(texts)
                results[name].seconds.append(seconds / count)
                results[name].queries.append(statistics.median(engine.query(query) for _ in range(QUERIES)))
        reference = vectors.get(REFERENCE, vectors[PRECISE])
        for name, result in results.items():
            cosine = cosines(vectors[name], reference)
            result.accuracy |= {"mean_cosine": float(cosine.mean()), "least_cosine": float(cosine.min())}
        return results


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Pellucid's speed relative to an engine: the median of the rounds' ratios of seconds."""
    return statistics.median(b / a for a, b in zip(ours, theirs))


def table(results: Mapping[str, Result]) -> str:
    """The table of a model."""
    ours = results[OURS]
    lines = [f"{'':22}texts/s  Pellucid is   query  Pellucid is  mean cosine    least  Spearman"]
    for name, result in results.items():
        speed, query = 1 / statistics.median(result.seconds), 1e3 * statistics.median(result.queries)
        faster, sooner = ratio(ours.seconds, result.seconds), ratio(ours.queries, result.queries)
        accuracy = result.accuracy
        lines.append(
            f"{name:22}{speed:7,.0f}  {faster:10.2f}x  {query:5.2f} ms  {sooner:10.2f}x  "
            f"{accuracy['mean_cosine']:11.6f} {accuracy['least_cosine']:8.5f}  {accuracy['spearman']:8.4f}"
        )
    return "\n".join(lines)


def document(results: Mapping[str, Result]) -> dict[str, Any]:
    """A model's part of the JSON line."""
    ours = results[OURS]
    return {
        name: {
            "texts_per_second": [round(1 / seconds, 1) for seconds in result.seconds],
            "query_ms": [round(1e3 * seconds, 3) for seconds in result.queries],
            "times_as_fast": round(ratio(ours.seconds, result.seconds), 3),
            "times_as_soon": round(ratio(ours.queries, result.queries), 3),
            **{key: round(value, 6) for key, value in result.accuracy.items()},
        }
        for name, result in results.items()
    }


def progress(what: str) -> None:
    """Print progress to standard error."""
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    """Measure the models and print the report."""
    peers = (*SCRIPTED, SERVER)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", metavar="NAME", default=["minilm"])
    parser.add_argument("--peers", nargs="*", metavar="NAME", choices=peers, default=peers, help=", ".join(peers))
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="one for each physical core by default")
    asked = parser.parse_args()
    if asked.texts < 1 or asked.rounds < 1:
        parser.error("--texts and --rounds: must be at least 1")
    threads, notes = asked.threads or processors().threads, list[str]()
    wanted = list(asked.peers)
    if not ENCODERS.ready() and any(name in SCRIPTED for name in wanted):
        notes.append("the peers in Python are not installed: run make bench-peers PEERS=encoders")
        wanted = [name for name in wanted if name not in SCRIPTED]
    found = {}
    for name in asked.models:
        try:
            path = resolve(name)
            bench = Bench(path if path.is_dir() else path.parent, wanted, threads, notes)
            try:
                results = bench.run(asked.texts, asked.rounds)
            finally:
                bench.close()
        except PellucidError as error:
            notes.append(f"{name}: {error}")
            continue
        print(f"{name}, {asked.texts:,} texts, {threads} threads\n{table(results)}")
        found[name] = document(results)
    for note in notes:
        print(note)
    print(json.dumps({"machine": facts(), "threads": threads, "texts": asked.texts, "models": found}))


if __name__ == "__main__":
    main()
