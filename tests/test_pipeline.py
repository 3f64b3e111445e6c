"""The whole method: experiments through papermill, runs that are killed, committed tables."""

import html
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from edgenes.experiments.registry import EXPERIMENTS, experiment, published_figures
from edgenes.experiments.registry import build_report as build
from edgenes.report.frames import systems_of
from edgenes.study.pipeline import Progress, run
from edgenes.study.profiles import PROFILES, get_profile
from edgenes.study.records import Records
from edgenes.study.workspace import RecordedWorkspace, open_workspace

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))
COMMITTED = [
    p
    for p in sorted(ROOT.glob("results/*/tables"))
    if (p.parent / "runs").is_dir() and p.parent.name not in ("bench", "own")
]


def results_of(folder: Path) -> dict:
    """What the records say, without seconds: a log's entries carry their own."""

    def strip(x):
        if isinstance(x, dict):
            return {k: strip(v) for k, v in x.items() if k != "seconds"}
        return [strip(v) for v in x] if isinstance(x, list) else x

    return {
        p.name: strip(json.loads(p.read_text())["results"])
        for p in (folder / "runs").glob("*.json")
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_experiment_runs_at_a_tiny_budget(notebook, tmp_path):
    import papermill

    parameters = {
        "profile": "smoke",
        "seed": 1,
        "results": str(tmp_path / "r"),
        "workers": 1,
        "device": "cpu",
    }
    if notebook.stem != "benchmark":
        parameters["changes"] = {"screened": 3}
    papermill.execute_notebook(
        str(notebook), str(tmp_path / "out.ipynb"), parameters, progress_bar=False
    )
    assert list((tmp_path / "r" / "tables").glob("*.csv"))
    assert list((tmp_path / "r" / "runs").glob("*.json")) or notebook.stem == "space"
    if notebook.stem != "benchmark":
        assert json.loads((tmp_path / "r" / "profile.json").read_text())["screened"] == 3


def test_every_experiment_has_a_notebook_and_every_notebook_is_an_experiment():
    assert {p.stem for p in NOTEBOOKS} - {"benchmark"} == set(EXPERIMENTS)


def test_two_workers_give_the_records_of_one(tmp_path):
    for workers in (1, 2):
        workspace = open_workspace(get_profile("smoke"), tmp_path / str(workers), device="cpu")
        run(workspace, experiment("quality").plans(workspace, 0), workers=workers, progress=False)
    assert results_of(tmp_path / "1") == results_of(tmp_path / "2")


COUNTED = """import sys
from edgenes.cli import main as cli
from edgenes.study import tasks
log = sys.argv.pop(1)
def counted(work):
    def call(task, workspace, checkpoint):
        with open(log, "a") as file: file.write(f"{task.kind}-{workspace.records.key(task.inputs(workspace))}\\n")
        return work(task, workspace, checkpoint)
    return call
tasks.RUN = {kind: counted(work) for kind, work in tasks.RUN.items()}
cli.main()"""


def test_two_pipelines_in_one_folder_share_the_work(tmp_path):
    """Started together on the same records: both end, nothing is torn, and the results are those of one."""
    workspace = open_workspace(get_profile("smoke"), tmp_path / "one", device="cpu")
    run(workspace, experiment("quality").plans(workspace, 0), workers=1, progress=False)
    open_workspace(get_profile("smoke"), tmp_path / "both", device="cpu")
    command = [
        sys.executable,
        "-c",
        COUNTED,
        str(tmp_path / "ran"),
        "run",
        "smoke",
        "--results",
        str(tmp_path / "both"),
        "--seeds",
        "0,",
        "--experiments",
        "quality",
        "--workers",
        "1",
        "--no-notebooks",
    ]
    together = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in together:
        assert process.wait() == 0, process.stderr.read()
    assert results_of(tmp_path / "both") == results_of(tmp_path / "one")
    assert not list((tmp_path / "both" / "work").iterdir())
    ran = (tmp_path / "ran").read_text().split()
    assert sorted(ran) == sorted(
        p.stem for p in (tmp_path / "both" / "runs").glob("*.json")
    )  # each task by one of them, once


def test_a_deleted_record_leaves_the_tables_and_an_edited_one_stops_them(tmp_path):
    workspace = open_workspace(get_profile("smoke"), tmp_path, device="cpu")
    run(
        workspace,
        experiment("quality").plans(workspace, 0, ("DARTS", "Random", "EdgeNES")),
        workers=1,
        progress=False,
    )
    build(tmp_path)
    rows = (tmp_path / "tables" / "T2.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["DARTS", "Random", "EdgeNES"]
    record = next(
        r for r in systems_of(workspace.records, "quality") if r["inputs"]["system"] == "Random"
    )
    path = workspace.records.path("system", record["inputs"])
    good = path.read_text()
    path.write_text(good.replace('"accuracy_percent": ', '"accuracy_percent": 1'))
    with pytest.raises(ValueError, match="was changed after it was written"):
        build(tmp_path)
    path.unlink()
    build(tmp_path)
    assert "Random" not in (tmp_path / "tables" / "T2.csv").read_text()


@pytest.mark.parametrize("tables", COMMITTED, ids=lambda p: p.parent.name)
def test_committed_tables_are_those_of_their_records(tables, tmp_path):
    shutil.copytree(tables.parent / "runs", tmp_path / tables.parent.name / "runs")
    start = time.monotonic()
    build(tmp_path / tables.parent.name, published_figures(ROOT))
    assert time.monotonic() - start < 60  # no data, no training
    assert {p.name for p in tables.glob("*.csv")} == {
        p.name for p in (tmp_path / tables.parent.name / "tables").glob("*.csv")
    }
    for csv in tables.glob("*.csv"):
        again, committed = (
            pd.read_csv(p) for p in (tmp_path / tables.parent.name / "tables" / csv.name, csv)
        )
        pd.testing.assert_frame_equal(
            again, committed, rtol=1e-4, atol=1e-6, obj=str(csv)
        )  # other processors sum in another order


def test_the_committed_tables_of_own_images_are_those_of_their_records(tmp_path):
    import papermill

    shutil.copytree(ROOT / "results" / "own" / "runs", tmp_path / "runs")
    papermill.execute_notebook(
        str(ROOT / "nbs" / "reading" / "own_trial.ipynb"),
        str(tmp_path / "out.ipynb"),
        {"results": str(tmp_path)},
        progress_bar=False,
    )
    for name in ("trials.csv", "tests.csv"):
        again, committed = (
            pd.read_csv(folder / "tables" / name) for folder in (tmp_path, ROOT / "results" / "own")
        )
        pd.testing.assert_frame_equal(again, committed, rtol=1e-4, atol=1e-6, obj=name)


def test_a_first_trial_of_own_images_is_shown_without_a_test(tmp_path):
    import papermill

    (tmp_path / "runs").mkdir()
    shutil.copy(
        next(
            p
            for p in sorted((ROOT / "results" / "own" / "runs").glob("*.json"))
            if '"clock"' in p.read_text()
        ),
        tmp_path / "runs",
    )
    papermill.execute_notebook(
        str(ROOT / "nbs" / "reading" / "own_trial.ipynb"),
        str(tmp_path / "out.ipynb"),
        {"results": str(tmp_path)},
        progress_bar=False,
    )
    trials, tests = (
        pd.read_csv(tmp_path / "tables" / name) for name in ("trials.csv", "tests.csv")
    )
    assert list(trials["system"]) == ["ensemble of 3", "one network"] and len(tests) == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_report_of_one_experiment_alone(name, tmp_path):
    """Somebody runs a single experiment, on one seed: its figures and tables are made, and nothing stops for what is absent."""
    shutil.copy(ROOT / "results" / "cpu" / "profile.json", tmp_path)
    runs = ROOT / "results" / "cpu" / "runs"
    workspace = RecordedWorkspace(get_profile("cpu"), str(runs.parent), None)
    state = Progress(workspace, experiment(name).plans(workspace, 0))
    assert state.missing() == []
    (tmp_path / "runs").mkdir()
    for task in state.known:
        shutil.copy(workspace.records.path(task.kind, task.inputs(workspace)), tmp_path / "runs")
    build(tmp_path)
    assert experiment(name).TITLE in html.unescape((tmp_path / "report.html").read_text())
    assert list((tmp_path / "tables").glob("*.csv"))


def test_benchmark_tables_are_those_of_its_newest_record():
    from edgenes.study.records import all_records

    folder = ROOT / "results" / "bench"
    newest = max(
        all_records(Records(folder), "benchmark"), key=lambda r: r["provenance"]["written"]
    )["results"]
    for name, key in (("benchmark", "rows"), ("growth", "growth"), ("kinds", "kinds")):
        path = folder / "tables" / f"{name}.csv"
        assert (
            pd.DataFrame(newest[key])[list(pd.read_csv(path).columns)].to_csv(index=False)
            == path.read_text()
        ), name
    assert newest["differences"]["output"] < 1e-5


def test_results_of_the_cpu_profile_are_committed_and_calibrated():
    for name, seeds in (("cpu", 10), ("cpu-long", 3)):
        control = pd.read_csv(ROOT / "results" / name / "tables" / "F3.csv")
        assert (
            len(control) >= seeds
            and control["calibration_error_edges"].median() <= 0.3
            and (control["calibration_error_edges"] > 0.5).mean() <= 0.1
        ), name
        assert (control["spearman"] >= 0.9).all()


def test_readme_and_report_say_what_the_records_say():
    """The sentences and figures of the committed texts are those that code makes of the records today."""
    texts = {name: (ROOT / name).read_text() for name in ("README.md", "nbs/reading/report.ipynb")}
    texts["nbs/reading/report.ipynb"] = json.loads(texts["nbs/reading/report.ipynb"])
    texts["nbs/reading/report.ipynb"] = "\n".join(
        "".join(o.get("data", {}).get("text/markdown", ""))
        for c in texts["nbs/reading/report.ipynb"]["cells"]
        for o in c.get("outputs", [])
    )
    for name in EXPERIMENTS:
        for line in (
            experiment(name)
            .result(Records(ROOT / "results" / "cpu"), published_figures(ROOT))
            .sentences
        ):
            assert line in texts["nbs/reading/report.ipynb"], (name, line)
            if name in ("quality", "control"):
                assert line in texts["README.md"], line
    for row in pd.read_csv(ROOT / "results" / "cpu" / "tables" / "T2.csv").itertuples():
        assert f"| {row.system} | {row.n} | {row.accuracy_percent:.1f} |" in texts["README.md"]


def test_cpu_and_paper_differ_in_numbers_alone():
    def kinds(x):
        if isinstance(x, dict):
            return {k: kinds(v) for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [kinds(v) for v in x]
        return "number" if isinstance(x, (int, float)) or x is None else x

    from dataclasses import asdict

    cpu, paper = (kinds(asdict(PROFILES[name]) | {"name": ""}) for name in ("cpu", "paper"))
    assert cpu == paper


@pytest.mark.skipif(
    not os.environ.get("EDGENES_DATA"), reason="EDGENES_DATA is not set: no real images here"
)
def test_smoke_on_real_images(tmp_path):
    smoke = get_profile(
        "smoke", source="cifar100", downscale=2, train_images=2000, val_images=500, test_images=500
    )
    profile = replace(
        smoke, darts=replace(smoke.darts, images=400), hyper=replace(smoke.hyper, images=400)
    )  # each of 100 classes in both halves
    workspace = open_workspace(profile, tmp_path, device="cpu")
    run(
        workspace,
        experiment("quality").plans(workspace, 0, ("DARTS", "EdgeNES"))
        + experiment("shift").plans(workspace, 0)[:1],
        workers=1,
        progress=False,
    )
    build(tmp_path)
    systems = [
        row.split(",")[0] for row in (tmp_path / "tables" / "T2.csv").read_text().splitlines()[1:]
    ]
    assert (
        systems == ["DARTS", "EdgeNES"]
        and "jpeg" in (tmp_path / "tables" / "shift_by_corruption.csv").read_text()
    )


def test_command_line_runs_the_method(tmp_path):
    command = [
        sys.executable,
        "-m",
        "edgenes",
        "run",
        "smoke",
        "--results",
        str(tmp_path / "r"),
        "--workers",
        "1",
        "--no-notebooks",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header = (tmp_path / "r" / "tables" / "T2.csv").read_text().splitlines()
    assert header[0].startswith("system,n,accuracy_percent,accuracy_sd") and len(header) == 14
    assert {p.stem for p in (tmp_path / "r" / "figures").glob("*.png")} == {
        "F1",
        "F2",
        "F3",
        "F3_cells",
        "F3_learning",
        "F4",
        "T1",
        "T2_cost",
        "T2_seeds",
        "T3",
        "TH",
        "ablation",
        "relaxation",
        "shift",
    }
    assert all(
        (tmp_path / "r" / "figures" / f"F3.{kind}").stat().st_size > 1000 for kind in ("png", "svg")
    )


def test_unwritable_results_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "edgenes",
            "run",
            "smoke",
            "--results",
            str(tmp_path / "file" / "r"),
        ],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith("edgenes: cannot")
        and done.stderr.strip().count("\n") == 0
    ), done.stderr


def test_costs_are_counts_times_the_seconds_of_one_version(tmp_path):
    from edgenes.experiments.quality import frame, plans, result
    from edgenes.study.costs import measure

    workspace = open_workspace(get_profile("smoke"), tmp_path / "r")
    run(
        workspace,
        plans(workspace, 0, ("DARTS", "DartsEns", "EdgeNES", "Random-NES")),
        workers=1,
        progress=False,
    )
    accuracy, raw = (
        frame(workspace.records)["accuracy_percent"],
        frame(workspace.records)["total_seconds"],
    )
    record = measure(workspace)
    assert measure(workspace) == record  # this code has been timed
    one = {kind: sum(values) / len(values) for kind, values in record["results"]["seconds"].items()}
    found = frame(workspace.records).set_index("system")
    assert found["search_seconds"].tolist() == pytest.approx(
        [one["darts"], 2 * one["darts"], 0, one["darts"] + one["hypernetwork"]]
    )
    assert found["retraining_seconds"].tolist() == pytest.approx(
        [k * one["retraining"] for k in (1, 2, 2, 2)]
    )
    assert (
        found["accuracy_percent"].tolist() == accuracy.tolist()
        and found["total_seconds"].tolist() != raw.tolist()
    )
    assert "by one version of the code" in result(workspace.records, {}).sentences[-1]


def test_a_run_with_its_notebooks_leaves_what_report_writes(tmp_path):
    command = [sys.executable, "-m", "edgenes"]
    made = lambda: {
        p.relative_to(tmp_path): p.read_bytes()
        for p in tmp_path.rglob("*")
        if p.parent.name in ("figures", "tables") or p.name == "report.html"
    }
    said = subprocess.run(
        [
            *command,
            "run",
            "smoke",
            "--results",
            str(tmp_path),
            "--experiments",
            "space",
            "--workers",
            "1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.index("executed space.ipynb") < said.index("wrote")
    once = made()
    subprocess.run(
        [*command, "report", "smoke", "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert once and made() == once
