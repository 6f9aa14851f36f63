"""Joints as others write them, made into one Parquet file (`estimated_joints.py`): PYSKL's pickles and COCO's JSON.

- A pickle of PYSKL or MMAction2 holds a list of annotations, alone or in a mapping under "annotations". Each has `frame_dir`
  (the clip), `total_frames`, `keypoint` (people, frames, joints, 2) in pixels, `keypoint_score` (people, frames, joints) and
  `img_shape` (height, width).
- A folder of JSON files has one per video, `CLIP.json`: the COCO format with `images` (their id, width and height) and
  `annotations` (image_id, and keypoints as x, y, v for each joint). v is a score in [0, 1], or COCO's 0, 1, 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.clip import DataError
from starlab.pipelines.custom.pickles import read_pickle
from starlab.pipelines.estimated_joints import write_joints
from starlab.pipelines.skeletons import COCO, NTU, PENN_ACTION

PICKLE_ENDINGS = (".pkl", ".pickle")


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """The outcome of a conversion."""

    clips: int
    num_joints: int
    max_bodies: int

    @property
    def skeleton(self) -> str | None:
        """The skeleton that has so many joints; None where none is known."""
        return {len(known.joints): known.name for known in (COCO, PENN_ACTION, NTU)}.get(self.num_joints)


def convert_joints(source: Path, out: Path) -> Converted:
    """Write the joints of a pickle or of a folder of JSON files into a Parquet file.

    Raises:
        DataError: the source is neither, has a mistake, or wants code to be run; or `out` exists.
    """
    if out.exists():
        raise DataError(f"{out} exists: name another file, or remove it")
    if source.is_dir():
        clips = _clips_of_json(source)
    elif source.suffix.lower() in PICKLE_ENDINGS and source.is_file():
        clips = _clips_of_pickle(source)
    else:
        raise DataError(f"{source} is neither a pickle ({', '.join(PICKLE_ENDINGS)}) nor a folder of JSON files")
    counts, bodies, names = set[int](), 0, dict[str, None]()

    def checked() -> Iterator[tuple[str, NDArray[np.float32]]]:
        nonlocal bodies
        for clip_id, joints in clips:
            if clip_id in names:
                raise DataError(f"{source} has clip {clip_id} twice")
            names[clip_id] = None
            counts.add(joints.shape[2])
            bodies = max(bodies, joints.shape[1])
            if len(counts) > 1:
                raise DataError(
                    f"{source}: clip {clip_id} has {joints.shape[2]} joints, earlier ones {min(counts - {joints.shape[2]})}"
                )
            yield clip_id, joints

    draft = out.with_name(f"{out.name}.part")
    try:
        write_joints(draft, checked())
        if not names:
            raise DataError(f"{source} has no clip")
        draft.rename(out)
    finally:
        draft.unlink(missing_ok=True)
    return Converted(clips=len(names), num_joints=counts.pop(), max_bodies=bodies)


def _clips_of_pickle(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    given = read_pickle(path)
    found = given.get("annotations") if isinstance(given, Mapping) else given
    if not isinstance(found, list):
        raise DataError(f"{path}: no list of annotations, alone or in a mapping under 'annotations' (PYSKL, MMAction2)")
    for number, annotation in enumerate(found):
        yield _pyskl(annotation, f"{path}, annotation {number}")


def _pyskl(annotation: Any, where: str) -> tuple[str, NDArray[np.float32]]:
    if not isinstance(annotation, Mapping):
        raise DataError(f"{where}: not a mapping")
    for key in ("frame_dir", "keypoint"):
        if key not in annotation:
            raise DataError(f"{where}: no {key!r}; it has {', '.join(map(str, annotation))}")
    name = Path(str(annotation["frame_dir"])).name
    where = f"{where} ({name})"
    places = np.asarray(annotation["keypoint"], np.float32)
    if places.ndim != 4 or places.shape[-1] != 2:
        third = " (3-D joints are not places in a picture)" if places.shape[-1:] == (3,) else ""
        raise DataError(f"{where}: keypoint is {places.shape}; it must be (people, frames, joints, 2){third}")
    shape = annotation.get("img_shape", annotation.get("original_shape"))
    if shape is None or len(shape) < 2 or min(shape[:2]) <= 0:
        raise DataError(f"{where}: no 'img_shape' (height, width), by which pixels become fractions of the frame")
    height, width = (float(side) for side in shape[:2])
    given = annotation.get("keypoint_score")
    scores = np.ones(places.shape[:-1], np.float32) if given is None else np.asarray(given, np.float32)
    if scores.shape != places.shape[:-1]:
        raise DataError(f"{where}: keypoint_score is {scores.shape}, keypoint {places.shape}")
    if given is None:
        scores = np.where((places != 0).any(axis=-1), np.float32(1), np.float32(0))  # (0, 0) stands for nothing found
    total = annotation.get("total_frames", places.shape[1])
    if total != places.shape[1]:
        raise DataError(f"{where}: total_frames is {total}, but keypoint has {places.shape[1]} frames")
    # Pixels count from the middle of the first one, fractions from the frame's edge.
    fractions = (places + 0.5) / np.array([width, height], np.float32)
    joints = np.concatenate([fractions, scores[..., None]], axis=-1, dtype=np.float32).transpose(1, 0, 2, 3)
    joints[joints[..., 2] <= 0] = 0
    return name, joints


def _clips_of_json(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    paths = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder} has no JSON file")
    for path in paths:
        try:
            given = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if not isinstance(given, Mapping) or not all(isinstance(given.get(key), list) for key in ("images", "annotations")):
            raise DataError(
                f"{path}: not COCO's format: a mapping with the lists 'images' (id, width, height) and 'annotations' "
                "(image_id, keypoints)"
            )
        try:
            yield path.stem, _coco(given["images"], given["annotations"], str(path))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: an image or an annotation lacks something ({type(error).__name__}: {error})") from None


def _coco(images: list[Any], annotations: list[Any], where: str) -> NDArray[np.float32]:
    """(frames, people, joints, 3); a person keeps the column of the `track_id`, where there is one."""
    images = sorted(images, key=lambda image: (image.get("frame_id", 0), str(image.get("file_name", "")), image["id"]))
    frame_of = {image["id"]: number for number, image in enumerate(images)}
    if not images or len(frame_of) < len(images):
        raise DataError(f"{where}: no images, or an id is given twice")
    bodies: list[list[tuple[Any, NDArray[np.float32]]]] = [[] for _ in images]
    counts = set[int]()
    for annotation in annotations:
        if annotation["image_id"] not in frame_of:
            raise DataError(f"{where}: an annotation is of image {annotation['image_id']!r}, which is not in the list")
        if not annotation.get("keypoints"):
            continue  # a box alone
        frame = frame_of[annotation["image_id"]]
        values = np.asarray(annotation["keypoints"], np.float32).reshape(-1, 3)
        size = np.array([images[frame]["width"], images[frame]["height"]], np.float32)
        if (size <= 0).any():
            raise DataError(f"{where}: image {annotation['image_id']!r} has a size of {size[0]:g}×{size[1]:g}")
        values[:, :2] = (values[:, :2] + 0.5) / size
        counts.add(len(values))
        bodies[frame].append((annotation.get("track_id"), values))
    if len(counts) != 1:
        raise DataError(
            f"{where}: {'no joints' if not counts else f'people of {sorted(counts)} joints'}; all must have as many"
        )
    tracks = {track for frame in bodies for track, _ in frame}
    columns = {track: column for column, track in enumerate(sorted(tracks, key=str))} if None not in tracks else {}
    most = len(columns) or max(map(len, bodies))
    joints = np.zeros((len(images), most, counts.pop(), 3), np.float32)
    for frame, people in enumerate(bodies):
        for place, (track, values) in enumerate(people):
            joints[frame, columns.get(track, place)] = values
    seen = joints[..., 2]
    if seen.max() > 1 and np.isin(seen, (0, 1, 2)).all():  # labelled by hand: 1 is hidden, 2 is visible
        joints[..., 2] = seen / 2
    joints[joints[..., 2] <= 0] = 0
    return joints
