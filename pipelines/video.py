"""Video files to RGB frames, exact to the frame: counted in the decoder's output order, never by a time stamp.

NTU's AVIs hold H.264 with B-frames, one key frame for the whole clip and no presentation times. On such files seeking
does not help and time stamps are wrong: readers that use them return wrong frames silently. So a file is always decoded
from its first frame to its last. Of sixteen frames spread over a clip the last one is near the end anyway, and decoding the
few percent that remain shows that the file is complete.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from starlab.pipelines.containers import check_whole
from starlab.pipelines.retry import read_file

CONTAINERS = {".avi": "avi", ".mp4": "mp4"}
"""File endings and the format that such a file must have. The format is not guessed from the content, because some formats
that a text file can claim to have make the library open other files."""


def decode_video(
    path: Path, num_frames: int | range, short_side_px: int, only: Collection[int] | None = None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decode a whole file on one thread and yield (frame number, frame), ascending.

    The frames are those that a player shows: without what an edit list hides, and without the empty slots of dropped frames.
    The number of frames in the container's header is not used, because intact files miscount.

    Args:
        path: A file that ends in .avi or .mp4.
        num_frames: How many frames it must have: one number, or a range of them.
        short_side_px: Frames are shrunk to this short side by averaging over areas; never enlarged.
        only: Frame numbers (0-based) to yield instead of all; the others are decoded and checked as well.

    Yields:
        The number and the frame, uint8 (H, W, 3), RGB. Damage is raised where the decoder finds it, after earlier frames
        were yielded, so exhaust the iterator before using any frame.

    Raises:
        ValueError: the file is not such a video, is damaged or cut short, or does not have that number of frames.
        FileNotFoundError: it is missing.
        StorageError: the storage failed; nothing is known about the file.
    """
    container_format = CONTAINERS.get(path.suffix.lower())
    if container_format is None:
        raise ValueError(f"not a video file that is read here: its name must end in {' or '.join(CONTAINERS)}")
    # The decoder gets the bytes and not the path: it would report a failure to read as the end of the video.
    data = read_file(path)
    try:
        yield from _decode(data, container_format, num_frames, short_side_px, only)
    except av.error.FFmpegError as error:
        raise ValueError(f"not a readable {container_format} video ({error.strerror or type(error).__name__})") from error


def _decode(
    data: bytes, container_format: str, num_frames: int | range, short_side_px: int, only: Collection[int] | None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    expected = num_frames if isinstance(num_frames, range) else range(num_frames, num_frames + 1)
    with av.open(io.BytesIO(data), format=container_format) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError("its codec is not known")
        stream.codec_context.thread_count = 1  # the pipeline runs a task per core already
        if stream.codec_context.name == "hevc":
            # Without this the decoder skips slices that it cannot decode and says nothing. For the other codecs it finds no
            # damage that the checks below miss, and refuses harmless files.
            stream.codec_context.options = {"err_detect": "explode"}
        check_whole(data, container_format)
        shrink = VideoReformatter()
        size = (stream.codec_context.height, stream.codec_context.width)
        target = shrunk_size(*size, short_side_px)
        count = 0
        packets = checked_packets(container.demux(stream), stream.codec_context.name)
        for frame in (frame for packet in packets for frame in packet.decode()):
            if frame.is_corrupt:
                raise ValueError(f"frame {count} is corrupt")
            if (frame.height, frame.width) != size:
                raise ValueError(f"frame {count} is {frame.height}×{frame.width}, the first ones are {size[0]}×{size[1]}")
            if only is None or count in only:
                small = shrink.reformat(
                    frame, width=target[1], height=target[0], format="rgb24", interpolation="AREA", threads=1
                )
                pixels: NDArray[np.uint8] = small.to_ndarray().astype(np.uint8, copy=False)
                yield count, pixels
            count += 1
        if count not in expected:
            wanted = f"{expected[0]}" if len(expected) == 1 else f"{expected[0]} to {expected[-1]}"
            raise ValueError(f"it ends after {count} frames, {wanted} expected")


def checked_packets(packets: Iterator[av.Packet], codec: str) -> Iterator[av.Packet]:
    """The packets of a stream; decoders conceal much damage without a word, so the bytes are looked at as well.

    Raises:
        ValueError: a packet holds zeros where its codec has none.
    """
    for number, packet in enumerate(packets):
        # Both codecs escape runs of zeros (7.4.1 in H.264 and in H.265), so four in a row are a block that was lost.
        if codec in ("h264", "hevc") and bytes(4) in bytes(packet).rstrip(b"\0"):
            raise ValueError(f"packet {number} has a run of zeros, which {codec} never has: a block of the file was lost")
        yield packet


def shrunk_size(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """Height and width with the short side reduced to `short_side_px` and the long side in proportion, in whole pixels."""
    short = min(height, width)
    if short <= short_side_px:
        return height, width
    return round(height * short_side_px / short), round(width * short_side_px / short)
