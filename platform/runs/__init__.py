"""Runs: the run's folder on disk, which is the truth about a run. Every process uses it. Imports specs; no Ray, no MLflow."""
