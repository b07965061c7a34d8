"""
Video reading. `video_opening` opens a file and returns the duration and size of the video. `video_reading` reads the
frames displayed at given times. `processing.results` contains cutting and encoding.
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
