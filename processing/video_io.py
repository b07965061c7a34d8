"""
Reading and cutting videos: the door to four rooms. `video_opening` opens a file and knows how long and large the
video is, `video_reading` reads the frames on display at given instants, `video_cutting` copies a part into a file, and
`video_encoding` encodes one anew, to the frame.
"""

from .video_cutting import cut_video
from .video_encoding import cut_video_exactly
from .video_opening import (
    DEFAULT_LIMITS,
    DownloadedVideo,
    ReadLimits,
    VideoFacts,
    VideoLimitError,
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
    "VideoFacts",
    "VideoLimitError",
    "VideoReadError",
    "VideoSource",
    "can_seek",
    "check_video",
    "cut_video",
    "cut_video_exactly",
    "downloaded",
    "is_file_object",
    "iterate_frames",
    "probe",
    "read_frames",
    "resize_frames",
]
