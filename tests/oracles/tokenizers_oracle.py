"""Golden token ids and offsets from Hugging Face ``tokenizers`` and from SentencePiece, and longer comparisons.

    python tests/oracles/tokenizers_oracle.py --smollm2 SmolLM2.gguf --gemma3 gemma-3.gguf --minilm FOLDER
        writes tests/goldens/tokenize/{smollm2,gemma3,minilm}.json and the tiny tokenizers there
    python tests/oracles/tokenizers_oracle.py … --compare FOLDER [--megabytes 5]
        compares Pellucid with the oracle on every readable file under FOLDER; writes nothing

The committed goldens were made with transformers 5.24.0, tokenizers 0.23.3 and sentencepiece 0.2.3 on Python 3.11. A
golden file is

    {"made_with": …, "ids": [ids of text 0, …], "offsets": [offsets of text 0, …],
     "special": {"index": ids where parse_special=True differs}}

for the texts of texts.json, with the tokens that the post-processor adds. ``parse_special=False`` is
``encode_special_tokens=True`` of ``tokenizers``. The offsets of a text are, for each id, [start, end] in characters;
only the end if the token begins where the previous one ended; 0 if the offsets equal the previous ones. A Unigram model
of ``tokenizers`` finds its control tokens, and the names of its bytes, in texts even with ``encode_special_tokens``;
for a text with one, ids and offsets are null. For a ``.model`` file there is no "special", but "decoded", the texts
that SentencePiece decodes from the ids.

The tiny tokenizers are trained on these texts. Trainers of ``tokenizers`` may number equally frequent characters
differently each time, so an existing tokenizer is kept: remove its folder to train it again.
``tokenizers_long.py`` compares more vocabularies on more text.

``numbers.json`` has numbers in notations that a file may use, and the float64 (hexadecimal) that ``tokenizers`` reads.

For the GGUF files, transformers rebuilds the tokenizer (``from_pretrained(…, gguf_file=…)``), with corrections:

- SmolLM2: the rebuilt tokenizer splits like GPT-2 only. The model's own tokenizer.json first splits off every digit.
- Gemma: the rebuilt tokenizer orders the merges of user-defined pieces (runs of spaces) by id. Google's tokenizer.json
  has them first, longest left part first, which matters for more than 31 spaces in a row, and has these pieces
  as added tokens too. With the corrections the merges and ids equal Google's file.

Padding and truncation of MiniLM's file are disabled: both are the caller's responsibility.
"""

import argparse
import io
import json
import random
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GOLDENS = Path(__file__).parents[1] / "goldens" / "tokenize"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def rebuilt(gguf: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).backend_tokenizer


def smollm2(gguf: Path) -> Tokenizer:
    oracle = rebuilt(gguf)
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    oracle.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return oracle


def gemma3(gguf: Path) -> Tokenizer:
    spec = json.loads(rebuilt(gguf).to_str())
    spaces = [token for token in spec["model"]["vocab"] if len(token) > 1 and set(token) == {"▁"}]
    user = {token["content"] for token in spec["added_tokens"] if not token["special"]} | set(spaces)
    first = [pair for pair in spec["model"]["merges"] if "".join(pair) in user]
    rest = [pair for pair in spec["model"]["merges"] if "".join(pair) not in user]
    spec["model"]["merges"] = sorted(first, key=lambda pair: (-len(pair[0]), -len(pair[1]))) + rest
    oracle = Tokenizer.from_str(json.dumps(spec))
    oracle.add_tokens([AddedToken(token, normalized=False) for token in spaces])
    return oracle


def minilm(folder: Path) -> Tokenizer:
    oracle = Tokenizer.from_file(str(folder / "tokenizer.json"))
    oracle.no_padding()
    oracle.no_truncation()
    return oracle


def tiny_byte_level(texts: list[str]) -> Tokenizer:
    oracle = Tokenizer(models.BPE(ignore_merges=True))
    oracle.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    oracle.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    oracle.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    oracle.train_from_iterator(texts, trainer)
    oracle.add_tokens([AddedToken("<table>", normalized=False), AddedToken("user", single_word=True, rstrip=True)])
    oracle.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B:1", special_tokens=[("<|begin|>", 0)]
    )
    return oracle


