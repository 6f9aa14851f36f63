"""Recipe: what a training step computes, in pure torch. Runs in the workers. Imports models and specs; no Ray and no files."""
