"""Search: many runs of one trainer, proposed by a sampler. Runs in the driver. Imports the trainer and everything below it."""
