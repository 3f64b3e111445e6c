"""The whole method for images of your own, with the interface of scikit-learn."""

from typing import TYPE_CHECKING

__all__ = ["EdgeNES"]

if TYPE_CHECKING:
    from edgenes.estimator.estimator import EdgeNES
else:

    def __getattr__(name: str) -> type:
        """`EdgeNES`, imported on first use: what it needs takes seconds to import."""
        if name != "EdgeNES":
            raise AttributeError(f"module 'edgenes.estimator' has no attribute {name!r}")
        from edgenes.estimator.estimator import EdgeNES

        return EdgeNES
