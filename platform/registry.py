"""The stable address of the model loader: the `loader_module` of every MLmodel file that starlab has written."""

from starlab.platform.serving.registry import _load_pyfunc, load_model

__all__ = ["_load_pyfunc", "load_model"]
