"""A model is an instruct or a base model by its file: chat template, names, end tokens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from support.tiny import LLAMA_GGUF, LLAMA_GGUF_SHAPES, write_llama, write_llama_gguf
from support.tokenizer_file import TEMPLATE, gguf_tokenizer, write_tokenizer

from pellucid.loading import open_model
from pellucid.tokenize.load import BASE, INSTRUCT

NO_TEMPLATE = "it has no chat template"
NO_END = "its chat template ends turns with no end token of the file"
ENDING = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}<|turn|>assistant:"
PLAIN = "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n{% endfor %}### assistant\n"
NAMED = "{% for m in messages %}<|turn|>{{ m.content }}{{ eos_token }}{% endfor %}"


def why_base(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keys of a GGUF file that no reader uses
        opened = open_model(path)
    opened.checkpoint.close()
    return opened.inputs.why_base


def gguf(folder: Path, file: str = "model.gguf", template: str | None = TEMPLATE, **fields: Any) -> str:
    """The reason for a GGUF file, whose template ends turns with no end token unless another is given."""
    metadata = {**LLAMA_GGUF, **gguf_tokenizer(), **{key.replace("__", "."): fields[key] for key in fields}}
    if template is None:
        del metadata["tokenizer.chat_template"]
    else:
        metadata["tokenizer.chat_template"] = template
    return why_base(write_llama_gguf(folder / file, metadata, {**LLAMA_GGUF_SHAPES, "token_embd.weight": (320, 32)}))


def folder_of(folder: Path, ends: list[int], template: str = TEMPLATE, **config: Any) -> str:
    """The reason for a folder with safetensors, whose ``generation_config.json`` has these end tokens."""
    write_llama(folder)
    write_tokenizer(folder, eos_ids=tuple(ends))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "chat_template": template, **config})
    )
    return why_base(folder)


def test_without_a_template_every_model_is_a_base_model(tmp_path: Path) -> None:
    assert gguf(tmp_path, "Tiny-Instruct.gguf", template=None, general__name="Tiny Instruct") == NO_TEMPLATE


@pytest.mark.parametrize("template", [ENDING, PLAIN, NAMED])
def test_a_template_that_ends_turns_as_the_file_ends_texts(tmp_path: Path, template: str) -> None:
    assert gguf(tmp_path, template=template) == ""
    assert folder_of(tmp_path / "tiny", [0], template) == ""


def test_a_template_whose_turns_have_an_end_that_ends_no_text(tmp_path: Path) -> None:
    """As in the files of Qwen's base models, which have the template of the instruct model and another end token."""
    assert gguf(tmp_path) == NO_END
    assert gguf(tmp_path, tokenizer__ggml__eot_token_id=1) == ""
    assert gguf(tmp_path, tokenizer__ggml__eos_token_id=1) == ""
    assert folder_of(tmp_path / "tiny", [0]) == NO_END
    assert folder_of(tmp_path / "more", [0, 1]) == ""


@pytest.mark.parametrize("name", ["Tiny-1B-Instruct", "tiny-1b-it", "Tiny Chat v2", "tiny_thinking", "TinyChat Chat2"])
def test_names_of_instruct_models(tmp_path: Path, name: str) -> None:
    assert gguf(tmp_path, general__name=name) == ""
    assert gguf(tmp_path, f"{name}.Q4_0.gguf") == ""
    assert gguf(tmp_path, general__finetune=name) == ""
    assert folder_of(tmp_path / name, [0]) == ""


@pytest.mark.parametrize("name", ["Tiny-1B-Base", "tiny base", "tiny-pretrained"])
def test_names_of_base_models(tmp_path: Path, name: str) -> None:
    assert "its name has the word " in gguf(tmp_path, template=ENDING, general__name=name)
    assert "its name has the word " in gguf(tmp_path, f"{name}.gguf", template=ENDING)
    assert "its name has the word " in folder_of(tmp_path / name, [0], ENDING)


def test_instruct_is_the_stronger_word_and_parents_do_not_count(tmp_path: Path) -> None:
    assert gguf(tmp_path, "base.gguf", general__name="Tiny Base Instruct") == ""
    assert gguf(tmp_path, template=ENDING, general__base_model__0__name="Tiny Base") == ""
    assert gguf(tmp_path, general__base_model__0__name="Tiny Instruct") == NO_END
    assert folder_of(tmp_path / "tiny", [0], ENDING, _name_or_path="tiny-base") == ""


@pytest.mark.parametrize("name", ["tiny", "permit", "database", "summit-1b", "basement"])
def test_parts_of_words_are_no_words(tmp_path: Path, name: str) -> None:
    assert gguf(tmp_path, f"{name}.gguf") == NO_END
    assert gguf(tmp_path, f"{name}.gguf", template=ENDING) == ""


def test_the_repository_in_the_cache_of_the_hub_is_a_name(tmp_path: Path) -> None:
    cache = tmp_path / "models--Tiny--Tiny-1B-Instruct" / "snapshots" / "0123"
    assert folder_of(cache, [0]) == ""
    cache = tmp_path / "models--Tiny--Tiny-1B-Base" / "snapshots" / "0123"
    assert folder_of(cache, [0], ENDING) == "its name has the word base"


def test_no_word_is_both() -> None:
    for word in ("instruct", "instruction", "chat", "it", "thinking", "sft", "base", "pretrained"):
        assert (INSTRUCT.fullmatch(word) is None) is not (BASE.fullmatch(word) is None), word


@pytest.mark.model
@pytest.mark.parametrize(("name", "reason"), [("smollm2", ""), ("gemma3", NO_TEMPLATE)])
def test_models_of_the_catalogue(name: str, reason: str) -> None:
    assert open_model(name).inputs.why_base == reason
