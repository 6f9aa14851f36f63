"""Carries passwords and keys to a submitted job, so that neither its command, its environment nor its log shows them.

`starlab submit --secret NAME` encrypts the values with a key made from the cluster's token and sends them as a file of the job.
Whoever holds the token can run anything on the cluster anyway. Nobody else can read the file, in the cluster's store or on a
node's disk. In the job, every process decrypts it into its own environment before it runs anything else.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from starlab.platform.cluster.token import find_token
from starlab.platform.errors import UserError

FILE = "starlab-secrets.json"
"""In the job's working folder."""
VARIABLE = "STARLAB_SECRETS"
"""Names the file in the job's environment."""
HOOK = "starlab.platform.cluster.job_secrets.open_secrets"
"""What Ray runs first in each of the job's worker processes."""
_SALT_BYTES = 16


def read_secrets(entries: Sequence[str]) -> dict[str, str]:
    """Values by name of the entries NAME, whose value is this environment's, and NAME=FILE, whose value the file holds.

    Raises:
        UserError: a name cannot be a variable's, is not set here, or its file cannot be read or is empty.
    """
    found = {}
    for entry in entries:
        name, equals, file = entry.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--secret {name}: this cannot be a variable's name; write --secret NAME or --secret NAME=FILE")
        if name.startswith("RAY_AUTH_TOKEN"):
            raise UserError(f"--secret {name}: the cluster has its token already; leave it out")
        if not equals and not os.environ.get(name):
            raise UserError(f"--secret {name}: it is not set here; set it, or name a file with it: --secret {name}=FILE")
        try:
            found[name] = Path(file).expanduser().read_text().strip("\r\n") if equals else os.environ[name]
        except (OSError, UnicodeError):
            # The file's name is not repeated: it may be the secret itself, written in its place.
            raise UserError(
                f"--secret {name}=…: what follows = must be the name of a file that can be read; the value itself never "
                "stands on a command line, where every user of this machine can see it"
            ) from None
        if not found[name]:
            raise UserError(f"--secret {name}=…: the file is empty")
    return found


def seal_secrets(secrets: Mapping[str, str], token: str) -> str:
    """The secrets as the text of a file that only a holder of the token can read."""
    salt = os.urandom(_SALT_BYTES)
    sealed = Fernet(_key(token, salt)).encrypt(json.dumps(dict(secrets)).encode())
    return json.dumps({"salt": base64.b64encode(salt).decode(), "sealed": sealed.decode()})


def open_secrets() -> None:
    """Put the job's secrets into this process's environment. Outside a job with secrets do nothing.

    Raises:
        UserError: the file cannot be read, or was made for a cluster with another token.
    """
    if not (file := os.environ.get(VARIABLE)):
        return
    token, source = find_token()
    try:
        content = json.loads(Path(file).read_text())
        salt = base64.b64decode(content["salt"])
        secrets = json.loads(Fernet(_key(token or "", salt)).decrypt(content["sealed"].encode()))
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise UserError(f"{VARIABLE} names {file}, which cannot be read as a job's secrets ({type(error).__name__})") from None
    except InvalidToken:
        raise UserError(
            f"the job's secrets were not made for this node's token ({source if token else f'there is none in {source}'}): "
            "every node needs the cluster's token"
        ) from None
    os.environ.update(secrets)


def _key(token: str, salt: bytes) -> bytes:
    derived = HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"starlab job secrets").derive(token.encode())
    return base64.urlsafe_b64encode(derived)
