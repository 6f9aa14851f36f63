"""Keeps passwords and tokens out of everything that is written: hides those in addresses, and in texts what looks like one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_IN_ADDRESS = re.compile(r"(?P<start>\w+://[^/@\s:]*):\S*@")  # to the last @: too much hidden is better than too little
_IN_QUERY = re.compile(r"(?P<start>[?&](?:[\w-]*(?:password|passwd|pwd|token|secret|api_?key|sig|signature))=)[^&\s]+", re.I)
_SECRET_NAME = re.compile(r"passw|pwd|secret|token|credential|api_?key|access_?key|private_?key", re.I)
_SHORTEST = 6
"""Characters: a shorter value (1, true, none) occurs in every text and is not a secret."""
HIDDEN = "***"


def without_password(address: str) -> str:
    """An address with its password replaced: "postgresql://me:***@host/db"; one without a password is returned unchanged."""
    return _IN_QUERY.sub(rf"\g<start>{HIDDEN}", _IN_ADDRESS.sub(rf"\g<start>:{HIDDEN}@", address))


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Hide passwords in addresses and the values of secret-looking variables in a text for a log, a tag or a param.

    Args:
        environment: where to look for secrets; None takes the process's. A variable counts as secret by its name
            (AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD, …).
    """
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name) and not value.startswith("/"):  # a file's path is not secret
            text = text.replace(value, HIDDEN)
    return without_password(text)
