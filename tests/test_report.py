"""Reports of folders that are half full or damaged: nothing false is said, nothing else deleted."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from project import ROOT

from edgenes.core import EdgenesError
from edgenes.experiments import quality, registry
from edgenes.report import claims, page
from edgenes.report.result import Result, save_result
from edgenes.statistics import mixed_model
from edgenes.study.records import Records

CPU = ROOT / "results" / "cpu"
LATE = ("NES-RS-repeat", "NES-RE-repeat", "EdgeNES-nll", "EdgeNES-skew", "EdgeNES-screen", "DARTS")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The result of T2 where six systems lack the last seed of `cpu`."""
    folder = tmp_path_factory.mktemp("unfinished")
    (folder / "runs").mkdir()
    for path in (CPU / "runs").glob("system-*.json"):
        inputs = json.loads(path.read_text())["inputs"]
        if inputs["experiment"] == "quality" and not (
            inputs["seed"] == 9 and inputs["system"] in LATE
        ):
            shutil.copy(path, folder / "runs")
    return quality.result(Records(folder), {})


def test_means_of_a_claim_are_over_the_seeds_of_its_test(unfinished):
    systems = unfinished.tables["T2"].set_index("system")
    tests = unfinished.tables["T2_tests_accuracy"]
    assert (systems.loc["EdgeNES", "n"], systems.loc["DARTS", "n"]) == (10, 9)
    assert set(tests["n"]) == {9}
    means = claims.compared_means(unfinished.tables["T2"], tests)
    runs = quality.frame(Records(CPU)).query("seed < 9").groupby("system", observed=True)
    expected = runs["accuracy_percent"].mean()
    assert means.to_dict() == pytest.approx({name: expected[name] for name in means.index})
    for claim in claims.QUALITY[:2]:
        words = claims.finding(claim, unfinished.tables).ours
        found = re.match(r"([\d.]+) against ([\d.]+) %: ([-+][\d.]+) points", words)
        ours, theirs, difference = map(float, found.groups())
        assert ours - theirs == pytest.approx(difference, abs=0.11)  # each has one decimal


def test_a_seed_that_some_systems_lack_is_named(unfinished):
    assert "The comparison leaves out seed 9, which not all systems have." in unfinished.sentences


def made_up(seeds):
    """Runs of T2: `seeds` says how many each system has."""
    rng = np.random.default_rng(0)
    rows = [
        {"system": system, "seed": seed, "accuracy_percent": rng.normal(40)}
        for system, count in seeds.items()
        for seed in range(count)
    ]
    runs = pd.DataFrame(rows)
    return runs.assign(system=pd.Categorical(runs["system"], quality.SYSTEMS, ordered=True))


def test_two_seeds_of_few_systems_go_before_one_of_many():
    few = ("DARTS", "Random", "DartsEns", "EdgeNES")
    runs = made_up({system: 2 if system in few else 1 for system in quality.SYSTEMS})
    tests = quality.compare_systems(runs)
    assert set(tests["system"]) == {"DARTS", "Random", "DartsEns"}
    (sentence,) = quality.left_out_sentence(runs, quality.complete_runs(runs))
    left_out = sentence.partition("leaves out ")[2].partition(", which lack one of the 2 seeds.")[0]
    assert set(left_out.replace(" and ", ", ").split(", ")) == set(quality.SYSTEMS) - set(few)
    one = made_up(dict.fromkeys(quality.SYSTEMS, 1))
    assert quality.compare_systems(one) is None
    assert quality.left_out_sentence(one, quality.complete_runs(one)) == []


def test_most_runs_count_among_sets_that_can_be_tested():
    nine = (
        "EdgeNES",
        "Random",
        "DARTS",
        "DartsEns",
        "DeepEns",
        "Random-NES",
        "SWA",
        "One",
        "NES-RS",
    )
    runs = made_up({name: 6 if place < 7 else 5 for place, name in enumerate(nine)})
    assert len(quality.complete_runs(runs)) == 45  # 5 seeds of 9 systems, not 6 of 7


def test_one_retraining_of_each_search_has_no_spread():
    row = {"candidates": 1, "distinct": 1.0, "candidate_percent": 40.0, "chosen_percent": 40.0}
    row |= {"ensemble_gain_points": 0.0, "disagreement": 0.1, "search_share": 0.5}
    made_of = pd.DataFrame(
        [
            {"system": system, "seed": seed} | row
            for seed in (0, 1)
            for system in ("EdgeNES", "DeepEns-N")
        ]
    )
    once = pd.DataFrame({"seed": [0, 1], "percent": [40.0, 42.0]})
    assert len(quality.composition_sentences(made_of, once)) == 2
    twice = pd.DataFrame({"seed": [0, 0, 1], "percent": [40.0, 41.0, 42.0]})
    assert len(quality.composition_sentences(made_of, twice)) == 3


def test_a_mixed_model_that_did_not_converge_says_nothing():
    runs = made_up({"EdgeNES": 6, "DARTS": 6, "Random": 6}).astype({"system": str})

    def sentences(frame):
        model = mixed_model(frame, "accuracy_percent", "system", "seed", "EdgeNES")
        return model["converged"].all(), quality.mixed_sentence(model)

    converged, (sentence,) = sentences(runs)
    assert converged
    assert sentence.startswith("A mixed model over all 6 seeds")
    constant = runs.assign(accuracy_percent=runs["system"].map(len) * 10.0)
    assert sentences(constant) == (False, [])


BAD = {"nothing": {}, "a list": [], "a word": "cpu", "no number": "many"}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_profile_is_named_before_anything_is_written(name, tmp_path):
    (tmp_path / "runs").mkdir()
    for path in (CPU / "runs").glob("hypernetwork-*.json"):
        shutil.copy(path, tmp_path / "runs")
    systems = sorted((CPU / "runs").glob("system-*.json"))
    own = [path for path in systems if json.loads(path.read_text())["inputs"]["seed"] == 0]
    for path in own:
        shutil.copy(path, tmp_path / "runs")
    profile = BAD[name]
    if name == "no number":
        profile = json.loads((CPU / "profile.json").read_text())
        profile["budget"]["darts"]["images"] = BAD[name]
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    with pytest.raises(EdgenesError, match=r"profile\.json is not a profile"):
        registry.build_report(tmp_path)
    assert not (tmp_path / "tables").exists()


def test_what_another_process_saves_during_a_report_stays(tmp_path, monkeypatch):
    """The notebook of an experiment may train and save while a report is being made."""
    records = Records(tmp_path)
    saved = Result([], {"T9": pd.DataFrame({"n": [1]})})
    save_result(records, Result([], {"old": pd.DataFrame({"n": [1]})}))
    make_claims = page.claims_result

    def claims_result(*arguments):
        save_result(records, saved)
        return make_claims(*arguments)

    monkeypatch.setattr(page, "claims_result", claims_result)
    page.write_report(tmp_path, {})
    left = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert "T9" in left
    assert "old" not in left


def test_a_report_deletes_nothing_of_other_people(tmp_path):
    own = [tmp_path / "figures" / "my_plot.png", tmp_path / "tables" / "drafts" / "notes.txt"]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    page.write_report(tmp_path, {})
    assert [path.read_text() for path in own] == ["mine", "mine"]
