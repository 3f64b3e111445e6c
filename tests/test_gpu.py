"""What a GPU needs, as far as a CPU can show it: the check, its workers, and steps without waiting.

The steps run on fake tensors that say they are on a GPU. PyTorch refuses to mix their device with
another, and to read a number of them, for which a real GPU would have to be waited for.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from project import ROOT
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from edgenes.bench import gpu
from edgenes.bench.gpu import PARTS
from edgenes.bilevel import Bilevel, SearchSettings, StepInputs, VectorStructure, objective
from edgenes.cli.main import app
from edgenes.core import EdgenesError, read_json, stream, write_json
from edgenes.data import Augment, augment_images
from edgenes.discrete import DiscreteNetwork
from edgenes.genotype import SearchSpace
from edgenes.hypernetwork import Hypernetwork
from edgenes.neighbours import random_genotype
from edgenes.study import pipeline
from edgenes.study.profiles import get_profile
from edgenes.study.searches import DartsSearch
from edgenes.study.workspace import default_workers, open_workspace
from edgenes.supernet import Supernet

SPACE = SearchSpace()
HYPERNETWORK_INPUTS = StepInputs(
    structure_lam=1.0,
    weight_lam=2.0,
    regulariser_lams=(0.5, 3.0),
    regulariser_weight=0.1,
)


class Copies(TorchDispatchMode):
    """Counts the operations that read a tensor of the CPU and give one of the GPU."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))

        def devices(nest):
            leaves = tree_leaves(nest)
            return {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}

        if "cpu" in devices((args, kwargs)) and "cuda" in devices(result):
            self.counts[func.__name__] += 1
        return result


