"""Tracking: followers of a run's folder (MLflow, progress lines, live view). Runs in the driver's threads. Imports runs."""
