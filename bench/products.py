"""Speed of integer matrix products on one core, by instruction set, relative to the set's peak, and equality of bits.

    python bench/products.py [--sets SET...] [--formats Q4_0 Q4_K...] [--shapes 1024x1536] [--tokens 256] [--bits 8]

A SET is a name of `pellucid info --machine`, optionally with changes: `avx512vnni:unpacks=1` unpacks weights once for
many tokens (docs/decisions/0038), `amx:fewest=16` takes the path for many tokens from 16 tokens on. Without --sets, the
script measures all sets of this machine. Each set has its own process on the same core. Every round runs each set once,
in turn. The weights (N x D of the shape) fit into a cache.

Output: median GMAC/s; the share of the roof, which is the speed of a kernel that uses the same units without memory
access; the speed relative to the first set (median of the rounds' ratios). The last line is JSON. Exit code 1: bits
differ.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from pellucid.kernels.core import isa
from pellucid.kernels.matmul.layouts import ROWS
from pellucid.weights.quant.format import formats

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

CHANGES = ("unpacks", "fewest")
CALL = 0.02  # seconds that a set runs in a round; longer if one run of a large product takes longer
FORMATS = ("Q4_0", "Q8_0", "Q4_K", "Q6_K")


@dataclass(frozen=True)
class Variant:
    """An instruction set with changes."""

    text: str
    isa: str
    changes: Mapping[str, int]

    @classmethod
    def read(cls, text: str) -> Variant:
        name, *changed = text.split(":")
        here = [one.name for one in (*isa.possible(), *isa.emulated())]
        pairs = [one.partition("=") for one in changed]
        if name not in here:
            raise argparse.ArgumentTypeError(f"{name}: this machine has {', '.join(here)}")
        for key, _, value in pairs:
            if key not in CHANGES or not value.isdecimal():
                raise argparse.ArgumentTypeError(f"{key}: a change is {'=N or '.join(CHANGES)}=N")
        return cls(text, name, {key: int(value) for key, _, value in pairs})

    def apply(self) -> None:
        """Apply the changes to this process before it compiles a kernel."""
        if "unpacks" in self.changes:
            unpacks = bool(self.changes["unpacks"])
            # All sets, because emulated tiles use the vectors of another set.
            isa.KNOWN = tuple(replace(one, unpacks=unpacks) for one in isa.KNOWN)
        if "fewest" in self.changes:
            from pellucid.kernels.matmul import int8, many_tokens

            fewest = self.changes["fewest"]
            int8.MIN_TOKENS, many_tokens.MIN_TOKENS = fewest, (fewest, fewest)


@dataclass(frozen=True)
class Product:
    """(T, D) activations of some bits, times (N, D) weights."""

    format: str
    bits: int
    rows: int
    columns: int
    tokens: int

    @property
    def multiply_adds(self) -> int:
        return self.tokens * self.rows * self.columns

    @classmethod
    def read(cls, form: str, bits: int, shape: str, tokens: int) -> Product:
        """Raises ValueError if there is no such product."""
        known = {name: one for name, one in formats().items() if not one.packed.is_float}
        if form not in known:
            raise ValueError(f"--formats {form}: there are {', '.join(known)}")
        rows, _, columns = shape.partition("x")
        unit = known[form].packed.unit
        numbers = (int(one) if one.isdecimal() else 0 for one in (rows, columns))
        if not all(number and number % each == 0 for number, each in zip(numbers, (ROWS, unit))):
            raise ValueError(f"--shapes {shape}: must be NxD, multiples of {ROWS} and, for {form}, of {unit}")
        return cls(form, bits, int(rows), int(columns), tokens)

    def __str__(self) -> str:
        return f"{self.format} {self.bits} bits, {self.rows}x{self.columns}, {self.tokens} tokens"


def prepared(product: Product) -> tuple[str, Callable[[int], float]]:
    """The hash of a product's result, and a function from a number of runs to the seconds per run."""
    from support.blocks import packed_matrix, random_blocks

    from pellucid.kernels.core.definitions import KernelKey, definition
    from pellucid.kernels.core.library import shared
    from pellucid.kernels.matmul import quantize
    from pellucid.runtime.executor import Executor, Program, table

    form = formats()[product.format]
    matrix = packed_matrix(form, random_blocks(form, 0, product.rows, product.columns // form.block))
    drawn = np.random.default_rng(0).standard_normal((product.tokens, product.columns))
    x = quantize.reference(drawn.astype(np.float32), product.bits)
    out, zeros = np.zeros((product.tokens, product.rows), np.float32), np.zeros(ROWS, np.float32)
    key = KernelKey("matmul_int8", packed=matrix.packed, activation_bits=product.bits)
    record = definition(key.name).record
    assert record is not None
    fields = {
        "weights": matrix.address,
        "groups": matrix.groups,
        "group_bytes": matrix.packed.group_bytes(product.columns),
        "columns": product.columns,
        "x": x.ctypes.data,
        "x_stride": x[0].nbytes,
        "out": out.ctypes.data,
        "out_stride": out[0].nbytes,
        "addend": zeros.ctypes.data,
        "addend_group": 0,
        "addend_row": 0,
        "replicated": 0,
        "rows": 0,
    }
    words = record.pack(fields, shared().load([key])[key], 0)
    executor, program = Executor(1), Program(table([words]), (matrix, x, out, zeros))
    step = np.array([product.tokens], np.int64)
    executor.run(program, step)

    def run(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            executor.run(program, step)
        return (time.perf_counter() - start) / times

    return hashlib.sha256(out.tobytes()).hexdigest()[:16], run


def serve(variant: Variant, core: int) -> None:
    """Answer requests line by line: prepare a product, or measure the product and the roof."""
    variant.apply()
    from pellucid.measure.roofs import Roofs

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    roofs, run = Roofs(1, 1 << 20), None
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        if "product" in asked:
            bits, run = prepared(Product(**asked["product"]))
            print(json.dumps({"bits": bits, "seconds": run(3)}), flush=True)
        elif run:
            print(json.dumps({"seconds": run(asked["times"]), "roof": roofs.multiply()}), flush=True)


class Server:
    """A process that runs products on one core with one set."""

    def __init__(self, variant: Variant, core: int, keep: ExitStack) -> None:
        self.variant = variant
        environment = {**os.environ, "PELLUCID_ISA": variant.isa}
        if variant.changes:  # changed kernels must not use the cache, which knows them by name only
            environment["PELLUCID_HOME"] = keep.enter_context(tempfile.TemporaryDirectory())
        command = [sys.executable, __file__, "--serve", variant.text, "--core", str(core)]
        self._process = keep.enter_context(
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = ""
        with suppress(OSError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.variant.text}: its process has ended")
        made: dict[str, Any] = json.loads(answer)
        return made


def measured(product: Product, servers: Sequence[Server], rounds: int) -> list[dict[str, Any]]:
    """The results of each set for a product."""
    first = [server.ask(product=vars(product)) for server in servers]
    times = [max(1, round(CALL / one["seconds"])) for one in first]
    speeds, roofs = [[] for _ in servers], [[] for _ in servers]  # type: tuple[list[list[float]], list[list[float]]]
    for _ in range(rounds):
        for server, n, speed, roof in zip(servers, times, speeds, roofs):
            made = server.ask(times=n)
            speed.append(product.multiply_adds / made["seconds"])
            roof.append(made["roof"])
    return [
        {
            "product": str(product),
            "set": server.variant.text,
            "gmacs": statistics.median(speed) / 1e9,
            "of_roof": statistics.median(s / r for s, r in zip(speed, roof)),
            "of_first": statistics.median(s / f for s, f in zip(speed, speeds[0])),
            "bits": one["bits"],
        }
        for server, speed, roof, one in zip(servers, speeds, roofs, first)
    ]


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 on")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    native = [one.name for one in isa.possible() if one.name != "portable"]
    parser.add_argument("--sets", type=Variant.read, nargs="+", default=[Variant.read(name) for name in native])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--shapes", nargs="+", default=["1024x1536"])
    parser.add_argument("--tokens", type=positive, nargs="+", default=[256])
    parser.add_argument("--bits", type=int, nargs="+", choices=(8, 16, 24), default=[8])
    parser.add_argument("--rounds", type=positive, default=15)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    parser.add_argument("--core", type=int, choices=cores, default=cores[-1])
    parser.add_argument("--serve", type=Variant.read, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve, asked.core)
        return 0
    asked_for = itertools.product(asked.formats, asked.bits, asked.shapes, asked.tokens)
    try:
        products = [Product.read(*one) for one in asked_for]
    except ValueError as error:
        parser.error(str(error))
    found: list[dict[str, Any]] = []
    with ExitStack() as keep:
        servers = [Server(variant, asked.core, keep) for variant in asked.sets]
        for product in products:
            made = measured(product, servers, asked.rounds)
            for one in made:
                print(
                    f"{one['product']:42} {one['set']:24} {one['gmacs']:6.0f} GMAC/s {one['of_roof']:5.0%} of the roof"
                    f"{one['of_first']:6.2f}",
                    flush=True,
                )
            found += made
    print(json.dumps(found))
    differ = {one["product"] for one in found if len({o["bits"] for o in found if o["product"] == one["product"]}) > 1}
    for name in sorted(differ):
        print(f"{name}: bits differ between the sets", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