def tiny_byte_fallback(texts: list[str]) -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, limit_alphabet=120, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    order = sorted(model["vocab"], key=model["vocab"].get)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *order]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(pair) for pair in model["merges"]]
    bpe = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    oracle = Tokenizer(bpe)
    oracle.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    oracle.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    oracle.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    oracle.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return oracle


def tiny_wordpiece(texts: list[str]) -> Tokenizer:
    oracle = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    oracle.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=True)
    oracle.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    oracle.decoder = decoders.WordPiece(cleanup=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, limit_alphabet=150, special_tokens=special, show_progress=False)
    oracle.train_from_iterator(texts, trainer)
    oracle.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return oracle


def tiny_wordlevel(texts: list[str]) -> Tokenizer:
    oracle = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    oracle.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    digits = pre_tokenizers.Digits(individual_digits=True)
    oracle.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), digits])
    trainer = trainers.WordLevelTrainer(vocab_size=300, special_tokens=["[UNK]", "[END]"], show_progress=False)
    oracle.train_from_iterator(texts, trainer)
    oracle.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    return oracle


def tiny_unigram_t5(texts: list[str]) -> Tokenizer:
    proto = parsed(sentencepiece(texts, vocab_size=360, pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    extra = ["<extra_id_1>", "<extra_id_0>"]
    pieces = [(piece.piece, piece.score) for piece in proto.pieces] + [(token, 0.0) for token in extra]
    oracle = Tokenizer(models.Unigram(pieces, unk_id=2))
    precompiled = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    oracle.normalizer = normalizers.Sequence([precompiled, normalizers.Replace(Regex(" {2,}"), " ")])
    oracle.pre_tokenizer, oracle.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    oracle.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    oracle.add_special_tokens([AddedToken(token, normalized=False) for token in ("<pad>", "</s>", "<unk>", *extra)])
    return oracle


def tiny_unigram_bytes(texts: list[str]) -> Tokenizer:
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    proto = parsed(sentencepiece(texts, vocab_size=500, byte_fallback=True, **settings))
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    oracle = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    oracle.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    oracle.decoder = decoders.Sequence(parts)
    oracle.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return oracle


def tiny_unigram_ties(texts: list[str]) -> Tokenizer:
    """A Unigram tokenizer with many equally likely segmentations. Rounding of sums over the text before decides."""
    words = [f"▁{word}" for text in texts for word in text.split()]
    counts = Counter(word[at : at + size] for word in words for size in (1, 2, 3) for at in range(len(word) - size + 1))
    common = [part for part, _ in counts.most_common(400)]
    pieces = [("<unk>", 0.0), *((part, -2.1 - 1.2 * len(part)) for part in common)]
    oracle = Tokenizer(models.Unigram(pieces, unk_id=0))
    oracle.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    oracle.decoder = decoders.Metaspace()
    oracle.add_special_tokens([AddedToken("<unk>", normalized=False)])
    return oracle


SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "unigram": {"vocab_size": 360, "user_defined_symbols": ["<table>", "er", "foo", "  ", "l\u00e9"]},
    "bpe": {
        "model_type": "bpe",
        "vocab_size": 500,
        "byte_fallback": True,
        "split_digits": True,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<table>", "user", "  "],
    },
    "char": {"model_type": "char", "vocab_size": 250},
    "word": {"model_type": "word", "vocab_size": 300},
}
"""The tiny ``.model`` files with their training settings."""


def sentencepiece(texts: list[str], **settings: Any) -> bytes:
    """A SentencePiece model of the texts in European scripts, with few rules, so that its file is small."""
    import sentencepiece

    model = io.BytesIO()
    narrow = [text for text in texts if text and max(map(ord, text)) < 0x500]
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text(normalization(texts), encoding="utf-8")
        given = {"normalization_rule_tsv": str(rules)} | {"character_coverage": 0.98} | settings
        if "normalization_rule_name" in settings:
            del given["normalization_rule_tsv"]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(narrow), model_writer=model, num_threads=1, minloglevel=2, **given
        )
    proto = parsed(model.getvalue())
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # a temporary path
    return proto.SerializeToString(deterministic=True)


