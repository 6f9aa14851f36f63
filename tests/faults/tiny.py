"""Overrides of the demo for tests that train on a cluster: little data, a little model."""

TINY_MODEL = ["data.frames=4", "data.size=24", "model.dim=16", "model.heads=2"]
TINY = [
    "data.synthetic.train_clips_per_class=4",
    "data.synthetic.test_clips_per_class=2",
    "data.synthetic.size_px=48",
    *TINY_MODEL,
]
"""Later overrides win, so a test may add its own after these."""
