"""The whole method: experiments, several pipelines in one folder, committed results."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import papermill
import pytest
from executed import EXPERIMENT_NOTEBOOKS, executed, notebook_process
from project import ROOT
from recorded import results_of
from typer.testing import CliRunner

from edgenes.cli.main import app
from edgenes.core import read_json
from edgenes.experiments import quality, speed
from edgenes.experiments.registry import (
    EXPERIMENTS,
    build_report,
    experiment,
    published_figures,
    results,
)
from edgenes.report.frames import system_records
from edgenes.report.verdicts import claims_result
from edgenes.study.costs import measure
from edgenes.study.evaluation import EnsembleRun
from edgenes.study.forecast import imagined
from edgenes.study.pipeline import Progress, run
from edgenes.study.profiles import PROFILES, get_profile
from edgenes.study.records import Records
from edgenes.study.systems import system_plan
from edgenes.study.workspace import RecordedWorkspace, open_workspace

RESULTS = ROOT / "results"
BY_PAPERMILL = ("benchmark", "control", "space")  # in a kernel; the others as papermill would
COMMITTED = ("cpu", "cpu-long")
FIGURES = {
    "F1",
    "F2",
    "F3",
    "F3_cells",
    "F3_learning",
    "F4",
    "F5",
    "T1",
    "T2_cost",
    "T2_seeds",
    "T3",
    "TH",
    "ablation",
    "relaxation",
    "shift",
    "hatch",
    "schedule",
}


@pytest.fixture(scope="module")
def process():
    """Where notebooks are executed."""
    with notebook_process() as pool:
        yield pool


def edgenes(*arguments, **options) -> subprocess.CompletedProcess:
    """The command line of the package."""
    command = [sys.executable, "-m", "edgenes", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def assert_same_table(path: Path, committed: Path) -> None:
    """Equal but for the order in which other processors sum."""
    again = pd.read_csv(path)
    expected = pd.read_csv(committed)
    pd.testing.assert_frame_equal(again, expected, rtol=1e-4, atol=1e-6, obj=str(committed))


# ---------------------------------------------------------------- experiments


@pytest.mark.parametrize("notebook", EXPERIMENT_NOTEBOOKS, ids=lambda path: path.stem)
def test_experiment_runs_at_a_tiny_budget(notebook, process, tmp_path):
    folder = tmp_path / "r"
    parameters = {
        "profile": "smoke",
        "run": True,
        "seed": 1,
        "results": str(folder),
        "workers": 1,
        "device": "cpu",
    }
    is_benchmark = notebook.stem == "benchmark"  # it measures, and has no profile to change
    if not is_benchmark:
        parameters["changes"] = {"screened": 3}
    if notebook.stem in BY_PAPERMILL:
        output = str(tmp_path / "out.ipynb")
        papermill.execute_notebook(str(notebook), output, parameters, progress_bar=False)
    else:
        executed(process, notebook, tmp_path, **parameters)
    assert list((folder / "tables").glob("*.csv"))
    assert list((folder / "runs").glob("*.json")) or notebook.stem == "space"
    if not is_benchmark:
        profile = read_json(folder / "profile.json")
        assert profile["sizes"]["screened"] == 3


def test_a_deleted_record_leaves_the_tables_and_an_edited_one_stops_them(tmp_path):
    workspace = open_workspace(get_profile("smoke"), tmp_path, device="cpu")
    systems = ["DARTS", "Random", "EdgeNES"]
    plans = quality.plans(workspace, 0, tuple(systems))
    run(workspace, plans, workers=1, progress=False)
    build_report(tmp_path)
    assert pd.read_csv(tmp_path / "tables" / "T2.csv")["system"].tolist() == systems
    records = system_records(workspace.records, "quality")
    record = next(record for record in records if record["inputs"]["system"] == "Random")
    path = workspace.records.path("system", record["inputs"])
    good = path.read_text()
    path.write_text(good.replace('"accuracy_percent": ', '"accuracy_percent": 1'))
    with pytest.raises(ValueError, match="was changed after it was written"):
        build_report(tmp_path)
    path.unlink()
    build_report(tmp_path)
    assert pd.read_csv(tmp_path / "tables" / "T2.csv")["system"].tolist() == ["DARTS", "EdgeNES"]


def test_costs_are_counts_times_the_seconds_of_one_version(tmp_path):
    workspace = open_workspace(get_profile("smoke"), tmp_path / "r")
    systems = ("DARTS", "DartsEns", "EdgeNES", "Random-NES")
    run(workspace, quality.plans(workspace, 0, systems), workers=1, progress=False)
    before = quality.frame(workspace.records)
    told = said_by("costs", "smoke", "--results", workspace.results, "--device", "cpu")
    record = measure(workspace)
    assert measure(workspace) == record  # this code has been timed
    timed = record["results"]["seconds"]
    seconds = {kind: sum(values) / len(values) for kind, values in timed.items()}
    assert told == [
        f"{kind}: {seconds[kind]:.1f} s, n = {len(values)}" for kind, values in timed.items()
    ]
    after = quality.frame(workspace.records)
    by_system = after.set_index("system")
    one_search = seconds["darts"]
    searches = [one_search, 2 * one_search, 0, one_search + seconds["hypernetwork"]]
    assert by_system["search_seconds"].tolist() == pytest.approx(searches)
    retrainings = [count * seconds["retraining"] for count in (1, 2, 3, 3)]
    assert by_system["retraining_seconds"].tolist() == pytest.approx(retrainings)
    assert after["accuracy_percent"].tolist() == before["accuracy_percent"].tolist()
    assert after["total_seconds"].tolist() != before["total_seconds"].tolist()
    last_sentence = quality.result(workspace.records, {}).sentences[-1]
    assert "by one version of the code" in last_sentence


@pytest.mark.skipif(
    not os.environ.get("EDGENES_DATA"), reason="EDGENES_DATA is not set: no real images here"
)
def test_smoke_on_real_images(tmp_path):
    smoke = get_profile(
        "smoke", source="cifar100", downscale=2, train_images=2000, val_images=500, test_images=500
    )
    budget = replace(  # each of 100 classes in both halves
        smoke.budget,
        darts=replace(smoke.budget.darts, images=400),
        hypernetwork=replace(smoke.budget.hypernetwork, images=400),
    )
    workspace = open_workspace(replace(smoke, budget=budget), tmp_path, device="cpu")
    plans = quality.plans(workspace, 0, ("DARTS", "EdgeNES"))
    plans += experiment("shift").plans(workspace, 0)[:1]
    run(workspace, plans, workers=1, progress=False)
    build_report(tmp_path)
    assert pd.read_csv(tmp_path / "tables" / "T2.csv")["system"].tolist() == ["DARTS", "EdgeNES"]
    assert "jpeg" in (tmp_path / "tables" / "shift_by_corruption.csv").read_text()


# ---------------------------------------------------------------- several processes


def test_two_workers_give_the_records_of_one(tmp_path):
    for workers in (1, 2):
        workspace = open_workspace(get_profile("smoke"), tmp_path / str(workers), device="cpu")
        run(workspace, quality.plans(workspace, 0), workers=workers, progress=False)
    assert results_of(tmp_path / "1") == results_of(tmp_path / "2")


# The command line, which writes the name of every run that it begins into a file.
COUNTED = """
import sys
from edgenes.cli.main import main
from edgenes.study import systems  # loads all kinds
from edgenes.study.tasks import KINDS

