"""
Read videos: `video_opening` opens a file and tells how long and large the video is, `video_reading` reads the
frames on display at given times. Cutting and encoding are in `processing.results`.
"""

from .video_opening import (
    DEFAULT_LIMITS,
    DownloadedVideo,
    ReadLimits,
    VideoLimitError,
    VideoProperties,
    VideoReadError,
    VideoSource,
    can_seek,
    downloaded,
    is_file_object,
    probe,
)
from .video_reading import SCALING_FLAGS, check_video, iterate_frames, read_frames, resize_frames


__all__ = [
    "DEFAULT_LIMITS",
    "SCALING_FLAGS",
    "DownloadedVideo",
    "ReadLimits",
    "VideoProperties",
    "VideoLimitError",
    "VideoReadError",
    "VideoSource",
    "can_seek",
    "check_video",
    "downloaded",
    "is_file_object",
    "iterate_frames",
    "probe",
    "read_frames",
    "resize_frames",
]
