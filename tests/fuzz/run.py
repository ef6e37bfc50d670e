"""Runs fuzzers for many cases, or one case again.

    python tests/fuzz/run.py [NAME ...] [--seed N] [--count N] [--case N] [--processes N]

Without NAME all fuzzers run. The default count is each fuzzer's ``LONG``. The exit code is 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import fuzzing


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(fuzzing.known()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="cases of each")
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if unknown := set(options.names) - set(fuzzing.known()):
        parser.error(f"no fuzzer {', '.join(sorted(unknown))}; known are {', '.join(fuzzing.known())}")
    found = 0
    for name in options.names or fuzzing.known():
        count = options.count or fuzzing.load(name).LONG
        cases = range(count) if options.case is None else range(options.case, options.case + 1)
        found += _run(name, options.seed, cases, options.processes)
    return 1 if found else 0


def _run(name: str, seed: int, cases: range, processes: int) -> int:
    """Run the cases, print the findings and return their number."""
    began, ended = time.monotonic(), 0

    def done(case: int) -> None:
        nonlocal ended
        ended += 1
        if ended % 1000 == 0:
            print(f"{name}: {ended:,} cases, {time.monotonic() - began:,.0f} s", file=sys.stderr)

    findings = fuzzing.run(name, seed, cases, processes, done)
    for finding in findings:
        print(f"{name} --seed {seed} --case {finding.case}: {finding.problem}")
    print(f"{name}: {len(cases):,} cases, {len(findings)} findings, {time.monotonic() - began:,.0f} s")
    return len(findings)


if __name__ == "__main__":
    sys.exit(main())
