"""Ensembles of neural networks by differentiable search, with control of their diversity."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["EdgeNES", "__version__"]

if TYPE_CHECKING:
    from edgenes.estimator import EdgeNES
else:

    def __getattr__(name: str) -> type:
        """`edgenes.EdgeNES`, imported on first use: what it needs takes seconds to import."""
        if name != "EdgeNES":
            raise AttributeError(f"module 'edgenes' has no attribute {name!r}")
        from edgenes.estimator import EdgeNES

        return EdgeNES


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
