"""Selection and metrics of generated ensembles: brute force agrees, and bad input is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgenes.core import EdgenesError
from edgenes.ensembles import Selection, average, select
from edgenes.metrics import ensemble_metrics

SEEDS = st.integers(0, 2**31)
CRITERIA = st.sampled_from(("nll", "accuracy"))
QUICK = settings(max_examples=30, deadline=None)
EPS = np.finfo(np.float32).eps


def made_up(
    seed: int,
    members: int,
    images: int = 30,
    classes: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax outputs (members, images, classes) of noise, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(members, images, classes)) * 2
    exponentials = np.exp(logits)
    probs = exponentials / exponentials.sum(2, keepdims=True)
    return probs, rng.integers(classes, size=images)


def score(
    probs: np.ndarray,
    labels: np.ndarray,
    members: tuple[int, ...],
    criterion: str,
) -> float:
    """The NLL or the accuracy of some members, from their mean."""
    mean = probs[list(members)].mean(0)
    if criterion == "accuracy":
        return float(100 * (mean.argmax(1) == labels).mean())
    true_class = mean[np.arange(len(labels)), labels]
    return float(-np.log(true_class.clip(EPS)).mean())


def best(
    scores: dict[tuple[int, ...], float],
    criterion: str,
    width: int = 1,
) -> list[tuple[int, ...]]:
    """The subsets with the best scores; ties go to the first in lexicographic order."""
    sign = 1 if criterion == "nll" else -1
    return sorted(scores, key=lambda members: (round(sign * scores[members], 9), members))[:width]


# ---------------------------------------------------------------- rules


@QUICK
@given(SEEDS, st.integers(1, 7), st.data(), CRITERIA)
def test_exhaustive_is_brute_force(seed, candidates, data, criterion):
    probs, labels = made_up(seed, candidates)
    n = data.draw(st.integers(1, candidates))
    subsets = itertools.combinations(range(candidates), n)
    scores = {members: score(probs, labels, members, criterion) for members in subsets}
    selection = select(probs, labels, n, "exhaustive", criterion)
    assert selection.evaluated == len(scores)
    assert selection.members in scores
    assert selection.score == pytest.approx(scores[best(scores, criterion)[0]], abs=1e-5)
    assert selection.score == pytest.approx(scores[selection.members], abs=1e-5)


@QUICK
@given(SEEDS, st.integers(1, 6), CRITERIA)
def test_forward_is_caruana(seed, n, criterion):
    probs, labels = made_up(seed, 4)
    chosen: tuple[int, ...] = ()
    for _ in range(n):
        grown = [tuple(sorted((*chosen, candidate))) for candidate in range(4)]
        scores = {members: score(probs, labels, members, criterion) for members in grown}
        chosen = best(scores, criterion)[0]
    selection = select(probs, labels, n, "forward", criterion)
    assert selection.members == chosen
    assert selection.score == pytest.approx(score(probs, labels, chosen, criterion), abs=1e-5)


@QUICK
@given(SEEDS, st.integers(1, 5), st.integers(1, 5), CRITERIA)
def test_beam_by_hand(seed, n, width, criterion):
    probs, labels = made_up(seed, 6)
    beams: list[tuple[int, ...]] = [()]
    for _ in range(n):
        grown = {
            tuple(sorted((*members, candidate)))
            for members in beams
            for candidate in range(6)
            if candidate not in members
        }
        scores = {members: score(probs, labels, members, criterion) for members in grown}
        beams = best(scores, criterion, width)
    selection = select(probs, labels, n, "beam", criterion, beam_width=width)
    assert selection.members == beams[0]


@QUICK
@given(
    st.lists(st.integers(0, 2), min_size=3, max_size=6),
    SEEDS,
    CRITERIA,
    st.sampled_from(("exhaustive", "beam")),
)
def test_ties_go_to_the_first_subset(kinds, seed, criterion, rule):
    """Candidates of three kinds: subsets of the same kinds tie."""
    base, labels = made_up(seed, 3, images=13)
    scores = {}
    for members in itertools.combinations(range(len(kinds)), 3):
        member_kinds = tuple(sorted(kinds[member] for member in members))
        scores[members] = score(base, labels, member_kinds, criterion)
    selection = select(base[kinds], labels, 3, rule, criterion, beam_width=100)
    assert selection.members == best(scores, criterion)[0]


@QUICK
@given(SEEDS, CRITERIA, st.sampled_from(("exhaustive", "forward", "beam")))
def test_half_precision_is_accepted(seed, criterion, rule):
    probs, labels = made_up(seed, 4)
    half = probs.astype(np.float16)
    selection = select(half, labels, 2, rule, criterion)
    expected = score(half.astype(float), labels, selection.members, criterion)
    assert isinstance(selection, Selection)
    assert selection.score == pytest.approx(expected, abs=1e-4)
    assert str(average(half).dtype) == "torch.float32"


# ---------------------------------------------------------------- metrics


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The calibration error over 15 equal bins, by its formula."""
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = []
    for number in np.unique(bins):
        inside = bins == number
        gap = abs(right[inside].mean() - confidence[inside].mean())
        gaps.append(gap * inside.mean())
    return sum(gaps)


