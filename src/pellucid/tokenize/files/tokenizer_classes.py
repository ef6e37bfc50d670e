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

from pellucid.errors import UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.tokenize.patterns.published import QWEN2
from pellucid.tokenize.stages import normalize
from pellucid.tokenize.stages.normalize import Normalizer
from pellucid.tokenize.stages.postprocess import A, B, Template

Json = Mapping[str, Any]
Pieces = Callable[[Json], Sequence[str]]
"""Pieces that depend on the fields of ``tokenizer_config.json``."""

WORDPIECE, MERGES, SENTENCEPIECE = "vocab.txt", "vocab.json with merges.txt", "a SentencePiece model"
NUMBERED = "vocab.json with a SentencePiece model"


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
    colon if it is not 0. ``legacy`` replaces both if the config has ``legacy_behaviour``. With ``masks_word``
    the mask token includes the white space before it. With ``trims_offsets`` offsets leave out white space. With
    ``adds_space`` a text begins with a space by default. Byte-level BPE splits at ``pattern`` (default: GPT-2's) after
    the normalization form ``form``.

    A class for SentencePiece files puts ``first`` in place of the first ``replaced`` pieces of the file, and ``last``
    after all pieces. ``changes`` are rewrites before the normalizer of the file. With ``splits_commas`` a comma is not
    joined to the digit before it.
    """

    file: str
    tokens: Mapping[str, str]
    single: str
    pair: str
    legacy: tuple[str, str] | None = None
    masks_word: bool = False
    trims_offsets: bool = False
    adds_space: bool = False
    pattern: str = ""
    form: str = ""
    first: Pieces = fixed()
    replaced: int = 0
    last: Pieces = fixed()
    languages: Languages | None = None
    changes: Callable[[Json], Sequence[Normalizer]] = lambda config: ()
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
    changes: list[Normalizer] = []
    if config.get("remove_space", True):
        changes += [normalize.Strip(True, True), normalize.Replace(r"\p{White_Space}+", " ", is_pattern=True)]
    changes += [normalize.Replace(mark, '"') for mark in ("``", "''")]
    if not config.get("keep_accents", False):
        changes += [normalize.Normalize("NFKD"), normalize.StripAccents()]
    return [*changes, *_lower_case(config, True)]


def _lower_case(config: Json, default: bool = False) -> list[Normalizer]:
    return [normalize.Lowercase()] if config.get("do_lower_case", default) else []


def _extra_ids(config: Json) -> Sequence[str]:
    """T5's sentinels, the last first."""
    count = config.get("extra_ids", 100)
    return [f"<extra_id_{at}>" for at in reversed(range(count if type(count) is int else 0))]


def _unks(config: Json) -> Sequence[str]:
    """PEGASUS' tokens of the pre-training before the pieces of the file."""
    offset, sentence = config.get("offset", 103), config.get("mask_token_sent", "<mask_1>")
    masks = [] if sentence is None else [sentence, "<mask_2>"]
    return [
        "<pad>",
        "</s>",
        *masks,
        *(f"<unk_{at}>" for at in range(2, offset if type(offset) is int else 0)),
    ]


BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
DEBERTA = {**BERT, "bos": "[CLS]", "eos": "[SEP]"}
ALBERT = {**DEBERTA, "unk": "<unk>", "pad": "<pad>"}
T5 = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
UNMASKED = {**T5, "bos": "<s>", "sep": "</s>", "cls": "<s>"}
FAIRSEQ = {**UNMASKED, "mask": "<mask>"}
SEGMENTS = ("cls A sep", "cls A sep B:1 sep:1")
DOUBLE = ("cls A sep", "cls A sep sep B sep")
ENDED = ("A eos", "A B eos")
BEFORE, AFTER = ("language A eos", "language A B eos"), ("A eos language", "A B eos language")
NUMBERS = fixed("<s>", "<pad>", "</s>", "<unk>")
"""The first ids of fairseq's dictionaries, in place of ``<unk>``, ``<s>`` and ``</s>`` of a SentencePiece file."""


def _fairseq(around: tuple[str, str], languages: Languages | None = None, **more: Any) -> TokenizerClass:
    """A class with the ids of a fairseq dictionary: NUMBERS, the pieces of the file, then further tokens."""

    def following(config: Json) -> Sequence[str]:
        return (*(languages.tokens(config).values() if languages else ()), "<mask>")

    return TokenizerClass(
        SENTENCEPIECE,
        FAIRSEQ,
        *around,
        masks_word=True,
        first=NUMBERS,
        replaced=3,
        last=following,
        languages=languages,
        **more,
    )


_BERT = TokenizerClass(WORDPIECE, BERT, *SEGMENTS)
_ROBERTA = TokenizerClass(MERGES, FAIRSEQ, *DOUBLE, masks_word=True, trims_offsets=True)
CLASSES: Mapping[str, TokenizerClass] = {
    **dict.fromkeys(
        ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"), _BERT
    ),
    **dict.fromkeys(("ConvBertTokenizer", "SqueezeBertTokenizer", "LayoutLMTokenizer"), _BERT),
    "MPNetTokenizer": TokenizerClass(WORDPIECE, {**FAIRSEQ, "unk": "[UNK]"}, *DOUBLE, masks_word=True),
    "GPT2Tokenizer": TokenizerClass(MERGES, {}, "A", "A B:1"),
    "Qwen2Tokenizer": TokenizerClass(MERGES, {}, "A", "A B:1", pattern=QWEN2, form="NFC"),
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer"), _ROBERTA),
    "DebertaTokenizer": TokenizerClass(MERGES, DEBERTA, *SEGMENTS, masks_word=True),
    "BlenderbotTokenizer": TokenizerClass(MERGES, FAIRSEQ, *ENDED, masks_word=True, adds_space=True),
    "XLMRobertaTokenizer": _fairseq(DOUBLE),
    "CamembertTokenizer": TokenizerClass(
        SENTENCEPIECE,
        FAIRSEQ,
        *DOUBLE,
        masks_word=True,
        first=fixed("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"),
        replaced=1,
        last=fixed("<mask>"),
    ),
    "XGLMTokenizer": TokenizerClass(
        SENTENCEPIECE,
        UNMASKED,
        "sep A",
        "sep A sep sep B",
        first=NUMBERS,
        replaced=3,
        last=fixed(*(f"<madeupword{at}>" for at in range(7))),
    ),
    "MBartTokenizer": _fairseq(AFTER, Languages("mbart", "en_XX")),
    "MBart50Tokenizer": _fairseq(BEFORE, Languages("mbart50", "en_XX")),
    "NllbTokenizer": _fairseq(BEFORE, Languages("nllb", "eng_Latn"), legacy=AFTER),
    "M2M100Tokenizer": TokenizerClass(
        NUMBERED, UNMASKED, *BEFORE, languages=Languages("m2m100", "en", "__{}__")
    ),
    "MarianTokenizer": TokenizerClass(NUMBERED, T5, *ENDED),
    "PegasusTokenizer": TokenizerClass(
        SENTENCEPIECE, {**T5, "mask": "<mask_2>"}, *ENDED, first=_unks, replaced=2
    ),
    "T5Tokenizer": TokenizerClass(SENTENCEPIECE, T5, "A eos", "A eos B eos", last=_extra_ids),
    "AlbertTokenizer": TokenizerClass(
        SENTENCEPIECE, ALBERT, *SEGMENTS, masks_word=True, changes=_albert, splits_commas=True
    ),
    "DebertaV2Tokenizer": TokenizerClass(
        SENTENCEPIECE, DEBERTA, *SEGMENTS, last=fixed("[MASK]"), changes=_lower_case
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
