"""Reports: comparisons, statistics, tables and figures made from run folders. Imports runs and records; neither Ray nor MLflow.

Runs in the driver or a notebook. `results` reads run folders, `compare` compares them, `formats` writes the comparison;
docs/comparing.md explains it.
"""
