"""The sidecar files of a tokenizer: the small files next to it in a model folder.

``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json``, ``generation_config.json`` (or
``config.json``) and ``chat_template.jinja`` have the named tokens, the added tokens, the ids that end a generation and
the chat template. Any file may be missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import FileFormatError, UnsupportedModel, brief, reason, shown
from pellucid.model.config import Config
from pellucid.tokenize.files.gguf_fields import end_ids
from pellucid.tokenize.files.tokenizer_classes import CLASSES, OF_MODEL, TokenizerClass
from pellucid.tokenize.stages.postprocess import Template
from pellucid.tokenize.vocabulary import Vocabulary

Json = Mapping[str, Any]
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
TYPED = {
    f"{name}Tokenizer" for name in ("Bert", "ConvBert", "MobileBert", "SqueezeBert", "Deberta", "DebertaV2", "FNet")
}
"""Classes of transformers 5 that give the model the types of tokens."""
NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class Sidecar(Struct, frozen=True):
    """The contents of the sidecar files.

    ``config`` is ``tokenizer_config.json``; ``named`` maps names (``bos_token`` …) to tokens; ``added`` has the added
    tokens in the format of ``tokenizer.json``; ``ends`` is the config with the ids that end a generation;
    ``model_type`` comes from ``config.json``.
    """

    config: Json
    named: Mapping[str, str]
    added: tuple[Json, ...]
    ends: Config
    chat_template: str | None
    model_type: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Sidecar:
        """Read the sidecar files of a folder. Raises :class:`FileFormatError` for a damaged file."""
        config, special = (read_json(folder / "tokenizer_config.json"), read_json(folder / "special_tokens_map.json"))
        named = {}
        for name in NAMES:
            text = _content(config.get(name)) or _content(special.get(name))
            if text is not None:
                named[name] = text
        # If there is no generation_config.json, transformers makes one from config.json.
        own = folder / "generation_config.json"
        generation = own if own.is_file() else folder / "config.json"
        model_type = read_json(folder / "config.json").get("model_type")
        return cls(
            config,
            named,
            (*_decoder(folder, config), *_listed(folder, config)),
            Config(read_json(generation), generation),
            _chat_template(folder, config),
            model_type if isinstance(model_type, str) else None,
        )

    @property
    def kind(self) -> str | None:
        """The tokenizer class of ``transformers``, without "Fast"; None if neither the files nor the model name one."""
        name = self.config.get("tokenizer_class")
        if isinstance(name, str):
            return name.removesuffix("Fast")
        model = OF_MODEL.get(self.model_type or "")
        return None if model is None else f"{model}Tokenizer"

    @property
    def known(self) -> TokenizerClass | None:
        """The row of the class ``kind`` in CLASSES, or None."""
        return CLASSES.get(self.kind or "")

    @property
    def gives_types(self) -> bool:
        """True if ``transformers`` gives the model the types of tokens.

        Up to version 4, all classes give them if the files do not state otherwise. Version 5 writes the key "backend".
        """
        names = self.config.get("model_input_names")
        if isinstance(names, list):
            return "token_type_ids" in names
        return "backend" not in self.config or self.kind in TYPED

    def for_file(self, file: str, default: str) -> Sidecar:
        """A copy with a class for a vocabulary file of the kind ``file``: ``default`` if the files name none.

        Raises :class:`UnsupportedModel` if the class is not known, or has another kind of file.
        """
        kind = default if self.kind in (None, "PreTrainedTokenizer") else self.kind
        if kind not in CLASSES or CLASSES[kind].file != file:
            known = ", ".join(name for name, one in CLASSES.items() if one.file == file)
            raise UnsupportedModel(
                f"{file} of a {shown(str(kind))} is not implemented; known are {known}: convert it to tokenizer.json"
            )
        return replace(self, config={**self.config, "tokenizer_class": kind})

    def names(self) -> dict[str, str]:
        """The special tokens by name (``bos_token`` …). The class has defaults for names that no file has."""
        defaults = {} if self.known is None else self.known.tokens
        return {f"{role}_token": text for role, text in defaults.items()} | dict(self.named)

    def template(self, vocabulary: Vocabulary, path: Path) -> Template:
        """The post-processor of a known class. Raises :class:`FileFormatError` if the vocabulary lacks a token."""
        names, known = self.names(), self.known
        assert known is not None
        if tokens := self.languages:
            names["language_token"] = tokens[self._source(tokens)]

        def id_of(role: str) -> int:
            text = names[f"{role}_token"]
            if text not in vocabulary.ids:
                raise FileFormatError(path, f"{role}_token", f"{brief(text)} is not in the vocabulary")
            return vocabulary.ids[text]

        return known.template(self.config, id_of)

    def speaks(self, vocabulary: Vocabulary) -> bool:
        """True for a translation model whose vocabulary has the token of the source language."""
        tokens = self.languages
        return bool(tokens) and tokens[self._source(tokens)] in vocabulary.ids

    @property
    def languages(self) -> dict[str, str]:
        """The token of each language of a translation model; empty for other classes."""
        known = self.known
        return {} if known is None or known.languages is None else known.languages.tokens(self.config)

    def _source(self, tokens: Mapping[str, str]) -> str:
        """The source language of the config, a key of ``tokens``. Raises FileFormatError: it is not known."""
        assert self.known is not None
        assert self.known.languages is not None
        source = self.config.get("src_lang") or self.known.languages.default
        if source not in tokens:
            problem = f"{brief(source)} is not known; known are {', '.join(tokens)}"
            raise FileFormatError(Path("tokenizer_config.json"), "src_lang", problem)
        return str(source)

    def arguments(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """The arguments of :class:`Tokenizer` that come from these files."""
        names = {name: text for name, text in self.names().items() if name in self.named or text in vocabulary.ids}
        for key in ("bos_token_id", "eos_token_id"):
            self.ends.token_ids(key, vocabulary.size)
        ends = self.ends.values.get("eos_token_id")
        named = vocabulary.ids.get(names.get("eos_token", ""))
        return {
            "bos_id": vocabulary.ids.get(names.get("bos_token", "")),
            "eos_ids": end_ids(vocabulary, [*(ends if isinstance(ends, list) else [ends]), named]),
            "chat_template": self.chat_template,
            "named_tokens": names,
            "gives_types": self.gives_types,
            **self._languages(vocabulary),
        }

    def _languages(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """The languages of a translation model, as arguments of :class:`Tokenizer`."""
        tokens = self.languages
        if not tokens:
            return {}
        ids = {code: vocabulary.ids[token] for code, token in tokens.items() if token in vocabulary.ids}
        return {"languages": ids, "source_language": self._source(tokens)}

    def added_to(self, vocab: Mapping[str, int]) -> list[Json]:
        """The added tokens of a vocabulary without ``tokenizer.json``: the listed and the named tokens."""
        listed = {token["content"]: token for token in self.added}
        mask_lstrip = self.known is not None and self.known.mask_lstrip
        for name, text in self.names().items():
            if text not in listed and text in vocab:
                flags = {"special": True, "normalized": False}
                flags["lstrip"] = name == "mask_token" and mask_lstrip
                listed[text] = {"id": vocab[text], "content": text, **flags}
        return sorted(listed.values(), key=lambda token: token["id"])


def read_json(path: Path) -> Json:
    """The object in a JSON file; empty if there is no file. Raises :class:`FileFormatError`."""
    return parse_json(path.read_bytes(), path) if path.is_file() else {}


def parse_json(data: bytes, path: Path) -> Json:
    """The object in the contents of a JSON file. Raises :class:`FileFormatError`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FileFormatError(path, "JSON", f"{brief(twice)} is listed twice")
        return fields

    try:
        spec = json.loads(data, object_pairs_hook=unique, parse_float=_float)
        if _SURROGATE.search(data):  # a surrogate pair is a character; an unpaired surrogate is not
            json.dumps(spec, ensure_ascii=False).encode()
    except FileFormatError:
        raise
    except UnicodeEncodeError as bad:
        raise FileFormatError(path, "JSON", f"{brief(bad.object[bad.start])} is half of a character") from None
    except (ValueError, RecursionError) as bad:  # not JSON, not UTF-8, or a number with thousands of digits
        raise FileFormatError(path, "JSON", reason(bad), getattr(bad, "pos", None)) from None
    if not isinstance(spec, dict):
        raise FileFormatError(path, "JSON", f"expected an object, found {type(spec).__name__}")
    return spec


