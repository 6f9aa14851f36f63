"""Finds the token of a cluster where Ray itself looks for it."""

from __future__ import annotations

import os
from pathlib import Path

from starlab.platform.errors import UserError


def find_token() -> tuple[str | None, str]:
    """The token that Ray itself would use, None without one, and where it was found or looked for.

    Raises:
        UserError: RAY_AUTH_TOKEN_PATH names a file that cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip() or None, str(path)
    except OSError as error:
        if named:
            raise UserError(f"RAY_AUTH_TOKEN_PATH is {named}, which cannot be read: {error.strerror}") from None
        return None, str(path)
