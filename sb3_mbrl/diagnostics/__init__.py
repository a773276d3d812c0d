"""Whether a world model is any good: figures in the logger, and the gate that keeps a bad one from being used."""

from sb3_mbrl.diagnostics.quality import ModelQualityWarning, columns_of, k_step_error, one_step_quality

__all__ = ["ModelQualityWarning", "columns_of", "k_step_error", "one_step_quality"]
