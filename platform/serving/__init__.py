"""Serving: a run's best weights as a model to load elsewhere. Used in any process. Imports runs and models; no Ray."""
