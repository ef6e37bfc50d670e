"""The tokenizer classes of ``transformers`` that add something to their vocabulary file.

A ``tokenizer.json`` is complete. Other files have pieces only; the class in ``tokenizer_config.json`` decides the names
of the special tokens, the tokens around one text and two texts, and the ids of pieces that the file does not have. A
class is data: a row of CLASSES. Source: transformers 4.57, the last version with tokenizers in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import Struct

from pellucid.errors import FileFormatError, UnsupportedModel, brief
from pellucid.tokenize.patterns.published import QWEN2
from pellucid.tokenize.stages import normalize
from pellucid.tokenize.stages.normalize import Normalizer
from pellucid.tokenize.stages.postprocess import A, B, Template

Json = Mapping[str, Any]
Pieces = Callable[[Json], Sequence[str]]
"""Pieces that depend on the fields of ``tokenizer_config.json``."""

VOCAB_TXT = "vocab.txt"
VOCAB_JSON_MERGES = "vocab.json with merges.txt"
SENTENCEPIECE = "a SentencePiece model"
VOCAB_JSON_SENTENCEPIECE = "vocab.json with a SentencePiece model"


def fixed(*pieces: str) -> Pieces:
    """The same pieces for every config."""
    return lambda config: pieces


class Languages(Struct, frozen=True):
    """The languages of a translation model.

    ``name`` is their list in ``languages.txt``, ``default`` the source language if the config names none, ``spelling``
    the token of a code.
    """

    name: str
    default: str
    spelling: str = "{}"

    def tokens(self, config: Json) -> dict[str, str]:
        """Code → token, in the order of their ids."""
        name = config.get("language_codes", self.name)
        return {code: self.spelling.format(code) for code in language_codes(str(name))}


@cache
def language_codes(name: str) -> tuple[str, ...]:
    """The codes of a list in ``languages.txt``. Raises :class:`UnsupportedModel` for an unknown list."""
    text = Path(__file__).with_name("languages.txt").read_text(encoding="utf-8")
    lists = {found: codes for found, _, codes in (part.partition("]") for part in text.split("[")[1:])}
    if name not in lists:
        raise UnsupportedModel(
            f"tokenizer_config.json: language_codes {brief(name)} is not known; known are {', '.join(lists)}"
        )
    return tuple(lists[name].split())


class TokenizerClass(Struct, frozen=True):
    """A tokenizer class of ``transformers``.

    ``file`` is the kind of its vocabulary file. ``tokens`` are the default names of its special tokens, by role.
    ``single`` and ``pair`` are the sequences of one text (A) and of two texts (A, B): roles, with the type id after a
    colon if it is not 0. ``legacy`` replaces both if the config has ``legacy_behaviour``. With ``mask_lstrip``
    the mask token includes the white space before it. With ``trims_offsets`` offsets leave out white space. With
    ``adds_space`` a text begins with a space by default. Byte-level BPE splits at ``pattern`` (default: GPT-2's) after
    the normalization form ``form``.

    A class for SentencePiece files puts ``first`` in place of the first ``replaced`` pieces of the file, and ``last``
    after all pieces. ``normalizers`` run before the normalizer of the file. With ``splits_commas`` a comma is a token
    of its own after a digit.
    """

    file: str
    tokens: Mapping[str, str]
    single: str
    pair: str
    legacy: tuple[str, str] | None = None
    mask_lstrip: bool = False
    trims_offsets: bool = False
    adds_space: bool = False
    pattern: str = ""
    form: str = ""
    first: Pieces = fixed()
    replaced: int = 0
    last: Pieces = fixed()
    languages: Languages | None = None
    normalizers: Callable[[Json], Sequence[Normalizer]] = lambda config: ()
    splits_commas: bool = False

    def template(self, config: Json, id_of: Callable[[str], int]) -> Template:
        """The post-processor; ``id_of`` maps a role to the id of its token."""
        around = self.legacy if self.legacy and config.get("legacy_behaviour") else (self.single, self.pair)
        single, pair = (tuple(_item(item, id_of) for item in items.split()) for items in around)
        return Template(single, pair)


def _item(item: str, id_of: Callable[[str], int]) -> tuple[int, int]:
    """The entry of a template for a role with its type id."""
    role, _, type_id = item.partition(":")
    return {"A": A, "B": B}.get(role) or id_of(role), int(type_id or 0)


def _albert(config: Json) -> list[Normalizer]:
    """ALBERT's rewrites: white space, quotation marks, accents and case."""
    normalizers: list[Normalizer] = []
    if config.get("remove_space", True):
        normalizers += [normalize.Strip(True, True), normalize.Replace(r"\p{White_Space}+", " ", is_pattern=True)]
    normalizers += [normalize.Replace(mark, '"') for mark in ("``", "''")]
    if not config.get("keep_accents", False):
        normalizers += [normalize.Normalize("NFKD"), normalize.StripAccents()]
    return [*normalizers, *_lower_case(config, True)]


def _lower_case(config: Json, default: bool = False) -> list[Normalizer]:
    return [normalize.Lowercase()] if config.get("do_lower_case", default) else []


MAX_EXTRA = 1 << 16
"""The most pieces that a field of the config may add."""


def extra_pieces(config: Json, field: str, default: int) -> int:
    """A number of pieces in ``tokenizer_config.json``. Raises :class:`FileFormatError`."""
    count = config.get(field, default)
    if type(count) is not int or not 0 <= count <= MAX_EXTRA:
        problem = f"is {brief(count)}; it must be a number from 0 to {MAX_EXTRA:,}"
        raise FileFormatError(Path("tokenizer_config.json"), field, problem)
    return count


def _extra_ids(config: Json) -> Sequence[str]:
    """T5's sentinels, the last first."""
    return [f"<extra_id_{at}>" for at in reversed(range(extra_pieces(config, "extra_ids", 100)))]


def _unks(config: Json) -> Sequence[str]:
    """The tokens of PEGASUS' pre-training before the pieces of the file."""
    sentence = config.get("mask_token_sent", "<mask_1>")
    masks = [] if sentence is None else ["<mask_1>", "<mask_2>"]
    return ["<pad>", "</s>", *masks, *(f"<unk_{at}>" for at in range(2, extra_pieces(config, "offset", 103)))]


BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
DEBERTA = {**BERT, "bos": "[CLS]", "eos": "[SEP]"}
ALBERT = {**DEBERTA, "unk": "<unk>", "pad": "<pad>"}
T5 = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
UNMASKED = {**T5, "bos": "<s>", "sep": "</s>", "cls": "<s>"}
FAIRSEQ = {**UNMASKED, "mask": "<mask>"}
CLS_SEP = ("cls A sep", "cls A sep B:1 sep:1")
CLS_SEP_SEP = ("cls A sep", "cls A sep sep B sep")
EOS = ("A eos", "A B eos")
LANGUAGE_FIRST, LANGUAGE_LAST = ("language A eos", "language A B eos"), ("A eos language", "A B eos language")
FAIRSEQ_IDS = fixed("<s>", "<pad>", "</s>", "<unk>")
"""The first ids of fairseq's dictionaries, in place of ``<unk>``, ``<s>`` and ``</s>`` of a SentencePiece file."""


def _fairseq(around: tuple[str, str], languages: Languages | None = None, **more: Any) -> TokenizerClass:
    """A class with the ids of a fairseq dictionary: FAIRSEQ_IDS, the pieces of the file, then further tokens."""

    def following(config: Json) -> Sequence[str]:
        return (*(languages.tokens(config).values() if languages else ()), "<mask>")

    return TokenizerClass(
        SENTENCEPIECE,
        FAIRSEQ,
        *around,
        mask_lstrip=True,
        first=FAIRSEQ_IDS,
        replaced=3,
        last=following,
        languages=languages,
        **more,
    )


_BERT = TokenizerClass(VOCAB_TXT, BERT, *CLS_SEP)
_ROBERTA = TokenizerClass(VOCAB_JSON_MERGES, FAIRSEQ, *CLS_SEP_SEP, mask_lstrip=True, trims_offsets=True)
CLASSES: Mapping[str, TokenizerClass] = {
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"), _BERT),
    **dict.fromkeys(("ConvBertTokenizer", "SqueezeBertTokenizer", "LayoutLMTokenizer"), _BERT),
    "MPNetTokenizer": TokenizerClass(VOCAB_TXT, {**FAIRSEQ, "unk": "[UNK]"}, *CLS_SEP_SEP, mask_lstrip=True),
    "GPT2Tokenizer": TokenizerClass(VOCAB_JSON_MERGES, {}, "A", "A B:1"),
    "Qwen2Tokenizer": TokenizerClass(VOCAB_JSON_MERGES, {}, "A", "A B:1", pattern=QWEN2, form="NFC"),
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer"), _ROBERTA),
    "DebertaTokenizer": TokenizerClass(VOCAB_JSON_MERGES, DEBERTA, *CLS_SEP, mask_lstrip=True),
    "BlenderbotTokenizer": TokenizerClass(VOCAB_JSON_MERGES, FAIRSEQ, *EOS, mask_lstrip=True, adds_space=True),
    "XLMRobertaTokenizer": _fairseq(CLS_SEP_SEP),
    "CamembertTokenizer": TokenizerClass(
        SENTENCEPIECE,
        FAIRSEQ,
        *CLS_SEP_SEP,
        mask_lstrip=True,
        first=fixed("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"),
        replaced=1,
        last=fixed("<mask>"),
    ),
    "XGLMTokenizer": TokenizerClass(
        SENTENCEPIECE,
        UNMASKED,
        "sep A",
        "sep A sep sep B",
        first=FAIRSEQ_IDS,
        replaced=3,
        last=fixed(*(f"<madeupword{at}>" for at in range(7))),
    ),
    "MBartTokenizer": _fairseq(LANGUAGE_LAST, Languages("mbart", "en_XX")),
    "MBart50Tokenizer": _fairseq(LANGUAGE_FIRST, Languages("mbart50", "en_XX")),
    "NllbTokenizer": _fairseq(LANGUAGE_FIRST, Languages("nllb", "eng_Latn"), legacy=LANGUAGE_LAST),
    "M2M100Tokenizer": TokenizerClass(
        VOCAB_JSON_SENTENCEPIECE, UNMASKED, *LANGUAGE_FIRST, languages=Languages("m2m100", "en", "__{}__")
    ),
    "MarianTokenizer": TokenizerClass(VOCAB_JSON_SENTENCEPIECE, T5, *EOS),
    "PegasusTokenizer": TokenizerClass(SENTENCEPIECE, {**T5, "mask": "<mask_2>"}, *EOS, first=_unks, replaced=2),
    "T5Tokenizer": TokenizerClass(SENTENCEPIECE, T5, "A eos", "A eos B eos", last=_extra_ids),
    "AlbertTokenizer": TokenizerClass(
        SENTENCEPIECE, ALBERT, *CLS_SEP, mask_lstrip=True, normalizers=_albert, splits_commas=True
    ),
    "DebertaV2Tokenizer": TokenizerClass(
        SENTENCEPIECE, DEBERTA, *CLS_SEP, last=fixed("[MASK]"), normalizers=_lower_case
    ),
}
"""The known classes. ``Fast`` at the end of a name is left out."""

OF_MODEL = {
    "albert": "Albert", "bart": "Bart", "bert": "Bert", "blenderbot": "Blenderbot", "camembert": "Camembert",
    "deberta": "Deberta", "deberta-v2": "DebertaV2", "distilbert": "DistilBert", "electra": "Electra",
    "led": "LED", "longformer": "Longformer", "m2m_100": "M2M100", "marian": "Marian", "mbart": "MBart",
    "mpnet": "MPNet", "mt5": "T5", "pegasus": "Pegasus", "roberta": "Roberta", "t5": "T5", "umt5": "T5",
    "xglm": "XGLM", "xlm-roberta": "XLMRoberta", "xlm-roberta-xl": "XLMRoberta",
}  # fmt: skip
"""``model_type`` of ``config.json`` → the beginning of the class, for folders that name no class."""
