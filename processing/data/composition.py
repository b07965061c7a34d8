"""
Untrimmed videos from short clips.

Clips of one scene are joined in random order, so each segment is exact to the frame. The videos are synthetic edits of
real pixels: the content of each clip is real, but the order of the clips is not.

- A composed video contains clips with a sentence, whole clips without one (distractors), and gaps of random length.
  A gap shows part of a clip whose label no sentence of the video asks for, so no blank picture reveals a boundary.
- All whole clips of a video have different labels. Each sentence therefore has exactly one segment.
- Each group (a person, a source video) belongs to one split only, and so does each clip.

The content of a video depends on (seed, split, index) only, not on the number of workers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..video_io import probe, read_frames, resize_frames
from .files import VideoFiles
from .formats import csv_column, csv_rows, warn_about_unused
from .synthetic_videos import H264_OPTIONS, make_data_set, synthetic_video_encoder, write_synthetic_video


SPLITS = ("train", "validation", "test")
# Default shares of the groups, used if no groups are named.
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1


class ShortClip(NamedTuple):
    """
    Row of the clip table.

    Args:
        video (`str`): Path of the file, relative to the folder of clips.
        label (`str`): Label of the clip, or its sentence if the table has no labels.
        sentence (`str`): Sentence that asks for the clip, or an empty string if the clip is never asked for.
        group (`str`): Group of the clip. Each group belongs to one split only.
        scene (`str`): Scene of the clip. Only clips of the same scene are joined.
    """

    video: str
    label: str
    sentence: str
    group: str
    scene: str


class Part(NamedTuple):
    """Frames `first_index` to `first_index + num_frames - 1` of a clip, at the frame rate of the composed video."""

    clip: ShortClip
    first_index: int
    num_frames: int
    has_sentence: bool


@dataclass(frozen=True)
class CompositionSettings:
    """
    Configuration of a composed data set.

    Args:
        num_train, num_validation, num_test (`int`, *optional*, default to 200, 0 and 50): Number of videos per split.
        validation_groups, test_groups (`Sequence[str]`, *optional*):
            Groups of these splits. All other groups belong to "train". By default, a tenth of the groups is drawn for
            validation and a fifth for testing.
        min_clips, max_clips (`int`, *optional*, default to 3 and 6):
            Minimum and maximum number of clips with a sentence per video.
        max_distractors (`int`, *optional*, defaults to 2): Maximum number of whole clips without a sentence per video.
        max_gap_seconds (`float`, *optional*, defaults to 1.0):
            Maximum length in seconds of the gaps before, between and after clips. The minimum is 0.
        size (`tuple[int, int]`, *optional*):
            Height and width in pixels, both even. Defaults to the size of the first clip.
        fps (`int`, *optional*, defaults to 10): Frames per second.
        seed (`int`, *optional*, defaults to 0): Random seed.

    Raises:
        ValueError: If a number is out of range, or if `validation_groups` are given but `num_validation` is 0.
    """

    num_train: int = 200
    num_validation: int = 0
    num_test: int = 50
    validation_groups: Sequence[str] = ()
    test_groups: Sequence[str] = ()
    min_clips: int = 3
    max_clips: int = 6
    max_distractors: int = 2
    max_gap_seconds: float = 1.0
    size: tuple[int, int] | None = None
    fps: int = 10
    seed: int = 0

    def __post_init__(self):
        minimums = {name: 0 for name in self.numbers} | {"num_train": 1, "num_test": 1, "fps": 1}
        minimums |= {"min_clips": 1, "max_clips": self.min_clips}
        for name, number in self.numbers.items():
            if number < minimums[name]:
                raise ValueError(f"`{name}` must be at least {minimums[name]}, got {number}.")
        if self.validation_groups and not self.num_validation:
            raise ValueError(f"Received the validation groups {list(self.validation_groups)}, but num_validation=0.")
        if self.size is not None:
            _check_size(self.size)

    @property
    def numbers(self) -> dict[str, float]:
        """All settings that are a number, by name."""
        names = ("num_train", "num_validation", "num_test", "min_clips", "max_clips", "max_distractors")
        return {name: getattr(self, name) for name in (*names, "max_gap_seconds", "fps", "seed")}

    @property
    def max_gap_frames(self) -> int:
        """Maximum number of frames per gap."""
        return round(self.max_gap_seconds * self.fps)

    @property
    def min_labels(self) -> int:
        """Minimum number of labels per scene. Gaps and distractors need one label without a sentence in the video."""
        return self.min_clips + (self.max_distractors > 0 or self.max_gap_frames > 0)


def _check_size(size: tuple[int, int]) -> None:
    """
    Check that height and width are even.

    Raises:
        ValueError: If height or width is odd or less than 2.
    """
    if min(size) < 2 or size[0] % 2 or size[1] % 2:
        raise ValueError(
            f"`size` must be two even numbers of pixels because h264 stores colour at half the size, got {size}."
        )


def sentence_from_label(label: str) -> str:
    """
    Convert a label to words.

    Example:

    ```python
    >>> from processing.data.composition import sentence_from_label

    >>> sentence_from_label("ApplyEyeMakeup"), sentence_from_label("brush_hair")
    ('apply eye makeup', 'brush hair')

    ```
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", label).lower()


