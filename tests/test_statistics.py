"""Statistics and theorem against brute force: sign patterns, subsets listed one by one.

Bad input is an EdgenesError.
"""

from __future__ import annotations

import itertools
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from edgenes import statistics, theorem
from edgenes.core import EdgenesError

# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    "values",
    [[1.0], [5, 5], [0, 0, 0], [0.1] * 7, [0.1 + 0.2, 0.3], [1, 2], [1, 1, 1, 9], [3, 1, 2, 8, 5]],
)
def test_summary_never_warns(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = statistics.summary(values)
    assert row["n"] == len(values)
    assert row["mean"] == pytest.approx(np.mean(values))
    assert np.isnan(row["sd"]) == (len(values) == 1)
    if len(values) < statistics.FEWEST_FOR_INTERVAL:
        assert np.isnan([row["ci_low"], row["ci_high"]]).all()
        return
    if np.ptp(values) < 1e-12:
        assert row["ci_low"] == row["ci_high"] == row["mean"]
        return
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert [row["ci_low"], row["ci_high"]] == pytest.approx([interval.low, interval.high])


@pytest.mark.parametrize("n", [2, 5, 9, 12])
def test_permutation_is_all_sign_patterns(n):
    differences = np.random.default_rng(n).normal(0.5, 1, n)
    signs = np.array(list(itertools.product((1, -1), repeat=n)))
    as_extreme = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12
    frame = pd.DataFrame({"reference": np.zeros(n), "system": differences})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = statistics.paired_tests(frame, "reference").loc["system"]
    assert row["p_permutation"] == pytest.approx(as_extreme.mean())
    assert row["p_holm"] == row["p_permutation"]  # one comparison: nothing to correct
    variance = ((differences - differences.mean()) ** 2).sum() / (n - 1)
    assert row["dz"] == pytest.approx(differences.mean() / np.sqrt(variance))


def test_holm_by_hand():
    rng = np.random.default_rng(0)
    systems = {f"system {k}": rng.normal(k / 3, 1, 8) for k in range(4)}
    frame = pd.DataFrame({"reference": np.zeros(8), **systems})
    table = statistics.paired_tests(frame, "reference").sort_values("p_permutation")
    multiplied = table["p_permutation"].to_numpy() * np.arange(4, 0, -1)
    by_hand = np.minimum(1, np.maximum.accumulate(multiplied))
    assert table["p_holm"].to_numpy() == pytest.approx(by_hand)


def test_holm_joins_the_tables_of_several_calls():
    """Also where their rows have the same names."""
    rng = np.random.default_rng(1)
    tables = [
        statistics.paired_tests(pd.DataFrame({"a": np.zeros(9), "b": rng.normal(1, 1, 9)}), "a")
        for _ in range(3)
    ]
    together = statistics.holm(pd.concat(tables))
    alone = np.array([table["p_permutation"].iloc[0] for table in tables])
    assert together["p_permutation"].to_numpy() == pytest.approx(alone)
    assert together["p_holm"].min() == pytest.approx(min(1, 3 * alone.min()))


def test_numbers_worked_out_by_hand():
    assert statistics.auc([0, 2, 3], [1, 3, 3]) == pytest.approx((4 + 3) / 3)
    assert statistics.calibration_error([0, 1.5, 4], [1, 1, 4]) == pytest.approx(0.5)
    assert statistics.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    # n = 2: Student's t with one degree of freedom is Cauchy's distribution,
    # P(T > x) = 1/2 - atan(x) / pi.
    assert statistics.tost([-1.0, 1.0], 3.0)["p"] == pytest.approx(0.5 - np.arctan(3) / np.pi)
    # Many runs: the normal approximation (1.960 + 0.842) sd / sqrt(n).
    approximation = 2.8016 * 2 / np.sqrt(1000)
    assert statistics.smallest_difference(1000, 2.0) == pytest.approx(approximation, rel=2e-3)


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


# ---------------------------------------------------------------- theorem


@pytest.mark.parametrize("lowest", [0, 1])
@pytest.mark.parametrize("edges", [1, 2, 3, 4])
def test_theorem_by_listing_every_subset(edges, lowest):
    def subsets(size):
        return [set(subset) for subset in itertools.combinations(range(edges), size)]

    sizes = range(lowest, edges + 1)
    total = Fraction(0)
    for active_size, member_size in itertools.product(sizes, sizes):
        overlaps = [
            len(active & member)
            for active in subsets(active_size)
            for member in subsets(member_size)
        ]
        total += Fraction(sum(overlaps), len(overlaps) * len(sizes) ** 2)
    formula = Fraction((edges + 1) ** 2, 4 * edges) if lowest else Fraction(edges, 4)
    assert total == formula
    assert theorem.enumerate_overlap(edges, lowest) == total
    name = "discrete_from_one" if lowest else "discrete_from_zero"
    assert theorem.expected_updated_edges(3, edges, name) == pytest.approx(float(3 * total))


@pytest.mark.parametrize("distribution", theorem.DISTRIBUTIONS)
def test_theorem_simulated(distribution):
    overlaps = theorem.simulate_overlap(3, 4, 20_000, 1, distribution)
    expected = theorem.expected_updated_edges(3, 4, distribution)
    standard_error = overlaps.std() / np.sqrt(overlaps.size)
    assert abs(overlaps.mean() - expected) < 4 * standard_error


def test_the_quoted_ratio_and_the_seed_of_the_simulation():
    assert theorem.ratio_to_dartsens(3, 4) == pytest.approx(75 / 64)  # 1.17
    first = theorem.simulate_overlap(3, 4, 50, 1)
    second = theorem.simulate_overlap(3, 4, 50, 1)
    assert (first == second).all()
