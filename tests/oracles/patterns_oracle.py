"""Writes tests/goldens/tokenize/patterns.json: the matches of patterns in Hugging Face ``tokenizers``.

    python tests/oracles/patterns_oracle.py

For each construct of Oniguruma's syntax and each published pattern, per text: the spans of Split, with matches
isolated, with only matches kept, and with matches merged into the previous piece; the result of Replace, with offsets
for some texts. null for a pattern that ``tokenizers`` refuses.

Needs ``pip install tokenizers`` (0.23).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "goldens" / "tokenize" / "patterns.json"

CONSTRUCTS = r"""
a*  a*?  a+  a{2}  a{2}?  a{2}{2}  a{,2}  a{2,}  a{2,1}  a{1,2}+  a{1,2}?  a{,}  a{x}  a{1  a??  a++  a*+a
a?+a  (?:a?)*b  a{2}+
\b  \B  \Bb  (?=a)  (?!a)  (?<=a)  (?<!a)  (?<=a|bc)d  (?<=a+)b  ^  $  ^a  a$  \A  \z  \Z  \Ga  a\z  a\Z  a|
|a  b|a|
[a&&b]  [a-c&&[^b]]  [a-c&&b-d]  [^a&&b]  [a-f[0-9]]  [[a][b]c]  [[^a]]  []a]  [^]a]  [a-]  [-a]  [a-c-e]
[a-[b]]  [\]\-a]  [&a]
[[:alpha:]]  [[:^alpha:]]  [[:punct:]]  [[:word:]]  [\w]  [\W]  \w  \W  \d  \D  \s  \S  \h  \H  [\h]  [^\H]
\p{L}  \P{L}  \p{^L}
\p{Lu}  \p{Han}  \p{han}  \p{Greek}  \p{Alphabetic}  \p{alnum}  \p{Punct}  \p{Emoji}  \p{InArrows}  \p{L u}
\pL  \p{Any}  [\p{Lu}\d]
\x61  \x{e9}  \x{61 62}  [\x{61-63}]  [\x{61 62}]  \u00e9  \u0061+  \141  \0  \e  \a  \t  \n  \r  \f  \v  \cA
\C-a  \M-a  \o{141}  \xc3\xa9
.  \N  \O  (?m:.)  (?m:.+)  \R  (?i:a)  (?i:ss)  (?i:ß)  (?i:[ß])  (?i:[^a])  (?i:[a-b])  (?i:k)  (?i:s(?:s))
(?i:ﬁ)  (?i:\p{Lu})
a(?i)b|c  (?i)É  (?-i:a)  (?i:a(?-i:b))  (?x:a\sb)  (?W:\w)  (?D:\d)  (?S:\s)  (?P:\w\d)  (?:a)  (a)\1
(?<n>a)\k<n>  (a)(b)\2\1
(?>a+)b  (?>a|ab)c  (?<x>a)(b)\k<x>  a(?#comment)+  \/  \-  \_  \é  ]  }  {  \U  \Q  \g  \k  \8  \12
(?:^)*  *a  (a  a)  [a  \p{Nope}  [[:nope:]]  [b-a]  [a-\d]  [\d-a]  (?<n>a)(b)\2  (a)\2  a**  a+*  (?:a+)??
(?:a??)+  (a|b)*?c
"""
SPACED = ["a b", " {2,}", "(?x)a b # c", r"[^\S\n]", "", r"a\ b", "\u00e9", "漢|字"]
PUBLISHED = [
    # Kimi K2 (https://huggingface.co/moonshotai), BLOOM, DeepSeek V2 and V3, StarCoder, cl100k, Mistral Nemo, CLIP.
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    " ?[^(\\s|[.,!?…。，、।۔،])]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s",
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+"
    r"((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
]
TEXTS = [
    "aabbc AB\na d\n",
    "baac",
    "abcd-]&^b1é",
    "ß ss SS Ss ſs kK\u212a É ﬁ fi",
    "x²①_٣ \t\u00a0\u3000|$+<",
    "漢字かな α→😀 e\u0301",
    "aa\r\n\x1b\x07\x01\x00\u2028{}\\1,8,12",
    "Hello World, it's 1234567 3.14!\n\n  I'LL say .P 漢字ABC。 x=1;\r\n\tend  ",
    "a",
]
WITH_OFFSETS = ("baac", "a")


def outcome(pattern: str) -> Any:
    """The pattern's results for all texts; None if ``tokenizers`` refuses it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from tokenizers.normalizers import Replace
    from tokenizers.pre_tokenizers import Split

    try:
        found = Regex(pattern)
    except Exception:
        return None
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, "?"))
    tokenizer.normalizer = Replace(found, "+-")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\O"), "isolated")
    kinds = (Split(found, "isolated"), Split(found, "removed", invert=True), Split(found, "merged_with_previous"))
    made = []
    for text in TEXTS:
        spans = [[span for _, span in kind.pre_tokenize_str(text)] for kind in kinds]
        made.append([[flat(one) for one in spans], tokenizer.normalizer.normalize_str(text)])
        if text in WITH_OFFSETS:
            made[-1].append(flat(tokenizer.encode(text).offsets))
    return made


def flat(spans: Any) -> list[int]:
    """Starts and ends in one list."""
    return [place for span in spans for place in span]


def main() -> None:
    patterns = [*re.split(r"\s{2,}|\n", CONSTRUCTS.strip()), *SPACED, *PUBLISHED]
    lines = [json.dumps([pattern, outcome(pattern)], ensure_ascii=False, separators=(",", ":")) for pattern in patterns]
    head = json.dumps(TEXTS, ensure_ascii=False)
    OUT.write_text(f'{{"texts": {head}, "patterns": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
