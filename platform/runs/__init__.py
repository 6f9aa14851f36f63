"""Runs: a run's folder on disk, the source of truth about the run. Used by every process. Imports specs; no Ray, no MLflow."""
