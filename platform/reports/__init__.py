"""Reports: tables and figures made from run folders. Runs in the driver or a notebook. Imports runs; neither Ray nor MLflow."""
