"""Tabular Dyna."""

from sb3_mbrl.algorithms.dyna_q.dyna_q import DynaQ, QTablePolicy

__all__ = ["DynaQ", "QTablePolicy"]
