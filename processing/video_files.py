"""Where the video of a row is: its file by the name that an annotation has for it."""

import hashlib
import os
from pathlib import Path
from typing import Any

from .video_url import is_url


# In the order of preference where a video is there twice.
VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".3gp")


class VideoFiles:
    """
    Finds the file of a row's video.

    A name is looked for as it is; then with any of the extensions that videos have, and with or without the `v_` that
    names of ActivityNet start with. Of several files `.mp4` comes first, then `.mkv`, then `.webm`.

    Args:
        root (`str` or `Path`, *optional*): Folder that relative paths start from; the current one if not given.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = root
        self._files_of_folder: dict[Path, dict[str, Path]] = {}

    def find(self, video: Any) -> str | bytes:
        """
        Args:
            video (`str`, `bytes` or `dict`): A row's `video`; a dict has `path` and `bytes`, as `datasets` gives it.

        Returns:
            `str` or `bytes`: What the video processor can read: a path, a URL, or the content of a file.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        if isinstance(video, dict):
            if video.get("bytes") is not None:
                return video["bytes"]
            video = video["path"]
        if isinstance(video, bytes) or is_url(video):
            return video
        path = Path(self.root or "") / video
        if path.is_file():
            return str(path)
        stem = without_extension(path.name)
        files = self._files(path.parent)
        for name in (stem, stem.removeprefix("v_"), f"v_{stem}"):
            if name in files:
                return str(files[name])
        raise FileNotFoundError(
            f"There is no video {video!r} in {path.parent}, with any extension that videos have, with or without 'v_' "
            "before its name. Check the folder that paths start from (`video_root`)."
        )

    def _files(self, folder: Path) -> dict[str, Path]:
        """The videos of a folder by name without extension; listed once, since folders of thousands take long."""
        if folder not in self._files_of_folder:
            found = [Path(entry) for entry in os.scandir(folder) if entry.is_file()] if folder.is_dir() else []
            ranked = [path for path in found if path.suffix.lower() in VIDEO_EXTENSIONS]
            ranked.sort(key=lambda path: (VIDEO_EXTENSIONS.index(path.suffix.lower()), path.name), reverse=True)
            self._files_of_folder[folder] = {without_extension(path.name): path for path in ranked}
        return self._files_of_folder[folder]


def folder_of_videos(name_or_path: str, video_root: str | None = None) -> str | None:
    """
    Where a data set's videos are.

    Args:
        name_or_path (`str`): A data set, as for [`load_annotations`].
        video_root (`str`, *optional*): Folder that its relative paths start from.

    Returns:
        `str`, *optional*: `video_root` if it is given, else the folder that the data set lies in, if it lies in one.
    """
    path = Path(name_or_path)
    if video_root is not None or not path.exists():
        return video_root
    return str(path if path.is_dir() else path.parent)


def video_name(video: Any) -> str:
    """What to call a row's `video` in a message: its path or URL, or how many bytes it has."""
    if isinstance(video, dict):
        video = video["path"] or video["bytes"]
    return f"<{len(video)} bytes>" if isinstance(video, bytes) else str(video)


def video_key(video: Any) -> Any:
    """What tells videos apart: of an embedded one its content, since `datasets` keeps only the end of its path."""
    if isinstance(video, dict):
        video = video["path"] if video.get("bytes") is None else video["bytes"]
    return hashlib.sha256(video).digest() if isinstance(video, bytes) else video


def without_extension(name: str) -> str:
    """Names of QVHighlights have dots in them, so only what is an extension of videos is one."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEO_EXTENSIONS else name
