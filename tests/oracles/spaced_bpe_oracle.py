"""Golden tokens of BPE over "▁", as in mmBERT and Granite Embedding R2, by Hugging Face ``tokenizers``.

    python tests/oracles/spaced_bpe_oracle.py --out tests/goldens/tokenize/spaced_bpe.json

The vocabularies are trained here on ``text.txt``, in the form of Gemma's: bytes as "<0xNN>", runs of newlines and of
"▁" as added tokens. mmBERT splits texts into words with Metaspace; Granite has Gemma's normalizer and no words.

The committed golden was made with tokenizers 0.23.3 on Python 3.11. OUT: {name: {"spec": tokenizer.json, "ids":
{text: [id]}, "decoded": {text: text}}}.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
ADDED = ("\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁▁")
TEXTS = [
    "", " ", "the text", "  Hello world's 123\n", "a\nb", "a \n\n\n\n b", "\n", "naïve 日本語 👍🏽", "▁ a▁▁b",
    "a  b    c", "the <mask> of the\tthing", "<mask>", "<bos>the<eos> the", "<0x41>", "x" * 30, "It is not. (It is!)",
]  # fmt: skip
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BACK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STEPS = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]
SETTINGS = {
    "mmbert": {
        "normalizer": None,
        "pre_tokenizer": METASPACE,
        "decoder": {"type": "Sequence", "decoders": [*STEPS, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    },
    "granite-embed-multi-311m": {
        "normalizer": REPLACE,
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False
        },
        "decoder": {"type": "Sequence", "decoders": STEPS},
    },
}  # fmt: skip


def trained() -> dict:
    """A vocabulary of words that begin with "▁", without newlines."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=list(SPECIAL), show_progress=False)
    text = (Path(__file__).parent / "text.txt").read_text(encoding="utf-8")
    tokenizer.train_from_iterator(text[:40_000].split("\n"), trainer)
    spec = json.loads(tokenizer.to_str())
    vocab = spec["model"]["vocab"]
    for name in (*(f"<0x{byte:02X}>" for byte in range(256)), *ADDED):
        vocab[name] = len(vocab)
    spec["model"]["merges"] += [["▁", "▁"], ["▁▁", "▁▁"]]
    spec["added_tokens"] = [
        {
            "id": vocab[name], "content": name, "special": name in SPECIAL,
            "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        }
        for name in (*SPECIAL, *ADDED)
    ]  # fmt: skip
    return spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out, found = parser.parse_args().out, {}
    for name, settings in SETTINGS.items():
        spec = {**trained(), **settings}
        reference = Tokenizer.from_str(json.dumps(spec))
        ids = {text: reference.encode(text, add_special_tokens=False).ids for text in TEXTS}
        decoded = {text: reference.decode(own, skip_special_tokens=True) for text, own in ids.items()}
        found[name] = {"spec": spec, "ids": ids, "decoded": decoded}
    out.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
