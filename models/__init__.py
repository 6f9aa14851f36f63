"""The STAR-transformer: torch only, no Ray, no MLflow, no experiment files."""
