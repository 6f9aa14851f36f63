"""Where the proposals of a search are stored: SQLite in its folder, or a database that `search.storage` names.

`optuna-dashboard` shows them. A study belongs to one search folder, space and set of objectives: a search whose space changes
gets a new study, which takes up the runs that still fit (takeup.py).
"""

from __future__ import annotations

import hashlib
import json
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from sqlalchemy.exc import SQLAlchemyError

from starlab.experiments.credentials import without_password
from starlab.experiments.sections import SearchConfig
from starlab.platform.errors import UserError
from starlab.platform.runs.records import RunInfo
from starlab.platform.search.objectives import Objective
from starlab.platform.search.trial_folders import TrialFolders

FILE = "optuna.db"


def open_storage(config: SearchConfig, folder: Path | None = None) -> optuna.storages.BaseStorage | None:
    """Open the database of a search and create its tables if it has none.

    Args:
        folder: the search's; None opens only a database that `search.storage` names, to see whether it can be used.

    Raises:
        UserError: it cannot be opened; the message hides its password.
    """
    address = config.storage or (_own(folder) if folder else None)
    if address is None:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(address)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        says = without_password(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__
        raise UserError(f"search.storage is {without_password(address)}, which cannot be opened: {says}") from None


def open_study(folders: TrialFolders, config: SearchConfig, objectives: Sequence[Objective]) -> optuna.Study:
    """Open the study of a search, made if there is none.

    Raises:
        UserError: as `open_storage`.
    """
    storage = open_storage(config, folders.search.path)
    directions = [objective.direction for objective in objectives]
    name = study_name(folders, objectives)
    return optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)


def study_name(folders: TrialFolders, objectives: Sequence[Objective]) -> str:
    """The search's name, its key, which tells apart searches of one name in a shared database, and a hash of what it asks."""
    info = folders.search.read(RunInfo)
    asks = [folders.spec.to_dict()["space"], [objective.name for objective in objectives], folders.spec.seeds]
    digest = hashlib.sha256(json.dumps(asks, sort_keys=True).encode()).hexdigest()[:8]
    return "-".join([folders.search.path.name, *([info.key[:8]] if info else []), digest])


def dashboard_command(config: SearchConfig, folder: Path) -> str:
    """The command that shows a search's proposals in the browser; a password is left out."""
    return f"optuna-dashboard {shlex.quote(without_password(config.storage) if config.storage else _own(folder))}"


def _own(folder: Path) -> str:
    """SQLite in the search's folder. In its address "%" and "?" have a meaning, so they are quoted in the path."""
    return f"sqlite:///{str(folder / FILE).replace('%', '%25').replace('?', '%3F')}"
