"""Golden ids of the tokenizer classes of encoders and encoder-decoders: tests/goldens/tokenize/classes.json.

    python tests/oracles/encoder_tokenizers_oracle.py

Made with transformers 4.57.6 (the last version with tokenizers in Python), sentencepiece 0.2.3 and tokenizers 0.22.2.
The vocabularies are trained on ``text.txt``. The golden has

    {"files": {name: contents, base64 for SentencePiece}, "texts": […], "pairs": [[first, second], …],
     "cases": [{"class", "config", "files": {name in the folder: name in files}, "ids", "pairs": [[ids, types], …],
                "mask": [ids of "one <mask> two.", id], "decoded": [text of the ids, …],
                "json": a tokenizer.json, "fast": {…}}, …]}

``ids`` and ``pairs`` come from the class in Python, which reads the vocabulary files. ``fast`` is the same from the
class in Rust, which reads ``json``, with the offsets of the texts and of the masked text, and with windows of the first
pair, ``cuts``: [strategy, length, stride, [[ids, types], …]]. Types are null for models without token types. Models
without a class of their own have no ``files``.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import sentencepiece
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
OUT = HERE.parent / "goldens" / "tokenize" / "classes.json"
LINES = [line for line in (HERE / "text.txt").read_text().split("\n") if line.strip()]
TEXTS = [
    "", "The debugger is extensible.", "  two  spaces  ", "Émile's naïve café, in 1,000 words!", "``quoted'' and 'so'",
    "日本 \U0001f600 mixed with text", "UPPER lower Title\tand\ttabs\nlines", "x = import_module(name) # 9,9, 12,",
    "ﬁnal ½ … “quotes”",
]  # fmt: skip
PAIRS = [
    ("What is a debugger?", "The debugger is a program. It stops programs."),
    ("", "only the second"),
    ("one", "two"),
]
CUTS = [("longest_first", 16, 0), ("only_second", 30, 4)]


def unigram(size: int = 260, **options: Any) -> bytes:
    """A SentencePiece file."""
    out = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        pairs = (("ﬁ", "fi"), ("½", "1⁄2"), ("…", "..."), ("\t", " "), ("\n", " "))
        rules.write_text(
            "".join(
                " ".join(f"{ord(c):X}" for c in old) + "\t" + " ".join(f"{ord(c):X}" for c in new) + "\n"
                for old, new in pairs
            )
        )
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES),
            model_writer=out,
            vocab_size=size,
            normalization_rule_tsv=str(rules),
            num_threads=1,
            minloglevel=2,
            **options,
        )
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(out.getvalue())
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # a temporary path
    return proto.SerializeToString(deterministic=True)


def byte_level(special: list[str], last: list[str]) -> tuple[str, str]:
    """``vocab.json`` and ``merges.txt``."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    vocab = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    return (
        json.dumps({piece: at for at, piece in enumerate([*vocab, *last])}, ensure_ascii=False),
        "\n".join(["#version: 0.2", *merges, ""]),
    )


def wordpiece(special: list[str]) -> str:
    """``vocab.txt``."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    lines = [line.lower() for line in LINES]
    trained.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    vocab = trained.get_vocab()
    return "\n".join(sorted(vocab, key=vocab.get)) + "\n"


def marian(source: bytes, target: bytes, separate: bool) -> dict[str, str]:
    """Marian's ``vocab.json`` files: some pieces of the SentencePiece files are missing."""
    made: dict[str, str] = {}
    files = [sentencepiece.SentencePieceProcessor(model_proto=file) for file in (source, target)]
    pieces = [[file.id_to_piece(at) for at in range(3, file.get_piece_size()) if at % 17] for file in files]
    if not separate:
        joint = list(dict.fromkeys(["</s>", "<unk>", ">>deu<<", ">>fra<<", *sorted({*pieces[0], *pieces[1]}), "<pad>"]))
        made["vocab.json"] = json.dumps({piece: at for at, piece in enumerate(joint)}, ensure_ascii=False)
        return made
    for name, own in zip(("vocab.json", "target_vocab.json"), pieces):
        made[name] = json.dumps(
            {piece: at for at, piece in enumerate(["</s>", "<unk>", *own, "<pad>"])}, ensure_ascii=False
        )
    return made