@QUICK
@given(SEEDS, st.integers(1, 4), st.integers(1, 6), st.integers(2, 5), st.booleans())
def test_metrics_by_formula(seed, members, images, classes, certain):
    probs, labels = made_up(seed, members, images, classes)
    if certain:
        probs = np.eye(classes)[probs.argmax(2)]
    metrics = ensemble_metrics(probs, labels)
    mean = probs.mean(0)
    nll = score(probs, labels, tuple(range(members)), "nll")
    brier = ((mean - np.eye(classes)[labels]) ** 2).sum(1).mean()
    best_member = probs[:, np.arange(images), labels].max(0).clip(EPS)
    answers = probs.argmax(2)
    shares = [
        (answers[first] != answers[second]).mean()
        for first in range(members)
        for second in range(first)
    ]
    assert metrics["nll_nats"] == pytest.approx(nll, abs=1e-4)
    assert metrics["brier"] == pytest.approx(brier, abs=1e-5)
    assert metrics["oracle_nll_nats"] == pytest.approx(-np.log(best_member).mean(), abs=1e-4)
    assert metrics["disagreement"] == pytest.approx(np.mean(shares) if shares else 0, abs=1e-6)
    if members == 1:  # no mean is rounded: argmax and bins are the same in float32 and float64
        right = mean.argmax(1) == labels
        ece = calibration_error(mean.max(1), right)
        assert metrics["accuracy_percent"] == pytest.approx(100 * right.mean(), abs=1e-4)
        assert metrics["ece"] == pytest.approx(ece, abs=1e-5)


def test_a_confidence_of_one_is_in_the_last_bin():
    certain = np.array([[[1.0, 0.0]] * 5 + [[0.95, 0.05]] * 5])
    labels = [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert ensemble_metrics(certain, labels)["ece"] == pytest.approx(0.175, abs=1e-5)


# ---------------------------------------------------------------- bad input

PROBS, LABELS = made_up(0, 3)
BAD = {
    "more than there are": {"n": 4},
    "none": {"n": 0},
    "half a member": {"n": 1.5},
    "rule": {"rule": "best"},
    "criterion": {"criterion": "loss"},
    "empty beam": {"rule": "beam", "beam_width": 0},
    "two axes": {"probs": PROBS[0]},
    "not a number": {"probs": PROBS * np.nan},
    "negative": {"probs": -PROBS},
    "logits": {"probs": np.log(PROBS)},
    "ragged": {"probs": [[[1.0]], [[0.5, 0.5]]]},
    "no members": {"probs": PROBS[:0]},
    "too few labels": {"labels": LABELS[:5]},
    "fractions": {"labels": LABELS + 0.5},
    "classes": {"labels": LABELS + 4},
    "below zero": {"labels": LABELS - 9},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name):
    arguments = {"probs": PROBS, "labels": LABELS, "n": 2} | BAD[name]
    with pytest.raises(EdgenesError) as caught:
        select(**arguments)
    assert "\n" not in str(caught.value)