def normalization(texts: list[str]) -> str:
    """Rules of SentencePiece's nmt_nfkc for the characters of the texts, and for two or three that compose to one."""
    rules: dict[str, str] = {}
    for text in texts:
        for size in (1, 2, 3):
            for at in range(len(text) - size + 1):
                part = text[at : at + size]
                new = unicodedata.normalize("NFKC", part)
                if size == 1 and (part.isspace() or part in "\ufeff\u200b\u200e\u200f"):
                    new = " "
                elif size == 1 and unicodedata.category(part) == "Cc":
                    new = ""
                if new != part and (size == 1 or len(new) == 1):
                    rules[part] = new
    rules.pop("\0", None)  # rules cannot contain it
    return "".join(f"{_codes(part)}\t{_codes(new)}\n" for part, new in sorted(rules.items()))


def _codes(text: str) -> str:
    return " ".join(f"{ord(letter):X}" for letter in text)


def parsed(model: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(model)


def ids(oracle: Tokenizer, text: str, parse_special: bool) -> list[int]:
    oracle.encode_special_tokens = not parse_special
    return oracle.encode(text).ids


def found_in_text(oracle: Tokenizer) -> tuple[list[str], list[str]]:
    """The control tokens and the names of bytes that a Unigram model finds in any text."""
    spec = json.loads(oracle.to_str())
    if spec["model"]["type"] != "Unigram":
        return [], []
    control = [token["content"] for token in spec["added_tokens"] if token["special"]]
    return control, [f"<0x{byte:02X}>" for byte in range(256)] if spec["model"]["byte_fallback"] else []


def golden(oracle: Tokenizer, texts: list[str]) -> str:
    control, bytes_ = found_in_text(oracle)
    special = {
        index: ids(oracle, text, True) for index, text in enumerate(texts) if not any(name in text for name in bytes_)
    }
    oracle.encode_special_tokens = True
    found, offsets = [], []
    for text in texts:
        agreed = not any(token in text for token in (*control, *bytes_))
        encoding = oracle.encode(text)
        found.append(encoding.ids if agreed else None)
        offsets.append(packed(encoding.offsets) if agreed else None)
    different = {index: parsed for index, parsed in special.items() if parsed != found[index]}
    made_with = [f"{package} {version(package)}" for package in ("tokenizers", "transformers")]
    return written(made_with, ids=found, offsets=offsets, special=different)


def golden_of_model(model: bytes, texts: list[str]) -> str:
    from sentencepiece import SentencePieceProcessor

    oracle = SentencePieceProcessor(model_proto=model)
    ids, offsets = [], []
    for text in texts:
        pieces = oracle.encode(text, return_type="proto").pieces
        ends = accumulate((len(letter.encode()) for letter in text), initial=0)
        place = {end: at for at, end in enumerate(ends)}  # byte → character
        ids.append([piece.id for piece in pieces])
        offsets.append(packed([(place[piece.begin], place[piece.end]) for piece in pieces]))
    made_with = [f"sentencepiece {version('sentencepiece')}"]
    return written(made_with, ids=ids, offsets=offsets, decoded=[oracle.decode(found) for found in ids])


def packed(offsets: Sequence[tuple[int, int]]) -> list[int | list[int]]:
    """Only the end if a token begins where the previous one ended; 0 if it has the same offsets."""
    out: list[int | list[int]] = []
    for before, (start, end) in zip([(0, 0), *offsets], offsets):
        out.append(0 if before == (start, end) else end if start == before[1] else [start, end])
    return out


def written(made_with: list[str], **fields: Any) -> str:
    """A golden file with one line per text, so that diffs are readable."""
    parts = [f'"made_with":{json.dumps(", ".join(made_with))}']
    for name, value in fields.items():
        of_texts = value.items() if isinstance(value, dict) else ((None, one) for one in value)
        lines = [("" if key is None else f'"{key}":') + json.dumps(one, separators=(",", ":")) for key, one in of_texts]
        begin, end = "{}" if isinstance(value, dict) else "[]"
        parts.append(f'"{name}":{begin}' + ",\n".join(lines) + end)
    return "{" + ",\n".join(parts) + "}\n"


def compare(name: str, oracle: Tokenizer, path: Path, folder: Path, limit: int) -> bool:
    from pellucid.tokenize import load_tokenizer
    from pellucid.weights.open import open_checkpoint

    ours = load_tokenizer(open_checkpoint(path))
    characters = different = 0
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or characters > limit:
            continue
        # Remove unassigned code points: their class depends on the version of the Unicode tables.
        text = "".join(c for c in file.read_text(errors="replace")[:100_000] if unicodedata.category(c) != "Cn")
        characters += len(text)
        for parse_special in (False, True):
            if ids(oracle, text, parse_special) != ours.encode(text, parse_special=parse_special):
                different += 1
                print(f"{name}: {file}, parse_special={parse_special}: different", file=sys.stderr)
    print(f"{name}: {characters:,} characters compared, {different} differences")
    return different == 0


def numbers() -> str:
    """Numbers in various notations, and the exact values that ``tokenizers`` reads and writes back."""
    draw = random.Random(0)
    written = [f"-{draw.randrange(20)}.{draw.randrange(10**size):0{size}d}" for size in range(1, 26) for _ in "12345"]
    written += [f"-{draw.randrange(1, 10)}.{draw.randrange(10**16)}e{draw.randrange(-320, 300)}" for _ in range(50)]
    written += ["-0.0", "-1e2", "-1.5E-7", "-0.1", "-1e-400", "-123456789012345678901.5", "-5e-324", "-0.00e999"]
    written += [f"-{draw.randrange(1, 10)}.{draw.randrange(10**16):016d}e-{power}" for power in (7, 7, 309, 318, 325)]
    written += [f"-0.{draw.randrange(10**19):023d}" for _ in range(9)] + ["-1576263.5e-000011", "-3e+0000000007"]
    pieces = ",".join(f'["{at}", {number}]' for at, number in enumerate(written))
    oracle = Tokenizer.from_str(f'{{"model":{{"type":"Unigram","unk_id":0,"vocab":[{pieces}]}}}}')
    read = [score.hex() for _, score in json.loads(oracle.to_str())["model"]["vocab"]]
    return json.dumps(dict(zip(written, read)), indent=0) + "\n"


DEFINITIONS: dict[str, Any] = {}
"""Model types that ``tokenizers`` lacks → a class that reads a tokenizer.json, with ``to_str`` and ``encode``."""


def opened(path: Path) -> Any:
    spec = path.read_text(encoding="utf-8")
    return DEFINITIONS.get(json.loads(spec)["model"]["type"], Tokenizer.from_str)(spec)


TINY = (
    tiny_byte_level,
    tiny_byte_fallback,
    tiny_wordpiece,
    tiny_wordlevel,
    tiny_unigram_t5,
    tiny_unigram_bytes,
    tiny_unigram_ties,
)


def tiny(texts: list[str]) -> None:
    """Write the missing tiny tokenizers, and the goldens of all of them."""
    (GOLDENS / "numbers.json").write_text(numbers())
    for build in TINY:
        path = GOLDENS / build.__name__ / "tokenizer.json"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(build(texts).to_str())
        path.with_name("golden.json").write_text(golden(opened(path), texts))
    for name, settings in SENTENCEPIECE.items():
        path = GOLDENS / f"tiny_sentencepiece_{name}" / "tokenizer.model"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(sentencepiece(texts, **settings))
        path.with_name("golden.json").write_text(golden_of_model(path.read_bytes(), texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("smollm2", "gemma3", "minilm", "compare"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--megabytes", type=float, default=5)
    given = parser.parse_args()
    texts = json.loads((GOLDENS / "texts.json").read_text())
    good = True
    for name, build in (("smollm2", smollm2), ("gemma3", gemma3), ("minilm", minilm)):
        path = getattr(given, name)
        if path is None:
            continue
        oracle = build(path)
        if given.compare:
            good &= compare(name, oracle, path, given.compare, int(given.megabytes * 1e6))
        else:
            (GOLDENS / f"{name}.json").write_text(golden(oracle, texts))
    if not given.compare:
        tiny(texts)
    sys.exit(not good)


if __name__ == "__main__":
    main()
