"""The whole method for images of your own, with the interface of scikit-learn."""

from edgenes.estimator.estimator import EdgeNES

__all__ = ["EdgeNES"]
