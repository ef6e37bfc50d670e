"""Writes src/pellucid/tokenize/unicode.txt: the properties that patterns of tokenizers name.

    python tests/oracles/unicode_oracle.py [--compare]

The truth is what Hugging Face ``tokenizers`` makes of ``\\p{...}``, asked of every code point (0.23, whose Oniguruma
has Unicode 16). ``--compare`` writes nothing and shows where ``tokenizers``, ``tiktoken`` and ``regex`` do not agree.

Needs ``pip install tokenizers tiktoken regex``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path

OUT = Path(__file__).parents[2] / "src" / "pellucid" / "tokenize" / "unicode.txt"
CATEGORIES = [
    "Lu",
    "Ll",
    "Lt",
    "Lm",
    "Lo",
    "Mn",
    "Mc",
    "Me",
    "Nd",
    "Nl",
    "No",
    "Pc",
    "Pd",
    "Ps",
    "Pe",
    "Pi",
    "Pf",
    "Po",
    "Sm",
    "Sc",
    "Sk",
    "So",
    "Zs",
    "Zl",
    "Zp",
    "Cc",
    "Cf",
    "Co",
]
OTHERS = ["White_Space", "Han", "Hiragana", "Katakana"]
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
TEXT = "".join(map(chr, CODES))


def runs(codes: Iterable[int]) -> str:
    """Code points as hexadecimal runs."""
    out = []
    for _, group in itertools.groupby(enumerate(sorted(codes)), lambda pair: pair[1] - pair[0]):
        members = [code for _, code in group]
        out.append(f"{members[0]:X}" if len(members) == 1 else f"{members[0]:X}-{members[-1]:X}")
    return " ".join(out)


def of_tokenizers(name: str) -> set[int]:
    """Code points that ``tokenizers`` takes for members."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    pattern = r"\s" if name == "White_Space" else rf"\p{{{name}}}"
    kept = Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(TEXT)
    return {ord(letter) for piece, _ in kept for letter in piece}


def of_regex(name: str) -> set[int]:
    """Code points that ``regex`` takes for members."""
    import regex

    return {ord(letter) for letter in regex.findall(rf"\p{{{name}}}", TEXT)}


def of_tiktoken(name: str) -> set[int]:
    """Code points that ``tiktoken`` takes for members: only those are split off, and bytes are all that is known."""
    import tiktoken

    pattern = r"\s" if name == "White_Space" else rf"\p{{{name}}}"
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return set(map(ord, bytes(encoding.encode_ordinary(TEXT)).decode()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--compare", action="store_true")
    if not parser.parse_args().compare:
        OUT.write_text("".join(f"{name} {runs(of_tokenizers(name))}\n" for name in CATEGORIES + OTHERS))
        return
    for name in CATEGORIES + OTHERS:
        truth = of_tokenizers(name)
        for which, other in (("tiktoken", of_tiktoken(name)), ("regex", of_regex(name))):
            if other != truth:
                print(f"{name}: {which} lacks {runs(truth - other)[:200]}; has {runs(other - truth)[:200]}")


if __name__ == "__main__":
    main()
