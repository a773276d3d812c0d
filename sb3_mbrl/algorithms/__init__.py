"""Algorithms: the mixin and its seam (:mod:`~sb3_mbrl.algorithms.base`), and one file per algorithm."""
