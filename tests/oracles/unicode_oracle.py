"""Writes the tables of characters src/pellucid/tokenize/unicode.txt and unicode_properties.txt.

    python tests/oracles/unicode_oracle.py [--compare | --properties DOC]

unicode.txt records what Hugging Face ``tokenizers`` (0.23) does with every code point: its ``\\p{...}`` (Oniguruma,
Unicode 16), its lowercase letters (Rust, Unicode 17), and the normalization forms and marks of a crate with Unicode 9.
``--properties`` writes the other file, the properties that a pattern can name; DOC is doc/UNICODE_PROPERTIES of
Oniguruma's source. ``--compare`` writes nothing and shows where ``tokenizers``, ``tiktoken`` and ``regex`` disagree on
``\\p{...}``.

Needs ``pip install tokenizers tiktoken regex sentencepiece protobuf``.
"""

from __future__ import annotations

import argparse
import io
import itertools
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[2] / "src" / "pellucid" / "tokenize" / "unicode.txt"
PROPERTIES = OUT.with_name("unicode_properties.txt")
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
POSIX = (  # [[:alpha:]]; some differ from \p{alpha}
    *("alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper"),
    *("xdigit", "word", "ascii"),
)
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
TEXT = "".join(map(chr, CODES))


def runs(codes: Iterable[int]) -> str:
    """Code points as hexadecimal ranges."""
    out = []
    for _, group in itertools.groupby(enumerate(sorted(codes)), lambda pair: pair[1] - pair[0]):
        members = [code for _, code in group]
        out.append(f"{members[0]:X}" if len(members) == 1 else f"{members[0]:X}-{members[-1]:X}")
    return " ".join(out)


def of_tokenizers(name: str) -> set[int]:
    """Code points that ``tokenizers`` counts as members."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    pattern = r"\s" if name == "White_Space" else rf"\p{{{name}}}"
    kept = Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(TEXT)
    return {ord(letter) for piece, _ in kept for letter in piece}


def matching(pattern: str, text: str = TEXT) -> str:
    """The joined matches of a pattern in a text."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    pieces = Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)


def properties(doc: Path) -> str:
    """One line per set that Oniguruma has names for: the names as they are compared, a colon, ranges."""
    known: dict[str, list[str]] = {}
    listed = [
        name
        for line in doc.read_text(encoding="utf-8").splitlines()
        if re.fullmatch(r"[A-Za-z]\w*", name := line.strip())
    ]
    for name in [*listed, *POSIX]:
        found = runs(map(ord, matching(rf"\p{{{name}}}+")))
        known.setdefault(found, []).append(re.sub("[ _-]", "", name).lower())
    for name in POSIX:
        found = runs(map(ord, matching(rf"[[:{name}:]]+")))
        known.setdefault(found, []).append(f"[{name}]")
    return "".join(f"{' '.join(names)}: {found}\n" for found, names in known.items())


def folds() -> dict[str, str]:
    """The characters that ``(?i:...)`` treats as equal.

    "41-5A+32": a range, and the distance to the letter that represents its class. "DF=73.73": a character that equals
    several.
    """
    changing = [code for code in CODES if is_cased(chr(code))]
    letters = "".join(map(chr, changing))
    apart: dict[int, list[int]] = {}
    several = []
    for code in changing:
        same = sorted(map(ord, matching(f"(?i:{chr(code)})", letters)))
        target = representative(same)
        if target != code:
            apart.setdefault(target - code, []).append(code)
        folded = chr(code).casefold()
        if len(folded) > 1 and matching(f"(?i:{chr(code)})", folded) == folded:
            several.append(f"{code:X}=" + ".".join(f"{ord(letter):X}" for letter in folded))
    simple = [f"{run}{distance:+d}" for distance, codes in apart.items() for run in runs(codes).split()]
    return {"fold.simple": " ".join(simple), "fold.full": " ".join(several)}


def is_cased(letter: str) -> bool:
    """True if a letter may equal other letters that differ in case."""
    from tokenizers.normalizers import Lowercase

    return Lowercase().normalize_str(letter) != letter or letter.casefold() != letter or letter.upper() != letter


def representative(same: list[int]) -> int:
    """Representative of a class of letters: the letter named by Unicode's simple folding, otherwise the last."""
    folded = [code for code in same if all(chr(other).casefold() == chr(code) for other in same)]
    return folded[0] if folded else same[-1]


def of_regex(name: str) -> set[int]:
    """Code points that ``regex`` counts as members."""
    import regex

    return {ord(letter) for letter in regex.findall(rf"\p{{{name}}}", TEXT)}


def of_tiktoken(name: str) -> set[int]:
    """Code points that ``tiktoken`` counts as members: it returns only matches, and the vocabulary has only bytes."""
    import tiktoken

    pattern = r"\s" if name == "White_Space" else rf"\p{{{name}}}"
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return set(map(ord, bytes(encoding.encode_ordinary(TEXT)).decode()))


def marks() -> set[int]:
    """Code points that StripAccents removes."""
    from tokenizers.normalizers import StripAccents

    return {code for code in CODES if StripAccents().normalize_str("a" + chr(code)) == "a"}


