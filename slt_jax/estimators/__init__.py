"""Estimators: from runs to numbers with errors and verdicts."""
