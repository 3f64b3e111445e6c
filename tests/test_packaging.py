"""One source for every version and requirement."""

import json
import os
import re

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project import ROOT, read_settings, requirements, run

import edgenes

PYTHON_OF_BINDER = "3.11"  # that of environment.yml


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_name_and_one_version():
    settings = read_settings()
    assert edgenes.__version__ == settings["version"]
    name = re.search(r'^name = "(.+)"', read("pyproject.toml"), re.M)[1]
    assert name == settings["lib_name"]


def test_zenodo_and_citation_say_the_same():
    zenodo = json.loads(read(".zenodo.json"))
    citation = yaml.safe_load(read("CITATION.cff"))
    assert zenodo["title"] == citation["title"]
    assert zenodo["license"] == citation["license"]
    assert zenodo["version"] == str(citation["version"]) == read_settings()["version"]
    assert set(citation["keywords"]) <= set(zenodo["keywords"])


def test_hosted_checks_call_the_script_of_this_project():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    commands = [step.get("run") for step in workflow["jobs"]["tests"]["steps"]]
    assert ".ci/run" in commands


def test_hosted_checks_run_every_supported_python():
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    others = jobs["versions"]["strategy"]["matrix"]["include"]
    versions = [entry["python"] for entry in others]
    for step in jobs["tests"]["steps"]:
        versions += [value for name, value in step.get("with", {}).items() if "python" in name]
    classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', read("pyproject.toml"))
    assert sorted(versions) == sorted(classified)
    lowest = re.search(r'^requires-python = ">=(3\.\d+)"', read("pyproject.toml"), re.M)[1]
    oldest = [entry["python"] for entry in others if entry["resolution"] == "lowest-direct"]
    assert oldest == [lowest]


def test_binder_installs_the_package_with_what_notebooks_need():
    dependencies = yaml.safe_load(read(".binder/environment.yml"))["dependencies"]
    assert f"python={PYTHON_OF_BINDER}" in dependencies
    build = ROOT / ".binder" / "postBuild"
    assert os.access(build, os.X_OK)
    assert "-e '.[dev]'" in build.read_text(encoding="utf-8")


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_lock_pins_every_requirement_once(python, system):
    target = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_version": f"{python}.9",
        "sys_platform": system,
        "platform_system": system.capitalize(),
    }
    lines = read("requirements.lock").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for pin in pins:
        assert [part.operator for part in pin.specifier] == ["=="], f"not a pin: {pin}"
        if pin.marker is None or pin.marker.evaluate(target):
            name = canonicalize_name(pin.name)
            assert name not in versions, f"{name} is pinned twice for Python {python}"
            versions[name] = next(iter(pin.specifier)).version
    for requirement in requirements():
        if requirement.marker and not requirement.marker.evaluate(target):
            continue
        name = canonicalize_name(requirement.name)
        assert name in versions, f"run make lock: {name} has no pin for Python {python}"
        fits = requirement.specifier.contains(versions[name])
        assert fits, f"run make lock: {requirement}, pinned {versions[name]}"


def test_development_includes_what_make_needs():
    settings = read_settings()
    assert set(settings["notebooks_requirements"].split()) <= set(
        settings["dev_requirements"].split()
    )


def test_make_installs_no_more_than_a_goal_needs(monkeypatch):
    for name in ("EXTRAS", "MAKEFLAGS", "MAKEOVERRIDES"):  # those of a make that runs this test
        monkeypatch.delenv(name, raising=False)

    def installed(*arguments):
        commands = run("make", "--dry-run", "--always-make", *arguments).stdout
        return re.findall(r"-e '\.\[(.+?)\]'", commands)

    assert installed("all") == installed("report") == ["notebooks"]
    assert installed("test") == installed("site") == ["dev"]
    assert installed("test", "EXTRAS=dev,scale") == ["dev,scale"]


def test_supported_python_is_the_same_everywhere():
    pyproject = read("pyproject.toml")
    makefile = read("Makefile")
    lowest = re.search(r'^requires-python = ">=(3\.\d+)"', pyproject, re.M)[1]
    assert f"--python-version {lowest} " in makefile
    assert f"< ({lowest.replace('.', ', ')})" in makefile
    assert f'target-version = "py{lowest.replace(".", "")}"' in pyproject
    assert f'python_version = "{lowest}"' in pyproject


def test_conda_environment_installs_the_lock():
    dependencies = yaml.safe_load(read("environment.yml"))["dependencies"]
    by_pip = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert by_pip == [["-c requirements.lock", "-e .[dev]"]]
    by_conda = [entry for entry in dependencies if isinstance(entry, str)]
    names = [re.split(r"[=<>]", entry)[0] for entry in by_conda]
    assert names == ["python", "pip"], "libraries belong in settings.ini"
    minor = int(re.search(r"python=3\.(\d+)", " ".join(by_conda))[1])
    assert minor >= 10