@pytest.fixture
def fake_gpu():
    """Tensors that are made inside say that they are on a GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            with torch.device("cuda"):
                nn.Conv2d(3, 4, 3)(torch.randn(2, 3, 8, 8))
        except RuntimeError:  # the CUDA builds of torch 2.6 to 2.9 look for a driver
            pytest.skip(f"torch {torch.__version__} does not imitate a GPU where there is none")
        yield torch.device("cuda")


def fake_problem(relaxation, hypernetwork):
    with torch.device("cuda"):
        supernet = Supernet(SPACE, 10, channels=4, layers=2)
        structure = Hypernetwork.of(SPACE) if hypernetwork else VectorStructure(SPACE.size)
        batch = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
    optimum = random_genotype(SPACE, 0) if hypernetwork else None
    settings = SearchSettings(relaxation=relaxation)
    return Bilevel(supernet, structure, settings, optimum), batch


@pytest.mark.parametrize("relaxation", ["faithful", "gumbel"])
def test_the_forward_pass_of_a_search_never_waits(fake_gpu, relaxation):
    problem, batch = fake_problem(relaxation, hypernetwork=False)
    with Copies() as copies:
        value = objective(problem, batch, StepInputs())
    assert value.total.device.type == "cuda"
    draws_of_noise = 1 + len(SPACE.node_slices)  # of operations, and of the edges of each node
    assert copies.counts.total() == (draws_of_noise if relaxation == "gumbel" else 0)


def test_a_hypernetwork_never_waits(fake_gpu):
    problem, batch = fake_problem("faithful", hypernetwork=True)
    value = objective(problem, batch, HYPERNETWORK_INPUTS)
    assert value.total.device.type == "cuda"
    assert value.penalties["regulariser"].device.type == "cuda"


def test_the_sampled_supernet_never_waits(fake_gpu):
    problem, (images, _) = fake_problem("sampled", hypernetwork=False)
    with torch.device("cuda"):
        mix = torch.rand(SPACE.shapes[0])
    # All that a supernet asks of `used` is its list, which a fake tensor cannot give.
    _, edges, operations = SPACE.shapes[0]
    two_of_each_edge = [[place in (2, 3) for place in range(operations)]] * edges
    used = mock.Mock(tolist=lambda: [two_of_each_edge])
    with Copies() as copies:
        logits = problem.supernet(images, mix, used)
    assert logits.device.type == "cuda"
    assert copies.counts.total() == 0


def test_a_discrete_network_never_waits(fake_gpu):
    with torch.device("cuda"):
        network = DiscreteNetwork(random_genotype(SPACE, 0), 10, channels=4, auxiliary=True)
        images = torch.randn(8, 3, 8, 8)
    with Copies() as copies:
        logits, auxiliary_logits = network.both_logits(images)
    assert logits.device.type == auxiliary_logits.device.type == "cuda"
    assert copies.counts.total() == 0
    network.drop_probability = 0.2
    assert network.both_logits(images)[0].device.type == "cuda"


def test_images_are_augmented_where_they_are(fake_gpu):
    with torch.device("cuda"):
        images = torch.randn(8, 3, 8, 8)
    settings = Augment(pad=2, flip=True, cutout=3)
    assert augment_images(images, settings, stream("augment")).device.type == "cuda"


@dataclass(frozen=True)
class Greedy(DartsSearch):
    """A search that finds no memory at its first tries: once, or always where seed is 9."""

    def run(self, workspace, checkpoint):
        tried = Path(workspace.results) / f"tried-{self.seed}"
        if self.seed == 9 or not tried.exists():
            tried.touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. See there.")
        return super().run(workspace, checkpoint)


@dataclass(frozen=True)
class Placed(DartsSearch):
    """A search that notes which GPU its process sees."""

    def run(self, workspace, checkpoint):
        (Path(workspace.results) / f"gpu-{self.seed}").write_text(
            os.environ["CUDA_VISIBLE_DEVICES"]
        )
        return super().run(workspace, checkpoint)


def plan_of(*tasks):
    yield list(tasks)


@pytest.fixture
def workspace(tmp_path):
    return open_workspace(get_profile("smoke"), tmp_path / "smoke", device="cpu")


def test_out_of_memory_is_one_line_and_goes_on_with_fewer_workers(workspace, capsys):
    pipeline.run(workspace, [plan_of(Greedy(0))], workers=4, progress=False)
    assert Greedy(0).done(workspace)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "no memory is left for darts, seed 0 (OutOfMemoryError: CUDA out of memory. Tried to "
        "allocate 2 GiB): free memory, or use fewer --workers; going on with 2"
    )


def test_out_of_memory_with_one_worker_is_an_error(workspace, capsys):
    expected = "1 of the runs failed; the others are finished: no memory is left for darts, seed 9"
    with pytest.raises(EdgenesError, match=expected):
        pipeline.run(workspace, [plan_of(Greedy(9))], workers=2, progress=False)
    assert "going on with 1" in capsys.readouterr().err
    with pytest.raises(EdgenesError, match=expected):
        pipeline.run(workspace, [plan_of(Greedy(9))], workers=1, progress=False)


def test_workers_take_one_of_several_gpus_each(workspace, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(pipeline, "count_gpus", lambda device: 2)
    tasks = [Placed(0), Placed(1)]
    pipeline.run(workspace, [plan_of(*tasks)], workers=2, progress=False)
    seen = [(Path(workspace.results) / f"gpu-{seed}").read_text() for seed in (0, 1)]
    assert sorted(seen) == ["3", "5"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_as_many_workers_as_were_found_best(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *which: "A1")
    assert default_workers("cuda", 16, tmp_path) == 2  # one per GPU where nothing was measured
    record = {"device": "A1", "results": {"best_processes": 4}}
    write_json(tmp_path / "side_by_side.json", record)
    assert default_workers("auto", 16, tmp_path) == 8
    assert default_workers("cuda:1", 16, tmp_path) == 4
    assert default_workers("cuda", 3, tmp_path) == 3
    assert default_workers("cuda", 1, tmp_path) == 2
    write_json(tmp_path / "side_by_side.json", record | {"device": "A2"})
    assert default_workers("cuda", 16, tmp_path) == 2


def gpu_check(folder, **options):
    """The running command."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "edgenes", "gpu-check", "--device", "cpu"),
            *("--out", str(folder), "--minutes", "100"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def field_names(nest):
    """The names of all fields of a nest of dictionaries and lists."""
    if isinstance(nest, dict):
        return set(nest).union(*map(field_names, nest.values()))
    return set().union(*map(field_names, nest)) if isinstance(nest, list) else set()


def explained_names():
    """What the notebook of the check names as code, as its tables of fields do."""
    cells = read_json(ROOT / "nbs/bench/gpu.ipynb")["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return set(re.findall("`([a-z_]+)`", text))


def test_a_killed_check_goes_on_where_it_was(tmp_path):
    """All parts, as they run on a GPU, at tiny sizes; the command is killed after its first."""
    process = gpu_check(tmp_path)
    try:
        for line in process.stdout:
            assert line.startswith("machine: done in"), line
            break
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert "machine.json" in finished
    process = gpu_check(tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "machine:" not in output
    assert {path.stem for path in tmp_path.glob("*.json")} == {*PARTS, "costs"}
    for name, written in finished.items():
        assert (tmp_path / name).stat().st_mtime_ns == written
    kinds = read_json(tmp_path / "costs.json")["results"]["plain"]["kinds"]
    assert all(row["hours"] > 0 for row in kinds)
    assert not list(tmp_path.glob("*.tmp"))
    assert f"wrote {tmp_path}." in output
    results = [read_json(tmp_path / f"{part}.json")["results"] for part in (*PARTS, "costs")]
    assert set().union(*map(field_names, results)) - explained_names() == set()


def test_a_part_that_hangs_or_meets_the_time_limit_is_ended(tmp_path, monkeypatch):
    check = gpu.Check("cpu", str(tmp_path))
    assert gpu._patience(check, "speed") == gpu.A_DAY
    monkeypatch.setattr(gpu, "_patience", lambda check, name: 0.0)
    assert list(gpu._news(check, ["equality"])) == [
        ("equality", "begun"),
        ("equality", "failed: it took too long"),
    ]
    at_its_end = replace(check, end=time.time() + 0.1)
    assert list(gpu._news(at_its_end, ["equality"])) == [("equality", gpu.CUT_OFF)]
    assert not list(tmp_path.glob("*.json"))


def measured(folder):
    """A check whose parts before `paper` are finished, with numbers that were made up."""
    check = gpu.Check("cpu", str(folder))
    kinds = ("darts_step", "hypernetwork_step", "retraining_step", "predictions", "selection")
    seconds = dict.fromkeys((*kinds, "screened_architecture"), 0.001)
    results = {
        "equality": {"rows": []},
        "loops": seconds,
        "side_by_side": {"best_processes": 8, "gain": 2.0},
    }
    for part, found in results.items():
        check.write(part, found, 0.0)
    return check


def test_first_retrainings_tell_the_same_seconds_after_a_stop(tmp_path):
    check = measured(tmp_path)
    whole = gpu._paper(check)
    assert whole["retrainings"] == get_profile("smoke").sizes.free_pool < 8
    records = sorted((tmp_path / "smoke" / "runs").glob("retraining-*.json"))
    seconds = [read_json(path)["seconds"]["retraining"] for path in records]
    assert whole["longest_seconds"] == max(seconds) > 0
    records[seconds.index(min(seconds))].unlink()  # one that a stop has prevented
    rest = gpu._paper(check)
    assert rest["retrainings"] == whole["retrainings"]
    assert rest["longest_seconds"] >= whole["longest_seconds"]
    assert gpu._paper(check) == rest


@pytest.mark.parametrize("end", ["done in 0.1 s", gpu.LEFT_OUT, "failed: wrong"])
def test_the_time_limit_after_the_end_of_a_part(tmp_path, monkeypatch, end):
    """No part is under way then: none is cut off, and what a seed costs is still written."""
    check = measured(tmp_path)
    left = 1000.0
    news = iter([("machine", "begun"), ("machine", end)])

    def receive():
        nonlocal left
        part, what = next(news)
        left = 0.0 if what == end else left
        return part, what

    connection = mock.Mock(poll=lambda seconds: seconds > 0, recv=receive)
    context = mock.Mock()
    context.Pipe.return_value = connection, mock.Mock()
    monkeypatch.setattr(gpu.multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(gpu, "_end", lambda process: None)
    monkeypatch.setattr(gpu.Check, "seconds_left", property(lambda check: left))
    lines = []
    with pytest.raises(EdgenesError) if end.startswith("failed") else nullcontext():
        gpu.run_check(check, lines.append)
    told = [line.split(": ", 1) for line in lines]
    assert told[0] == ["machine", end]
    assert {what for _, what in told[1:]} == {gpu.LEFT_OUT}
    assert (tmp_path / "costs.json").is_file()


def test_a_check_needs_no_library_of_figures_or_statistics():
    """Nor do the estimator, and the runs of a study without its tables."""
    code = "import sys, edgenes.bench.gpu, edgenes.report.gpu, edgenes.cli.main; "
    code += "import edgenes.estimator, edgenes.study.systems; "
    code += "print(*{'statsmodels', 'seaborn', 'matplotlib', 'torchvision'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "", process.stdout + process.stderr
    assert process.returncode == 0


def test_a_command_without_a_gpu_names_the_remedy(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is at hand")
    done = CliRunner().invoke(app, ["gpu-check", "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, EdgenesError)
    assert str(done.exception).startswith("no CUDA GPU is found by torch")
    assert "--device cpu" in str(done.exception)
    assert not (tmp_path / "out").exists()
