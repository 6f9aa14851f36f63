"""Tracking: followers of a run's folder (MLflow, progress lines, live view). Runs in threads of the driver. Imports runs."""
