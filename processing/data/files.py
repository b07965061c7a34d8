"""Where the video of a row is: its file by the name that an annotation has for it."""

import hashlib
import logging
import os
import unicodedata
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ..video_url import is_url


# Not through transformers, which the command line would have to import for its help.
logger = logging.getLogger(__name__)


# In the order of preference where a video is there twice.
VIDEO_EXTENSIONS = tuple(
    ".mp4 .mkv .webm .avi .mov .m4v .flv .wmv .mpg .mpeg .ts .3gp .mts .m2ts .vob .ogv .3g2 .mxf .asf".split()
)


class Folder(NamedTuple):
    """
    What is in a folder.

    Args:
        videos (`dict[str, Path]`): The best video of each name without extension.
        videos_like (`dict[str, list[Path]]`): The same, of all names that [`spelling`] makes one.
        folders_like (`dict[str, list[Path]]`): The folders in it, by [`spelling`].
    """

    videos: dict[str, Path]
    videos_like: dict[str, list[Path]]
    folders_like: dict[str, list[Path]]


class VideoFiles:
    """
    Finds the file of a row's video.

    A name is looked for as it is; then with any of the extensions that videos have, and with or without the `v_` that
    names of ActivityNet start with. Of several files `.mp4` comes first, then `.mkv`, then `.webm`. It may lie in the
    folder `videos` of the root, too. Then it is looked for in another spelling: with `\\` between folders, as Windows
    writes paths, in other capitals, with accents composed otherwise, as file systems of a Mac have them, or with an
    extension that no video has. Last, it is looked for elsewhere: a name without a folder in all folders below the
    root, and one that begins with the root's own folder in the root. Such a file is taken if it is the only one.

    Args:
        root (`str` or `Path`, *optional*): Folder that relative paths start from; the current one if not given.

    Attributes:
        respelled (`dict[str, str]`): For each name that was found in another spelling, the path of its file.
        moved (`dict[str, str]`): The same, for each name that was found elsewhere than it says.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = root
        self.respelled: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self._folders: dict[Path, Folder] = {}
        self._below: list[Folder] | None = None

    def find(self, video: Any) -> str | bytes:
        """
        Args:
            video (`str`, `bytes` or `dict`): A row's `video`; a dict has `path` and `bytes`, as `datasets` gives it.

        Returns:
            `str` or `bytes`: What the video processor can read: a path, a URL, or the content of a file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the name is spelled as none, and several files fit.
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
        found, how = self.respelled, "is spelled otherwise"
        fitting = self._find_respelled(str(video))
        if not fitting:
            found, how = self.moved, "says another folder"
            fitting = self._find_elsewhere(Path(video))
        if not fitting:
            raise FileNotFoundError(
                f"There is no video {video!r} in {(root / video).parent}, with any extension that videos have, with "
                "or without 'v_' before its name, in any spelling, nor in a folder below. Check the folder that paths "
                "start from (`video_root`)."
            )
        if len(fitting) > 1:
            raise ValueError(
                f"No video is called {video!r}, and several are but for capitals, accents or their folder: "
                f"{', '.join(map(str, sorted(fitting)))}. Write the name of the one that is meant."
            )
        if not found:
            logger.warning(
                f"Took {fitting[0]} for the video {video!r}, which {how}. Others are taken so without being named "
                "here."
            )
        found[str(video)] = str(fitting[0])
        return str(fitting[0])

    def list_below(self) -> list[Path]:
        """The videos in the root and in all folders below it, one for each name in a folder."""
        return [video for folder in self._folders_below() for video in sorted(folder.videos.values())]

    def _find_respelled(self, video: str) -> list[Path]:
        """All files that a name may mean, each part as it is if it is there, else in another spelling."""
        *parts, last = Path(video.replace("\\", "/")).parts or ("",)
        folders = [Path(self.root or "")]
        for part in parts:
            folders = [
                inside
                for folder in folders
                for inside in (
                    [folder / part]
                    if (folder / part).is_dir()
                    else self._list(folder).folders_like.get(spelling(part), [])
                )
            ]
        return _fitting([self._list(folder) for folder in folders], last)

    def _find_elsewhere(self, video: Path) -> list[Path]:
        """All files that a name may mean whose folder is not the one that it says."""
        # Without a root the current folder is the root, which may have anything below.
        if self.root is None or video.is_absolute():
            return []
        if len(video.parts) == 1:
            return _fitting(self._folders_below(), video.name)
        if video.parts[0] == Path(self.root).resolve().name:
            return self._find_respelled(str(Path(*video.parts[1:])))
        return []

    def _folders_below(self) -> list[Folder]:
        """The root and all folders below it, linked ones too; each is there once."""
        if self._below is None:
            folders: dict[str, Folder] = {}
            left = [Path(self.root or "")]
            while left:
                path = left.pop()
                if (real := os.path.realpath(path)) not in folders:
                    folders[real] = self._list(path)
                    left += sorted(chain.from_iterable(folders[real].folders_like.values()), reverse=True)
            self._below = list(folders.values())
        return self._below

    def _list(self, path: Path) -> Folder:
        """A folder, listed once, since folders of thousands of videos take long."""
        if path not in self._folders:
            entries = list(os.scandir(path)) if path.is_dir() else []
            ranked = [Path(entry) for entry in entries if entry.is_file()]
            ranked = [video for video in ranked if video.suffix.lower() in VIDEO_EXTENSIONS]
            ranked.sort(key=lambda video: (VIDEO_EXTENSIONS.index(video.suffix.lower()), video.name), reverse=True)
            folder = Folder({without_extension(video.name): video for video in ranked}, {}, {})
            for name, video in folder.videos.items():
                folder.videos_like.setdefault(spelling(name), []).append(video)
            for entry in entries:
                if entry.is_dir():
                    folder.folders_like.setdefault(spelling(entry.name), []).append(Path(entry))
            self._folders[path] = folder
        return self._folders[path]


def spelling(name: str) -> str:
    """What names have in common that differ in capitals, or in how their accents are composed."""
    return unicodedata.normalize("NFC", name.casefold())


def _names(name: str) -> tuple[str, str, str]:
    """The names without extension that a video may have."""
    stem = without_extension(name)
    return stem, stem.removeprefix("v_"), f"v_{stem}"


def _fitting(folders: list[Folder], name: str) -> list[Path]:
    """The videos of these folders that a name may mean: those that have it, else those that are spelled alike."""
    # Names of DiDeMo have extensions that are not those of videos, or that stand before the file's own. A number is
    # none.
    stem, extension = os.path.splitext(name)
    others = (name, stem) if any(map(str.isalpha, extension)) else (name,)
    for stem in (*_names(name), *others):
        exact = [folder.videos[stem] for folder in folders if stem in folder.videos]
        if fitting := exact or [path for folder in folders for path in folder.videos_like.get(spelling(stem), [])]:
            return fitting
    return []


def resolve_video_root(name_or_path: str, video_root: str | None = None) -> str | None:
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
