"""Lookup of video files by their annotated names."""

import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ..video_url import is_url


# The logger of the standard library, because importing transformers would slow down the help of the command line.
logger = logging.getLogger(__name__)


# In order of preference, if a video has several files.
VIDEO_EXTENSIONS = tuple(
    ".mp4 .mkv .webm .avi .mov .m4v .flv .wmv .mpg .mpeg .ts .3gp .mts .m2ts .vob .ogv .3g2 .mxf .asf".split()
)


class Folder(NamedTuple):
    """
    Contents of a folder.

    Args:
        videos (`dict[str, Path]`): Preferred video file for each name without extension.
        videos_like (`dict[str, list[Path]]`): Video files by normalised name, see [`spelling`].
        folders_like (`dict[str, list[Path]]`): Subfolders by normalised name, see [`spelling`].
    """

    videos: dict[str, Path]
    videos_like: dict[str, list[Path]]
    folders_like: dict[str, list[Path]]


class VideoFiles:
    """
    Lookup of the video file of a row.

    The lookup tries these steps in order:

    1. The exact name, in the root or in its folder `videos`.
    2. The name with any video extension, with or without the prefix `v_` of ActivityNet, in the same folders. Among
       several files, `.mp4` is preferred, then `.mkv`, then `.webm`.
    3. Another spelling: `\\` between folders (Windows), other capitals, accents composed differently (macOS), or an
       extension that is not a video extension.
    4. Another folder: a name without a folder in all folders below the root, or a name that starts with the root's
       own folder.

    Steps 3 and 4 accept a file only if it is the single match.

    Args:
        root (`str` or `Path`, *optional*): Root folder of relative paths. Defaults to the current folder.

    Attributes:
        respelled (`dict[str, str]`): Path of the file for each name with another spelling.
        moved (`dict[str, str]`): Path of the file for each name found in another folder.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = root
        self.respelled: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self._folders: dict[Path, Folder] = {}
        self._below: list[Folder] | None = None

    def find(self, video: Any) -> str | bytes:
        """
        Find the video file of a row.

        Args:
            video (`str`, `bytes` or `dict`): Entry `video` of a row. A dict has `path` and `bytes`, as in `datasets`.

        Returns:
            `str` or `bytes`: Input for the video processor: a path, a URL, or the content of a file.

        Raises:
            FileNotFoundError: If no file matches.
            ValueError: If several files match another spelling or folder.
        """
        if isinstance(video, dict):
            if video.get("bytes") is not None:
                return video["bytes"]
            video = video["path"]
        if isinstance(video, bytes) or is_url(video):
            return video
        root = Path(self.root or "")
        for path in (root / video, root / "videos" / video):
            if path.is_file():
                return str(path)
            videos = self._list(path.parent).videos
            for name in _names(path.name):
                if name in videos:
                    return str(videos[name])
        found, difference = self.respelled, "is spelled differently"
        matches = self._find_respelled(str(video))
        if not matches:
            found, difference = self.moved, "names another folder"
            matches = self._find_elsewhere(Path(video))
        if not matches:
            raise FileNotFoundError(
                f"Could not find the video {video!r} in {(root / video).parent} or the folders below. Tried all video "
                "extensions, names with and without 'v_', and other spellings. Check the root folder of the videos "
                "(`video_root`)."
            )
        if len(matches) > 1:
            raise ValueError(
                f"No video is called {video!r}, but several names differ only in capitals, accents or the folder: "
                f"{', '.join(map(str, sorted(matches)))}. Write the name of one of them."
            )
        if not found:
            logger.warning(
                f"Using {matches[0]} for the video {video!r}, which {difference}. Further such videos are not listed."
            )
        found[str(video)] = str(matches[0])
        return str(matches[0])

    def list_below(self) -> list[Path]:
        """List the videos in the root and in all folders below it, one file per name and folder."""
        return [video for folder in self._folders_below() for video in sorted(folder.videos.values())]

    def _find_respelled(self, video: str) -> list[Path]:
        """List all files that match a name, part by part: exactly or, failing that, in another spelling."""
        *parts, last = Path(video.replace("\\", "/")).parts or ("",)
        folders = [Path(self.root or "")]
        for part in parts:
            folders = [
                inside
                for folder in folders
                for inside in (
                    [folder / part]
                    if (folder / part).is_dir()
                    else self._list(folder).folders_like.get(normalize_file_name(part), [])
                )
            ]
        return _matching([self._list(folder) for folder in folders], last)

    def _find_elsewhere(self, video: Path) -> list[Path]:
        """List all files that match a name in another folder."""
        # Without a root, do not search the current folder, because it may contain large unrelated folders.
        if self.root is None or video.is_absolute():
            return []
        if len(video.parts) == 1:
            return _matching(self._folders_below(), video.name)
        if video.parts[0] == Path(self.root).resolve().name:
            return self._find_respelled(str(Path(*video.parts[1:])))
        return []

    def _folders_below(self) -> list[Folder]:
        """List the root and all folders below it once each, and follow links."""
        if self._below is None:
            folders: dict[str, Folder] = {}
            queue = [Path(self.root or "")]
            while queue:
                path = queue.pop()
                if (real := os.path.realpath(path)) not in folders:
                    folders[real] = self._list(path)
                    queue += sorted(chain.from_iterable(folders[real].folders_like.values()), reverse=True)
            self._below = list(folders.values())
        return self._below

    def _list(self, path: Path) -> Folder:
        """List a folder and cache the result, because listing thousands of videos is slow."""
        if path not in self._folders:
            entries = list(os.scandir(path)) if path.is_dir() else []
            ranked = [Path(entry) for entry in entries if entry.is_file()]
            ranked = [video for video in ranked if video.suffix.lower() in VIDEO_EXTENSIONS]
            ranked.sort(key=lambda video: (VIDEO_EXTENSIONS.index(video.suffix.lower()), video.name), reverse=True)
            folder = Folder({without_extension(video.name): video for video in ranked}, {}, {})
            for name, video in folder.videos.items():
                folder.videos_like.setdefault(normalize_file_name(name), []).append(video)
            for entry in entries:
                if entry.is_dir():
                    folder.folders_like.setdefault(normalize_file_name(entry.name), []).append(Path(entry))
            self._folders[path] = folder
        return self._folders[path]


def normalize_file_name(name: str) -> str:
    """Normalise capitals and the composition of accents in a name."""
    return unicodedata.normalize("NFC", name.casefold())


def _names(name: str) -> tuple[str, str, str]:
    """Return the possible names of a video, without extension."""
    stem = without_extension(name)
    return stem, stem.removeprefix("v_"), f"v_{stem}"


def _matching(folders: list[Folder], name: str) -> list[Path]:
    """List the videos of folders that match a name exactly or, if none does, in another spelling."""
    # Names of DiDeMo can have other extensions, or two extensions. A number is not an extension.
    stem, extension = os.path.splitext(name)
    others = (name, stem) if any(map(str.isalpha, extension)) else (name,)
    for stem in (*_names(name), *others):
        exact = [folder.videos[stem] for folder in folders if stem in folder.videos]
        if matches := exact or [
            path for folder in folders for path in folder.videos_like.get(normalize_file_name(stem), [])
        ]:
            return matches
    return []


def resolve_video_root(name_or_path: str, video_root: str | None = None) -> str | None:
    """
    Return the root folder of the videos of a data set.

    Args:
        name_or_path (`str`): Data set, as in [`load_annotations`].
        video_root (`str`, *optional*): Root folder of relative paths.

    Returns:
        `str`, *optional*: `video_root` if given. Otherwise the folder of a local data set, or `None` for a Hub id.
    """
    path = Path(name_or_path)
    if video_root is not None or not path.exists():
        return video_root
    return str(path if path.is_dir() else path.parent)


def video_file_name(video: Any) -> str:
    """Return a name of a row's `video` for messages: its path or URL, or its number of bytes."""
    if isinstance(video, dict):
        video = video["path"] or video["bytes"]
    return f"<{len(video)} bytes>" if isinstance(video, bytes) else str(video)


def video_file_key(video: Any) -> Any:
    """Return a key that identifies a video. Embedded videos use a hash, as `datasets` keeps only their file name."""
    if isinstance(video, dict):
        video = video["path"] if video.get("bytes") is None else video["bytes"]
    return hashlib.sha256(video).digest() if isinstance(video, bytes) else video


def without_extension(name: str) -> str:
    """Remove a video extension. Other suffixes stay, because names of QVHighlights contain dots."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEO_EXTENSIONS else name


def find_videos(names: Iterable[str], files: VideoFiles, folder: Path) -> dict[str, str | None]:
    """Map each name to the path of its file relative to `folder`, to itself for a URL, or to `None` without a file."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            path = str(files.find(name))
        except FileNotFoundError:
            found[name] = None  # listed in the report
            continue
        found[name] = Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path
    return found
