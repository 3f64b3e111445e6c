"""Selection and metrics under generated input: brute force agrees, ties are stable, and bad input is an EdgenesError."""

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


def made_up(
    seed: int, members: int, images: int = 30, classes: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(members, images, classes)) * 2
    return (e := np.exp(logits)) / e.sum(2, keepdims=True), rng.integers(classes, size=images)


def score(probs: np.ndarray, labels: np.ndarray, members: tuple[int, ...], criterion: str) -> float:
    mean = probs[list(members)].mean(0)
    if criterion == "accuracy":
        return float(100 * (mean.argmax(1) == labels).mean())
    return float(
        -np.log(mean[np.arange(len(labels)), labels].clip(np.finfo(np.float32).eps)).mean()
    )


def best(
    costs: dict[tuple[int, ...], float], criterion: str, width: int = 1
) -> list[tuple[int, ...]]:
    sign = 1 if criterion == "nll" else -1
    return sorted(costs, key=lambda s: (round(sign * costs[s], 9), s))[:width]


@QUICK
@given(SEEDS, st.integers(1, 7), st.data(), CRITERIA)
def test_exhaustive_is_brute_force(seed, members, data, criterion):
    probs, labels = made_up(seed, members)
    n = data.draw(st.integers(1, members))
    costs = {
        s: score(probs, labels, s, criterion) for s in itertools.combinations(range(members), n)
    }
    found = select(probs, labels, n, "exhaustive", criterion)
    assert found.evaluated == len(costs) and found.members in costs
    assert found.score == pytest.approx(costs[best(costs, criterion)[0]], abs=1e-5)
    assert found.score == pytest.approx(costs[found.members], abs=1e-5)


@QUICK
@given(SEEDS, st.integers(1, 6), CRITERIA)
def test_forward_is_caruana(seed, n, criterion):
    probs, labels = made_up(seed, 4)
    chosen: tuple[int, ...] = ()
    for _ in range(n):
        costs = {
            tuple(sorted((*chosen, i))): score(probs, labels, (*chosen, i), criterion)
            for i in range(4)
        }
        chosen = best(costs, criterion)[0]
    found = select(probs, labels, n, "forward", criterion)
    assert found.members == chosen and found.score == pytest.approx(
        score(probs, labels, chosen, criterion), abs=1e-5
    )


@QUICK
@given(SEEDS, st.integers(1, 5), st.integers(1, 5), CRITERIA)
def test_beam_by_hand(seed, n, width, criterion):
    probs, labels = made_up(seed, 6)
    beams: list[tuple[int, ...]] = [()]
    for _ in range(n):
        grown = {tuple(sorted((*b, i))) for b in beams for i in range(6) if i not in b}
        beams = best({s: score(probs, labels, s, criterion) for s in grown}, criterion, width)
    assert select(probs, labels, n, "beam", criterion, beam_width=width).members == beams[0]


@QUICK
@given(
    st.lists(st.integers(0, 2), min_size=3, max_size=6),
    SEEDS,
    CRITERIA,
    st.sampled_from(("exhaustive", "beam")),
)
def test_ties_go_to_the_first_subset(kinds, seed, criterion, rule):
    base, labels = made_up(seed, 3, images=13)
    costs = {
        s: score(base, labels, tuple(sorted(kinds[i] for i in s)), criterion)
        for s in itertools.combinations(range(len(kinds)), 3)
    }
    assert (
        select(base[kinds], labels, 3, rule, criterion, beam_width=100).members
        == best(costs, criterion)[0]
    )


@QUICK
@given(SEEDS, st.integers(1, 4), st.integers(1, 6), st.integers(2, 5), st.booleans())
def test_metrics_by_formula(seed, members, images, classes, certain):
    probs, labels = made_up(seed, members, images, classes)
    if certain:
        probs = np.eye(classes)[probs.argmax(2)]
    found, rows = ensemble_metrics(probs, labels), np.arange(images)
    mean, eps, said = probs.mean(0), np.finfo(np.float32).eps, probs.argmax(2)
    sure, right = mean.max(1), mean.argmax(1) == labels
    pairs = [(said[i] != said[j]).mean() for i in range(members) for j in range(i)]
    assert found["nll_nats"] == pytest.approx(
        score(probs, labels, tuple(range(members)), "nll"), abs=1e-4
    )
    assert found["brier"] == pytest.approx(
        ((mean - np.eye(classes)[labels]) ** 2).sum(1).mean(), abs=1e-5
    )
    assert found["oracle_nll_nats"] == pytest.approx(
        -np.log(probs[:, rows, labels].max(0).clip(eps)).mean(), abs=1e-4
    )
    assert found["disagreement"] == pytest.approx(np.mean(pairs) if pairs else 0, abs=1e-6)
    if (
        members == 1
    ):  # where no mean has to be rounded, argmax and bins are the same in float32 and float64
        bins = np.minimum((sure * 15).astype(int), 14)
        ece = sum(
            abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean()
            for b in np.unique(bins)
        )
        assert found["accuracy_percent"] == pytest.approx(100 * right.mean(), abs=1e-4) and found[
            "ece"
        ] == pytest.approx(ece, abs=1e-5)


def test_a_confidence_of_one_is_in_the_last_bin():
    certain = np.array([[[1.0, 0.0]] * 5 + [[0.95, 0.05]] * 5])
    assert ensemble_metrics(certain, [0, 0, 0, 1, 1, 0, 0, 0, 0, 0])["ece"] == pytest.approx(
        0.175, abs=1e-5
    )


@QUICK
@given(SEEDS, CRITERIA, st.sampled_from(("exhaustive", "forward", "beam")))
def test_half_precision_is_accepted(seed, criterion, rule):
    probs, labels = made_up(seed, 4)
    half = probs.astype(np.float16)
    found = select(half, labels, 2, rule, criterion)
    assert isinstance(found, Selection) and found.score == pytest.approx(
        score(half.astype(float), labels, found.members, criterion), abs=1e-4
    )
    assert str(average(half).dtype) == "torch.float32"


PROBS, LABELS = made_up(0, 3)
BAD = {
    "more than there are": dict(n=4),
    "none": dict(n=0),
    "half a member": dict(n=1.5),
    "rule": dict(rule="best"),
    "criterion": dict(criterion="loss"),
    "empty beam": dict(rule="beam", beam_width=0),
    "two axes": dict(probs=PROBS[0]),
    "not a number": dict(probs=PROBS * np.nan),
    "negative": dict(probs=-PROBS),
    "logits": dict(probs=np.log(PROBS)),
    "ragged": dict(probs=[[[1.0]], [[0.5, 0.5]]]),
    "no members": dict(probs=PROBS[:0]),
    "few labels": dict(labels=LABELS[:5]),
    "fractions": dict(labels=LABELS + 0.5),
    "classes": dict(labels=LABELS + 4),
    "below zero": dict(labels=LABELS - 9),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name):
    given_ = {"probs": PROBS, "labels": LABELS, "n": 2} | BAD[name]
    with pytest.raises(EdgenesError) as caught:
        select(**given_)
    assert "\n" not in str(caught.value)
