"""Error messages are a single short line, with any quoted text."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from support.metadata import GGUF, Metadata
from support.tiny import TINY

from pellucid import errors
from pellucid.engine.inputs import Inputs
from pellucid.errors import FileFormatError, InvalidRequest, PellucidError
from pellucid.sample.options import Options
from pellucid.util import checks
from pellucid.weights.open import open_checkpoint

TREE = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, PellucidError)]
HOSTILE = ["x" * 1_000_000, "a\nb\r\x1b[31m\x00" * 5000, "\u202e\ud800" * 5000, "é" * 5000]


def one_short_line(message: str) -> bool:
    message.encode()
    return message.isprintable() and len(message) <= 600


@pytest.mark.parametrize("text", HOSTILE, ids=["long", "controls", "unprintable", "letters"])
@pytest.mark.parametrize("kind", TREE)
def test_whatever_a_message_quotes_it_is_one_short_line(kind: type[PellucidError], text: str) -> None:
    if kind is FileFormatError:
        made = FileFormatError(Path(text[:5000].replace("\x00", "")), text, text, 7)
    else:
        made = kind(f"the value {text}: must be short; leave it out")
        assert str(made).startswith("the value ")
        assert str(made).endswith(": must be short; leave it out")
    assert one_short_line(str(made))


def test_the_tree_is_the_one_that_is_drawn() -> None:
    assert errors.__doc__ is not None
    assert {one.__name__ for one in TREE} == {
        word for word in errors.__doc__.replace("(", " ").split() if word in vars(errors)
    }
    for kind in TREE:
        assert isinstance(kind("", "", "") if kind is FileFormatError else kind("short"), PellucidError)
    assert str(errors.SourceError("short")) == "short"  # an OSError has its own arguments
    assert str(errors.ModelNotFound("short")) == "short"


@pytest.mark.parametrize("kind", TREE)
def test_errors_come_through_a_pipe(kind: type[PellucidError]) -> None:
    made = FileFormatError("a/b", "field", "wrong", 7) if kind is FileFormatError else kind("short")
    found = pickle.loads(pickle.dumps(made))
    assert (type(found), str(found), vars(found)) == (kind, str(made), vars(made))


class Tokens:
    """A fake tokenizer."""

    vocab_size = 64


@pytest.mark.parametrize("text", HOSTILE, ids=["long", "controls", "unprintable", "letters"])
def test_values_are_short_where_they_come_from_files_and_requests(text: str, tmp_path: Path) -> None:
    def key(checkpoint: Metadata, name: str, value: Any = 1) -> Metadata:
        checkpoint.metadata[name] = value
        return checkpoint

    def tensor(checkpoint: Metadata) -> Metadata:
        checkpoint.tensors[text] = next(iter(checkpoint.tensors.values()))
        return checkpoint

    named = key(GGUF["llama"](), "general.name", text).read().spec
    calls = [
        lambda: key(Metadata.of(TINY["llama"]), "model_type", text).read(),
        lambda: key(Metadata.of(TINY["llama"]), "hidden_act", text).read(),
        lambda: key(Metadata.of(TINY["llama"]), "layer_types", [text]).read(),
        lambda: key(Metadata.of(TINY["llama"]), "rope_parameters", {text: 1}).read(),
        lambda: key(GGUF["llama"](), "llama.rope.scaling.type", text).read(),
        lambda: tensor(GGUF["llama"]()).read(),
        lambda: Inputs(named, Tokens(), 16).sentences(["a"]),  # type: ignore[arg-type]
        lambda: checks.text("text", text, 3),
        lambda: checks.whole("n", text, 1, 2),
        lambda: checks.token_id("prompt", text, 5),
        lambda: Options.of(**{text: 1}),
        lambda: Options.of(samplers=[text]),
        lambda: Options.of(logprobs_of=text),
        lambda: Options.of(temperature=text),
        lambda: Options.of(logit_bias=text),
        lambda: Options.of(logit_bias={text: "x"}),
        lambda: Options.of(json_schema={"required": text}),
        lambda: Options.of(json_schema=text),
        lambda: Options.of(grammar=text),
        lambda: open_checkpoint(tmp_path / text[:200].replace("\x00", "").replace("\ud800", "")),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(PellucidError) as caught:
            call()
        assert one_short_line(str(caught.value)), number
        assert text[:300] not in str(caught.value), number


def test_a_value_is_shortened_by_itself_so_that_the_remedy_stays() -> None:
    with pytest.raises(InvalidRequest, match=r"n='x+\.\.\.: must be a whole number from 1 to 2; so there$"):
        checks.whole("n", "x" * 5000, 1, 2, "so there")


@pytest.mark.parametrize(("path", "shown"), [("models/tiny.gguf", "tiny.gguf"), ("/", "/"), ("models", "models")])
def test_a_message_about_a_file_has_its_name(path: str, shown: str) -> None:
    assert str(FileFormatError(path, "magic", "is wrong", 1024)) == f"{shown}: magic at byte 1,024: is wrong"
