"""Stable import path of the model loader. Every MLmodel file written by starlab names it as `loader_module`."""

from starlab.platform.serving.registry import _load_pyfunc, load_model

__all__ = ["_load_pyfunc", "load_model"]
