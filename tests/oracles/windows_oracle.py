"""Golden windows and paddings from Hugging Face ``tokenizers``: tests/goldens/tokenize/windows.json.

    python tests/oracles/windows_oracle.py

Made with tokenizers 0.23.3 and the tiny WordPiece tokenizer in the same folder. Each case has its settings and the
resulting windows, [ids, offsets, type_ids]. The window of the truncated text is first. Windows are null if
``tokenizers`` refuses the settings. Needs ``pip install tokenizers``.
"""

import itertools
import json
from pathlib import Path

from tokenizers import Tokenizer

FOLDER = Path(__file__).parents[1] / "goldens" / "tokenize"
TEXT, SECOND = "the first text of a pair that is long", "and a second"
CHOICES = {
    "max_length": (5, 8, 12),
    "stride": (0, 2),
    "strategy": ("longest_first", "only_first", "only_second"),
    "direction": ("right", "left"),
}


def windows(tokenizer: Tokenizer, pair: bool, **choice):
    try:
        tokenizer.enable_truncation(**choice)
        first = tokenizer.encode(TEXT, SECOND) if pair else tokenizer.encode(TEXT)
    except BaseException:  # tokenizers panics on unexpected settings, which is not an Exception
        return None
    return [[one.ids, one.offsets, one.type_ids] for one in (first, *first.overflowing)]


def padded(tokenizer: Tokenizer, **choice):
    tokenizer.enable_padding(pad_id=0, pad_type_id=0, pad_token="[PAD]", **choice)
    return [[one.ids, one.attention_mask] for one in tokenizer.encode_batch([TEXT, SECOND])]


def main() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tiny_wordpiece" / "tokenizer.json"))
    cut = []
    for pair, *values in itertools.product((False, True), *CHOICES.values()):
        choice = dict(zip(CHOICES, values))
        cut.append({"pair": pair, **choice, "windows": windows(tokenizer, pair, **choice)})
    tokenizer.no_truncation()
    filled = []
    for side, length, multiple in itertools.product(("right", "left"), (None, 14), (None, 8)):
        choice = {"direction": side, "length": length, "pad_to_multiple_of": multiple}
        filled.append({**choice, "padded": padded(tokenizer, **choice)})
    golden = {"text": TEXT, "second": SECOND, "cut": cut, "filled": filled}
    (FOLDER / "windows.json").write_text(json.dumps(golden).replace('{"pair"', '\n{"pair"').replace('{"dir', '\n{"dir'))


if __name__ == "__main__":
    main()
