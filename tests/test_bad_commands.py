"""Bad command lines, and bad parameters of the experiment notebooks: one line names the fault."""

import contextlib
import io
import sys

import numpy as np
import pytest
import torch._dynamo  # noqa: F401 - the first optimiser loads it: seconds that are no hang
from estimator_inputs import IMAGES, SINGLE, write_pictures
from hypothesis import given
from hypothesis import strategies as st
from refusals import JSON, Refusals, examples, file_contents, in_time

import edgenes.cli.main
from edgenes import EdgeNES
from edgenes.core import write_atomic, write_json
from edgenes.estimator import fit
from edgenes.experiments import quality, registry
from edgenes.study import pipeline
from edgenes.study.profiles import PARAMETERS, PROFILES, get_profile
from edgenes.study.workspace import RecordedWorkspace, open_workspace

TRIED = Refusals(commands=400, parameters=200)

ASCII = st.characters(codec="ascii", categories=("L", "N", "P", "S"))
WORDS = st.text(ASCII, min_size=1, max_size=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "file").write_text("")
    return folder


# ---------------------------------------------------------------- command lines


def end_of_command(*arguments):
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
    code, message = end_of_command(*arguments)
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
    assert not results.exists()  # nothing is written before all of a command was looked at


# ---------------------------------------------------------------- command lines for pictures


@pytest.fixture(scope="module")
def ensemble(place):
    """A folder with a saved ensemble, and beside it pictures that it can judge."""
    write_pictures(place / "pictures", IMAGES[:12], ["cat"] * 6 + ["dog"] * 6)
    return EdgeNES(**SINGLE).fit(place / "pictures").save(place / "ensemble")


NO_NUMBERS = ["0", "-1", "x", "1.5", "", "1e3", "nan", "9" * 5000]
BAD_OPTIONS = {  # of the commands for pictures: what no value can be
    "check": {
        "--image-size": ["big", "0", "8x", "-8", "1x2x3", "9" * 30],
        "--resize": WORDS.filter(lambda word: word not in ("crop", "pad")),
        "--channels": WORDS.filter(lambda word: word not in ("rgb", "grey", "auto")),
        "--unreadable": WORDS.filter(lambda word: word not in ("skip", "error")),
    },
    "predict": {
        "--reject": ["-0.1", "1", "2", "nan", "inf", "x", ""],
        "--device": BAD_DEVICES,
    },
    "evaluate": {"--device": BAD_DEVICES},
    "sample": {"--lambda": ["-1", "9", "nan", "inf", "x", ""]},
    "draw": {"--kind": WORDS.filter(lambda word: word not in ("svg", "png"))},
    "export": {"--member": ["-1", "1", "0.5", "x", "", "9" * 30]},
}
BAD_OPTIONS["fit"] = BAD_OPTIONS["check"] | {
    "--members": [*NO_NUMBERS, "9"],
    "--candidates": NO_NUMBERS,
    "--time-budget": ["0", "-1", "nan", "inf", "x", ""],
    "--strategy": WORDS.filter(lambda word: word not in ("auto", "independent", "hatch")),
    "--space": WORDS.filter(lambda word: word not in ("paper", "images")),
    "--relaxation": WORDS.filter(lambda word: word not in ("sampled", "faithful")),
    "--search-steps": NO_NUMBERS,
    "--epochs": NO_NUMBERS,
    "--downscale": [*NO_NUMBERS, "3", "100"],
    "--jobs": ["0", "x", "1.5", ""],
    "--seed": ["-1", "x", "1.5", ""],
    "--device": BAD_DEVICES,
}


@st.composite
def bad_commands_for_pictures(draw, place):
    """The arguments of a command for pictures with one fault."""
    ensemble = str(place / "ensemble")
    pictures = str(place / "pictures")
    out = str(place / "out")
    sound = {
        "check": [pictures],
        "fit": [pictures, "--out", out, "--device", "cpu", "--quiet"],
        "predict": [ensemble, pictures],
        "evaluate": [ensemble, pictures],
        "sample": [ensemble],
        "draw": [ensemble, "--out", out],
        "export": [ensemble, "--out", f"{out}.pt2"],
    }
    command = draw(st.sampled_from(sorted(sound)))
    arguments = list(sound[command])
    fault = draw(st.sampled_from(("first argument", "unknown", *(3 * [*BAD_OPTIONS[command]]))))
    if fault == "first argument":
        arguments[0] = str(place / "nowhere" / draw(WORDS))
        arguments += ["--lambda", "1"] if command == "sample" else []
    elif fault == "unknown":
        arguments.append(draw(UNKNOWN_OPTIONS))
    else:
        values = BAD_OPTIONS[command][fault]
        value = draw(st.sampled_from(values) if isinstance(values, list) else values)
        arguments.append(f"{fault}={value}")
    return [command, *arguments]


@examples(150)
@given(st.data())
def test_command_lines_for_pictures(place, ensemble, data):
    before = file_contents(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "guess_phases", lambda *_: pytest.fail("it was trained"))
        check_refused(*data.draw(bad_commands_for_pictures(place)))
    assert file_contents(place) == before


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


def test_a_profile_of_a_folder_that_is_a_list(tmp_path):
    profile = get_profile("smoke")
    write_json(tmp_path / "profile.json", [])
    TRIED.refused("parameters", open_workspace, profile, tmp_path, device="cpu")
    reader = RecordedWorkspace(profile, str(tmp_path), None)
    TRIED.refused("parameters", getattr, reader, "data_fingerprint")


def test_an_experiment_that_is_a_path():
    TRIED.refused("parameters", registry.experiment, "../../x")


def test_enough_was_tried(request):
    TRIED.check_counts(request)
