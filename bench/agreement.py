"""Divergence of Pellucid and llama.cpp from the float32 run of the same file, and agreement on the likeliest token.

    python bench/agreement.py [--models NAME...] [--windows 4] [--texts NAME...] [--threads N]

A text is a file, or a name in texts.py: news, prose, python, code, mixed. The script cuts each text into windows of 512
tokens and scores the second half of each window over the whole vocabulary. The output has mean divergences with
standard errors, and ratios of means with 95 % intervals. Both assume that positions are independent.

All runs use the same file: the float32 run of transformers (float32.py), llama.cpp with its own tool
(llama-perplexity), and Pellucid, by default and with ``precise``. A model is a name in `compare.py` or in FILES
(SmolLM2 in more formats), or any source that `pellucid.load` accepts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import texts
from compare import MADE, MODELS, PRECISE, Model, progress
from numpy.typing import NDArray
from peers import HERE, LLAMA_CPP, TRANSFORMERS, PeerError

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import PellucidError
from pellucid.load_options import LoadOptions
from pellucid.model.read import read_model
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import Chunk, StepLimits
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.processors import processors
from pellucid.tokenize import load_tokenizer
from pellucid.weights.open import open_checkpoint

KINDS = "Q5_0 Q5_1 Q2_K Q3_K_M Q5_K_M Q6_K IQ4_NL IQ4_XS F16 BF16"
FILES = MODELS | {f"smollm2-{kind.lower()}": Model("smollm2", made=kind) for kind in KINDS.split()}
LENGTH, STEP = 512, 64  # tokens of a window, tokens of a step
# The float32 run is sure at a position if the likeliest token's probability leads the next probability by this margin.
LEAD = 0.05
TEXT = HERE.parent / "tests" / "oracles" / "text.txt"


@dataclass(frozen=True)
class Base:
    """The file that float32.py writes: windows (W, N), and log-probabilities of positions N/2 to N - 2, (W, P, V)."""

    path: Path
    windows: NDArray[np.int32]
    rows: NDArray[np.uint16]  # (W, P, 4 + V or V + 1): step and least as float32, then the values in steps

    @classmethod
    def read(cls, path: Path) -> Base:
        """Open a file; the rows are memory-mapped."""
        with open(path, "rb") as file:
            if file.read(8) != b"_logits_":
                raise PeerError(f"{path}: no log-probabilities")
            length, vocabulary, count = np.fromfile(file, "<i4", 3)
            windows = np.fromfile(file, "<i4", count * length).reshape(count, length)
            start = file.tell()
        shape = (count, length - 1 - length // 2, 4 + vocabulary + vocabulary % 2)
        return cls(path, windows, np.memmap(path, "<u2", "r", start, shape))

    def log_probabilities(self, window: int, index: int, vocabulary: int) -> NDArray[np.float64]:
        """Log-probabilities of one position, (V,)."""
        row = self.rows[window, index]
        step, least = row[:4].view("<f4").astype(np.float64)
        rounded = row[4 : 4 + vocabulary] * step + least
        return np.asarray(rounded - np.logaddexp.reduce(rounded))


@dataclass(frozen=True)
class Agreement:
    """Agreement with float32.

    ``divergence`` is the mean in nats, ``error`` its standard error, ``same`` the share of positions with the same
    likeliest token. ``wrong`` is the number of different tokens at the ``sure`` positions where float32 is sure.
    """

    divergence: float
    error: float
    same: float
    wrong: int | None = None
    sure: int | None = None


def windows_of(path: Path, text: str, count: int) -> NDArray[np.int32]:
    """The text's first windows (W, N). Each window begins with the model's special tokens for the start of a text."""
    checkpoint = open_checkpoint(path)
    try:
        tokenizer = load_tokenizer(checkpoint)
        start, ids = tokenizer.encode(""), tokenizer.encode(text)
    finally:
        checkpoint.close()
    ids, each = ids[len(start) :], LENGTH - len(start)
    if len(ids) < count * each:
        raise PeerError(f"the text has {len(ids):,} tokens; {count} windows of {each} tokens need more")
    windows = [start + ids[at : at + each] for at in range(0, count * each, each)]
    return np.array(windows, np.int32)


def float32(path: Path, windows: NDArray[np.int32], threads: int, folder: Path) -> Base:
    """Run float32.py on the windows."""
    ids, out = folder / "ids.npy", folder / "base"
    np.save(ids, windows)
    TRANSFORMERS.run("float32.py", path, ids, out, threads)
    return Base.read(out)


def pellucid_agreement(path: Path, base: Base, precise: bool, threads: int) -> Agreement:
    """Pellucid's agreement on the same windows."""
    checkpoint = open_checkpoint(path)
    model = read_model(checkpoint)
    plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), LoadOptions(precise=precise).activation_bits)
    runner = ModelRunner(checkpoint, model, plan, StepLimits(LENGTH, tokens=STEP, outputs=STEP), threads)
    divergences, same, wrong, sure = [], 0, 0, 0
    try:
        for number, window in enumerate(base.windows):
            for index, logits in _rows(runner, window.tolist()):
                log_q = logits - np.logaddexp.reduce(logits)
                log_p = base.log_probabilities(number, index, len(log_q))
                p = np.exp(log_p)
                divergences.append(float((p * (log_p - log_q)).sum()))
                first, second = np.sort(np.partition(p, -2)[-2:])[::-1]
                agrees = log_q.argmax() == log_p.argmax()
                same += agrees
                if first - second >= LEAD:
                    sure, wrong = sure + 1, wrong + (not agrees)
    finally:
        runner.close()
        checkpoint.close()
    error = float(np.std(divergences, ddof=1)) / math.sqrt(len(divergences))
    return Agreement(float(np.mean(divergences)), error, same / len(divergences), wrong, sure)