def read_clip_table(path: Path) -> list[ShortClip]:
    """
    Read a csv table of clips.

    Args:
        path (`Path`):
            Table with the columns `video`, `group`, at least one of `label` and `sentence`, and optionally `scene`.
            The sentence of a clip with a label may be empty.

    Raises:
        ValueError: If a column is missing, a cell is empty, or a clip is listed twice.
    """
    header, rows, _ = csv_rows(path, is_strict=True)
    video_column, group_column = csv_column(path, header, "video"), csv_column(path, header, "group")
    csv_column(path, header, "sentence", "label")
    used_columns = {video_column, group_column, "sentence", "label", "scene"}
    warn_about_unused(path, [name for name in header if name not in used_columns])
    clips: dict[str, ShortClip] = {}
    for where, row in rows:
        sentence = row["sentence"] if "sentence" in row else sentence_from_label(row["label"])
        label, group = row.get("label", sentence), row[group_column]
        clip = ShortClip(row[video_column], label, sentence, group, f"{group} {row.get('scene', '')}")
        if not (clip.video and clip.label and clip.group):
            raise ValueError(
                f"{where}: a cell is empty. Every clip needs a video, a label or a sentence, and a group."
            )
        if clip.video in clips:
            raise ValueError(f"{where}: the clip {clip.video} is listed twice. List each clip once.")
        clips[clip.video] = clip
    if not clips:
        raise ValueError(f"{path} contains no clips. Expected a header and one line per clip.")
    return list(clips.values())


def _split_groups(
    groups: Sequence[str],
    validation_groups: Sequence[str],
    test_groups: Sequence[str],
    has_validation: bool,
    seed: int,
) -> dict[str, list[str]]:
    """
    Assign each group to a split. Draw the groups of `validation` and `test` at random if no groups are named.

    Raises:
        ValueError: If a named group does not exist or is in two splits, or if no group remains for training.
    """
    if unknown := sorted({*validation_groups, *test_groups} - set(groups)):
        raise ValueError(f"Received the groups {unknown}, but the table only has {sorted(groups)}.")
    if shared := sorted(set(validation_groups) & set(test_groups)):
        raise ValueError(f"Received the groups {shared} for both validation and test. Use each group in one split.")
    remaining = [group for group in sorted(groups) if group not in {*validation_groups, *test_groups}]
    np.random.default_rng(seed).shuffle(remaining)
    chosen = {"validation": list(validation_groups), "test": list(test_groups)}
    for split, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE if has_validation else 0)):
        if not chosen[split] and share:
            count = max(1, round(share * len(groups)))
            chosen[split], remaining = remaining[:count], remaining[count:]
    if not remaining:
        raise ValueError(
            f"No group remains for training out of {len(groups)}. Name fewer groups for validation and test, or "
            "divide the clips into more groups."
        )
    return {"train": remaining, **chosen}


