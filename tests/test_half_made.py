"""Reports in the middle of a study: whichever runs are finished, they say what these runs hold."""

import os
import random
import re
import shutil
from pathlib import Path

import pytest
from project import ROOT

from edgenes.core import read_json
from edgenes.experiments import ablation, hatch, speed
from edgenes.experiments.registry import published_figures, results
from edgenes.report.frames import system_frame, system_records
from edgenes.study.records import Records

RESULTS = ROOT / "results"


def copy_records(name: str, folder: Path, is_kept) -> Records:
    """The committed results of a profile with the records of systems that are kept."""
    (folder / "runs").mkdir(parents=True)
    shutil.copy(RESULTS / name / "profile.json", folder)
    for path in sorted((RESULTS / name / "runs").glob("*.json")):
        if not path.name.startswith("system-") or is_kept(read_json(path)["inputs"]):
            os.symlink(path, folder / "runs" / path.name)
    return Records(folder)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("share", [0.03, 0.5])
@pytest.mark.parametrize("name", ["cpu", "cpu-long"])
def test_any_part_of_the_runs_makes_a_report(name, share, tmp_path):
    chance = random.Random(f"{name} {share}")
    records = copy_records(name, tmp_path, lambda inputs: chance.random() < share)
    answers = results(records, published_figures(ROOT), progress=False)
    sentences = [sentence for answer in answers.values() for sentence in answer.sentences]
    assert sentences
    assert not [sentence for sentence in sentences if re.search(r"\bnan\b", sentence)]


def test_a_curve_that_has_just_begun_is_not_measured(tmp_path):
    def is_early(inputs):
        return inputs["experiment"] != "speed" or inputs["point"]["step"] <= 2

    assert speed.result(copy_records("cpu", tmp_path, is_early), {}) is None


def test_a_cost_with_half_of_its_systems_is_in_no_sentence(tmp_path):
    def is_early(inputs):
        is_first = inputs["system"] in ("One", "Snapshots") and inputs["seed"] == 0
        return inputs["experiment"] != "hatch" or is_first

    result = hatch.result(copy_records("cpu-long", tmp_path, is_early), {})
    assert not [sentence for sentence in result.sentences if "in all" in sentence]
    assert "No difference can be tested" in " ".join(result.sentences)


def test_a_mean_over_lambda_has_every_lambda(tmp_path):
    def is_there(inputs):
        is_missing = inputs["system"] == "no margin" and inputs["point"]["lambda"] > 1
        return inputs["experiment"] != "ablation" or not is_missing

    records = copy_records("cpu", tmp_path, is_there)
    assert "no margin" in set(system_frame(system_records(records, "ablation"))["system"])
    table = ablation.result(records, {}).tables["ablation"]
    assert "as described" in set(table["variant"])
    assert "no margin" not in set(table["variant"])
