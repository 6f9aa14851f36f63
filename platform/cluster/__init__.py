"""Cluster: starts, joins and asks Ray, and submits jobs to it. Runs in the driver. Imports specs; no run folders, no MLflow."""
