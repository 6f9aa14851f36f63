"""Worker: one rank of a training or evaluation. Runs in Ray Train workers. Imports recipe, runs and cluster; never MLflow."""
