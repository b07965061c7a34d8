"""
Untrimmed videos from short clips: clips of one scene joined in random order, with the segment of each known to the
frame. Synthetic edits of real pixels: what happens is real, that it happens in this order is not.

- A composed video has clips that a sentence asks for, each another sentence; distractors, which none asks for; and
  between them gaps of random length. A gap shows a piece of a clip that no sentence of the video asks for, so that no
  blank picture gives a boundary away.
- No two clips of a video have the same label, so that a sentence has one segment, and no clip that it is true of
  besides.
- A group (a person, a source video) is in one split only, and so is a clip.

What a video shows is drawn from (seed, split, index) alone: the number of workers changes nothing.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..video_io import probe, read_frames, resize_frames
from .files import VideoFiles
from .formats import csv_column, csv_rows, warn_about_unused
from .synthetic_videos import H264_OPTIONS, available_encoder, make_data_set, write_video


SPLITS = ("train", "validation", "test")
# Of the groups, if none are named.
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1


class ShortClip(NamedTuple):
    """
    A line of the table.

    Args:
        video (`str`): Path of the file in the folder of clips.
        label (`str`): What no two clips of a video may share; the sentence where there are no labels.
        sentence (`str`): What asks for the clip; empty for one that none ever asks for.
        group (`str`): What is in one split only.
        scene (`str`): What clips that are joined share.
    """

    video: str
    label: str
    sentence: str
    group: str
    scene: str


class Part(NamedTuple):
    """Frames `first_index` to `first_index + num_frames - 1` of a clip, at the composed video's rate."""

    clip: ShortClip
    first_index: int
    num_frames: int
    has_sentence: bool


class Settings(NamedTuple):
    """What [`compose`] was told about videos; see there."""

    min_clips: int
    max_clips: int
    max_distractors: int
    max_gap_frames: int
    size: tuple[int, int]
    fps: int

    @property
    def min_labels(self) -> int:
        """Labels that a scene has to have: gaps and distractors come from those that are not asked for."""
        return self.min_clips + (self.max_distractors > 0 or self.max_gap_frames > 0)


