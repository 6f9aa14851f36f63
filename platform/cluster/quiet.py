"""Keeps Ray Data's own messages off the screen."""

from __future__ import annotations

import logging


def quiet_ray_data() -> None:
    """Silence Ray Data on the screen, where it would break up a progress line; it also logs to a file."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