def bert() -> dict[str, str]:
    """The classes of BERT's clean-up, with tables of Unicode 8: removed characters, accents, punctuation."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    clean, accents = BertNormalizer(True, False, False, False), BertNormalizer(False, False, True, False)
    words, letters = BertPreTokenizer(), [(code, f"a{chr(code)}b") for code in CODES]
    return {
        "bert.dropped": runs(code for code, text in letters if clean.normalize_str(text) == "ab"),
        "bert.marks": runs(code for code, text in letters if accents.normalize_str(text) == "ab"),
        "bert.punctuation": runs(code for code, text in letters if len(words.pre_tokenize_str(text)) == 3),
    }


def small_letters() -> str:
    """Ranges of capitals, and the distance to their lowercase letters in code points; "130=69.307" if there are two."""
    from tokenizers.normalizers import Lowercase

    out, apart = [], {}
    for code in CODES:
        small = Lowercase().normalize_str(chr(code))
        if len(small) > 1:
            out.append(f"{code:X}=" + ".".join(f"{ord(letter):X}" for letter in small))
        elif ord(small) != code:
            apart.setdefault(ord(small) - code, []).append(code)
    for distance, codes in apart.items():
        out.extend(f"{run}{distance:+d}" for run in runs(codes).split())
    return " ".join(out)


def normalized() -> set[int]:
    """Characters that normalization changes or moves.

    They decompose, are part of a decomposition, or change places with one of four marks.
    """
    from tokenizers.normalizers import NFD, NFKD

    found: set[int] = set()
    for code in CODES:
        letter = chr(code)
        full, plain = NFKD().normalize_str(letter), NFD().normalize_str(letter)
        if full != letter:
            found |= {code, *map(ord, full), *map(ord, plain)}
        around = [f"{letter}{mark}" for mark in "\u0300\u0327\u05b0\u0345"]
        if any(NFD().normalize_str(pair) != plain + pair[1] for pair in around) or any(
            NFD().normalize_str(f"{mark}{letter}") != mark + plain for mark in "\u0300\u0327\u05b0\u0345"
        ):
            found.add(code)
    return found


def clusters() -> dict[str, str]:
    """The classes of characters in grapheme clusters (UAX #29), as far as possible by experiments with ``tokenizers``.

    ``tokenizers`` replaces a whole cluster if a character map has a rule for its beginning, which shows the characters
    that join the previous or the next character. Some classes occur only in clusters of six bytes and more, where the
    replacement does not matter; these come from ``regex``.
    """
    import regex

    def property_(name: str) -> set[int]:
        return set(map(ord, regex.findall(rf"\p{{{name}}}", TEXT)))

    before = rewriting({"a"})
    joins = {code for code in CODES if before.normalize_str("a" + chr(code)) == "X"}
    prepends = property_("GCB=Prepend")
    behind = rewriting(set(map(chr, prepends)))
    names = ("Control", "L", "V", "T", "LV", "LVT", "Regional_Indicator")
    found = {f"GCB={name}": runs(property_(f"GCB={name}")) for name in names}
    return {
        "text.joins": runs(joins),
        "text.prepends": runs(code for code in prepends if behind.normalize_str(chr(code) + "a") == "X"),
        **found,
        "Extended_Pictographic": runs(property_("Extended_Pictographic")),
    }


def rewriting(letters: set[str]) -> Any:
    """A normalizer of ``tokenizers`` that replaces each of the letters by X. SentencePiece compiles the rules."""
    from sentencepiece import SentencePieceTrainer
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers.normalizers import Precompiled

    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text("".join(f"{ord(letter):X}\t58\n" for letter in letters))
        model, settings = io.BytesIO(), {"vocab_size": 8, "model_type": "char", "minloglevel": 2}
        SentencePieceTrainer.train(
            sentence_iterator=iter(["b c d e"]), model_writer=model, normalization_rule_tsv=str(rules), **settings
        )
    return Precompiled(ModelProto.FromString(model.getvalue()).normalizer_spec.precompiled_charsmap)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--properties", type=Path, metavar="DOC")
    options = parser.parse_args()
    if options.properties:
        PROPERTIES.write_text(properties(options.properties))
        return
    if not options.compare:
        lines = {name: runs(of_tokenizers(name)) for name in CATEGORIES + OTHERS}
        lines |= {"text.marks": runs(marks()), "text.normalized": runs(normalized()), "text.small": small_letters()}
        lines |= clusters() | bert() | folds() | {"text.word": runs(map(ord, matching(r"\w+")))}
        OUT.write_text("".join(f"{name} {found}\n" for name, found in lines.items()))
        return
    for name in CATEGORIES + OTHERS:
        truth = of_tokenizers(name)
        for which, other in (("tiktoken", of_tiktoken(name)), ("regex", of_regex(name))):
            if other != truth:
                print(f"{name}: {which} lacks {runs(truth - other)[:200]}; has {runs(other - truth)[:200]}")


if __name__ == "__main__":
    main()
