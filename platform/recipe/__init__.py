"""Recipe: the computation of a training step, in pure torch. Runs in the workers. Imports models and specs; no Ray or files."""
