"""Bad command lines, and bad parameters of the experiment notebooks: one line names the fault."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import torch._dynamo  # noqa: F401 - the first optimiser loads it: seconds that are no hang
from hypothesis import given
from hypothesis import strategies as st
from refusals import JSON, Refusals, examples, in_time

import edgenes.cli.main
from edgenes.cli.study import seed_list
from edgenes.core import write_atomic, write_json
from edgenes.experiments import quality, registry
from edgenes.study import pipeline
from edgenes.study.profiles import PARAMETERS, PROFILES, get_profile
from edgenes.study.workspace import RecordedWorkspace, open_workspace

TRIED = Refusals(commands=250, parameters=200)

ASCII = st.characters(codec="ascii", categories=("L", "N", "P", "S"))
WORDS = st.text(ASCII, min_size=1, max_size=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "file").write_text("")
    return folder


# ---------------------------------------------------------------- command lines


def run_command(*arguments):
    """(exit code, what was written to stderr) of the entry point."""
    stderr = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgenes", *arguments])
        patch.delenv("EDGENES_DATA", raising=False)  # "source=cifar100" is bad without a folder
        try:
            with (
                in_time(),
                contextlib.redirect_stderr(stderr),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                edgenes.cli.main.main()
        except SystemExit as end:
            return end.code, stderr.getvalue()
    raise AssertionError("the entry point came back")


def check_refused(*arguments):
    """A command ends with exit code 2 and one line on stderr."""
    code, message = run_command(*arguments)
    command = f"{arguments}: {message}"
    assert code == 2, command
    assert message.startswith("edgenes: "), command
    assert message.count("\n") == 1, command
    assert "Traceback" not in message, command
    TRIED.counts["commands"] += 1


BAD_CHANGES = [
    "members=0",
    "members=9",
    "candidates=0",
    "candidates=-1",
    "candidates=x",
    "candidates=1.5",
    "candidates",
    "candidates=",
    "inputs_per_node=0",
    "inputs_per_node=3",
    "downscale=0",
    "downscale=3",
    "downscale=-2",
    "train_images=0",
    "train_images=99999",
    "val_images=-1",
    "val_images=2000",
    "test_images=1",
    "criterion=luck",
    "seeds=0",
    "seeds=-1",
    "darts=1",
    "__class__=1",
    "source=nowhere",
    "source=cifar100",
    "source=<b>",
    "downscale=1" + "0" * 30,
    "screened=1" + "0" * 12,
    "deep_pool=1" + "0" * 20,
    "free_pool=1" + "0" * 12,
    "shift_images=-1",
    "shift_images=0",
    "members=" + "9" * 5000,
]


def are_no_seeds(text):
    """Whether a text is neither a number of seeds nor a list of them."""
    parts = text.rstrip(", ").split(",")
    return text == "0" or not all(part.strip().isdigit() for part in parts)


BAD_PROFILES = WORDS.filter(lambda word: word not in PROFILES)
BAD_DEVICES = WORDS.filter(lambda word: word not in ("cpu", "auto", "cuda")) | st.sampled_from(
    ["cuda:99", "cuda:", "cpu:0"]
)
BAD_WORKERS = st.sampled_from(["0", "-1", "x", "1.5", "", "1e3", "99999999999"]) | WORDS.filter(
    lambda word: not word.isdigit()
)
BAD_SEEDS = st.text("0123456789,.-+ex ", min_size=1, max_size=6).filter(are_no_seeds)
UNKNOWN_CHANGES = WORDS.filter(lambda word: word.partition("=")[0] not in PARAMETERS).map(
    lambda word: f"{word}=1"
)
UNKNOWN_OPTIONS = WORDS.filter(lambda word: word.isalnum() and word != "help").map(
    lambda word: f"--{word}"
)
UNKNOWN_COMMANDS = WORDS.filter(lambda word: word not in ("run", "report", "bench", "--help"))


def bad_data_paths(results, file):
    """Where no images are."""
    chosen = st.sampled_from([file, f"{file}/x", "nowhere", "n" * 300, results])
    return chosen | WORDS.map(lambda word: f"{file}/{word}")


@st.composite
def bad_commands(draw, results, file):
    """The arguments of a command with one fault."""
    run = ["run", "smoke", "--no-notebooks"]
    sound = {"--results": results, "--workers": "1", "--device": "cpu"}
    bad_values = {
        "--device": BAD_DEVICES,
        "--workers": BAD_WORKERS,
        "--seeds": BAD_SEEDS,
        "--results": WORDS.map(lambda word: f"{file}/{word}"),
    }
    others = ("command", "report", "profile", "--set", "--set name", "--data", "option")
    fault = draw(st.sampled_from((*bad_values, *others)))
    surplus = []
    match fault:
        case "command":
            return [draw(UNKNOWN_COMMANDS)]
        case "report":
            return ["report", draw(BAD_PROFILES), "--results", results]
        case "profile":
            run[1] = draw(BAD_PROFILES)
        case "--set":
            surplus = ["--set", draw(st.sampled_from(BAD_CHANGES))]
        case "--set name":
            surplus = ["--set", draw(UNKNOWN_CHANGES)]
        case "--data":
            path = draw(bad_data_paths(results, file))
            surplus = ["--set", "source=cifar100", "--data", path]
        case "option":
            surplus = [draw(UNKNOWN_OPTIONS)]
        case _:
            sound[fault] = draw(bad_values[fault])
    options = [text for option in sound.items() for text in option]
    return [*run, *options, *surplus]


@examples(260)
@given(st.data())
def test_command_lines(place, data):
    results = place / "results"
    check_refused(*data.draw(bad_commands(str(results), str(place / "file"))))
    for path in results.rglob("*"):  # what is there is complete
        assert path.suffix == ".json", path
        assert isinstance(json.loads(path.read_text()), dict), path


def test_report_of_a_folder_that_cannot_be_used(tmp_path):
    check_refused("report", "smoke", "--results", str(tmp_path / "none"))
    check_refused("report", "smoke", "--results", str(tmp_path))
    write_atomic(tmp_path / "runs" / "system-0.json", "{")
    check_refused("report", "smoke", "--results", str(tmp_path))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["runs", "system-0.json"]


LONG_NAME = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "smoke", "--results", LONG_NAME],
        ["scaling", "smoke", "--results", LONG_NAME],
        ["run", "smoke", "--no-notebooks", "--results", LONG_NAME],
        ["draw", LONG_NAME, "--out", "x.svg"],
        ["fit", LONG_NAME, "--out", "o"],
        ["predict", LONG_NAME, "x.png"],
        ["evaluate", LONG_NAME, "x"],
        ["sample", LONG_NAME, "--lambda", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_name_that_is_too_long(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(*arguments)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- parameters of notebooks


def sound_parameters(place):
    """Parameters of a notebook whose runs are finished."""
    return {
        "name": "control",
        "profile": "smoke",
        "results": str(place / "answers"),
        "run": True,
        "seed": 0,
        "device": "cpu",
        "workers": 1,
        "changes": {},
    }


@pytest.fixture(scope="module")
def finished(place):
    """The sound parameters, after they were answered with and without runs."""
    parameters = sound_parameters(place)
    for run in (True, False):
        assert registry.answer(**parameters | {"run": run}).sentences
    return parameters


def is_no_whole_number(number):
    return not np.isfinite(number) or number != int(number)


NO_SEEDS = st.floats().filter(is_no_whole_number) | st.sampled_from(
    [True, 10**40, -(10**40), float("inf"), -0.25, -1, None, "x", [1]]
)
NO_WORKERS = st.sampled_from([-1, 1.5, float("nan"), "x", [1], 99999999999, 10**400]) | st.integers(
    max_value=-1
)
NO_PROFILES = (
    st.text(max_size=8)
    | st.none()
    | st.integers()
    | st.floats()
    | st.sampled_from(["../../x", "<b>", "$(id)"])
).filter(lambda value: value not in PROFILES)
NO_PATHS = st.integers(1) | st.floats() | st.lists(st.integers(), min_size=1) | st.just("a\0b")
NO_CHANGES = JSON.filter(lambda value: value not in (None, {}))
NO_VALUES = (
    st.none()
    | st.floats()
    | st.lists(st.integers(), max_size=2)
    | st.sampled_from([-1, 0, "x", "<b>", 10**400])
)
NO_SETTINGS = st.builds(
    lambda name, value: {name: value},
    st.sampled_from(("candidates", "members", "train_images", "source", "criterion", "downscale")),
    NO_VALUES,
)


def bad_parameters(place, run):
    """What each parameter cannot be; some are looked at only where runs are asked for."""
    no_folders = WORDS.map(lambda word: f"{place / 'file'}/{word}")
    always = {
        "name": JSON.filter(lambda value: value not in registry.EXPERIMENTS),
        "profile": NO_PROFILES,
        "results": no_folders | NO_PATHS,
        "changes": NO_CHANGES,
    }
    if not run:
        return always
    return always | {
        "changes": NO_CHANGES | NO_SETTINGS,
        "seed": NO_SEEDS,
        "device": JSON.filter(lambda value: value not in ("cpu", "auto")),
        "workers": NO_WORKERS,
    }


@examples(260)
@given(st.data())
def test_parameters(place, finished, data):
    run = data.draw(st.sampled_from((True, True, False)))
    bad_values = bad_parameters(place, run)
    fault = data.draw(st.sampled_from(sorted(bad_values)))
    parameters = finished | {"run": run}
    if run and fault != "name":
        parameters["name"] = data.draw(st.sampled_from(("control", "quality")))
    parameters[fault] = data.draw(bad_values[fault])
    TRIED.refused("parameters", registry.answer, **parameters)


def test_parameters_left_the_folder_as_it_was(finished):
    """After all that was refused, the sound parameters are still answered."""
    assert registry.answer(**finished | {"run": False}).sentences


# ---------------------------------------------------------------- profiles, seeds, workers


@pytest.mark.parametrize(
    ("profile", "changes"),
    [
        (["smoke"], {}),
        ("smoke", {"name": "x"}),
        ("smoke", {"candidates": 10**9}),
    ],
    ids=["a list", "a setting called name", "more candidates than any pool has"],
)
def test_profiles(profile, changes):
    TRIED.refused("parameters", get_profile, profile, **changes)


@pytest.mark.parametrize("folder", [5, LONG_NAME])
def test_results_folders(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TRIED.refused("parameters", open_workspace, get_profile("smoke"), folder, device="cpu")


def run_quality(folder, seed):
    """Runs all systems with one seed."""
    workspace = open_workspace(get_profile("smoke"), folder, device="cpu")
    pipeline.run(workspace, quality.plans(workspace, seed), workers=1, progress=False)


@pytest.mark.parametrize("seed", ["x", [1]], ids=["a text", "a list"])
def test_seeds_that_are_no_numbers(seed, tmp_path):
    TRIED.refused("parameters", run_quality, tmp_path, seed)


@pytest.mark.parametrize("workers", [-1, 99999999999])
def test_workers(workers, tmp_path):
    workspace = open_workspace(get_profile("smoke"), tmp_path, device="cpu")
    options = {"workers": workers, "progress": False}
    TRIED.refused("parameters", pipeline.run, workspace, [], **options)


@pytest.mark.parametrize("seeds", ["²", "99999"])
def test_lists_of_seeds(seeds):
    TRIED.refused("commands", seed_list, seeds)


def test_a_profile_of_a_folder_that_is_a_list(tmp_path):
    profile = get_profile("smoke")
    write_json(tmp_path / "profile.json", [])
    TRIED.refused("parameters", open_workspace, profile, tmp_path, device="cpu")
    reader = RecordedWorkspace(profile, str(tmp_path), None)
    TRIED.refused("parameters", getattr, reader, "data_fingerprint")


def test_an_experiment_that_is_a_path():
    TRIED.refused("parameters", registry.experiment, "../../x")


def test_enough_was_tried(request, place):
    assert not list(place.rglob("*.tmp"))
    TRIED.check_counts(request)
