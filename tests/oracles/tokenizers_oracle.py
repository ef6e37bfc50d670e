"""Golden token ids from Hugging Face ``tokenizers``, and longer comparisons with it.

    python tests/oracles/tokenizers_oracle.py --smollm2 SmolLM2.gguf --gemma3 gemma-3.gguf --minilm FOLDER
        writes tests/goldens/tokenize/{smollm2,gemma3,minilm}.json and the tiny tokenizers there
    python tests/oracles/tokenizers_oracle.py … --compare FOLDER [--megabytes 5]
        compares Pellucid with the oracle on every readable file under FOLDER; writes nothing

The committed goldens were made with transformers 5.24.0 and tokenizers 0.23.3 on Python 3.11. A golden file is

    {"made_with": …, "ids": [ids of text 0, …], "special": {"index": ids where parse_special=True differs}}

for the texts of texts.json, with the tokens that the post-processor adds. ``parse_special=False`` is
``encode_special_tokens=True`` of ``tokenizers``.

For the GGUF files, transformers rebuilds the tokenizer (``from_pretrained(…, gguf_file=…)``), with corrections:

- SmolLM2: the rebuilt one splits like GPT-2 only. The model's own tokenizer.json splits every digit off first.
- Gemma: the rebuilt one orders the merges of user-defined pieces (runs of spaces) by id. Google's tokenizer.json
  has them first, longest left part first, which matters for more than 31 spaces in a row, and holds these pieces
  as added tokens too. With the corrections its merges and ids are equal to that file's.

Padding and truncation of MiniLM's file are switched off: both are the caller's business.
"""

import argparse
import json
import sys
import unicodedata
from importlib.metadata import version
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

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
    oracle.add_tokens(
        [AddedToken("<table>", normalized=False), AddedToken("user", single_word=True, rstrip=True)]
    )
    oracle.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B:1", special_tokens=[("<|begin|>", 0)]
    )
    return oracle


def tiny_byte_fallback(texts: list[str]) -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, limit_alphabet=120, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    order = sorted(model["vocab"], key=model["vocab"].get)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *order]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(pair) for pair in model["merges"]]
    bpe = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    oracle = Tokenizer(bpe)
    oracle.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    oracle.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
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
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, limit_alphabet=150, special_tokens=special, show_progress=False
    )
    oracle.train_from_iterator(texts, trainer)
    oracle.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return oracle


def ids(oracle: Tokenizer, text: str, parse_special: bool) -> list[int]:
    oracle.encode_special_tokens = not parse_special
    return oracle.encode(text).ids


def golden(oracle: Tokenizer, texts: list[str]) -> str:
    plain = [ids(oracle, text, False) for text in texts]
    parsed = {index: ids(oracle, text, True) for index, text in enumerate(texts)}
    different = {index: found for index, found in parsed.items() if found != plain[index]}
    made_with = f"tokenizers {version('tokenizers')}, transformers {version('transformers')}"
    return json.dumps(
        {"made_with": made_with, "ids": plain, "special": different}, separators=(",", ":")
    ).replace("],[", "],\n[")


def compare(name: str, oracle: Tokenizer, path: Path, folder: Path, limit: int) -> bool:
    from pellucid.tokenize import load_tokenizer
    from pellucid.weights.open import open_checkpoint

    ours = load_tokenizer(open_checkpoint(path))
    characters = different = 0
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or characters > limit:
            continue
        # Code points newer than the oracle's Unicode tables are cut out: they are classified by the version.
        text = "".join(
            c for c in file.read_text(errors="replace")[:100_000] if unicodedata.category(c) != "Cn"
        )
        characters += len(text)
        for parse_special in (False, True):
            if ids(oracle, text, parse_special) != ours.encode(text, parse_special=parse_special):
                different += 1
                print(f"{name}: {file}, parse_special={parse_special}: different", file=sys.stderr)
    print(f"{name}: {characters:,} characters compared, {different} differences")
    return different == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        for name, build in (
            ("byte_level", tiny_byte_level),
            ("byte_fallback", tiny_byte_fallback),
            ("wordpiece", tiny_wordpiece),
        ):
            oracle = build(texts)
            folder = GOLDENS / f"tiny_{name}"
            folder.mkdir(exist_ok=True)
            (folder / "tokenizer.json").write_text(oracle.to_str())
            (folder / "golden.json").write_text(golden(oracle, texts))
    sys.exit(not good)


if __name__ == "__main__":
    main()
