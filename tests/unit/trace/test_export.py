"""Tables, arrays and plots of recorded values and of lenses' results, against the arrays themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import attribute, head_scores, logit_difference, logit_lens, patch_sweep, relevance
from pellucid.trace.trace import Trace
from pellucid.util.display import visible

PROMPT, OTHER = "to see", "it rains in"
POINTS = ("blocks.1.attention.pattern[heads=3,1]", "blocks.0.attention.heads[dims=2:5]", "blocks.1.residual",
          "embed[tokens=-2:]", "sample.rank", "project.logits[dims=7,3; tokens=-1]")  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("export") / "llama.gguf"
    random_model("llama", path, layers=2, context=256)
    llm = pellucid.load(path, threads=1)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def trace(llm: LLM) -> Trace:
    with llm.trace(*POINTS) as t:
        llm.generate([PROMPT, OTHER], max_new_tokens=3, temperature=0, ignore_eos=True)
    return t


@pytest.fixture
def pyplot() -> Iterator[Any]:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_a_table_has_a_row_for_each_number(trace: Trace) -> None:
    pandas = pytest.importorskip("pandas")
    frame = trace.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    total = sum(sequence[name].size for sequence in trace.sequences for name in trace)
    assert len(frame) == total
    assert list(frame["sequence"].unique()) == [0, 1]
    own = frame[frame.point == "blocks.1.attention.pattern"]
    for number, sequence in enumerate(trace.sequences):
        pattern, pieces = sequence["blocks.1.attention.pattern"], sequence.pieces
        rows = own[own.sequence == number]
        assert list(rows.columns[rows.notna().any()]) == [
            "point", "sequence", "head", "token", "piece", "key", "key_piece", "value",
        ]  # fmt: skip
        for row in rows.sample(20, random_state=1).itertuples():
            at = [3, 1].index(int(row.head))
            assert row.value == pattern[at, int(row.token), int(row.key)]
            assert (row.piece, row.key_piece) == (pieces[int(row.token)], pieces[int(row.key)])


def test_labels_are_the_selected_positions_heads_and_dims(trace: Trace) -> None:
    pytest.importorskip("pandas")
    sequence = trace.sequences[1]
    count = len(sequence)
    heads = sequence.to_pandas("blocks.0.attention.heads")
    assert sorted(heads.dim.unique()) == [2, 3, 4]
    assert sorted(heads["head"].unique()) == [0, 1, 2, 3]
    prompt = count - 2  # two generated tokens were read
    assert list(sequence.to_pandas("embed").token.unique()) == list(range(prompt - 2, count))
    logits = sequence.to_pandas("project.logits")
    assert list(logits.dim) == [7, 3]
    assert list(logits.token) == [prompt - 1] * 2
    assert list(logits.value) == sequence["project.logits"][0].tolist()
    ranks = sequence.to_pandas("sample.rank")
    assert list(ranks.value) == sequence["sample.rank"].reshape(-1).tolist()


def test_a_file_has_the_table(trace: Trace, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "trace.parquet"
    trace.to_parquet(path, "blocks.1.residual", "blocks.1.attention.pattern")
    read = pandas.read_parquet(path)
    expected = trace.to_pandas("blocks.1.residual", "blocks.1.attention.pattern")
    assert len(read) == len(expected)
    assert np.array_equal(read["value"], expected["value"], equal_nan=True)
    assert list(read["piece"]) == list(expected["piece"])
    with pytest.raises(InvalidRequest, match="cannot be written"):
        trace.to_parquet(tmp_path / "missing" / "trace.parquet", "blocks.1.residual")


def test_arrays_have_the_letters_of_the_points(trace: Trace) -> None:
    pytest.importorskip("xarray")
    sequence = trace.sequences[0]
    pattern = sequence.to_xarray("blocks.1.attention.pattern")
    assert pattern.dims == ("H", "T", "T'")
    assert pattern.H.values.tolist() == [3, 1]
    assert pattern.piece.values.tolist() == sequence.pieces
    assert pattern.key_piece.dims == ("T'",)
    assert np.array_equal(pattern.sel(H=1).values, sequence["blocks.1.attention.pattern"][1])
    both = trace.to_xarray("blocks.0.attention.heads")
    assert both.dims == ("B", "T", "H", "V")
    assert np.array_equal(both.values, trace["blocks.0.attention.heads"], equal_nan=True)
    assert "piece" not in both.coords  # the sequences have different tokens
    assert trace.to_xarray("blocks.1.residual").dims == ("B", "T", "D")
    with pytest.raises(InvalidRequest, match="there are 6 values: give the name of one"):
        trace.to_xarray()


def test_results_of_lenses_are_tables(llm: LLM) -> None:
    pytest.importorskip("pandas")
    lens = logit_lens(llm, PROMPT, top=3, positions=[2, -1])
    frame = lens.to_pandas()
    assert len(frame) == lens.probabilities.size
    last = frame[(frame.layer == "blocks.1") & (frame["rank"] == 1)]
    assert list(last.token) == [2, len(llm.inputs.prompt(PROMPT)) - 1]
    assert list(last.text) == [lens.top(-1, 0)[0][0], lens.top(-1, 1)[0][0]]
    assert list(last.value) == lens.probabilities[-1, :, 0].tolist()
    assert list(lens.to_pandas("entropy").value) == lens.entropy.reshape(-1).tolist()
    found = attribute(llm, PROMPT)
    parts = found.to_pandas()
    assert parts.value.sum() == pytest.approx(found.total)
    assert set(parts[parts.kind == "head"]["head"]) == {0, 1, 2, 3}
    own = relevance(llm, PROMPT)
    assert list(own.to_pandas().value) == own.tokens.tolist()
    scores = head_scores(llm, length=8)
    assert set(scores.to_pandas().point) == {"previous", "induction", "duplicate"}
    with pytest.raises(InvalidRequest, match="must be one of probability, likeliest"):
        lens.to_pandas("probabilities")


def test_plots_draw_the_values(llm: LLM, trace: Trace, pyplot: Any) -> None:
    maps = trace.sequences[0].plot("blocks.1.attention.pattern")
    assert len(maps) == 2
    drawn = np.asarray(maps[1].images[0].get_array())
    assert np.array_equal(drawn, trace.sequences[0]["blocks.1.attention.pattern"][1])
    assert maps[0].get_title() == "blocks.1.attention.pattern, head 3"
    assert len(maps[0].get_xticklabels()) == len(trace.sequences[0].pieces)
    lens = logit_lens(llm, PROMPT)
    ax = lens.plot()
    likeliest = [visible(lens.texts[int(token)]) for token in lens.ids[:, :, 0].reshape(-1)]
    assert [text.get_text() for text in ax.texts] == likeliest
    drawn = lens.probabilities[..., 0].reshape(-1)
    colours = ["white" if value > 0.6 * drawn.max() else "black" for value in drawn]
    assert [text.get_color() for text in ax.texts] == colours
    assert set(colours) == {"white", "black"}
    clean, corrupted = PROMPT, PROMPT[:-1] + "t"
    sweep = patch_sweep(llm, clean, corrupted, logit_difference(llm, 65, 66))
    _, mine = pyplot.subplots()
    assert sweep.plot(ax=mine) is mine
    assert np.allclose(np.asarray(mine.images[0].get_array()), sweep.values)
    bars = attribute(llm, PROMPT).plot()
    assert [round(bar.get_width(), 6) for bar in bars.patches] == [
        round(part.value, 6) for part in attribute(llm, PROMPT).ranked()[: len(bars.patches)]
    ]
    assert len(relevance(llm, PROMPT).plot().patches) == len(llm.inputs.prompt(PROMPT))


def test_texts_of_tokens_are_no_markup(pyplot: Any, llm: LLM) -> None:
    with llm.trace("blocks.1.attention.pattern[heads=0]") as t:
        llm.generate("$\\frac{$\n", max_new_tokens=1)
    ax = t.sequences[0].plot()
    ax.figure.canvas.draw()
    texts = [label.get_text() for label in ax.get_xticklabels()]
    assert "$" in texts
    assert not any("\n" in text for text in texts)


def test_values_with_other_dimensions_are_not_drawn(pyplot: Any, trace: Trace) -> None:
    with pytest.raises(InvalidRequest, match="has the dimensions token, head, dim: select one index"):
        trace.sequences[0].plot("blocks.0.attention.heads")


@pytest.mark.parametrize(
    ("package", "method"),
    [("pandas", "to_pandas"), ("xarray", "to_xarray"), ("matplotlib", "plot"), ("pyarrow", "to_parquet")],
)
def test_a_missing_package_is_named(
    package: str, method: str, trace: Trace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in [package, *sys.modules]:
        if module.partition(".")[0] == package:
            monkeypatch.setitem(sys.modules, module, None)
    arguments = [tmp_path / "x.parquet"] if method == "to_parquet" else []
    with pytest.raises(InvalidRequest, match=rf"{method} needs {package}, which is not installed: pip install"):
        getattr(trace.sequences[0], method)(*arguments, "blocks.1.residual")
