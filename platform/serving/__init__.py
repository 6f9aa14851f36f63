"""Serving: a run's best weights in use. Used in any process; Ray only in predict and served."""
