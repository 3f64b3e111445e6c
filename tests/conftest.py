"""What every test begins with, and in which order the files are run."""

import signal

import pytest

# A shell starts what it runs in the background deaf to Ctrl-C, and so would be the commands that
# the tests start and stop.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Modules that assert for the tests tell as much as these where an assertion fails.
pytest.register_assert_rewrite("commands", "executed", "project", "refusals")

# The longest files come first and the shortest last, so that all processes end at the same time.
FIRST = ("pipeline", "killed", "site", "unfinished_fits", "notebooks", "soak")
LAST = ("release", "structure")


def pytest_collection_modifyitems(items):
    """Sorts the files; the tests of a file stay in their order."""
    places = {f"test_{name}": place - len(FIRST) for place, name in enumerate(FIRST)}
    places |= {f"test_{name}": 1 for name in LAST}
    items.sort(key=lambda item: places.get(item.path.stem, 0))