def files() -> dict[str, bytes]:
    """All vocabulary files, by name."""
    roberta = byte_level(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    deberta = byte_level(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], ["[MASK]"])
    fairseq, target = unigram(), unigram(200, seed_sentencepiece_size=400)
    bpe = unigram(300, model_type="bpe", hard_vocab_limit=False)
    names = sentencepiece.SentencePieceProcessor(model_proto=bpe)
    numbered = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *reversed([names.id_to_piece(at) for at in range(3, names.get_piece_size())]),
    ]
    made: dict[str, bytes | str] = {
        "fairseq.model": fairseq,
        "bpe.model": bpe,
        "target.model": target,
        "t5.model": unigram(pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
        "albert.model": unigram(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"]),
        "deberta.model": unigram(
            pad_id=0, bos_id=1, eos_id=2, unk_id=3,
            pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
        ),
        "bert.txt": wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
        "mpnet.txt": wordpiece(["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]),
        "roberta.json": roberta[0],
        "roberta.txt": roberta[1],
        "deberta.json": deberta[0],
        "deberta.txt": deberta[1],
        "m2m.json": json.dumps({piece: at for at, piece in enumerate(numbered)}, ensure_ascii=False),
        "marian.json": marian(fairseq, target, False)["vocab.json"],
        **{f"separate_{name}": text for name, text in marian(fairseq, target, True).items()},
    }  # fmt: skip
    return {name: data.encode() if isinstance(data, str) else data for name, data in made.items()}


SPM = {"sentencepiece.bpe.model": "fairseq.model"}
ROBERTA = {"vocab.json": "roberta.json", "merges.txt": "roberta.txt"}
MARIAN = {"source.spm": "fairseq.model", "target.spm": "target.model"}
CASES: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("BertTokenizer", {}, {"vocab.txt": "bert.txt"}),
    ("BertTokenizer", {"do_lower_case": False, "strip_accents": True}, {"vocab.txt": "bert.txt"}),
    ("DistilBertTokenizer", {"tokenize_chinese_chars": False}, {"vocab.txt": "bert.txt"}),
    ("ElectraTokenizer", {}, {"vocab.txt": "bert.txt"}),
    ("MPNetTokenizer", {}, {"vocab.txt": "mpnet.txt"}),
    ("RobertaTokenizer", {}, ROBERTA),
    ("BartTokenizer", {"add_prefix_space": True}, ROBERTA),
    ("LongformerTokenizer", {}, ROBERTA),
    ("DebertaTokenizer", {}, {"vocab.json": "deberta.json", "merges.txt": "deberta.txt"}),
    ("BlenderbotTokenizer", {"add_prefix_space": True}, ROBERTA),
    ("XLMRobertaTokenizer", {}, SPM),
    ("CamembertTokenizer", {}, SPM),
    ("XGLMTokenizer", {}, SPM),
    ("MBartTokenizer", {"src_lang": "de_DE"}, SPM),
    ("MBart50Tokenizer", {"src_lang": "en_XX"}, SPM),
    ("NllbTokenizer", {"src_lang": "fra_Latn"}, {"sentencepiece.bpe.model": "bpe.model"}),
    ("NllbTokenizer", {"legacy_behaviour": True}, {"sentencepiece.bpe.model": "bpe.model"}),
    ("M2M100Tokenizer", {"src_lang": "fr"}, {"sentencepiece.bpe.model": "bpe.model", "vocab.json": "m2m.json"}),
    (
        "M2M100Tokenizer",
        {"language_codes": "wmt21"},
        {"sentencepiece.bpe.model": "bpe.model", "vocab.json": "m2m.json"},
    ),
    ("MarianTokenizer", {}, {**MARIAN, "vocab.json": "marian.json"}),
    (
        "MarianTokenizer",
        {"separate_vocabs": True},
        {**MARIAN, "vocab.json": "separate_vocab.json", "target_vocab.json": "separate_target_vocab.json"},
    ),
    ("PegasusTokenizer", {}, {"spiece.model": "t5.model"}),
    ("T5Tokenizer", {"extra_ids": 3}, {"spiece.model": "t5.model"}),
    ("AlbertTokenizer", {}, {"spiece.model": "albert.model"}),
    ("AlbertTokenizer", {"do_lower_case": False, "keep_accents": True}, {"spiece.model": "albert.model"}),
    ("DebertaV2Tokenizer", {}, {"spm.model": "deberta.model"}),
    ("DebertaV2Tokenizer", {"do_lower_case": True}, {"spm.model": "deberta.model"}),
]


def slow(name: str, config: dict[str, Any], folder: Path) -> Any:
    """The tokenizer class in Python, from its vocabulary files."""
    kind = getattr(transformers, name)
    paths = {key: str(folder / file) for key, file in kind.vocab_files_names.items() if (folder / file).is_file()}
    paths.pop("tokenizer_config_file", None)
    if name == "NllbTokenizer":  # the class in Python numbers <mask> before the languages; published files do not
        from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

        size = sentencepiece.SentencePieceProcessor(model_file=paths["vocab_file"]).get_piece_size() + 1
        last = [*FAIRSEQ_LANGUAGE_CODES, "<mask>"]
        added = {size + at: AddedToken(text, lstrip=text == "<mask>", special=True) for at, text in enumerate(last)}
        config = {**config, "added_tokens_decoder": added}
    return kind(**paths, **config)


def results(tokenizer: Any) -> dict[str, Any]:
    """The ids of all texts and pairs."""
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    pairs = [with_types(tokenizer, tokenizer(*pair, return_token_type_ids=True)) for pair in PAIRS]
    mask, masked = tokenizer.mask_token, tokenizer(f"one {tokenizer.mask_token} two.")["input_ids"]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    decoded = [tokenizer.decode(some, **options) for some in ids]
    return {"ids": ids, "pairs": pairs, "mask": mask and [masked, tokenizer.mask_token_id], "decoded": decoded}


def with_types(tokenizer: Any, found: Any) -> list[Any]:
    """Ids and types; null for the types of a model that has none, because transformers gives it any types."""
    return [found["input_ids"], found["token_type_ids"] if "token_type_ids" in tokenizer.model_input_names else None]


ENDING = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
WITHOUT_CLASS: dict[str, tuple[list[str], list[str], list[dict[str, Any]], dict[str, str]]] = {
    "ModernBERT": (["[CLS]"], ["[SEP]"], [], {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}),
    "EuroBERT": (["[CLS]"], ["[SEP]"], [{"type": "ByteLevel", "trim_offsets": False}], {"mask_token": "[MASK]"}),
    "Qwen3-Embedding": ([], ["[SEP]"], [{"type": "ByteLevel", "trim_offsets": False}], {"eos_token": "[SEP]"}),
}
"""Byte-level models: the tokens before and after a text, further post-processors, and the names of tokens."""


def without_class(name: str, vocab: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """The case of a model whose ``tokenizer.json`` is all that it has."""
    before, after, further, names = WITHOUT_CLASS[name]

    def around(text: dict[str, Any], type_id: int, tokens: list[str]) -> list[dict[str, Any]]:
        first, last = ([{"SpecialToken": {"id": one, "type_id": type_id}} for one in some] for some in (tokens, after))
        return [*first, text, *last]

    single = around(ENDING[0], 0, before)
    template = {
        "type": "TemplateProcessing", "single": single, "pair": [*single, *around(ENDING[1], 1, [])],
        "special_tokens": {
            token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in (*before, *after)
        },
    }  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
    flags = {"single_word": False, "rstrip": False, "normalized": False, "special": True}
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": {"type": "NFC"}, "pre_tokenizer": level,
        "added_tokens": [
            {"id": vocab[token], "content": token, "lstrip": token == "[MASK]", **flags} for token in special
        ],
        "post_processor": {"type": "Sequence", "processors": [*({**level, **one} for one in further), template]},
        "decoder": level, "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }  # fmt: skip
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), **names)
    saved, found = recorded(made)
    return {"class": "PreTrainedTokenizerFast", "config": names, "files": {}, "json": saved, "fast": found}


def fast(name: str, tokenizer: Any, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``tokenizer.json`` of a class in Rust, with rounded scores, and its results."""
    spec = json.loads(transformers.convert_slow_tokenizer.convert_slow_tokenizer(tokenizer).to_str())
    if spec["model"]["type"] == "Unigram":
        spec["model"]["vocab"] = [[piece, round(score, 4)] for piece, score in spec["model"]["vocab"]]
    made = getattr(transformers, f"{name}Fast")(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), **config)
    return recorded(made)


def recorded(made: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``tokenizer.json`` of a tokenizer in Rust, and its results."""
    saved, found = json.loads(made.backend_tokenizer.to_str()), results(made)
    found["offsets"] = [made(text, return_offsets_mapping=True)["offset_mapping"] for text in TEXTS]
    cuts: list[Any] = []
    options = {"return_overflowing_tokens": True, "return_token_type_ids": True}
    for strategy, length, stride in CUTS:
        cut = made(*PAIRS[0], truncation=strategy, max_length=length, stride=stride, **options)
        rows = (dict(zip(cut, row)) for row in zip(*cut.values()))
        cuts.append([strategy, length, stride, [with_types(made, row) for row in rows]])
    masked = made(f"one {made.mask_token} two.", return_offsets_mapping=True)["offset_mapping"]
    return saved, {**found, "cuts": cuts, "masked": masked}


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    made, cases = files(), []
    for name, config, names in CASES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for file, source in names.items():
                (folder / file).write_bytes(made[source])
            tokenizer = slow(name, config, folder)
            case = {"class": name, "config": config, "files": names, **results(tokenizer)}
            if name == "MarianTokenizer":
                case["target"] = [tokenizer(text_target=text)["input_ids"] for text in TEXTS]
                case["written"] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in case["target"]]
            if not any(other["class"] == name for other in cases) and hasattr(transformers, f"{name}Fast"):
                case["json"], case["fast"] = fast(name, tokenizer, config)
            cases.append(case)
    vocab, merges = json.loads(made["deberta.json"]), made["deberta.txt"].decode().split("\n")[1:-1]
    cases += [without_class(name, vocab, merges) for name in WITHOUT_CLASS]
    stored = {
        name: base64.b64encode(data).decode() if name.endswith(".model") else data.decode()
        for name, data in made.items()
    }
    golden = {"files": stored, "texts": TEXTS, "pairs": PAIRS, "cases": cases}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    head = json.dumps({**golden, "cases": []}, ensure_ascii=False, separators=(",", ":"))
    OUT.write_text(head.removesuffix("[]}") + f"[\n{lines}\n]}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
