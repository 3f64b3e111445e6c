"""Statistics and theorem against brute force: sign patterns, Holm by hand, subsets listed one by one; bad input is an EdgenesError."""

from __future__ import annotations

import itertools
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from edgenes import statistics, theorem
from edgenes.core import EdgenesError


@pytest.mark.parametrize(
    "values",
    [[1.0], [5, 5], [0, 0, 0], [0.1] * 7, [0.1 + 0.2, 0.3], [1, 2], [1, 1, 1, 9], [3, 1, 2, 8, 5]],
)
def test_summary_never_warns(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = statistics.summary(values)
    assert found == pytest.approx(statistics.summary(values), abs=0, nan_ok=True)  # fixed seed
    assert (found["n"], found["mean"]) == (len(values), pytest.approx(np.mean(values)))
    if len(values) == 1:
        assert np.isnan([found["sd"], found["ci_low"], found["ci_high"]]).all()
    else:
        assert (
            min(values) - 1e-9
            <= found["ci_low"]
            <= found["mean"]
            <= found["ci_high"]
            <= max(values) + 1e-9
        )


@pytest.mark.parametrize("n", [2, 5, 9, 12])
def test_permutation_is_all_sign_patterns(n):
    d = np.random.default_rng(n).normal(0.5, 1, n)
    signs = np.array(list(itertools.product((1, -1), repeat=n)))
    expected = (np.abs(signs @ d) >= abs(d.sum()) - 1e-12).mean()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = statistics.paired_tests(
            pd.DataFrame({"reference": np.zeros(n), "system": d}), "reference"
        ).loc["system"]
    assert row["p_permutation"] == pytest.approx(expected)
    assert row["p_holm"] == row["p_permutation"]  # one comparison: nothing to correct
    assert row["dz"] == pytest.approx(d.mean() / np.sqrt(((d - d.mean()) ** 2).sum() / (n - 1)))


def test_holm_by_hand():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"r": np.zeros(8), **{f"s{k}": rng.normal(k / 3, 1, 8) for k in range(4)}})
    table = statistics.paired_tests(frame, "r").sort_values("p_permutation")
    p = table["p_permutation"].to_numpy()
    assert table["p_holm"].to_numpy() == pytest.approx(
        np.minimum(1, np.maximum.accumulate(p * np.arange(len(p), 0, -1)))
    )


def test_numbers_worked_out_by_hand():
    assert statistics.auc([0, 2, 3], [1, 3, 3]) == pytest.approx((4 + 3) / 3)
    assert statistics.calibration_error([0, 1.5, 4], [1, 1, 4]) == pytest.approx(0.5)
    assert statistics.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    # n = 2: Student's t with one degree of freedom is Cauchy's distribution, P(T > x) = 1/2 - atan(x) / pi
    assert statistics.tost([-1.0, 1.0], 3.0)["p"] == pytest.approx(0.5 - np.arctan(3) / np.pi)
    # many runs: the normal approximation (1.960 + 0.842) sd / sqrt(n)
    assert statistics.smallest_difference(1000, 2.0) == pytest.approx(
        2.8016 * 2 / np.sqrt(1000), rel=2e-3
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.summary([]),
        lambda: statistics.summary([1, float("nan")]),
        lambda: statistics.summary("abc"),
        lambda: statistics.paired_tests(pd.DataFrame({"a": [1.0, 2], "b": [1.0, np.nan]}), "a"),
        lambda: statistics.paired_tests(pd.DataFrame({"a": [1.0], "b": [1.0]}), "c"),
        lambda: statistics.tost([1.0, 2], float("nan")),
        lambda: statistics.tost([1.0, float("nan")], 1.0),
        lambda: statistics.auc([1, 1], [1, 2]),
        lambda: statistics.auc([1, 2], [1]),
        lambda: statistics.auc([1, 2], [1, np.nan]),
        lambda: statistics.spearman([1, 2], [1]),
        lambda: statistics.calibration_error([1], [1, 2]),
        lambda: statistics.smallest_difference(1, 1.0),
        lambda: statistics.smallest_difference(5, float("nan")),
        lambda: theorem.expected_updated_edges(0, 4),
        lambda: theorem.expected_updated_edges(3, 0),
        lambda: theorem.expected_updated_edges(3.0, 4),
        lambda: theorem.ratio_to_dartsens(3, "4"),
        lambda: theorem.expected_updated_edges(3, 4, "normal"),
        lambda: theorem.enumerate_overlap(2.5),
        lambda: theorem.simulate_overlap(3, 4, 0, 0),
    ],
)
def test_bad_input(call):
    with pytest.raises(EdgenesError):
        call()


@pytest.mark.parametrize("low", [0, 1])
@pytest.mark.parametrize("edges", [1, 2, 3, 4])
def test_theorem_by_listing_every_subset(edges, low):
    def subsets(size):
        return [set(s) for s in itertools.combinations(range(edges), size)]

    sizes, total = range(low, edges + 1), Fraction(0)
    for mu, nu in itertools.product(sizes, sizes):
        overlaps = [len(a & b) for a in subsets(mu) for b in subsets(nu)]
        total += Fraction(sum(overlaps), len(overlaps) * len(sizes) ** 2)
    assert (
        theorem.enumerate_overlap(edges, low)
        == total
        == (Fraction((edges + 1) ** 2, 4 * edges) if low else Fraction(edges, 4))
    )
    name = "discrete_from_one" if low else "discrete_from_zero"
    assert theorem.expected_updated_edges(3, edges, name) == pytest.approx(float(3 * total))


def test_theorem_simulated():
    assert theorem.ratio_to_dartsens(3, 4) == pytest.approx(75 / 64)  # 1.17
    for name in theorem.DISTRIBUTIONS:
        m = theorem.simulate_overlap(3, 4, 20_000, 1, name)
        assert abs(m.mean() - theorem.expected_updated_edges(3, 4, name)) < 4 * m.std() / np.sqrt(
            m.size
        )
    assert (theorem.simulate_overlap(3, 4, 50, 1) == theorem.simulate_overlap(3, 4, 50, 1)).all()