log = sys.argv.pop(1)


def counted(begin):
    def run(task, workspace, checkpoint):
        with open(log, "a") as file:
            file.write(f"{task.kind}-{task.key(workspace)}\\n")
        return begin(task, workspace, checkpoint)

    return run


for task_class in KINDS.values():
    task_class.run = counted(task_class.run)
main()
"""


def test_two_pipelines_in_one_folder_share_the_work(tmp_path):
    """Started together on the same records: both end, and the results are those of one."""
    workspace = open_workspace(get_profile("smoke"), tmp_path / "one", device="cpu")
    run(workspace, quality.plans(workspace, 0), workers=1, progress=False)
    shared = tmp_path / "shared"
    open_workspace(get_profile("smoke"), shared, device="cpu")
    log = tmp_path / "begun"
    command = [sys.executable, "-c", COUNTED, str(log), "run", "smoke", "--results", str(shared)]
    command += ["--seeds", "0,", "--experiments", "quality", "--workers", "1", "--no-notebooks"]
    together = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in together:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    assert results_of(shared) == results_of(tmp_path / "one")
    assert not list((shared / "work").iterdir())
    begun = sorted(log.read_text().split())
    assert begun == sorted(path.stem for path in (shared / "runs").glob("*.json"))  # each run once


# ---------------------------------------------------------------- committed results


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_tables_are_those_of_their_records(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(RESULTS / name / "runs", folder / "runs")
    start = time.monotonic()
    build_report(folder, published_figures(ROOT))
    assert time.monotonic() - start < 60  # no data, no training
    committed = sorted((RESULTS / name / "tables").glob("*.csv"))
    rebuilt = sorted((folder / "tables").glob("*.csv"))
    assert [path.name for path in rebuilt] == [path.name for path in committed]
    for again, path in zip(rebuilt, committed):
        assert_same_table(again, path)


def records_of_one_experiment(name, folder):
    """A results folder with what the first seed of one experiment needs, and no more."""
    for profile in COMMITTED:  # the first that has runs of it
        workspace = RecordedWorkspace(get_profile(profile), str(RESULTS / profile), None)
        plans = experiment(name).plans(workspace, 0)
        if plans:
            break
    shutil.copy(RESULTS / profile / "profile.json", folder)
    progress = Progress(workspace, plans)
    assert progress.missing() == [] or profile == "cpu-long"  # whose runs are under way
    (folder / "runs").mkdir()
    for task in progress.known:
        path = workspace.records.path(task.kind, task.inputs(workspace))
        shutil.copy(path, folder / "runs")
    return Records(folder)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_records_of_one_experiment_make_its_tables(name, tmp_path):
    """What is absent stops nothing, the verdicts on all claims included."""
    answers = results(records_of_one_experiment(name, tmp_path), {}, progress=False)
    assert answers[name].tables
    assert not claims_result(answers, {}).tables["claims"].empty


@pytest.mark.parametrize("name", ["control", "quality", "hatch"])
def test_report_of_one_experiment_alone(name, tmp_path):
    records_of_one_experiment(name, tmp_path)
    build_report(tmp_path)
    assert experiment(name).TITLE in html.unescape((tmp_path / "report.html").read_text())
    assert list((tmp_path / "tables").glob("*.csv"))


def priced(task, workspace):
    """An imagined record, with seconds for every epoch of a search and every retraining."""
    record = imagined(task, workspace)
    seconds = dict(record["seconds"])
    results_ = dict(record["results"])
    if task.kind == "darts":
        results_["log"] = [entry | {"seconds": 10.0} for entry in results_["log"]]
        seconds["search"] = 10.0 * len(results_["log"])
    if task.kind == "retraining":
        seconds["retraining"] = 2.0
    return record | {"results": results_, "seconds": seconds}


def ensemble_of(plan, workspace):
    """The ensemble that a plan asks for at its end."""
    tasks = next(plan)
    while not isinstance(tasks[0], EnsembleRun):
        tasks = plan.send([priced(task, workspace) for task in tasks])
    return tasks[0]


@pytest.mark.parametrize("optima", [1, 2])
def test_searches_cost_the_same_along_the_search_as_at_its_end(tmp_path, optima):
    profile = get_profile("smoke")
    profile = replace(profile, sizes=replace(profile.sizes, optima=optima))
    workspace = open_workspace(profile, tmp_path)
    points = [
        ensemble_of(speed.point(workspace, 0, "DartsEns", step), workspace)
        for step in range(1, profile.sizes.curve_points + 1)
    ]
    at_the_end = ensemble_of(system_plan(workspace, 0, "DartsEns"), workspace)
    costs = [task.search_seconds for task in points]
    assert costs == sorted(costs)
    assert costs[-1] == at_the_end.search_seconds > 0


def test_the_committed_tables_of_own_images_are_those_of_their_records(process, tmp_path):
    shutil.copytree(RESULTS / "own" / "runs", tmp_path / "runs")
    for notebook in ("own_trial.ipynb", "own_strategy.ipynb"):
        executed(process, ROOT / "nbs" / "reading" / notebook, tmp_path, results=str(tmp_path))
    for name in ("trials.csv", "tests.csv", "strategy.csv", "space.csv"):
        assert_same_table(tmp_path / "tables" / name, RESULTS / "own" / "tables" / name)


def test_a_first_trial_of_own_images_is_shown_without_a_test(process, tmp_path):
    trials = sorted((RESULTS / "own" / "runs").glob("*.json"))
    by_process_time = next(path for path in trials if '"clock"' in path.read_text())
    (tmp_path / "runs").mkdir()
    shutil.copy(by_process_time, tmp_path / "runs")
    notebook = ROOT / "nbs" / "reading" / "own_trial.ipynb"
    executed(process, notebook, tmp_path, results=str(tmp_path))
    shown = pd.read_csv(tmp_path / "tables" / "trials.csv")
    assert {"ensemble of 3", "one network"} <= set(shown["system"])
    assert len(shown) == len(read_json(by_process_time)["results"]["test"])
    assert len(pd.read_csv(tmp_path / "tables" / "tests.csv")) == 0


def test_benchmark_tables_are_those_of_its_newest_record():
    folder = RESULTS / "bench"
    records = [read_json(path) for path in Records(folder).paths("benchmark")]
    newest = max(records, key=lambda record: record["provenance"]["written"])["results"]
    for name, key in (("benchmark", "rows"), ("growth", "growth"), ("kinds", "kinds")):
        path = folder / "tables" / f"{name}.csv"
        columns = list(pd.read_csv(path).columns)
        assert pd.DataFrame(newest[key])[columns].to_csv(index=False) == path.read_text(), name
    assert newest["differences"]["output"] < 1e-5


@pytest.mark.parametrize(("name", "seeds"), [("cpu", 10), ("cpu-long", 3)])
def test_results_are_committed_and_calibrated(name, seeds):
    control = pd.read_csv(RESULTS / name / "tables" / "F3.csv")
    errors = control["calibration_error_edges"]
    assert len(control) >= seeds
    assert errors.median() <= 0.3
    assert (errors > 0.5).mean() <= 0.1
    assert (control["spearman"] >= 0.9).all()


def texts_shown(path):
    """The Markdown that the cells of a notebook made."""
    notebook = json.loads(path.read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return "\n".join("".join(output.get("data", {}).get("text/markdown", "")) for output in outputs)


def test_report_says_what_the_records_say():
    """The sentences of the committed report are those that code makes of the records today."""
    report = texts_shown(ROOT / "nbs" / "reading" / "report.ipynb")
    answers = results(Records(RESULTS / "cpu"), published_figures(ROOT))
    assert {"control", "quality", "theorem"} <= set(answers)
    for name, result in answers.items():
        for sentence in result.sentences:
            assert sentence in report, (name, sentence)


@pytest.mark.parametrize("name", ["index", "index_ru"])
def test_readme_says_what_the_tables_say(name, process, tmp_path):
    """Executed again, the notebook of README computes the numbers that it shows as committed."""
    committed = ROOT / "nbs" / f"{name}.ipynb"
    again = executed(process, committed, tmp_path)
    assert "EdgeNES" in texts_shown(committed)
    assert texts_shown(again) == texts_shown(committed)


def test_cpu_and_paper_differ_in_numbers_alone():
    def without_numbers(value):
        if isinstance(value, dict):
            return {name: without_numbers(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [without_numbers(inner) for inner in value]
        return "number" if isinstance(value, (int, float)) or value is None else value

    cpu = without_numbers(asdict(PROFILES["cpu"]) | {"name": "", "systems": ()})
    paper = without_numbers(asdict(PROFILES["paper"]) | {"name": "", "systems": ()})
    assert cpu == paper


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results folder of the profile `smoke`, run whole by the command line."""
    folder = tmp_path_factory.mktemp("finished") / "r"
    options = ("--results", folder, "--workers", 1, "--no-notebooks")
    done = edgenes("run", "smoke", *options, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def test_command_line_runs_the_method(finished):
    lines = (finished / "tables" / "T2.csv").read_text().splitlines()
    assert lines[0].startswith("system,n,accuracy_percent,accuracy_sd")
    assert len(lines) == 1 + len(PROFILES["smoke"].systems)
    assert {path.stem for path in (finished / "figures").glob("*.png")} == FIGURES
    for kind in ("png", "svg"):
        assert (finished / "figures" / f"F3.{kind}").stat().st_size > 1000


def said_by(*arguments):
    """The lines that a command prints, in this process."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout.splitlines()


def test_status_names_what_is_missing_and_can_start(finished, tmp_path):
    seeds = PROFILES["smoke"].sizes.seeds
    of_finished = ("status", "smoke", "--results", finished)
    assert said_by(*of_finished) == [f"nothing is missing in {finished}"]
    one_more = said_by(*of_finished, "--seeds", f"0,{seeds}", "--experiments", "space,control")
    assert re.fullmatch(rf"control, seed {seeds}: 1 run can start, first darts-\w+", one_more[0])
    assert one_more[1:] == [f"1 of the experiments and seeds are not finished in {finished}"]
    nowhere = said_by("status", "smoke", "--results", tmp_path / "none", "--experiments", "control")
    assert len(nowhere) == 1 + seeds
    assert nowhere[-1].endswith(f"{tmp_path / 'none'}, which does not exist yet")


def test_scaling_is_simulated_from_the_records_of_any_folder(finished):
    folder = finished / "scaling"
    assert said_by("scaling", "smoke", "--results", finished) == [f"wrote {folder}"]
    table = pd.read_csv(folder / "tables" / "simulated.csv")
    chain = pd.read_csv(folder / "tables" / "chain.csv")
    for _, rows in table.groupby("seeds"):
        assert rows["workers"].is_monotonic_increasing
        assert rows["pool_s"].iloc[0] == pytest.approx(rows["work_s"].iloc[0], rel=1e-4)
        assert rows["pool_s"].iloc[-1] < rows["pool_s"].iloc[0]
        assert rows["pool_s"].min() >= rows["chain_s"].iloc[0] * (1 - 1e-4)
    assert chain["seconds"].sum() == pytest.approx(table["chain_s"].iloc[0], rel=1e-4)
    names = {path.stem for path in (finished / "runs").glob("*.json")}
    assert set(chain["run"]) <= names


def test_unwritable_results_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = edgenes("run", "smoke", "--results", tmp_path / "file" / "r")
    assert done.returncode == 2
    assert done.stderr.startswith("edgenes: cannot")
    assert done.stderr.strip().count("\n") == 0, done.stderr


def drawn_files(folder):
    """Tables, figures and report by name."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.parent.name in ("figures", "tables") or path.name == "report.html"
    }


def test_a_run_with_its_notebooks_leaves_what_report_writes(tmp_path):
    options = ("smoke", "--results", tmp_path)
    one = ("--experiments", "space", "--workers", 1, "--set", "screened=3")
    output = edgenes("run", *options, *one, cwd=ROOT, check=True).stdout
    assert output.index("executed space.ipynb") < output.index("wrote")
    assert read_json(tmp_path / "profile.json")["sizes"]["screened"] == 3
    once = drawn_files(tmp_path)
    again = edgenes("run", *options, *one, cwd=ROOT, check=True).stdout
    assert again.startswith("nothing to do")
    assert drawn_files(tmp_path) == once
    edgenes("report", *options, cwd=ROOT, check=True)
    assert once
    assert drawn_files(tmp_path) == once
