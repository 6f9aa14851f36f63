"""Search: many runs of one trainer, at the points that a sampler proposes. Runs in the driver. Imports the trainer."""
