"""Encoders with the structure of BERT: what their families add, their heads as tasks, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.metadata import Metadata
from support.tiny import ENCODERS, OF_FAMILY, opened

import pellucid
from pellucid import pipeline
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.model.family import known_families
from pellucid.model.outputs import Labels
from pellucid.model.positions import Learned
from pellucid.model.read import read_model
from pellucid.plan.bind import layouts, load_weights
from pellucid.runtime.memory import Placement
from pellucid.testing import random_model
from pellucid.util.probabilities import sigmoid

FAMILIES = ("bert", "roberta", "xlm_roberta_xl", "distilbert", "albert", "electra", "mpnet")


def made(folder: Path, family: str, head: str, **metadata: Any) -> Path:
    """A random model of a class of transformers, which ends with ``head``."""
    names = {"architectures": [f"XFor{head}"], **metadata}
    return random_model(family, folder / family, kind="safetensors", metadata=names)


def test_layers_of_albert_share_their_matrices_in_memory() -> None:
    """Three layers, one set of tensors: each matrix is packed once."""
    with opened(OF_FAMILY["albert"]) as (checkpoint, model):
        assert len(model.spec.blocks) == 3
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model))
        matrices, _ = load_weights(checkpoint, model, plan, Placement(1))
        for part in ("attention.q", "attention.output", "feedforward.up", "feedforward.down"):
            own = [matrices[f"blocks.{i}.{part}.weight"] for i in range(3)]
            assert len({one.address for one in own}) == 1, part
        distinct = {one.address: one.data.nbytes for one in matrices.values()}
        assert sum(distinct.values()) < 0.6 * sum(one.data.nbytes for one in matrices.values())


def test_groups_and_inner_layers_of_albert() -> None:
    """Four layers in two groups, each of two inner layers: eight blocks."""
    model = Metadata.of(ENCODERS["albert-odd"]).read()
    tensors = [model.sources(f"blocks.{i}.attention.q.weight")[0].tensor for i in range(8)]
    found = [re.search(r"groups\.(\d)\.albert_layers\.(\d)\.", name) for name in tensors]
    assert [match.groups() for match in found if match] == [(g, k) for g in "0011" for k in "01"]
    wrong = Metadata.of(ENCODERS["albert-odd"]).changed(inner_group_num=999)
    with pytest.raises(FileFormatError, match="inner_group_num: is 999; it must be at most 250"):
        wrong.read()


@pytest.mark.parametrize(("name", "first"), [("roberta", 2), ("roberta-odd", 5), ("mpnet", 2)])
def test_positions_follow_the_padding_token(name: str, first: int) -> None:
    checkpoint = Metadata.of(ENCODERS[name])
    model = checkpoint.read()
    assert (model.spec.context, model.spec.position) == (64 - first, Learned(64 - first))
    assert model.sources("position.weight")[0].rows == (first, 64)
    few = checkpoint.changed(max_position_embeddings=first)
    with pytest.raises(FileFormatError, match=f"max_position_embeddings: is {first}; it must be above {first}"):
        few.read()


def test_the_padding_token_is_the_second_if_the_file_does_not_say() -> None:
    checkpoint = Metadata.of(OF_FAMILY["roberta"])
    before = checkpoint.read()
    assert checkpoint.changed(pad_token_id=None).read() == before
    assert checkpoint.changed(pad_token_id=0).read().spec.context == 63


@pytest.mark.parametrize("model_type", ["roberta", "camembert", "xlm-roberta"])
def test_names_that_roberta_has(model_type: str) -> None:
    checkpoint = Metadata.of(OF_FAMILY["roberta"])
    before = checkpoint.read()
    assert checkpoint.changed(model_type=model_type).read() == before


@pytest.mark.parametrize("name", ["bert-fill", "roberta-classify", "albert-fill", "mpnet-tag"])
def test_old_names_of_layer_norms(name: str) -> None:
    """Files that were converted from TensorFlow have gamma and beta."""
    checkpoint = Metadata.of(ENCODERS[name])
    before, changed = checkpoint.read(), checkpoint.changed()
    new = re.compile(r"(.*[lL]ayer_?[nN]orm)\.(weight|bias)")
    for key in [key for key in changed.tensors if new.fullmatch(key)]:
        base, part = key.rpartition(".")[::2]
        old = f"{base}.{'gamma' if part == 'weight' else 'beta'}"
        changed.tensors[old] = replace(changed.tensors.pop(key), name=old)
    after = changed.read()
    assert after.spec == before.spec
    assert len({source.tensor for slot in after.slots for source in after.sources(slot)} - set(checkpoint.tensors)) > 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_of_a_family_runs(family: str, tmp_path: Path) -> None:
    """The heads of random models, each through the method of its task; and the body as a sentence encoder."""
    path = made(tmp_path, family, "SequenceClassification", num_labels=3)
    with pellucid.load(path, threads=2) as llm:
        (found,) = llm.classify(["one"])
        assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
        assert sum(found.scores) == pytest.approx(1)
    with (
        pytest.warns(UserWarning, match="are not read: (pre_)?classifier"),
        pellucid.load(path, threads=2, task="embed") as llm,
    ):
        assert llm.embed(["one"]).shape == (1, llm.spec.embedding.width)
    path = made(tmp_path, family, "TokenClassification", num_labels=3)
    with pellucid.load(path, threads=2) as llm:
        tags = llm.tag("some words", "none")
        assert len(tags) == len("some words")  # the tokenizer of random models has a token for each byte
        assert {one.label for one in tags} <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    path = made(tmp_path, family, "QuestionAnswering")
    with pellucid.load(path, threads=2) as llm:
        (span,) = llm.answer("who?", "some words")
        assert span.text in "some words"
    path = made(tmp_path, family, "MaskedLM")
    with pellucid.load(path, threads=2) as llm:
        (rows,) = llm.encode([EncoderInput([5, 6, 7])])
        assert rows.shape == (3, llm.spec.embedding.vocabulary)


def test_replaced_tokens_of_electra(tmp_path: Path) -> None:
    """Each token has the label "replaced" if its probability is at least 1/2."""
    with pellucid.load(made(tmp_path, "electra", "PreTraining"), threads=2) as llm:
        assert llm.spec.labels == Labels(("replaced",), "sigmoid")
        text = "a rather long text of many words, so that some of its letters are replaced and some are not"
        given, _ = llm.inputs.with_offsets(text)
        (logits,) = llm.encode([given])
        scores = [float(sigmoid(row)[0]) for row in logits]
        wanted = [(place, score) for place, score in enumerate(scores) if score >= 0.5]
        assert 0 < len(wanted) < len(text)
        found = llm.tag(text, "none")
        assert [(one.label, one.start, one.score) for one in found] == [("replaced", *one) for one in wanted]


@pytest.mark.parametrize(
    ("head", "labels", "scale"),
    [("NextSentencePrediction", ("next", "random"), "softmax"), ("MultipleChoice", ("choice",), "none")],
)
def test_pairs_of_texts(head: str, labels: tuple[str, ...], scale: str, tmp_path: Path) -> None:
    with pellucid.load(made(tmp_path, "bert", head, num_labels=7), threads=2) as llm:
        assert llm.spec.labels == Labels(labels, scale)  # type: ignore[arg-type]
        first, second = llm.classify([("a question", "a choice"), ("a question", "another one")])
        assert first.labels == labels
        assert first.logits != second.logits
        if scale == "none":
            assert first.scores == pytest.approx(first.logits)
            ranked = llm.rerank("a question", ["a choice", "another one"])
            assert {one.index: one.score for one in ranked} == {0: first.scores[0], 1: second.scores[0]}


@pytest.mark.parametrize(
    ("family", "head", "words"),
    [
        ("electra", "MultipleChoice", "a head for MultipleChoice is not supported (known: SequenceClassification"),
        ("roberta", "NextSentencePrediction", "a head for NextSentencePrediction is not supported (known: "),
        ("albert", "CausalLM", "a head for CausalLM is not supported"),
    ],
)
def test_heads_that_a_family_does_not_have(family: str, head: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(words)):
        made(tmp_path, family, head)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        *((family, "is_decoder", True) for family in ("roberta", "albert", "electra")),
        ("roberta", "position_embedding_type", "relative_key"),
        ("electra", "add_cross_attention", True),
        ("distilbert", "activation", "gelu_10"),
        ("mpnet", "relative_attention_num_buckets", 64),
    ],
)
def test_options_that_change_results_are_refused(family: str, key: str, value: Any) -> None:
    with pytest.raises((UnsupportedModel, FileFormatError), match=key):
        Metadata.of(OF_FAMILY[family]).changed(**{key: value}).read()


def test_published_configurations_need_no_warning() -> None:
    """Keys of published files that the tiny models lack: albert-base-v2, electra-small, distilbert, xlm-roberta."""
    published: dict[str, dict[str, Any]] = {
        "albert": {
            "down_scale_factor": 1,
            "gap_size": 0,
            "net_structure_type": 0,
            "num_memory_blocks": 0,
            "layers_to_keep": [],
            "output_past": True,
        },
        "electra": {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
        "distilbert": {"sinusoidal_pos_embds": False, "tie_weights_": True, "qa_dropout": 0.1},
        "roberta": {"output_past": True, "classifier_dropout": None, "problem_type": None},
    }
    for family, keys in published.items():
        checkpoint = Metadata.of(OF_FAMILY[family])
        assert read_model(checkpoint.changed(**keys)) == checkpoint.read()  # type: ignore[arg-type]


def test_the_families_are_known() -> None:
    assert set(FAMILIES) <= set(known_families())


def test_values_that_config_json_does_not_state() -> None:
    """The defaults of transformers that differ from BERT's; ``defaults_oracle.py`` compares all."""
    albert = Metadata.of(OF_FAMILY["albert"]).changed(hidden_act=None).read().spec
    assert {block.feedforward.activation for block in albert.blocks} == {"gelu_tanh"}  # type: ignore[union-attr]
    large = Metadata.of(OF_FAMILY["xlm_roberta_xl"]).changed(layer_norm_eps=None, type_vocab_size=None).read().spec
    assert (large.embedding.types, large.blocks[0].norm.eps) == (1, 1e-5)