def sentence_from_label(label: str) -> str:
    """
    A label as words.

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
    Reads a csv table of clips.

    Args:
        path (`Path`): Columns `video`, `label` or `sentence` or both, `group`, and optionally `scene`. A sentence may
            be empty where there is a label.

    Raises:
        ValueError: If a column is missing, a cell is empty, or a clip has two lines.
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
                f"{where}: a cell is empty; every clip needs a video, a label or a sentence, and a group."
            )
        if clip.video in clips:
            raise ValueError(f"{where}: the clip {clip.video} has a line further up; it may be in one split only.")
        clips[clip.video] = clip
    if not clips:
        raise ValueError(f"{path} has no clips; expected a header and a line for each clip.")
    return list(clips.values())


def split_groups(
    groups: Sequence[str],
    validation_groups: Sequence[str],
    test_groups: Sequence[str],
    has_validation: bool,
    seed: int,
) -> dict[str, list[str]]:
    """
    The groups of each split; those of `validation` and `test` are drawn if none are named.

    Raises:
        ValueError: If a name is no group, is in two splits, or no group is left to train on.
    """
    if unknown := sorted({*validation_groups, *test_groups} - set(groups)):
        raise ValueError(f"Received the groups {unknown}, which the table does not have; it has {sorted(groups)}.")
    if twice := sorted(set(validation_groups) & set(test_groups)):
        raise ValueError(f"Received the groups {twice} for validation and for test; a group is in one split only.")
    rest = [group for group in sorted(groups) if group not in {*validation_groups, *test_groups}]
    np.random.default_rng(seed).shuffle(rest)
    chosen = {"validation": list(validation_groups), "test": list(test_groups)}
    for split, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE if has_validation else 0)):
        if not chosen[split] and share:
            count = max(1, round(share * len(groups)))
            chosen[split], rest = rest[:count], rest[count:]
    if not rest:
        raise ValueError(
            f"Of {len(groups)} groups none is left to train on; name fewer, or give the clips more groups."
        )
    return {"train": rest, **chosen}


def plan_parts(
    rng: np.random.Generator, clips: list[ShortClip], num_frames: Callable[[ShortClip], int], settings: Settings
) -> list[Part]:
    """
    Draws what a composed video shows, part after part.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        clips (`list[ShortClip]`): Those of a scene.
        num_frames (`Callable`): How many frames a clip has at the composed video's rate.
        settings ([`Settings`]): Numbers of clips, and how long a gap is at most.
    """
    clips_by_label: dict[str, list[ShortClip]] = {}
    for clip in clips:
        clips_by_label.setdefault(clip.label, []).append(clip)
    askable = [label for label, group in clips_by_label.items() if any(clip.sentence for clip in group)]
    most = min(settings.max_clips, len(askable), len(clips_by_label) - (settings.min_labels - settings.min_clips))
    asked = [str(label) for label in rng.permutation(askable)[: rng.integers(settings.min_clips, most + 1)]]
    others = [str(label) for label in rng.permutation([label for label in clips_by_label if label not in asked])]

    def draw(label: str, has_sentence: bool) -> ShortClip:
        candidates = [clip for clip in clips_by_label[label] if clip.sentence or not has_sentence]
        return candidates[rng.integers(len(candidates))]

    def draw_gap() -> list[Part]:
        length = int(rng.integers(settings.max_gap_frames + 1))
        if not length:
            return []
        clip = draw(others[rng.integers(len(others))], False)
        length = min(length, num_frames(clip))
        return [Part(clip, int(rng.integers(num_frames(clip) - length + 1)), length, False)]

    whole = [(draw(label, True), True) for label in asked]
    whole += [(draw(label, False), False) for label in others[: rng.integers(settings.max_distractors + 1)]]
    parts = draw_gap()
    for index in rng.permutation(len(whole)):
        clip, has_sentence = whole[index]
        parts += [Part(clip, 0, num_frames(clip), has_sentence), *draw_gap()]
    return parts


def count_frames(path: str, fps: int) -> int:
    """
    Frames of a clip at a rate; what is left of less than a frame at its end is left out.

    Raises:
        ValueError: If the clip is shorter than one frame.
    """
    duration_seconds = probe(path).duration_seconds
    num_frames = int(round(duration_seconds * fps, 3))
    if not num_frames:
        raise ValueError(
            f"The clip {path} lasts {duration_seconds:.3f} s, less than a frame at {fps} frames a second."
        )
    return num_frames


def read_part(path: str | bytes, part: Part, settings: Settings) -> np.ndarray:
    """The frames of a part, `(num_frames, *size, 3)`: cropped in the middle to the proportions of `size`, scaled."""
    indices = part.first_index + np.arange(part.num_frames)
    frames = read_frames(path, (indices + 0.5) / settings.fps)
    (height, width), (to_height, to_width) = frames.shape[1:3], settings.size
    crop_height = min(height, round(width * to_height / to_width))
    crop_width = min(width, round(height * to_width / to_height))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    cropped = frames[:, top : top + crop_height, left : left + crop_width]
    return resize_frames(np.ascontiguousarray(cropped), settings.size)


def compose_example(task: tuple[str, list[Part]], videos: Path, output_dir: Path, settings: Settings) -> dict:
    """Writes the video `task = (video_id, parts)`; returns its row of annotations, sentences in the order of time."""
    video_id, parts = task
    files = VideoFiles(videos)
    frames = (frame for part in parts for frame in read_part(files.find(part.clip.video), part, settings))
    path = output_dir / "videos" / f"{video_id}.mp4"
    write_video(path, frames, settings.fps, available_encoder(), H264_OPTIONS)
    edges_seconds = [edge / settings.fps for edge in accumulate((part.num_frames for part in parts), initial=0)]
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
    num_train: int = 200,
    num_validation: int = 0,
    num_test: int = 50,
    validation_groups: Sequence[str] = (),
    test_groups: Sequence[str] = (),
    min_clips: int = 3,
    max_clips: int = 6,
    max_distractors: int = 2,
    max_gap_seconds: float = 1.0,
    size: tuple[int, int] | None = None,
    fps: int = 10,
    seed: int = 0,
    num_workers: int | None = None,
) -> None:
    """
    Compose a data set: `output_dir/videos/*.mp4`, a `datasets.DatasetDict` in `output_dir`, and `generation.json`.

    Videos are made in processes of their own. In a script, call this under `if __name__ == "__main__":`.

    Args:
        table (`str` or `Path`): The clips, see [`read_clip_table`].
        videos (`str` or `Path`): Folder that their paths start from.
        output_dir (`str` or `Path`): Folder to write to; new or empty.
        num_train, num_validation, num_test (`int`, *optional*): Videos of each split.
        validation_groups, test_groups (`Sequence[str]`, *optional*):
            Groups of these splits; all others are trained on. If none are named, a tenth and a fifth are drawn.
        min_clips, max_clips (`int`, *optional*, default to 3 and 6): Clips of a video that a sentence asks for.
        max_distractors (`int`, *optional*, defaults to 2): Whole clips that none asks for, at most.
        max_gap_seconds (`float`, *optional*, defaults to 1.0):
            Longest gap before, between and after clips, in seconds; each is between 0 and this.
        size (`tuple[int, int]`, *optional*): Height and width, in pixels, even; those of the first clip if not given.
        fps (`int`, *optional*, defaults to 10): Frames per second.
        seed (`int`, *optional*, defaults to 0): Seed of all randomness.
        num_workers (`int`, *optional*): Number of processes, by default one for each CPU. The result is the same.

    Raises:
        ValueError: If a number is out of range, the table or the groups do not fit, a scene has too few clips of
            different labels, a clip is shorter than a frame, or `output_dir` is not empty.
        FileNotFoundError: If a clip is missing.
        VideoReadError: If a clip cannot be read.
    """
    at_least = {"num_train": 1, "num_validation": 0, "num_test": 1, "min_clips": 1, "max_clips": min_clips, "fps": 1}
    at_least |= {"max_distractors": 0, "max_gap_seconds": 0, "seed": 0}
    arguments = {name: value for name, value in locals().items() if name in at_least}
    for name, minimum in at_least.items():
        if arguments[name] < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {arguments[name]}.")
    if validation_groups and not num_validation:
        raise ValueError(f"Received the validation groups {list(validation_groups)}, but num_validation=0.")
    clips = read_clip_table(Path(table))
    files = VideoFiles(videos)
    paths = {clip: str(files.find(clip.video)) for clip in clips}
    if size is None:
        height, width = read_frames(paths[clips[0]], [0.0]).shape[1:3]
        size = (height - height % 2, width - width % 2)
    if min(size) < 2 or size[0] % 2 or size[1] % 2:
        raise ValueError(
            f"`size` must be two even numbers of pixels, as h264 stores colour at half the size, got {size}."
        )

    groups = split_groups(
        list(dict.fromkeys(clip.group for clip in clips)), validation_groups, test_groups, num_validation > 0, seed
    )
    settings = Settings(min_clips, max_clips, max_distractors, round(max_gap_seconds * fps), size, fps)
    by_scene: dict[str, list[ShortClip]] = {}
    for clip in clips:
        by_scene.setdefault(clip.scene, []).append(clip)
    for scene, scene_clips in by_scene.items():
        num_labels, num_with_sentence = (
            len({clip.label for clip in scene_clips if clip.sentence or not only_with_sentence})
            for only_with_sentence in (False, True)
        )
        if num_labels < settings.min_labels or num_with_sentence < min_clips:
            raise ValueError(
                f"The clips of {scene.strip()!r} have {num_labels} labels, {num_with_sentence} of them with a "
                f"sentence; a "
                f"video needs {settings.min_labels} (one more than min_clips where there are gaps or distractors), "
                f"{min_clips} with a sentence. Join clips of larger groups, or lower min_clips."
            )

    @cache
    def num_frames(clip: ShortClip) -> int:
        return count_frames(paths[clip], fps)

    tasks: dict[str, list] = {}
    for split, count in {"train": num_train, "validation": num_validation, "test": num_test}.items():
        scenes = [scene_clips for scene_clips in by_scene.values() if scene_clips[0].group in groups[split]]
        # So that the first videos of a split are not all of one group.
        np.random.default_rng([seed, SPLITS.index(split)]).shuffle(scenes)
        for index in range(count):
            rng = np.random.default_rng([seed, SPLITS.index(split), index])
            parts = plan_parts(rng, scenes[index % len(scenes)], num_frames, settings)
            tasks.setdefault(split, []).append((f"{split}_{index:05d}", parts))
    make_data_set(
        Path(output_dir),
        partial(compose_example, videos=Path(videos), output_dir=Path(output_dir), settings=settings),
        tasks,
        {**arguments, "size": size, "groups": groups},
        num_workers,
    )
    from .preparation import print_next_commands

    for split, split_items in tasks.items():
        num_sentences = sum(part.has_sentence for _, parts in split_items for part in parts)
        print(
            f"{split}: {len(split_items):,} videos with {num_sentences:,} sentences, of {len(groups[split]):,} groups"
        )
    print(f"Written to {output_dir}, the videos to {Path(output_dir) / 'videos'}.")
    print_next_commands(output_dir, None, list(tasks))
