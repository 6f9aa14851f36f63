"""Opening whatever holds clips without a spec: a prepared store, or a folder with the authors' files."""

from __future__ import annotations

from pathlib import Path

from starlab.pipelines.clip import ClipSource, DataError
from starlab.pipelines.custom.listing import is_custom
from starlab.pipelines.custom.source import CustomSource, split_lines
from starlab.pipelines.datasets import find_dataset, open_authors_files
from starlab.pipelines.estimated_joints import ESTIMATOR_SKELETONS, EstimatedJoints, clip_lengths
from starlab.pipelines.generated.folder import MARKER
from starlab.pipelines.ntu import SKELETON_ENDING, VIDEO_ENDING
from starlab.pipelines.store import StoreSource, is_store


def open_place(
    place: str, dataset: str | None = None, estimated_joints: Path | None = None, estimated_skeleton: str | None = None
) -> ClipSource:
    """Open a store or a folder of authors' files.

    Args:
        place: The folder; a store may also be a URI.
        dataset: The data set's name; None finds out from the files. A store knows it.
        estimated_joints: A file of estimated joints to use instead of the data set's own.
        estimated_skeleton: The skeleton of its joints; required with it.

    Raises:
        DataError: the place, the file or a name is wrong.
    """
    if (estimated_joints is None) != (estimated_skeleton is None):
        raise DataError(
            f"give both the file of estimated joints and whose skeleton it has ({', '.join(ESTIMATOR_SKELETONS)}), or neither"
        )
    source: ClipSource
    if is_store(place):
        source = StoreSource(place)
    elif "://" in place:
        raise DataError(f"{place} is not a prepared store: the authors' files are read from a local folder only")
    else:
        found = find_dataset(dataset or _dataset_in(Path(place)), separator="-")
        protocol = found.protocols[0] if found.protocols else None
        if estimated_joints is not None and found.open_without_joints is not None:
            source = found.open_without_joints(Path(place), protocol, clip_lengths(estimated_joints))
        else:
            source = found.open(Path(place), protocol)
    if estimated_joints is None or estimated_skeleton is None:
        return source
    if estimated_skeleton not in ESTIMATOR_SKELETONS:
        raise DataError(f"unknown skeleton '{estimated_skeleton}'; there are: {', '.join(ESTIMATOR_SKELETONS)}")
    return EstimatedJoints(source, estimated_joints, ESTIMATOR_SKELETONS[estimated_skeleton])


def open_to_prepare(dataset: str, root: Path, joints: Path | None, skeleton: str | None) -> tuple[ClipSource, tuple[str, ...]]:
    """Index the files of a data set for `starlab prepare`; also returns lines about where the splits come from.

    Args:
        dataset: Its name.
        root: Its folder.
        joints: A file of joints to store with clips of one's own.
        skeleton: The skeleton of these joints; required with them.

    Raises:
        DataError: no such data set or folder, only one of the two is given, or joints for another data set.
    """
    if joints is None and skeleton is None:
        source = open_authors_files(dataset, root)
    elif dataset != "custom":
        raise DataError(
            f"--joints is for data sets of your own (custom); {dataset} keeps its own joints in a store, and takes others when "
            "it trains: data.estimated_joints and data.estimated_skeleton"
        )
    elif joints is None or skeleton is None:
        raise DataError(f"give both, --joints and --skeleton ({', '.join(ESTIMATOR_SKELETONS)}), or neither")
    elif skeleton not in ESTIMATOR_SKELETONS:
        raise DataError(f"unknown skeleton '{skeleton}'; there are: {', '.join(ESTIMATOR_SKELETONS)}")
    else:
        frames = CustomSource(root, lengths=clip_lengths(joints))
        source = EstimatedJoints(frames, joints, ESTIMATOR_SKELETONS[skeleton], in_digests=True)
    return source, split_lines(source)


def _dataset_in(root: Path) -> str:
    """The data set whose files are in a folder.

    Raises:
        DataError: it is none that is known.
    """
    if not root.is_dir():
        raise DataError(f"no folder at {root}: name a prepared store, or a folder with a data set's files")
    generated = (root / MARKER).is_file()
    if (root / "labels").is_dir() and (root / "frames").is_dir():
        return "synthetic_penn_action" if generated else "penn_action"
    depths = ("", "*/", "*/*/")
    if any(next(root.glob(f"{depth}S*{ending}"), None) for depth in depths for ending in (VIDEO_ENDING, SKELETON_ENDING)):
        return "synthetic_ntu" if generated else "ntu120"
    if is_custom(root):
        return "custom"
    raise DataError(
        f"{root} is neither a prepared store nor a folder with files of Penn Action or NTU RGB+D, and has no list or folders "
        "of your own: starlab data init looks at what is there"
    )
