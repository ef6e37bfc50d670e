"""Control vectors equal edits of the residual stream, keep llama.cpp's files, and leave their neighbours alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pages import lose_pages

import pellucid
from pellucid.engine.request import run_together
from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import ControlVector, LinearProbe, RegisteredVectors, add
from pellucid.trace.control_vector import total

PROMPT = "to see that it rains in the east, in the east"
HOW: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 0}
LAYERS, WIDTH = 4, 64


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("control") / "llama.gguf"
    random_model("llama", path, layers=LAYERS, width=WIDTH, heads=4, kv_heads=2, context=1024)
    with pellucid.load(path, threads=2) as llm:
        yield llm


def vector(seed: int, layers: Any = range(1, LAYERS)) -> ControlVector:
    draws = np.random.default_rng(seed)
    return ControlVector({n: draws.normal(size=WIDTH).astype(np.float32) for n in layers}, "llama")


def chosen(made: Any) -> bytes:
    return bytes(made.logprobs.chosen.tobytes())


def test_a_vector_is_an_edit_of_the_residual_stream_after_its_layer(llm: LLM) -> None:
    own = vector(1, [2])
    with llm.trace("blocks.*.residual") as plain:
        llm.generate(PROMPT, **HOW)
    with llm.trace("blocks.*.residual") as steered:
        made = llm.generate(PROMPT, edits=own.edits(0.5), **HOW)
    count = len(llm.inputs.prompt(PROMPT))
    before, after = (trace.sequences[0]["blocks.1.residual"][:count] for trace in (plain, steered))
    assert np.array_equal(before, after)
    before, after = (trace.sequences[0]["blocks.2.residual"][:count] for trace in (plain, steered))
    np.testing.assert_allclose(after, before + np.float32(0.5) * own.directions[2], rtol=1e-6, atol=1e-6)
    alike = llm.generate(PROMPT, edits=[add("blocks.2.residual", own.directions[2], factor=0.5)], **HOW)
    assert chosen(made) == chosen(alike)


def test_generated_tokens_alone_can_be_steered(llm: LLM) -> None:
    own = vector(2)
    plain, steered = (llm.generate(PROMPT, **HOW), llm.generate(PROMPT, edits=own.edits(tokens="generated"), **HOW))
    assert plain.logprobs is not None
    assert steered.logprobs is not None
    assert plain.logprobs.chosen[0] == steered.logprobs.chosen[0]
    assert plain.logprobs.chosen[1] != steered.logprobs.chosen[1]
    # The prompt has no edits, so that the second request finds it in the prefix cache.
    long = PROMPT * 6
    llm.generate(long, **HOW)
    assert llm.generate(long, edits=own.edits(tokens="generated"), **HOW).usage.cached_tokens > 0
    assert llm.generate(long, edits=own.edits(), **HOW).usage.cached_tokens == 0


def test_many_vectors_in_one_batch_leave_each_other_alone(llm: LLM) -> None:
    """Each request has the bits that it has alone, and a request without a vector has the bits of a plain run."""
    vectors = [vector(seed, range(1 + seed % 2, LAYERS)) for seed in range(7)]
    edits: list[Any] = [[], *(one.edits(0.3 * (n + 1)) for n, one in enumerate(vectors))]
    alone = [llm.generate(PROMPT, edits=own, **HOW) for own in edits]
    assert len({chosen(one) for one in alone}) == len(edits)
    requests = [llm.request(PROMPT, edits=own, **HOW) for own in edits]
    run_together(requests)
    assert [chosen(one.result()) for one in requests] == [chosen(one) for one in alone]


def test_bits_do_not_depend_on_the_chunks_of_a_prompt(llm: LLM) -> None:
    long, own = PROMPT * 12, vector(3).edits(0.4)  # several steps
    first = llm.request(long, edits=own, **HOW)
    others = [llm.request(PROMPT * (n + 2), **HOW) for n in range(4)]
    run_together([*others, first])
    alone = llm.generate(long, edits=own, **HOW)
    assert chosen(first.result()) == chosen(alone)


def test_bits_after_the_loss_of_pages(llm: LLM) -> None:
    own = vector(4).edits(0.4)
    wanted = llm.generate(PROMPT, edits=own, **HOW)
    request = llm.request(PROMPT, edits=own, **HOW)
    tokens = iter(request)
    for _ in range(4):
        next(tokens)
    lose_pages(llm)
    for _ in tokens:
        pass
    assert chosen(request.result()) == chosen(wanted)


def test_vectors_are_added_and_scaled() -> None:
    one, other = vector(1, [1, 2]), vector(2, [2, 3])
    both = 2.0 * one + other * -0.5
    assert list(both.directions) == [1, 2, 3]
    np.testing.assert_array_equal(
        both.directions[2], np.float32(2) * one.directions[2] + np.float32(-0.5) * other.directions[2]
    )
    np.testing.assert_array_equal(both.directions[3], np.float32(-0.5) * other.directions[3])
    added = total([(2.0, one), (-0.5, other)])
    assert all(np.array_equal(added.directions[n], both.directions[n]) for n in both.directions)
    assert list(both.only(range(2, 9)).directions) == [2, 3]
    with pytest.raises(InvalidRequest, match="the vector has the layers"):
        one.only([7])


@pytest.mark.parametrize("ending", ["gguf", "safetensors"])
def test_a_file_keeps_the_vector(ending: str, tmp_path: Path) -> None:
    own, path = vector(5), tmp_path / f"calm.{ending}"
    own.save(path)
    found = ControlVector.open(path)
    assert found.model == "llama"
    assert list(found.directions) == [1, 2, 3]
    assert all(np.array_equal(found.directions[n], own.directions[n]) for n in own.directions)


def test_files_have_the_bytes_of_llama_cpp(tmp_path: Path) -> None:
    """The file of cvector-generator: three keys, then direction.N as float32 of one dimension."""
    values = {1: [1.0, -2.0], 2: [0.5, 0.25]}

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("controlvector"),
        text("controlvector.model_hint") + struct.pack("<I", 8) + text("llama"),
        text("controlvector.layer_count") + struct.pack("<II", 4, len(values)),
    ]
    tensors = [text(f"direction.{n}") + struct.pack("<IQIQ", 1, 2, 0, 32 * at) for at, n in enumerate(values)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys + tensors)
    data = b"".join(struct.pack("<2f", *own).ljust(32, b"\0") for own in values.values())
    raw = head + bytes(-len(head) % 32) + data
    (tmp_path / "theirs.gguf").write_bytes(raw)
    found = ControlVector.open(tmp_path / "theirs.gguf")
    assert (found.model, {n: own.tolist() for n, own in found.directions.items()}) == ("llama", values)
    found.save(tmp_path / "ours.gguf")
    assert (tmp_path / "ours.gguf").read_bytes() == raw


def test_gguf_has_no_layer_0(tmp_path: Path) -> None:
    first = vector(7, [0, 1])
    with pytest.raises(InvalidRequest, match="GGUF has no direction for layer 0"):
        first.save(tmp_path / "first.gguf")
    first.save(tmp_path / "first.safetensors")
    assert 0 in ControlVector.open(tmp_path / "first.safetensors").directions
    with pytest.raises(InvalidRequest, match=r"must end with \.gguf or \.safetensors"):
        first.save(tmp_path / "first.bin")


def test_damaged_files_are_refused_in_one_line(llm: LLM, tmp_path: Path) -> None:
    model = Path(llm.checkpoint.path)
    with pytest.raises(FileFormatError, match=r"general\.architecture: is 'llama', not 'controlvector'"):
        ControlVector.open(model)
    path = tmp_path / "calm.gguf"
    vector(8).save(path)
    raw = path.read_bytes()
    for damage in (raw[:-7], raw.replace(b"direction.2", b"direction.x"), raw.replace(b"direction.2", b"direction.0")):
        path.write_bytes(damage)
        with pytest.raises(FileFormatError) as caught:
            ControlVector.open(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(raw[:-4] + struct.pack("<f", np.nan))
    with pytest.raises(FileFormatError, match="not finite"):
        ControlVector.open(path)


def test_wrong_vectors_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="needs a direction"):
        ControlVector({})
    with pytest.raises(InvalidRequest, match="all must be"):
        ControlVector({1: np.zeros(3), 2: np.zeros(4)})  # type: ignore[dict-item]
    with pytest.raises(InvalidRequest, match="not finite"):
        ControlVector({1: np.array([np.inf])})
    with pytest.raises(InvalidRequest, match=r"scale=1001\.0: must be"):
        vector(1) * 1001.0
    with pytest.raises(InvalidRequest, match="width 3, and the model has 64"):
        ControlVector({1: np.ones(3, np.float32)}).check_fits(llm.points)
    with pytest.raises(InvalidRequest, match="layer 9, which the model does not have"):
        vector(1, [9]).check_fits(llm.points)


def test_contrasts_are_mean_differences_and_principal_directions(llm: LLM) -> None:
    positive = [f"{word} is good, yes" for word in ("rain", "the east", "snow", "a cat", "tea")]
    negative = [f"{word} is bad, no no" for word in ("rain", "the east", "snow", "a cat", "tea")]

    def rows(texts: list[str]) -> np.ndarray:
        found = []
        for text in texts:
            with llm.trace("blocks.2.residual") as trace:
                llm.generate(text, max_new_tokens=1, ignore_eos=True)
            found.append(trace["blocks.2.residual"][0, -1])
        return np.array(found, np.float64)

    difference = rows(positive) - rows(negative)
    mean = ControlVector.contrast(llm, positive, negative)
    assert list(mean.directions) == [1, 2, 3]
    np.testing.assert_allclose(mean.directions[2], difference.mean(0), rtol=1e-5, atol=1e-5)
    pca = ControlVector.contrast(llm, positive, negative, method="pca", layers=[2]).directions[2]
    principal = np.linalg.svd(difference)[2][0]
    assert abs(np.dot(pca, principal)) == pytest.approx(np.linalg.norm(pca), rel=1e-5)
    assert np.dot(pca, difference.mean(0)) == pytest.approx(np.linalg.norm(pca) ** 2, rel=1e-4)
    assert np.dot(pca, difference.mean(0)) > 0


def test_contrasts_are_refused(llm: LLM) -> None:
    for positive, negative, said in (
        ([], [], "positive has no prompts"),
        (["a"], [], "as many prompts"),
        ("a", "b", "two lists"),
        (["same"], ["same"], "do not differ"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            ControlVector.contrast(llm, positive, negative)
    with pytest.raises(InvalidRequest, match="must be mean or pca"):
        ControlVector.contrast(llm, ["a"], ["b"], method="umap")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"blocks\.9\.residual"):
        ControlVector.contrast(llm, ["a"], ["b"], layers=[9])


def test_a_folder_registers_vectors_and_probes(llm: LLM, tmp_path: Path) -> None:
    one, other = vector(1), vector(2, [1, 2])
    one.save(tmp_path / "calm.gguf")
    other.save(tmp_path / "french.safetensors")
    LinearProbe("x", "blocks.1.residual", np.ones(WIDTH, np.float32)).save(tmp_path / "toxic.safetensors")
    (tmp_path / "README.md").write_text("not a vector")
    llm.vectors = RegisteredVectors.open(tmp_path)
    try:
        made = llm.generate(PROMPT, steer={"calm": 1.5, "french": -0.5}, probes=["toxic"], **HOW)
        alike = llm.generate(PROMPT, edits=(1.5 * one + -0.5 * other).edits(), **HOW)
        assert chosen(made) == chosen(alike)
        assert list(made.probe_scores or ()) == ["toxic"]
        for wrong, said in (
            ({"steer": {"clam": 1.0}}, "steer='clam': the registered control vectors are calm, french"),
            ({"steer": {"calm": 1e9}}, r"steer\.calm=1000000000\.0: must be"),
            ({"steer": {"calm": True}}, r"steer\.calm=True: must be"),
            ({"steer": ["calm"]}, "must be an object of names and scales"),
            ({"steer": dict.fromkeys(map(str, range(17)), 1.0)}, "steer has 17 vectors; the limit is 16"),
            ({"probes": ["toxin"]}, "probes='toxin': the registered probes are toxic"),
            ({"probes": {"toxic": {"above": 1}}}, "must be an object with stop_above, or empty"),
            ({"probes": ["toxic", "toxic"]}, "two are called 'toxic'"),
        ):
            with pytest.raises(InvalidRequest, match=said):
                llm.generate(PROMPT, **wrong, **HOW)  # type: ignore[arg-type]
    finally:
        llm.vectors = RegisteredVectors()
    with pytest.raises(InvalidRequest, match=r"no control vectors are registered \(--vectors FOLDER\)"):
        llm.generate(PROMPT, steer={"calm": 1.0}, **HOW)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        RegisteredVectors.open(tmp_path / "none")
    with pytest.raises(InvalidRequest, match="has 0 files"):
        RegisteredVectors.open(tmp_path)
    vector(1).save(tmp_path / "calm.gguf")
    vector(1).save(tmp_path / "calm.safetensors")
    with pytest.raises(InvalidRequest, match="two files are called calm"):
        RegisteredVectors.open(tmp_path)
    (tmp_path / "calm.safetensors").rename(tmp_path / "very calm.safetensors")
    with pytest.raises(InvalidRequest, match="rename the file"):
        RegisteredVectors.open(tmp_path)
