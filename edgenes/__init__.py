"""Ensembles of neural networks by differentiable search, with control of their diversity."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .estimator.estimator import (
        EdgeNES as EdgeNES,
    )  # type checkers and editors see the class; nothing is imported when the package is

__version__ = "0.1.0"
__all__ = ["EdgeNES", "__version__"]


def __getattr__(name: str) -> Any:
    "`edgenes.EdgeNES`, imported when it is first asked for: what it needs takes seconds to import."
    if name != "EdgeNES":
        raise AttributeError(f"module 'edgenes' has no attribute {name!r}")
    from .estimator.estimator import EdgeNES

    return EdgeNES


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
