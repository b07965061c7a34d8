"""
Reading and cutting videos: the door to three rooms. `video_file` opens a file and knows how long and large the video
is, `video_frames` reads the frames on display at given instants, `video_cut` copies a part into a file of its own.
"""

from .video_cut import cut_video
from .video_file import (
    DEFAULT_LIMITS,
    DownloadedVideo,
    ReadLimits,
    VideoFacts,
    VideoLimitError,
    VideoReadError,
    VideoSource,
    downloaded,
    probe,
)
from .video_frames import SCALING_FLAGS, check_video, iterate_frames, read_frames, resize_frames


__all__ = [
    "DEFAULT_LIMITS",
    "SCALING_FLAGS",
    "DownloadedVideo",
    "ReadLimits",
    "VideoFacts",
    "VideoLimitError",
    "VideoReadError",
    "VideoSource",
    "check_video",
    "cut_video",
    "downloaded",
    "iterate_frames",
    "probe",
    "read_frames",
    "resize_frames",
]