def _group_by_scene(clips: Sequence[ShortClip], settings: CompositionSettings) -> dict[str, list[ShortClip]]:
    """
    Group clips by scene.

    Raises:
        ValueError: If a scene has too few labels.
    """
    scenes: dict[str, list[ShortClip]] = {}
    for clip in clips:
        scenes.setdefault(clip.scene, []).append(clip)
    for scene, scene_clips in scenes.items():
        num_labels = len({clip.label for clip in scene_clips})
        num_with_sentence = len({clip.label for clip in scene_clips if clip.sentence})
        if num_labels < settings.min_labels or num_with_sentence < settings.min_clips:
            raise ValueError(
                f"The clips of {scene.strip()!r} have {num_labels} labels, {num_with_sentence} with a sentence. Each "
                f"video needs {settings.min_labels} labels (min_clips, plus one for gaps or distractors), "
                f"{settings.min_clips} with a sentence. Use larger groups, or lower min_clips."
            )
    return scenes


def _plan_parts(
    rng: np.random.Generator,
    clips: list[ShortClip],
    num_frames: Callable[[ShortClip], int],
    settings: CompositionSettings,
) -> list[Part]:
    """
    Draw the parts of a composed video, in order.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        clips (`list[ShortClip]`): Clips of one scene.
        num_frames (`Callable`): Function from a clip to its number of frames at `settings.fps`.
        settings ([`CompositionSettings`]): Numbers of clips and maximum length of gaps.
    """
    clips_by_label: dict[str, list[ShortClip]] = {}
    for clip in clips:
        clips_by_label.setdefault(clip.label, []).append(clip)
    askable = [label for label, same_label in clips_by_label.items() if any(clip.sentence for clip in same_label)]
    num_spare_labels = settings.min_labels - settings.min_clips
    most = min(settings.max_clips, len(askable), len(clips_by_label) - num_spare_labels)
    asked = [str(label) for label in rng.permutation(askable)[: rng.integers(settings.min_clips, most + 1)]]
    others = [str(label) for label in rng.permutation([label for label in clips_by_label if label not in asked])]

    def draw_clip(label: str, has_sentence: bool) -> ShortClip:
        candidates = [clip for clip in clips_by_label[label] if clip.sentence or not has_sentence]
        return candidates[rng.integers(len(candidates))]

    def draw_gap() -> list[Part]:
        length = int(rng.integers(settings.max_gap_frames + 1))
        if not length:
            return []
        clip = draw_clip(others[rng.integers(len(others))], False)
        length = min(length, num_frames(clip))
        return [Part(clip, int(rng.integers(num_frames(clip) - length + 1)), length, False)]

    whole_clips = [(draw_clip(label, True), True) for label in asked]
    distractors = others[: rng.integers(settings.max_distractors + 1)]
    whole_clips += [(draw_clip(label, False), False) for label in distractors]
    parts = draw_gap()
    for index in rng.permutation(len(whole_clips)):
        clip, has_sentence = whole_clips[index]
        parts += [Part(clip, 0, num_frames(clip), has_sentence), *draw_gap()]
    return parts


def _count_frames(path: str, fps: int) -> int:
    """
    Count the whole frames of a clip at a frame rate. An incomplete frame at the end does not count.

    Raises:
        ValueError: If the clip is shorter than one frame.
    """
    duration_seconds = probe(path).duration_seconds
    num_frames = int(round(duration_seconds * fps, 3))
    if not num_frames:
        raise ValueError(
            f"The clip {path} lasts {duration_seconds:.3f} s, less than one frame at {fps} frames per second."
        )
    return num_frames


def _read_part(path: str | bytes, part: Part, size: tuple[int, int], fps: int) -> np.ndarray:
    """Read the frames of a part as `(num_frames, *size, 3)`: centre-cropped to the aspect ratio of `size`, resized."""
    indices = part.first_index + np.arange(part.num_frames)
    frames = read_frames(path, (indices + 0.5) / fps)
    (height, width), (to_height, to_width) = frames.shape[1:3], size
    crop_height = min(height, round(width * to_height / to_width))
    crop_width = min(width, round(height * to_width / to_height))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    cropped = frames[:, top : top + crop_height, left : left + crop_width]
    return resize_frames(np.ascontiguousarray(cropped), size)


