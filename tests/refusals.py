"""How bad input is tried: what refuses it does so in one clear line and in time, and is counted."""

import contextlib
import errno
import faulthandler
import json
import os
import signal
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from edgenes.core import EdgenesError

# ---------------------------------------------------------------- what is generated

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([10**400, "<b>", "../../x", "\x1b[2J"])
)


def _containers(values):
    lists = st.lists(values, max_size=3)
    mappings = st.dictionaries(st.text(max_size=4), values, max_size=3)
    return lists | mappings


JSON = st.recursive(SCALARS, _containers, max_leaves=6)  # anything that a JSON file can hold
NAMES = st.text(max_size=5)


def examples(count):
    """The settings of a test that tries this many examples, the same ones in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def entry_paths(value, path=()):
    """The paths of all entries of nested lists and dictionaries."""
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    else:
        entries = []
    paths = []
    for key, entry in entries:
        paths.append((*path, key))
        paths += entry_paths(entry, (*path, key))
    return paths


@st.composite
def changed(draw, document, values=JSON, names=NAMES):
    """A JSON document in which one entry is replaced, removed or added."""
    document = json.loads(json.dumps(document))
    *path, last = draw(st.sampled_from(entry_paths(document)))
    container = document
    for key in path:
        container = container[key]
    change = draw(st.sampled_from(("replace", "replace", "remove", "add")))
    if change == "replace":
        container[last] = draw(values)
    elif change == "remove":
        del container[last]
    elif isinstance(container, dict):
        container[draw(names)] = draw(values)
    else:
        container.append(draw(values))
    return document


# ---------------------------------------------------------------- how it is refused


@contextlib.contextmanager
def in_time(seconds=20):
    """Fails the test where its content takes longer: that is a hang.

    What it raises is no `Exception`, which the content might take for a fault of its input. Code
    that is not Python's may not be interrupted, such as that which opens safetensors: ten seconds
    later the process ends, and the test with it.
    """

    def fail(*_):
        pytest.fail("this hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + 10, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_one_line(text):
    """An error message is one line that can be printed anywhere."""
    assert 10 < len(text) < 2500, text
    assert text.isprintable(), text


class Refusals:
    """The bad inputs of a test file that were refused, counted by kind.

    >>> TRIED = Refusals(genotype=500, nni=300)
    >>> TRIED.refused("genotype", Genotype.from_json, "{")
    """

    def __init__(self, **minima):
        """Takes the number that must be refused, for each kind."""
        self.minima = minima
        self.counts = Counter()

    def attempt(self, kind, call, *arguments, **keywords):
        """Whether a call refuses its input. Any error but an EdgenesError fails the test."""
        assert kind in self.minima
        with in_time():
            try:
                call(*arguments, **keywords)
            except EdgenesError as error:
                check_one_line(str(error))
                self.counts[kind] += 1
                return True
        return False

    def refused(self, kind, call, *arguments, **keywords):
        """Fails the test where a call takes its input."""
        assert self.attempt(kind, call, *arguments, **keywords), "bad input was taken"

    def check_counts(self, request):
        """Enough was refused of every kind. It is called by the last test of a file.

        The test is skipped where only a part of the file was selected.
        """
        print(f"{self.counts.total()} bad inputs were refused: {dict(self.counts)}")
        module = request.module
        items = [item for item in request.session.items if item.path == request.path]
        selected = {item.originalname for item in items}
        tests = {name for name in vars(module) if name.startswith("test_")}
        if selected != tests:
            pytest.skip("only a part of this file was selected")
        for kind, minimum in self.minima.items():
            assert self.counts[kind] >= minimum, f"{kind}: {self.counts[kind]} of {minimum}"


# ---------------------------------------------------------------- what it leaves behind


def file_contents(folder):
    """The bytes of every file of a folder, by its path from there on."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def no_space(*_):
    """Stands for a function of the system that needs space on the disk: there is none."""
    raise OSError(errno.ENOSPC, "No space left on device")


def no_space_after(successes):
    """An `os.fsync` that works this many times, and then has no space left."""
    real = os.fsync
    calls = []

    def fsync(file):
        if len(calls) == successes:
            no_space()
        calls.append(file)
        real(file)

    return fsync
