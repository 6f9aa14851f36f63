"""Ray clusters: start, join, place workers, submit jobs. Runs in the driver. Imports specs; no run folders or MLflow."""
