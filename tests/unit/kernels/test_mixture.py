"""Routing, grouping and summation of a mixture, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import Batch, assert_close, call, guarded, kinds, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import mixture


def route(
    scores: np.ndarray,
    kind: str,
    chosen: int,
    threads: int = 1,
    *,
    normalize: bool = False,
    factor: float = 1.0,
    correction: np.ndarray | None = None,
    factors: np.ndarray | None = None,
    groups: int = 1,
    kept: int = 1,
    group_best: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    T, E = scores.shape
    stride, choices = -(-E // 16) * 16, -(-chosen // 16) * 16
    padded = guarded((T, stride))
    padded[:, :E] = scores
    keys = guarded((T, -(-(E + groups) // 16) * 16))
    ids, weights = guarded((T, choices), np.int32), guarded((T, choices))
    call(
        KernelKey("route", kind=kind, group_best=group_best),
        Batch([T]),
        threads,
        scores=padded,
        experts=E,
        stride=4 * stride,
        keys=keys,
        keys_stride=keys.shape[1] * 4,
        correction=0 if correction is None else correction,
        factors=0 if factors is None else factors,
        groups=groups,
        kept=kept,
        chosen=chosen,
        normalize=int(normalize),
        factor=factor,
        ids=ids,
        weights=weights,
        choice_stride=4 * choices,
        rows="tokens",
    )
    return ids[:, :chosen], weights[:, :chosen]


@settings(max_examples=60)
@given(
    kinds,
    seeds,
    tokens,
    st.integers(1, 70),
    st.integers(1, 12),
    st.sampled_from(["softmax", "sigmoid"]),
    st.booleans(),
    st.booleans(),
    threads,
)
def test_the_best_experts_are_chosen(
    kind: str, seed: int, T: int, E: int, C: int, score: str, normalize: bool, corrected: bool, threads: int
) -> None:
    scores, chosen = numbers(kind, seed, T, E, large=1e3), min(C, E)
    correction = numbers("normal", seed + 1, E) if corrected else None
    ids, weights = route(scores, score, chosen, threads, normalize=normalize, factor=2.5, correction=correction)
    _, best = mixture.route_reference(scores, score, chosen, normalize, 2.5, 0.0 if correction is None else correction)
    every, all_weights = mixture.route_reference(scores, score, E)
    exact = np.zeros((T, E))
    np.put_along_axis(exact, every, all_weights, -1)
    assert ((ids >= 0) & (ids < E)).all()
    assert all(len(set(row)) == chosen for row in ids.tolist())
    # Rounding may make scores equal, and then either is a valid choice, so compare the exact scores of the choices.
    keys = exact + (0.0 if correction is None else correction)
    worth = np.sort(keys, -1)[:, ::-1][:, :chosen]
    assert_close(np.take_along_axis(keys, ids, -1), worth, 2e-6)
    if correction is None:
        assert_close(weights, best, 1e-5 * np.abs(best) + 1e-6 * (1 if normalize else best.max(initial=1.0)))


@given(seeds, tokens, st.sampled_from([(12, 3, 2), (16, 4, 1), (16, 8, 4), (6, 6, 3)]), threads)
def test_only_experts_of_the_best_groups_are_chosen(
    seed: int, T: int, shape: tuple[int, int, int], threads: int
) -> None:
    E, groups, kept = shape
    scores, correction = numbers("normal", seed, T, E), numbers("normal", seed + 1, E)
    for best in (1, 2) if E // groups > 1 else (1,):
        options = {"groups": groups, "kept": kept, "group_best": best, "correction": correction}
        chosen = min(3, kept * E // groups)
        ids, weights = route(scores, "sigmoid", chosen, threads, normalize=True, **options)  # type: ignore[arg-type]
        wanted, best_weights = mixture.route_reference(scores, "sigmoid", chosen, True, **options)  # type: ignore[arg-type]
        assert np.array_equal(ids, wanted)
        assert_close(weights, best_weights, 2e-6)


@given(seeds, tokens, st.integers(2, 40), threads)
def test_experts_have_factors_of_their_own(seed: int, T: int, E: int, threads: int) -> None:
    scores, factors = numbers("normal", seed, T, E), numbers("normal", seed + 1, E)
    ids, weights = route(scores, "softmax", 2, threads, normalize=True, factor=0.5, factors=factors)
    wanted, best = mixture.route_reference(scores, "softmax", 2, True, 0.5, factors=factors)
    assert np.array_equal(ids, wanted)
    assert_close(weights, best, 2e-6 * np.abs(best) + 1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_scores_that_are_no_numbers_still_choose_experts(kind: str) -> None:
    ids, _ = route(np.full((3, 5), np.nan, np.float32), kind, 3)
    assert ids.tolist() == [[0, 1, 2]] * 3


@given(seeds, st.integers(1, 60), st.integers(1, 9), st.integers(1, 40), threads)
def test_choices_are_grouped_by_expert(seed: int, T: int, C: int, E: int, threads: int) -> None:
    rng, chosen = np.random.default_rng(seed), min(C, E)
    ids = np.zeros((T, 16), np.int32)
    ids[:, :chosen] = [rng.permutation(E)[:chosen] for _ in range(T)]
    runs, sources = guarded(E + 1, np.int32), guarded(T * chosen, np.int32)
    places = guarded((T, 16), np.int32)
    call(
        KernelKey("group"), Batch([T]), threads, ids=ids, choice_stride=64, experts=E, chosen=chosen,
        runs=runs, sources=sources, places=places, rows="tokens",
    )  # fmt: skip
    flat = ids[:, :chosen].reshape(-1)
    order = np.argsort(flat, kind="stable")
    assert runs.tolist() == np.searchsorted(flat[order], range(E + 1)).tolist()
    assert sources.tolist() == (order // chosen).tolist()
    assert np.array_equal(places[:, :chosen].reshape(-1)[order], range(T * chosen))


@given(kinds, seeds, tokens, st.integers(1, 6), st.integers(1, 5), threads)
def test_rows_are_weighed(kind: str, seed: int, T: int, vectors: int, chosen: int, threads: int) -> None:
    width, places = 16 * vectors, np.zeros((T, 16), np.int32)
    rows = np.random.default_rng(seed).permutation(T * chosen).reshape(T, chosen)
    places[:, :chosen], weights = rows, numbers("normal", seed + 1, T, 16)
    x = guarded((T * chosen, width))
    x[...] = numbers(kind, seed, T * chosen, width)
    wanted = x.copy()
    wanted[rows] *= weights[:, :chosen, None]
    how = {"width": width, "chosen": chosen, "places": places, "weights": weights, "choice_stride": 64}
    call(KernelKey("weigh"), Batch([T]), threads, x=x, **how, rows="tokens")
    assert np.array_equal(x, wanted, equal_nan=True)


@given(
    kinds,
    seeds,
    tokens,
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from(["no", "yes", "gate"]),
    st.booleans(),
    st.booleans(),
    threads,
)
def test_results_are_summed_with_their_weights(
    kind: str, seed: int, T: int, vectors: int, chosen: int, shared: str, weighed: bool, biased: bool, threads: int
) -> None:
    rng, width = np.random.default_rng(seed), 16 * vectors
    results, own = numbers(kind, seed, T * chosen, width), numbers("normal", seed + 1, T, width)
    places = np.zeros((T, 16), np.int32)
    places[:, :chosen] = rng.permutation(T * chosen).reshape(T, chosen)
    weights, gate, out = (numbers("normal", seed + 2, T, 16), numbers("normal", seed + 3, T, 16), guarded((T, width)))
    bias = numbers("normal", seed + 4, 1, width)[0]
    call(
        KernelKey("combine"), Batch([T]), threads, results=results, width=width, chosen=chosen, places=places,
        weights=0 if weighed else weights, choice_stride=64, shared=own if shared != "no" else 0,
        gate=gate if shared == "gate" else 0, bias=bias if biased else 0,
        out=out, rows="tokens",
    )  # fmt: skip
    factors = 1.0 if weighed else weights[:, :chosen, None]
    terms = results.astype(np.float64)[places[:, :chosen]] * factors
    exact, most = terms.sum(1), np.abs(terms).sum(1)
    if shared != "no":
        more = own.astype(np.float64) / (1 + np.exp(-gate[:, :1].astype(np.float64)) if shared == "gate" else 1)
        exact, most = exact + more, most + np.abs(more)
    if biased:
        exact, most = exact + bias, most + np.abs(bias)
    assert_close(out, exact, 1e-6 * most + 1e-38)
