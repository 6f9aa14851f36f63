"""Experiments as data: the spec, its loader and the packaged YAML files."""
