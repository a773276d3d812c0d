"""Diagnostics of world models: metrics of quality (which also keep a bad model from being used), plan rollouts and dreams."""

from sb3_mbrl.diagnostics.quality import ModelQualityWarning, columns_of, k_step_error, one_step_quality, variance_of

__all__ = ["ModelQualityWarning", "columns_of", "k_step_error", "one_step_quality", "variance_of"]
