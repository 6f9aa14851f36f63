"""What a spec must know of a data set of one's own, from its folder or a store, and whether the data still agree with it."""

from __future__ import annotations

from pathlib import Path

from starlab.pipelines.clip import ClipSource, DataError
from starlab.pipelines.custom.description import CustomData, describe
from starlab.pipelines.storage import Folder
from starlab.pipelines.store import is_store, read_custom, read_manifest


def read_facts(store: str) -> CustomData:
    """What a folder of one's own, or a store that was prepared from one, says of its data.

    Raises:
        DataError: it is neither, or its list or its settings have a mistake.
    """
    if not is_store(store):
        if "://" in store:
            raise DataError(f"{store} is not a prepared store: videos are read from a local folder only")
        return describe(Path(store).expanduser()).facts
    manifest = read_manifest(Folder(store))
    custom = read_custom(manifest)
    if custom is None:
        raise DataError(f"{store} was prepared from {manifest['dataset']}: use data.dataset={manifest['dataset']}")
    return custom


def check_facts(source: ClipSource, facts: CustomData, place: str, *, joints_too: bool) -> None:
    """Check that the data are still what a spec says of them, which its model was made for.

    Args:
        source: The clips.
        facts: What the spec says.
        place: The name of the source in the error message.
        joints_too: Compare the skeleton and the number of people; not where joints come from elsewhere.

    Raises:
        DataError: classes, joints or the number of people have changed.
    """
    fix = "use the data of that run, or start another one"
    if tuple(source.classes) != facts.classes:
        raise DataError(
            f"{place} has the classes {', '.join(source.classes)}, but data.custom.classes are "
            f"{', '.join(facts.classes)}: {fix}"
        )
    if joints_too and (source.skeleton, source.max_bodies) != (facts.skeleton, facts.max_bodies):
        raise DataError(
            f"{place} has {source.max_bodies} people with the skeleton {source.skeleton.name}, but data.custom says "
            f"{facts.max_bodies} with {facts.skeleton.name}: {fix}"
        )
