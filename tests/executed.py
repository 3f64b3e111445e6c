"""Notebooks that are executed one after the other in one process, which imports libraries once."""

import contextlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import nbformat
from execnb.shell import CaptureShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from project import ROOT

# The registry lies beside the experiments and is none.
EXPERIMENT_NOTEBOOKS = [
    path
    for path in sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))
    if path.stem != "registry"
]


def _prepare():
    """No notebook that is executed here has real images."""
    os.environ.pop("EDGENES_DATA", None)


@contextlib.contextmanager
def notebook_process():
    """A pool of one process, for `executed`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _prepare) as pool:
        yield pool


def _execute(path, copy, parameters):
    """What stopped a notebook, empty where nothing did. The copy is left with its outputs."""
    notebook = load_notebook_node(str(path))
    if parameters:
        notebook = parameterize_notebook(notebook, parameters)
    nbformat.write(notebook, copy)
    shell = CaptureShell()
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        shell.execute(copy, copy, exc_stop=True)
    except Exception as error:  # as text, since not every error can leave its process
        return shell.prettytb(path.name) or repr(error)
    finally:
        os.chdir(before)
        shell.close()
    return ""


def executed(pool, path, folder, **parameters):
    """The executed copy of a notebook, in its own folder and with papermill's cell of parameters.

    Its names are its own, as in a kernel. The test fails with what stopped it.
    """
    copy = folder / "executed.ipynb"
    stopped = pool.submit(_execute, path, copy, parameters).result()
    assert not stopped, stopped
    return copy
