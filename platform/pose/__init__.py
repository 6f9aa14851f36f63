"""Pose: videos become joints. The model runs in Ray Data tasks as plain torch. Imports pipelines and errors only."""
