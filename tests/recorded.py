"""What results folders hold, as far as two of them can be equal."""

import json


def _without_seconds(content):
    """A value of a JSON file without its seconds, at any depth: they differ from run to run."""
    if isinstance(content, dict):
        return {
            name: _without_seconds(value) for name, value in content.items() if name != "seconds"
        }
    if isinstance(content, list):
        return [_without_seconds(value) for value in content]
    return content


def results_of(folder):
    """The results of all records of a folder by file name, without their seconds."""
    return {
        path.name: _without_seconds(json.loads(path.read_text())["results"])
        for path in (folder / "runs").glob("*.json")
    }