def _float(text: str) -> float:
    """Parse a number with a point or an exponent as ``serde_json`` does in ``tokenizers``, with two roundings.

    The leading digits that fit into 64 bits form an integer, which is multiplied or divided by a power of ten. Python
    rounds only once, so its Unigram scores would differ slightly. The difference may change the best segmentation.
    """
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("-0")
    leading = digits[:20]
    if int(leading or "0") >= 1 << 64:
        leading = leading[:-1]
    power = exponent.lstrip("+-").lstrip("0")
    if len(power) > 5:
        return float(text)  # zero or infinite
    ten = int(power or "0") * (-1 if exponent.startswith("-") else 1)
    ten += len(digits) - len(leading) - len(fraction)
    value = float(leading or "0")
    while value and ten < -308:
        value /= 1e308
        ten += 308
    if value and ten > 308:
        return float(text)
    if value:  # float("1e…") is the float nearest to the power of ten; 10.0**ten is not always
        value = value * float(f"1e{ten}") if ten >= 0 else value / float(f"1e{-ten}")
    return -value if text.startswith("-") else value


def _content(token: Any) -> str | None:
    """The text of a token, which is a string or an object; None for other values."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _decoder(folder: Path, config: Json) -> list[Json]:
    """The added tokens in ``added_tokens_decoder`` of ``tokenizer_config.json``, an object whose keys are ids."""
    path, listed = folder / "tokenizer_config.json", config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise FileFormatError(path, "added_tokens_decoder", f"expected an object, found {type(listed).__name__}")
    tokens: list[Json] = []
    for key, token in listed.items():
        if not key.isdecimal() or _content(token) is None or not isinstance(token, dict):
            raise FileFormatError(
                path, f"added_tokens_decoder[{brief(key)}]", f"{brief(token)} is not a token with an id"
            )
        flags = ("special", "normalized", "lstrip", "rstrip", "single_word")
        tokens.append({"id": int(key), "content": token["content"], **{f: bool(token.get(f)) for f in flags}})
    return tokens


def _listed(folder: Path, config: Json) -> list[Json]:
    """The tokens of ``added_tokens.json`` that ``tokenizer_config.json`` does not describe."""
    path = folder / "added_tokens.json"
    described = (config.get("added_tokens_decoder") or {}).values()
    known = {_content(token) for token in described}
    tokens: list[Json] = []
    for text, index in read_json(path).items():
        if type(index) is not int:
            raise FileFormatError(path, repr(text), f"the id is {brief(index)}")
        if text not in known:
            tokens.append({"id": index, "content": text, "special": False, "normalized": False})
    return tokens


def _chat_template(folder: Path, config: Json) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
