"""Golden ids, offsets and texts of small random files ``tokenizer.json``, from Hugging Face ``tokenizers``.

    python tests/oracles/settings_oracle.py

writes ``tests/goldens/tokenize/settings.json``: a list of files with

    {"spec": the file, "encoded": [[text, parse_special, ids, offsets], …], "decoded": [[ids, text], …]}

The fuzzer ``tests/fuzz/fuzz_tokenizer_models.py`` makes the files. ``ids`` is null where ``tokenizers`` refuses
a text. ``parse_special=False`` is ``encode_special_tokens=True``. Texts that are not valid UTF-8 are left out.
The committed golden was made with tokenizers 0.23.3.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "fuzz")]

import fuzz_tokenizer_models as fuzzer  # noqa: E402

OUT = TESTS / "goldens" / "tokenize" / "settings.json"
FILES, TEXTS, MOST = 160, 5, 3_000  # files; texts of a file; bytes of a file


def main() -> None:
    found, seed = list[Any](), 0
    with tempfile.TemporaryDirectory() as folder:
        while len(found) < FILES:
            seed += 1
            made = one(Random(f"settings:{seed}"), Path(folder))
            found += [] if made is None else [made]
    lines = ",\n".join(json.dumps(file, ensure_ascii=False, separators=(",", ":")) for file in found)
    OUT.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def one(random: Random, folder: Path) -> Any:
    """A random file with its results; None if it is too long, refused or ambiguous."""
    spec = fuzzer.spec(random)
    text = json.dumps(spec, ensure_ascii=False)
    ours, theirs = fuzzer._loaded(folder, spec), fuzzer._theirs(text)
    long = len(text) > (30_000 if random.random() < 0.06 else MOST)
    if long or theirs is None or not isinstance(ours, fuzzer.Tokenizer) or fuzzer._is_ambiguous(ours, spec):
        return None
    encoded, decoded = list[Any](), list[Any]()
    for _ in range(TEXTS):
        some, parse = fuzzer.text_of(random), random.random() < 0.7
        theirs.encode_special_tokens = not parse
        made = fuzzer._quietly(theirs.encode, some)
        encoded.append([some, parse, *((None, None) if made is None else (made.ids, made.offsets))])
        ids = [random.randrange(ours.vocab_size) for _ in range(random.randint(0, 6))]
        wanted = fuzzer._quietly(theirs.decode, ids, skip_special_tokens=False)
        decoded += [[ids, wanted]] if wanted is not None and "\ufffd" not in wanted else []
    return {"spec": spec, "encoded": encoded, "decoded": decoded}


if __name__ == "__main__":
    main()
