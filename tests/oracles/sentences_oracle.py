"""Golden sentence vectors of all-MiniLM-L6-v2 and all-mpnet-base-v2, computed by transformers in float32.

    python tests/oracles/sentences_oracle.py --model all-MiniLM-L6-v2/ --out tests/goldens/model/minilm.npz
    python tests/oracles/sentences_oracle.py --model all-mpnet-base-v2/ --out tests/goldens/model/all-mpnet-base-v2.npz

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU), tokenizers 0.23.3 on Python 3.11.

The folder's own tokenizer encodes a sentence as [CLS] … [SEP]. The vector is the mean of the last hidden states
over those ids ([CLS] and [SEP] included, no padding), divided by its Euclidean length, as the folder's modules.json
prescribes. Each sentence runs alone.

Long sentences are truncated: sentence_bert_config.json says `max_seq_length` 256 (MPNet 384), so sentence-transformers
keeps 256 ids in all: [CLS], the first 254 word pieces and [SEP]. The golden follows this rule. (The folder's
tokenizer.json would truncate to 128 and pad to 128; sentence-transformers overrides both, and so does this script. The
model itself has 512 positions.)

OUT.npz:

    sentences str     [50]         as numpy strings, no pickling
    offsets   int32   [51]         sentence s has ids[offsets[s]:offsets[s + 1]]
    ids       int32   [sum]        after truncation
    vectors   float32 [50, D]      of unit length
    lengths   int32   [50]         number of ids before truncation
    made_with str     []           JSON: versions, and the SHA-256 of model.safetensors
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

TEXT = Path(__file__).parent / "text.txt"
SENTENCES = [
    "a",
    "Hello",
    "!",
    "42",
    "This is a sentence.",
    "This is another sentence!",
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Someone in a gorilla costume is playing a set of drums.",
    "A cheetah is running behind its prey.",
    "The quick brown fox jumps over the lazy dog.",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG.",
    "How do I reset my password?",
    "I forgot my login credentials, what should I do?",
    "What is the capital of France?",
    "Paris is the capital and most populous city of France.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Où est la bibliothèque, s'il vous plaît ?",
    "El perro corre por el parque mientras los niños juegan al fútbol.",
    "Столица России — Москва.",
    "中国的首都是北京。",
    "吾輩は猫である。名前はまだ無い。",
    "대한민국의 수도는 서울입니다.",
    "عاصمة مصر هي القاهرة.",
    "भारत की राजधानी नई दिल्ली है।",
    "Ελλάδα και Κύπρος",
    "naïve café résumé Ångström Zürich",
    "nai\u0308ve cafe\u0301 with combining accents",
    "🙂 🎉 emoji only 👩‍👩‍👧‍👦",
    "½ ² ℃ ﬁ ligature and Ⅷ",
    "tabs\tand\nnewlines\r\nand   many    spaces",
    "zero\u200bwidth \u00a0 no-break \u00ad soft hyphen \ufeff",
    "price: $1,299.99 (−20 % off), call +1-555-0199 before 12/31!",
    "https://example.org/path?query=value&other=1#fragment",
    "e-mail me at ada.lovelace@example.org, please",
    "def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name ORDER BY 2 DESC;",
    '{"name": "Ada", "born": 1815, "tags": ["mathematics", "computing"]}',
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 120,
    "don't can't won't it's they're",
    "[CLS] [SEP] [MASK] [PAD] [UNK] written out",
    "The stock market fell sharply today as investors worried about inflation and rising interest rates.",
    "Photosynthesis is the process by which green plants use sunlight to make food from carbon dioxide and "
    "water. It takes place in the chloroplasts, which hold the pigment chlorophyll, and gives off oxygen.",
]


def sentences() -> list[str]:
    """The list above and four passages of text.txt, of about 100, 150, 200 and more than 256 ids."""
    words = TEXT.read_text(encoding="utf-8").split()
    cuts = [(1000, 1070), (1200, 1310), (1500, 1640), (2000, 2300)]
    return SENTENCES + [" ".join(words[a:b]) for a, b in cuts]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json, model.safetensors …")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)

    limit = json.loads((args.model / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    tokenizer.no_padding()
    model = AutoModel.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()
    every = sentences()
    ids, vectors, lengths = [], [], []
    for sentence in every:
        tokenizer.no_truncation()
        lengths.append(len(tokenizer.encode(sentence).ids))
        tokenizer.enable_truncation(limit)
        ids.append(tokenizer.encode(sentence).ids)
        hidden = model(input_ids=torch.tensor([ids[-1]])).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy())
    made_with = {name: version(name) for name in ("transformers", "torch", "tokenizers", "numpy")}
    made_with["sha256"] = hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest()
    np.savez_compressed(
        args.out,
        sentences=np.array(every),
        offsets=np.cumsum([0, *map(len, ids)]).astype(np.int32),
        ids=np.concatenate(ids).astype(np.int32),
        vectors=np.stack(vectors).astype(np.float32),
        lengths=np.array(lengths, np.int32),
        made_with=np.array(json.dumps(made_with)),
    )
    print(f"{len(every)} sentences, {min(lengths)} to {max(lengths)} ids")


if __name__ == "__main__":
    main()