def _compose_example(
    task: tuple[str, list[Part]], videos: Path, output_dir: Path, size: tuple[int, int], fps: int
) -> dict:
    """Write the video `task = (video_id, parts)` and return its annotation row. Sentences are in temporal order."""
    video_id, parts = task
    files = VideoFiles(videos)
    frames = (frame for part in parts for frame in _read_part(files.find(part.clip.video), part, size, fps))
    path = output_dir / "videos" / f"{video_id}.mp4"
    write_synthetic_video(path, frames, fps, synthetic_video_encoder(), H264_OPTIONS)
    edges_seconds = [edge / fps for edge in accumulate((part.num_frames for part in parts), initial=0)]
    asked = [index for index, part in enumerate(parts) if part.has_sentence]
    return {
        "video": f"videos/{video_id}.mp4",
        "video_id": video_id,
        "duration": edges_seconds[-1],
        "sentences": [parts[index].clip.sentence for index in asked],
        "segments": [[edges_seconds[index : index + 2]] for index in asked],
    }


def compose(
    table: str | Path,
    videos: str | Path,
    output_dir: str | Path,
    settings: CompositionSettings | None = None,
    num_workers: int | None = None,
) -> None:
    """
    Compose a data set: `output_dir/videos/*.mp4`, a `datasets.DatasetDict` in `output_dir`, and `generation.json`.

    Worker processes write the videos. In a script, call this function under `if __name__ == "__main__":`.

    Args:
        table (`str` or `Path`): Table of clips, see [`read_clip_table`].
        videos (`str` or `Path`): Folder of the clips.
        output_dir (`str` or `Path`): New or empty output folder.
        settings ([`CompositionSettings`], *optional*): Splits, clips per video, size, frame rate and seed.
        num_workers (`int`, *optional*):
            Number of processes. Defaults to the number of CPUs. The result does not depend on it.

    Raises:
        ValueError: If the table or the groups are invalid, a scene has too few labels, a clip is shorter than one
            frame, or `output_dir` is not empty.
        FileNotFoundError: If a clip is missing.
        VideoReadError: If a clip cannot be read.
    """
    from .preparation import print_next_commands

    settings = settings or CompositionSettings()
    output_dir = Path(output_dir)
    clips = read_clip_table(Path(table))
    files = VideoFiles(videos)
    paths = {clip: str(files.find(clip.video)) for clip in clips}
    size = settings.size or _even_size(paths[clips[0]])
    groups = _split_groups(
        list(dict.fromkeys(clip.group for clip in clips)),
        settings.validation_groups,
        settings.test_groups,
        settings.num_validation > 0,
        settings.seed,
    )
    scenes = _group_by_scene(clips, settings)

    @cache
    def num_frames(clip: ShortClip) -> int:
        return _count_frames(paths[clip], settings.fps)

    tasks = _plan_videos(list(scenes.values()), groups, num_frames, settings)
    make_data_set(
        output_dir,
        partial(_compose_example, videos=Path(videos), output_dir=output_dir, size=size, fps=settings.fps),
        tasks,
        {**settings.numbers, "size": size, "groups": groups},
        num_workers,
    )
    for split, split_tasks in tasks.items():
        num_sentences = sum(part.has_sentence for _, parts in split_tasks for part in parts)
        print(
            f"{split}: {len(split_tasks):,} videos, {num_sentences:,} sentences, groups used: {len(groups[split]):,}"
        )
    print(f"Data set saved to {output_dir}, videos to {output_dir / 'videos'}.")
    print_next_commands(output_dir, None, list(tasks))


def _even_size(path: str) -> tuple[int, int]:
    """Return height and width of a clip, rounded down to even numbers."""
    height, width = read_frames(path, [0.0]).shape[1:3]
    size = (height - height % 2, width - width % 2)
    _check_size(size)
    return size


def _plan_videos(
    scenes: list[list[ShortClip]],
    groups: dict[str, list[str]],
    num_frames: Callable[[ShortClip], int],
    settings: CompositionSettings,
) -> dict[str, list[tuple[str, list[Part]]]]:
    """Draw the videos of each split as pairs of a video id and its parts."""
    tasks: dict[str, Any] = {}
    for split_index, split in enumerate(SPLITS):
        split_scenes = [scene_clips for scene_clips in scenes if scene_clips[0].group in groups[split]]
        # Shuffle, because otherwise the first videos of a split all show one group.
        np.random.default_rng([settings.seed, split_index]).shuffle(split_scenes)
        for index in range(getattr(settings, f"num_{split}")):
            rng = np.random.default_rng([settings.seed, split_index, index])
            parts = _plan_parts(rng, split_scenes[index % len(split_scenes)], num_frames, settings)
            tasks.setdefault(split, []).append((f"{split}_{index:05d}", parts))
    return tasks