def _rows(runner: ModelRunner, ids: list[int]) -> Any:
    """Yield (index of the scored position, its logits in float64)."""
    first, sequence = LENGTH // 2, BlockTable()
    for start in range(0, LENGTH, STEP):
        wanted = STEP if start >= first else 0
        rows = runner.forward([Chunk(sequence, ids[start : start + STEP], outputs=wanted)])
        for at in range(wanted):
            if start + at < LENGTH - 1:
                yield start + at - first, rows[at].astype(np.float64)
    runner.cache.truncate(sequence, 0)


def llamacpp_agreement(path: Path, base: Base, threads: int) -> Agreement:
    """llama.cpp's agreement, as llama-perplexity prints it."""
    printed = LLAMA_CPP.tool(
        "llama-perplexity", "-m", path, "-t", threads, "-c", LENGTH, "-b", LENGTH,
        "--kl-divergence", "--kl-divergence-base", base.path,
    )  # fmt: skip
    patterns = (r"Mean\s+KLD:\s*(-?[\d.]+)", r"Mean\s+KLD:.*±\s*([\d.]+)", r"Same top p:\s*([\d.]+)")
    found = [re.search(pattern, printed) for pattern in patterns]
    if not all(found):
        raise PeerError("the output of llama-perplexity has no divergence")
    divergence, error, same = (float(match.group(1)) for match in found if match)
    return Agreement(divergence, error, same / 100)


def ratio(ours: Agreement, theirs: Agreement) -> tuple[float, float]:
    """The ratio of two mean divergences, and the half width of its interval of 95 %."""
    value = ours.divergence / theirs.divergence
    relative = math.hypot(ours.error / ours.divergence, theirs.error / theirs.divergence)
    return value, 1.96 * value * relative


def compare(name: str, text: str, windows: int, threads: int) -> dict[str, Agreement]:
    """A model's agreements by engine."""
    path = FILES.get(name, Model(name)).file()
    MADE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MADE) as folder:  # the base takes hundreds of megabytes
        progress(f"{name}: float32")
        base = float32(path, windows_of(path, text, windows), threads, Path(folder))
        found = {}
        for way, precise in PRECISE.items():
            progress(f"{name}: Pellucid, {way}")
            found[way] = pellucid_agreement(path, base, precise, threads)
        progress(f"{name}: llama.cpp")
        found["llama.cpp"] = llamacpp_agreement(path, base, threads)
    return found


def line(name: str, found: dict[str, Agreement]) -> str:
    """A model's row of the table."""
    cells = [f"{name:<26}"]
    for each in found.values():
        wrong = "" if each.wrong is None else f"  {each.wrong:>3} of {each.sure}"
        cells.append(f"{each.divergence:9.2e} ± {each.error:7.1e}  {each.same:6.2%}{wrong}")
    value, width = ratio(found["default"], found["llama.cpp"])
    return "   ".join([*cells, f"{value:.2f} ± {width:.2f}"])


def main() -> None:
    """Compare the models and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", metavar="NAME", default=list(FILES), help=", ".join(FILES))
    parser.add_argument("--windows", type=int, default=4, help=f"of {LENGTH} tokens; 4 by default")
    parser.add_argument("--texts", nargs="+", default=[str(TEXT)], help=f"text files, or {', '.join(texts.TEXTS)}")
    parser.add_argument("--threads", type=int, default=processors().threads)
    arguments = parser.parse_args()
    if arguments.windows < 1:
        parser.error("--windows: must be at least 1")
    missing = [peer.name for peer in (LLAMA_CPP, TRANSFORMERS) if not peer.ready()]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}: run make bench-peers")
    print("divergence from the float32 run (transformers) in nats, share of positions with the same likeliest token; "
          f"for Pellucid also the number of different tokens where float32 leads by {LEAD} or more")  # fmt: skip
    print(f"{'':<26}   {'default':<40}   {'precise':<40}   {'llama.cpp':<27}   default / llama.cpp")
    document: dict[str, dict[str, Any]] = {}
    for name in arguments.models:
        for text in arguments.texts:
            known = text in texts.TEXTS
            read = texts.text(text) if known else Path(text).read_text(encoding="utf-8")
            title = f"{name}, {Path(text).name}"
            try:
                found = compare(name, read, arguments.windows, arguments.threads)
            except (PeerError, PellucidError) as error:
                print(f"{title:<26}   {error}", flush=True)
                continue
            print(line(title, found), flush=True)
            own = {who: vars(each) for who, each in found.items()}
            document.setdefault(name, {})[Path(text).name] = own
    print(json.dumps({"windows": arguments.windows, "models": document}))


if __name__ == "__main__":
    main()
