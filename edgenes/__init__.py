"""Ensembles of neural networks by differentiable search, with control of their diversity."""
__version__ = "0.1.0"


def __getattr__(name: str):
    "`edgenes.EdgeNES`, imported when it is first asked for: what it needs takes seconds to import."
    if name != "EdgeNES": raise AttributeError(f"module 'edgenes' has no attribute {name!r}")
    from .estimator import EdgeNES
    return EdgeNES
