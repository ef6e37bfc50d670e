"""Decoders used as encoders: the task of a file, its pooling, its head, and twins in GGUF."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decoders import arrays_of, edited, modules, outputs, read, write_gguf_twin
from support.tiny import ENCODERS, TINY

from pellucid.errors import FileFormatError, PellucidError, UnsupportedModel
from pellucid.model import decoder_outputs
from pellucid.model import read as reading
from pellucid.model.outputs import Dense, Labels, PairPrompt, Pooling, Task, UnitLength
from pellucid.model.rerankers import RERANKERS
from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint

IDS = list(range(3, 30))
POOLED = {"modules.json": modules(("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))}
LAST = {**POOLED, "1_Pooling/config.json": {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}}
SCORE = {"modules.json": modules(("LogitScore", "1_LogitScore"))}
WORDS = {"yes": 7, "no": 9}
QWEN3 = RERANKERS["qwen3"].prompt


def test_a_plain_language_model_generates(tmp_path: Path) -> None:
    spec = read(TINY["qwen3"]).spec
    assert (spec.task, spec.pooling, spec.output) == ("generate", None, ())
    assert spec.head is not None


def test_a_gguf_file_skips_the_outputs_of_encoders_only_if_it_states_none() -> None:
    """``OUTPUT_KEYS`` has every key that ``decoder_outputs.py`` reads from GGUF."""
    source = inspect.getsource(decoder_outputs).partition("def as_encoder")[0]
    keys = re.findall(r'config\.\w+\(\s*f?"([^"]+)"', source)
    keys = [key.replace("{name}", "dense_2") for key in keys]
    assert {"attention.causal", "decision.type", "pooling_type", "dense_2_feat_in"} <= set(keys)
    assert [key for key in keys if not key.startswith(reading.OUTPUT_KEYS)] == []


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2moe", "qwen3next", "lfm2", "gpt2"])
def test_a_file_that_skips_them_has_the_same_model(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(random_model(family, tmp_path / "model.gguf"))
    skipped = reading.read_model(checkpoint)
    monkeypatch.setattr(reading, "OUTPUT_KEYS", ("",))  # each key may state an output
    assert reading.read_model(checkpoint) == skipped
    checkpoint.close()


@pytest.mark.parametrize("base", ["qwen3", "llama", "gpt2", "lfm2", "mixtral"])
def test_a_plain_language_model_embeds_with_its_last_token(base: str) -> None:
    spec = read(TINY[base], "embed").spec
    assert (spec.task, spec.pooling, spec.output, spec.head) == ("embed", Pooling("last"), (UnitLength(),), None)
    assert not spec.in_one_step
    assert spec.output_width == spec.embedding.width


def test_modules_decide_the_pooling(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "Instruct: x\nQuery:", "document": ""}, "default_prompt_name": None}
    files = {**LAST, "config_sentence_transformers.json": prompts}
    spec = read(edited(tmp_path / "m", TINY["qwen3"], files)).spec
    assert (spec.task, spec.pooling, spec.output) == ("embed", Pooling("last"), (UnitLength(),))
    assert dict(spec.prompts) == prompts["prompts"]
    assert read(tmp_path / "m", "generate").spec.head is not None


def test_the_settings_of_sentence_transformers_limit_the_context(tmp_path: Path) -> None:
    files = {**LAST, "sentence_bert_config.json": {"max_seq_length": 100, "do_lower_case": False}}
    assert read(edited(tmp_path / "m", TINY["qwen3"], files)).spec.context == 100
    assert read(tmp_path / "m", "generate").spec.context == 256


def test_the_embedding_is_the_normalised_hidden_state_of_the_last_token(tmp_path: Path) -> None:
    rows = outputs(edited(tmp_path / "rows", ENCODERS["qwen3-body-odd"], POOLED), IDS)
    body = {"modules.json": modules(("Dense", "1_Dense"))}
    dense = {"in_features": 96, "out_features": 96, "bias": False, "activation_function": "x.Identity"}
    files = {**body, "1_Dense/config.json": dense}
    tensors = {"1_Dense/model.safetensors": {"linear.weight": np.eye(96, dtype=np.float32)}}
    vectors = outputs(edited(tmp_path / "tokens", ENCODERS["qwen3-body-odd"], files, tensors), IDS)
    assert vectors.shape == (len(IDS), 96)
    last = outputs(edited(tmp_path / "last", ENCODERS["qwen3-body-odd"], LAST), IDS)
    np.testing.assert_allclose(last, vectors[-1:], rtol=0, atol=1e-6)
    assert np.abs(rows - last).max() > 1e-3  # the mean is another vector


@pytest.mark.parametrize(
    ("config", "window"),
    [({"is_causal": False}, 9), ({"use_causal_mask": False}, 9), ({"bidirectional": True}, 9),
     ({"architectures": ["MistralBiModel"]}, 9), ({"use_bidirectional_attention": True}, 5)],
)  # fmt: skip
def test_tokens_may_see_later_tokens(config: dict[str, Any], window: int, tmp_path: Path) -> None:
    spec = read(edited(tmp_path / "m", TINY["mistral"], **config)).spec  # its window is 8
    assert (spec.task, spec.pooling, spec.in_one_step) == ("embed", Pooling("mean"), True)
    assert (spec.attention.causal, spec.attention.window) == (False, window)


def test_nvidia_states_the_pooling_in_its_configuration(tmp_path: Path) -> None:
    config = {"model_type": "llama_bidirec", "pooling": "avg", "temperature": 1.0}
    embedder = edited(tmp_path / "e", ENCODERS["llama-body"], architectures=["LlamaBidirectionalModel"], **config)
    assert (read(embedder).spec.pooling, read(embedder).spec.attention.causal) == (Pooling("mean"), False)
    names = ["LlamaBidirectionalForSequenceClassification"]
    reranker = edited(tmp_path / "r", ENCODERS["llama-rank-tied"], architectures=names, **config)
    spec = read(reranker).spec
    assert (spec.task, spec.pooling, spec.pair_prompt) == (
        "classify",
        Pooling("mean"),
        RERANKERS["llama_bidirec"].prompt,
    )
    with pytest.raises(UnsupportedModel, match="temperature"):
        read(edited(tmp_path / "t", reranker, temperature=0.5))


@pytest.mark.parametrize(
    ("base", "config", "words"),
    [
        ("qwen3", {"architectures": ["Qwen3ForMultipleChoice"]}, "ForMultipleChoice|MultipleChoice"),
        ("qwen3_next", {"is_causal": False}, "DeltaNet"),
        ("falcon_h1", {"is_causal": False}, "Mamba"),
        ("llama4", {"is_causal": False}, "chunks"),
        ("lfm2-odd", {"architectures": ["Lfm2BidirectionalModel"]}, "4 tokens, which has no center"),
    ],
)
def test_what_is_not_implemented_is_refused(base: str, config: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        read(edited(tmp_path / "m", TINY[base], **config))


@pytest.mark.parametrize(
    ("base", "task", "words"),
    [
        ("qwen3", "fill-x", "no head for the task"),
        ("qwen3", "tag", "score.weight: tensor missing"),
        ("llama", "classify", "no reranker of the type llama is known"),
        ("qwen3", "classify", "no token yes"),
    ],
)
def test_a_task_that_the_file_does_not_allow_is_refused(base: str, task: Task, words: str) -> None:
    with pytest.raises(PellucidError, match=words):
        read(TINY[base], task)


def test_a_model_whose_tokens_see_later_tokens_does_not_generate() -> None:
    with pytest.raises(UnsupportedModel, match="tokens see later tokens"):
        read(ENCODERS["qwen3-two-sided"], "generate")


def test_a_class_without_a_head_is_a_sentence_encoder_unless_the_file_has_a_head(tmp_path: Path) -> None:
    assert read(ENCODERS["llama-body"]).spec.task == "embed"
    assert read(edited(tmp_path / "m", TINY["llama"], architectures=["LlamaModel"])).spec.task == "generate"


@pytest.mark.parametrize(
    ("false", "labels"), [(9, Labels(("token 7", "token 9"), "softmax", 0)), (None, Labels(("token 7",), "sigmoid", 0))]
)
def test_scores_of_words_are_rows_of_the_head(false: int | None, labels: Labels, tmp_path: Path) -> None:
    files = {**SCORE, "1_LogitScore/config.json": {"true_token_id": 7, "false_token_id": false}}
    for base in ("qwen3", "qwen3-odd"):  # a separate head, and a tied head
        path = edited(tmp_path / base, TINY[base], files)
        spec = read(path).spec
        assert (spec.task, spec.pooling, spec.labels) == ("classify", Pooling("last"), labels)
        logits = outputs(TINY[base], IDS)[-1:]
        words = [7] if false is None else [7, 9]
        np.testing.assert_allclose(outputs(path, IDS), logits[:, words], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [({"true_token_id": 128}, "true_token_id"), ({}, "true_token_id"),
     ({"true_token_id": 1, "module_input_name": "x"}, "module_input_name")],
)  # fmt: skip
def test_a_damaged_score_module_is_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    files = {**SCORE, "1_LogitScore/config.json": config}
    with pytest.raises(PellucidError, match=words):
        read(edited(tmp_path / "m", TINY["qwen3"], files))


def test_a_capped_head_is_no_reranker(tmp_path: Path) -> None:
    files = {**SCORE, "1_LogitScore/config.json": {"true_token_id": 1}}
    with pytest.raises(UnsupportedModel, match="capped"):
        read(edited(tmp_path / "m", TINY["gemma2"], files))


def test_a_language_model_is_a_published_reranker_on_request() -> None:
    spec = read(TINY["qwen3"], "classify", WORDS).spec
    assert (spec.labels, spec.pair_prompt) == (Labels(("yes", "no"), "softmax", 0), QWEN3)
    rows = outputs(TINY["qwen3"], IDS, "classify", **WORDS)
    np.testing.assert_allclose(rows, outputs(TINY["qwen3"], IDS)[-1:, [7, 9]], rtol=1e-6, atol=1e-6)
    assert read(TINY["gemma"], "classify", {"Yes": 5}).spec.labels == Labels(("Yes",), "sigmoid", 0)
    assert read(TINY["qwen2"], "classify", {"1": 5, "0": 6}).spec.labels == Labels(("1", "0"), "softmax", 0)


def test_classifiers_read_the_last_token_that_is_not_padding() -> None:
    assert read(ENCODERS["llama-classify"]).spec.pooling == Pooling("last", padding=0)
    assert read(ENCODERS["llama-classify"]).spec.pair_prompt is None
    assert read(ENCODERS["qwen3-rank"]).spec.pair_prompt == QWEN3
    assert read(ENCODERS["qwen3-classify-odd"]).spec.pair_prompt is None  # three labels


def test_a_cross_encoder_of_sentence_transformers_has_its_head_in_its_class(tmp_path: Path) -> None:
    settings = {"model_type": "CrossEncoder", "prompts": {"web": "Find it"}, "default_prompt_name": "web"}
    options = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}
    files = {
        "modules.json": modules(),
        "config_sentence_transformers.json": settings,
        "sentence_bert_config.json": options,
    }
    spec = read(edited(tmp_path / "m", ENCODERS["qwen3-rank"], files)).spec
    assert spec.task == "classify"
    assert spec.pair_prompt == PairPrompt("", "Find it", generation_prompt=True)


QWEN_KEYS = {"qwen3.pooling_type": 3}


def test_a_gguf_sentence_encoder_has_the_bits_of_its_twin(tmp_path: Path) -> None:
    folder = edited(tmp_path / "m", ENCODERS["qwen3-body-odd"], LAST)
    twin = write_gguf_twin(tmp_path / "twin.gguf", folder, "qwen3", QWEN_KEYS)
    spec = read(twin).spec
    assert (spec.task, spec.pooling, spec.output) == ("embed", Pooling("last"), (UnitLength(),))
    assert outputs(twin, IDS).tobytes() == outputs(folder, IDS).tobytes()
    assert read(twin, "generate").spec.task == "generate"


def test_embedding_gemma_in_gguf_has_the_bits_of_its_twin(tmp_path: Path) -> None:
    base, rng = ENCODERS["gemma3-two-sided"], np.random.default_rng(4)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((96, 32), (32, 96))]
    dense = [
        {"in_features": i, "out_features": o, "bias": False, "activation_function": "torch.nn.Identity"}
        for o, i in ((96, 32), (32, 96))
    ]
    kinds = (("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dense", "3_Dense"), ("Normalize", "4_Normalize"))
    files = {
        "modules.json": modules(*kinds),
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "2_Dense/config.json": dense[0],
        "3_Dense/config.json": dense[1],
    }
    tensors = {f"{n}_Dense/model.safetensors": {"linear.weight": w} for n, w in zip((2, 3), weights)}
    folder = edited(tmp_path / "m", base, files, tensors)
    keys = {"pooling_type": 1, "attention.sliding_window": 16, "dense_2_feat_in": 32, "dense_2_feat_out": 96}
    more = {f"dense_{n}.weight": w for n, w in zip((2, 3), weights)}
    extra = {f"gemma-embedding.{key}": value for key, value in keys.items()}
    twin = write_gguf_twin(tmp_path / "twin.gguf", base, "gemma-embedding", extra, more)
    spec = read(twin).spec
    assert (spec.attention.causal, spec.attention.window) == (False, 9)
    assert spec.output == (Dense(96, bias=False), Dense(32, bias=False), UnitLength())
    assert outputs(twin, IDS).tobytes() == outputs(folder, IDS).tobytes()
    wrong = {**extra, "gemma-embedding.dense_3_feat_in": 95}
    with pytest.raises(FileFormatError, match="dense_3_feat_in"):
        read(write_gguf_twin(tmp_path / "wrong.gguf", base, "gemma-embedding", wrong, more))


def test_a_gguf_reranker_has_its_labels_and_its_template(tmp_path: Path) -> None:
    head = arrays_of(TINY["qwen3"])["lm_head.weight"]
    template = QWEN3.template.replace("{instruction}", QWEN3.instruction)
    extra = {
        "qwen3.pooling_type": 4,
        "qwen3.classifier.output_labels": ["yes", "no"],
        "tokenizer.chat_template.rerank": template,
    }
    more = {"cls.output.weight": head[[7, 9]]}
    twin = write_gguf_twin(tmp_path / "twin.gguf", TINY["qwen3"], "qwen3", extra, more)
    spec = read(twin).spec
    assert (spec.labels, spec.pair_prompt) == (Labels(("yes", "no"), "softmax", 0), QWEN3)
    found = outputs(twin, IDS)
    assert found.tobytes() == outputs(TINY["qwen3"], IDS, "classify", **WORDS).tobytes()
    wrong = {**extra, "qwen3.classifier.output_labels": ["yes"]}
    with pytest.raises(FileFormatError, match="output_labels"):
        read(write_gguf_twin(tmp_path / "wrong.gguf", TINY["qwen3"], "qwen3", wrong, more))
    wrong = {**extra, "tokenizer.chat_template.rerank": "{query} alone"}
    with pytest.raises(FileFormatError, match=r"has no \{document\}"):
        read(write_gguf_twin(tmp_path / "wrong.gguf", TINY["qwen3"], "qwen3", wrong, more))


@pytest.mark.parametrize(
    ("keys", "task", "pooling", "output"),
    [
        ({"attention.causal": False}, "embed", Pooling("mean"), (UnitLength(),)),
        ({"pooling_type": 2, "attention.causal": False}, "embed", Pooling("cls"), (UnitLength(),)),
        ({"pooling_type": 0}, "generate", None, ()),
    ],
)
def test_keys_of_gguf(
    keys: dict[str, Any], task: str, pooling: Pooling | None, output: tuple[Any, ...], tmp_path: Path
) -> None:
    extra = {f"qwen3.{key}": value for key, value in keys.items()}
    spec = read(write_gguf_twin(tmp_path / "m.gguf", TINY["qwen3"], "qwen3", extra)).spec
    assert (spec.task, spec.pooling, spec.output) == (task, pooling, output)
    assert spec.attention.causal is keys.get("attention.causal", True)


def test_dense_layers_without_pooling_make_a_vector_for_each_token(tmp_path: Path) -> None:
    more = {"dense_2.weight": np.ones((8, 64), np.float32)}
    extra = {"qwen3.embedding_length_out": 8}
    spec = read(write_gguf_twin(tmp_path / "m.gguf", TINY["qwen3"], "qwen3", extra, more)).spec
    assert (spec.task, spec.pooling, spec.output) == ("tokens", None, (Dense(8, bias=False), UnitLength()))


def test_prefixes_of_pylate_are_prompts(tmp_path: Path) -> None:
    settings = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "prompts": {"query": "given: "}}
    files = {**LAST, "config_sentence_transformers.json": settings}
    spec = read(edited(tmp_path / "m", TINY["qwen3"], files)).spec
    assert dict(spec.prompts) == {"query": "given: ", "document": "[D] "}


def test_the_last_token_may_see_all_tokens(tmp_path: Path) -> None:
    """As in gte-Qwen2: ``is_causal: false`` with the pooling of the last token."""
    folder = edited(tmp_path / "m", ENCODERS["qwen2-two-sided"], LAST)
    assert read(folder).spec.in_one_step
    last = outputs(folder, IDS)
    folder = edited(tmp_path / "causal", ENCODERS["qwen2-two-sided"], LAST, is_causal=True)
    assert np.abs(last - outputs(folder, IDS)).max() > 1e-3
    mean = edited(tmp_path / "mean", ENCODERS["qwen2-two-sided"], {"modules.json": modules(("Normalize", ""))})
    rows = outputs(mean, IDS)
    np.testing.assert_allclose(last[0], rows[-1], rtol=0, atol=1e-6)
