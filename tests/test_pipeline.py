"""The whole method: experiments through papermill, runs that are killed, committed tables."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgenes.pipeline import PROFILES, Task, get_profile, open_shop, run, run_task
from edgenes.report import build, published_figures

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))
COMMITTED = [p for p in sorted(ROOT.glob("results/*/tables")) if (p.parent / "runs").is_dir() and p.parent.name != "bench"]


def results_of(folder: Path) -> dict:
    """What the records say, without seconds: a log's entries carry their own."""
    def strip(x):
        if isinstance(x, dict): return {k: strip(v) for k, v in x.items() if k != "seconds"}
        return [strip(v) for v in x] if isinstance(x, list) else x
    return {p.name: strip(json.loads(p.read_text())["results"]) for p in (folder / "runs").glob("*.json") if not p.name.startswith("system")}


@pytest.mark.parametrize("notebook", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_runs_at_a_tiny_budget(notebook, tmp_path):
    import papermill
    parameters = {"profile": "smoke", "seed": 1, "results": str(tmp_path / "r"), "workers": 1, "device": "cpu"}
    papermill.execute_notebook(str(notebook), str(tmp_path / "out.ipynb"), parameters, progress_bar=False)
    assert list((tmp_path / "r" / "runs").glob("*.json")) and list((tmp_path / "r" / "tables").glob("*.csv"))


def test_two_workers_give_the_records_of_one(tmp_path):
    for workers in (1, 2):
        run(open_shop(get_profile("smoke"), tmp_path / str(workers), device="cpu"), [0], workers=workers, progress=False)
    assert results_of(tmp_path / "1") == results_of(tmp_path / "2")


LONGER = replace(PROFILES["smoke"], darts=replace(PROFILES["smoke"].darts, epochs=8), retrain=replace(PROFILES["smoke"].retrain, epochs=8))
RESUME = """
import sys
sys.path.insert(0, {tests!r})
from test_pipeline import both_tasks
both_tasks({folder!r})
"""


def both_tasks(folder):
    """A search and the retraining of what it found."""
    shop = open_shop(LONGER, folder, device="cpu")
    record = run_task(Task("darts"), shop)
    from edgenes.pipeline import optimum_of
    run_task(Task("retraining", 5, genotype=optimum_of(record, LONGER.space)), shop)


@pytest.mark.parametrize("kind", ["darts", "retraining"])
def test_killed_and_resumed_is_bit_for_bit_the_same(kind, tmp_path):
    both_tasks(tmp_path / "whole")
    folder, environment = tmp_path / "killed", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RESUME.format(tests=str(ROOT / "tests"), folder=str(folder))]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    for _ in range(6000):
        if list(folder.glob(f"work/{kind}-*/epoch-0000[3-6].safetensors")): break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(folder.glob(f"runs/{kind}-*.json"))
    subprocess.run(command, env=environment, check=True)
    assert results_of(folder) == results_of(tmp_path / "whole")
    assert not list((folder / "work").iterdir())


@pytest.mark.parametrize("tables", COMMITTED, ids=lambda p: p.parent.name)
def test_committed_tables_are_those_of_their_records(tables, tmp_path):
    shutil.copytree(tables.parent / "runs", tmp_path / tables.parent.name / "runs")
    build(tmp_path / tables.parent.name, published_figures(ROOT))
    for csv in tables.glob("*.csv"):
        assert (tmp_path / tables.parent.name / "tables" / csv.name).read_text() == csv.read_text(), csv


def test_benchmark_tables_are_those_of_its_newest_record():
    import pandas as pd

    from edgenes.records import Records, all_records
    folder = ROOT / "results" / "bench"
    newest = max(all_records(Records(folder), "benchmark"), key=lambda r: r["provenance"]["written"])["results"]
    for name, key in (("benchmark", "rows"), ("growth", "growth"), ("kinds", "kinds")):
        path = folder / "tables" / f"{name}.csv"
        assert pd.DataFrame(newest[key])[list(pd.read_csv(path).columns)].to_csv(index=False) == path.read_text(), name
    assert newest["differences"]["output"] < 1e-5


def test_results_of_the_cpu_profile_are_committed_and_calibrated():
    import pandas as pd
    control = pd.read_csv(ROOT / "results" / "cpu" / "tables" / "F3.csv")
    assert (control["calibration_error_edges"] <= 0.5).all() and (control["spearman"] >= 0.9).all()


def test_cpu_and_paper_differ_in_numbers_alone():
    def kinds(x):
        if isinstance(x, dict): return {k: kinds(v) for k, v in x.items()}
        if isinstance(x, (list, tuple)): return [kinds(v) for v in x]
        return "number" if isinstance(x, (int, float)) or x is None else x
    from dataclasses import asdict
    cpu, paper = (kinds(asdict(PROFILES[name]) | {"name": ""}) for name in ("cpu", "paper"))
    assert cpu == paper


@pytest.mark.skipif(not os.environ.get("EDGENES_DATA"), reason="EDGENES_DATA is not set: no real images here")
def test_smoke_on_real_images(tmp_path):
    smoke = get_profile("smoke", source="cifar100", downscale=2, train_images=2000, val_images=500, test_images=500)
    profile = replace(smoke, darts=replace(smoke.darts, images=400), hyper=replace(smoke.hyper, images=400))  # each of 100 classes in both halves
    run(open_shop(profile, tmp_path, device="cpu"), [0], workers=1, progress=False)
    assert (build(tmp_path)[0]).exists()


def test_command_line_runs_the_method(tmp_path):
    command = [sys.executable, "-m", "edgenes", "run", "smoke", "--results", str(tmp_path / "r"), "--workers", "1", "--no-notebooks"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header = (tmp_path / "r" / "tables" / "T2.csv").read_text().splitlines()
    assert header[0].startswith("system,n,accuracy_percent,accuracy_sd") and len(header) == 8
    assert all((tmp_path / "r" / "figures" / f"F3.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))


def test_unwritable_results_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run([sys.executable, "-m", "edgenes", "run", "smoke", "--results", str(tmp_path / "file" / "r")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("edgenes: cannot") and done.stderr.strip().count("\n") == 0, done.stderr
