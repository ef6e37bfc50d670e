"""Values of the hook points of real models, against transformers' float32 run of the same file.

    python tests/oracles/trace_real.py [MODEL...] [--float32]

Both run a prompt of about thirty tokens. With ``precise=True, kv_cache="f32"`` the largest difference of a point must
be at most 1e-4 of the range of transformers' values. With default options the cosine must be at least 0.99. Every point
needs a counterpart (trace_families.py) or an entry in ``ABSENT``. The table has the worst block for each kind of point.
The exit status is 1 if a value exceeds its bound or has no counterpart.

Activations at quantized weights are rounded to 8 bits, with ``precise`` to 16. --float32 adds a run without this
rounding: transformers writes the same weights to a folder in float32. It has the bound of the precise run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from trace_capture import Seen
from trace_oracle import points_of
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GgufConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.points import cosine, distance

import pellucid
from pellucid.model.spec import ModelSpec
from pellucid.weights.store import resolve

MODELS = ("smollm2", "gemma3", "qwen2.5-coder-0.5b", "minilm")
PROMPT = "The animal didn't cross the street because it was too tired. In Python: def add(a, b): return a + b"
PRECISE: Mapping[str, Any] = {"precise": True, "kv_cache": "f32"}
CLOSE = 1e-4
"""Largest difference of a precise run, as a fraction of the range."""
ALIKE = 0.99
"""Smallest cosine of a run with default options."""
ABSENT: Mapping[str, str] = {
    "sample.*": "a run of transformers ends with the logits, before the chain",
    "detokenize.*": "the tokens that the chain has chosen, and their text",
    "cache.*": "pages of Pellucid's own cache",
    "timings.tokens": "times",
}
"""Patterns of points that transformers does not have, and the reasons."""
ROTATED = ("attention.q", "attention.k", "attention.q_rotary", "attention.k_rotary")

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Run:
    """A run of Pellucid: its token ids, its model spec, and the values of its points."""

    ids: list[int]
    spec: ModelSpec
    points: Arrays


@dataclass(frozen=True)
class Column:
    """A measure of each point, and its bound: the minimum if ``at_least``, otherwise the maximum."""

    title: str
    measures: Mapping[str, float]
    bound: float
    at_least: bool = False

    def worst(self) -> dict[str, str]:
        """The worst point of each kind."""
        found: dict[str, str] = {}
        for point, measure in self.measures.items():
            before = self.measures[found.setdefault(kind(point), point)]
            if measure < before if self.at_least else measure > before:
                found[kind(point)] = point
        return found

    def broken(self) -> list[str]:
        """The points beyond the bound."""
        return [
            point
            for point, measure in self.measures.items()
            if not (measure >= self.bound if self.at_least else measure <= self.bound)
        ]

    def cell(self, point: str) -> str:
        """Text of a point's measure and its block."""
        measure, block = self.measures[point], point.split(".")[1] if point.startswith("blocks.") else ""
        return f"{f'{measure:.5f}' if self.at_least else f'{measure:.1e}'} {block:>2}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, help=", ".join(MODELS))
    parser.add_argument("--float32", action="store_true", help="add a run of the weights in float32")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    bad = sum(compare(name, given.float32) for name in given.models)
    sys.exit(bool(bad))


def compare(name: str, float32: bool) -> bool:
    """Print a model's table. Returns True if a point exceeds its bound or has no counterpart."""
    path = resolve(name)
    precise, default = recorded(path, PROMPT, **PRECISE), recorded(path, PROMPT)
    model = transformers_model(path)
    theirs = counterparts(model, precise)
    expected = paired(theirs, precise.spec)
    both = [point for point in precise.points if point in expected]
    columns = [
        Column("precise", {p: distance(precise.points[p], expected[p]) for p in both}, CLOSE),
        Column("default", {p: cosine(default.points[p], expected[p]) for p in both}, ALIKE, at_least=True),
    ]
    if float32 and path.suffix == ".gguf":
        copied = of_copy(model, path, precise.ids)
        again = paired(theirs, copied.spec)
        columns.append(Column("float32", {p: distance(copied.points[p], again[p]) for p in both}, CLOSE))
    print(f"{name}, {len(precise.ids)} tokens: difference or cosine, block")
    print(f"{'':<22}" + "".join(f"{column.title:<14}" for column in columns).rstrip())
    for kinds in zip(*(column.worst().values() for column in columns)):
        cells = [f"{column.cell(point):<14}" for column, point in zip(columns, kinds)]
        print(f"{kind(kinds[0]):<22}{''.join(cells).rstrip()}")
    for column in columns:
        sign = "<" if column.at_least else ">"
        print(f"{column.title}: {len(column.broken())} of {len(both)} points {sign} {column.bound:g}")
    alone = sorted(precise.points.keys() ^ expected.keys())
    for point in alone:
        print(f"{point}: nothing to compare it with")
    print(flush=True)
    return bool(alone) or any(column.broken() for column in columns)


def recorded(source: Path, prompt: str | list[int], **options: Any) -> Run:
    """Run a prompt in Pellucid. Returns the values of all points except ``ABSENT``."""
    with pellucid.load(source, context=512, **options) as llm:
        wanted = [p for p in llm.points if not any(fnmatchcase(p, pattern) for pattern in ABSENT)]
        with llm.trace(*wanted) as trace:
            if isinstance(prompt, list) or llm.spec.generates:
                llm.generate(prompt, max_new_tokens=1)
            else:
                llm.embed([prompt])
        (sequence,) = trace.sequences
        return Run(sequence.ids, llm.spec, {point: sequence[point] for point in wanted})


def transformers_model(path: Path) -> Any:
    """Load the weights of a GGUF file or a folder in transformers, in float32."""
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if path.suffix != ".gguf":
        return AutoModel.from_pretrained(path, **options).eval()
    quantized = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
    return AutoModelForCausalLM.from_pretrained(path.parent, **quantized, **options).eval()


def counterparts(model: Any, run: Run) -> Arrays:
    """transformers' values for the points of a run."""
    seen = Seen(model)
    with seen.wrapped():
        model(torch.tensor([run.ids]))
    found = {point: x.numpy() for point, x in points_of(seen, run.spec.family, len(run.ids)).items()}
    for block in range(len(run.spec.blocks)):  # without a norm after the sum, it is the block's residual
        found.setdefault(f"blocks.{block}.feedforward.residual", found[f"blocks.{block}.residual"])
    if "project.logits" in found:
        found["project.probabilities"] = torch.from_numpy(found["project.logits"]).softmax(-1).numpy()
    return found


def paired(points: Arrays, spec: ModelSpec) -> Arrays:
    """transformers' values, with queries and keys in the order of the file.

    Rotated pairs of Llamas are halves in transformers, but adjacent rows in a GGUF file's matrices.
    """
    attention = spec.blocks[0].attention
    if attention is None or attention.rotary is None or attention.rotary.pairing == "half":
        return points
    return {
        point: np.stack(np.split(x, 2, -1), -1).reshape(x.shape) if kind(point) in ROTATED else x
        for point, x in points.items()
    }


def of_copy(model: Any, path: Path, ids: Sequence[int]) -> Run:
    """Run Pellucid on the float32 weights of the transformers model."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
        return recorded(Path(folder), list(ids), **PRECISE)


def kind(point: str) -> str:
    """Name of a point without its block."""
    parts = point.split(".")
    return ".".join(parts[2:]) if parts[0] == "blocks" else point


if __name__ == "__main__":
    main()
