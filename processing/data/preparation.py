"""
Preparation of annotations for training and evaluation.

[`prepare_dataset`] cleans the sentences of annotation files, inspects their videos, and saves a data set with one row
per video. A report counts the sentences read, clipped, repaired and dropped.
"""

import json
import os
import random
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value

from ..video_url import is_url
from .annotations import find_shared_videos
from .cleaning import MAX_DIFFERENCE_SECONDS, AnnotatedVideo, clean_videos, group_by_video, sum_reports
from .files import VideoFiles, find_videos, without_extension
from .formats import READERS, Sentence, malformed_annotation, read_durations
from .inspection import inspect_videos


FEATURES = Features(
    {
        "video": Value("string"),
        "video_id": Value("string"),
        "duration": Value("float64"),
        "sentences": [Value("string")],
        "segments": [[[Value("float64")]]],
    }
)
# Split names as words of a file name, such as "train" and "val_1". The last ones are the -CD and -CG splits.
SPLIT_IN_FILE_NAME = re.compile(
    r"(?<![a-z0-9])(train|validation|val(_\d)?|test(_iid|_ood|_trivial)?|novel_composition|novel_word)(?![a-z0-9])"
)
SPLIT_NAME = r"\w+"
# Maximum number of printed names. The report contains all names.
NUM_PRINTED = 10
LINE_BREAK = "\n  "


def _group_by_split(sentences: Iterable[Sentence], path: Path, split: str | None) -> dict[str, list[Sentence]]:
    """
    Group the sentences of a file by split: the split of the sentence in the file, `split`, or the split in the file
    name, in this order of precedence.

    Raises:
        ValueError: If only some sentences have a split, if a split name is invalid, or if `split` is given but the
            sentences have splits.
    """
    splits: dict[str, list[Sentence]] = {}
    file_split = split or split_name(path)
    has_column = None
    for sentence in sentences:
        if has_column not in (None, sentence.split is not None):
            raise malformed_annotation(
                sentence.where, sentence.split or "no split", "a split for each sentence or for no sentence"
            )
        has_column = sentence.split is not None
        if has_column and split is not None:
            raise ValueError(
                f"Received --split {split}, but {path.name} contains the split of each sentence; remove --split."
            )
        if has_column and not re.fullmatch(SPLIT_NAME, str(sentence.split)):
            raise malformed_annotation(
                sentence.where, sentence.split, "a split of letters, digits and underscores, such as train"
            )
        splits.setdefault(sentence.split or file_split, []).append(sentence)
    return splits or {file_split: []}


def _draw_splits(
    videos: list[AnnotatedVideo], keys: Mapping[str, str], shares: Mapping[str, float], seed: int
) -> dict[str, list[AnnotatedVideo]]:
    """
    Assign videos at random to the split "train" and other splits. All names of a file belong to the same split.

    Args:
        videos (`list[AnnotatedVideo]`): Videos to assign.
        keys (`Mapping[str, str]`): Key for each video name. All names of a file have the same key.
        shares (`Mapping[str, float]`): Share of videos for each split but "train". Each share is > 0, their sum < 1.
        seed (`int`): Random seed. The result does not depend on the order of the videos.

    Returns:
        `dict[str, list[AnnotatedVideo]]`: "train" and the other splits, in the order of `videos`.

    Raises:
        ValueError: If there are fewer videos than splits.
    """
    drawn = sorted({keys[video.video] for video in videos})
    random.Random(seed).shuffle(drawn)
    split_by_key = dict.fromkeys(drawn, "train")
    first = 0
    for split, share in shares.items():
        last = first + max(1, round(share * len(drawn)))
        split_by_key.update(dict.fromkeys(drawn[first:last], split))
        first = last
    if first >= len(drawn):
        raise ValueError(
            f"{len(drawn)} videos are too few to draw {' and '.join(shares)} from and keep a training split; lower "
            "the shares."
        )
    splits: dict[str, list[AnnotatedVideo]] = {split: [] for split in ("train", *shares)}
    for video in videos:
        splits[split_by_key[keys[video.video]]].append(video)
    return splits


def _check_videos_found(paths: Mapping[str, str | None], files: VideoFiles, folder: Path) -> None:
    """
    Check that at least one video was found. URLs count as found.

    Raises:
        FileNotFoundError: If no file was found for any name.
    """
    if not paths or any(paths.values()):
        return
    available = [path.relative_to(folder).as_posix() for path in files.list_below()]
    name = next(iter(paths))
    raise FileNotFoundError(
        f"Could not find any of the {len(paths):,} videos, such as {name!r}, in {str(folder)!r} or the folders below. "
        "Tried all video extensions, names with and without 'v_', and other spellings. "
        + (f"The folder contains {_shorten(available, more='')}. " if available else "The folder contains no videos. ")
        + "Pass the folder of the videos with --videos, correct the names in the annotations, or omit --videos to "
        "prepare only the annotations."
    )


def split_name(path: Path) -> str:
    """Return the split in a file name, or "train": "val" for `highlight_val_release.jsonl`."""
    found = SPLIT_IN_FILE_NAME.search(path.stem.lower())
    return found.group(1) if found else "train"


def _load_existing(output: Path) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """
    Load the splits and reports of an earlier call from the output folder. First recover from an interrupted call.

    Raises:
        ValueError: If the folder contains other files.
    """
    new, old = _siblings(output)
    if old.exists() and not output.exists():
        old.rename(output)  # interrupted between the two renames of save_splits
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}, {}
    hint = "Choose a new or empty folder, or the output folder of an earlier call to add a split."
    if not (output / "dataset_dict.json").is_file() or not (output / "report.json").is_file():
        raise ValueError(f"{output} exists, but is not the output folder of an earlier call. {hint}")
    splits = DatasetDict.load_from_disk(str(output))
    # The folder is replaced as a whole, so other files would be lost.
    others = sorted({path.name for path in output.iterdir()} - {"dataset_dict.json", "report.json", *splits})
    if others or any(split.features != FEATURES for split in splits.values()):
        reason = f"contains {others}" if others else "contains other columns than `scada prepare` writes"
        raise ValueError(f"{output} {reason}. {hint}")
    return dict(splits), json.loads((output / "report.json").read_text(encoding="utf-8"))["splits"]


def save_splits(splits: dict[str, Dataset], report: dict[str, Any], output: Path) -> None:
    """Write data set and report next to the output folder, then swap folders, so the output is never incomplete."""
    new, old = _siblings(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    DatasetDict(splits).save_to_disk(str(new))
    (new / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if output.exists():
        output.rename(old)
    new.rename(output)
    if old.exists():
        shutil.rmtree(old)


def _siblings(output: Path) -> tuple[Path, Path]:
    """Return the temporary paths of the new output folder and of the replaced one."""
    new, old = (output.with_name(f".{output.name}.prepare_dataset.{kind}") for kind in ("new", "old"))
    return new, old


def prepare_dataset(
    format: str,
    annotations: Sequence[str | Path],
    output: str | Path,
    split: str | None = None,
    durations: Sequence[str | Path] | None = None,
    videos: str | Path | None = None,
    repair_reversed: str = "drop",
    check_videos: bool = False,
    num_workers: int | None = None,
    push_to_hub: str | None = None,
    validation_share: float = 0.0,
    test_share: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Prepare annotation files, and write the data set and `report.json` to a folder.

    Worker processes open the videos and import the main script again. In a script, call this function under
    `if __name__ == "__main__":`.

    Args:
        format (`str`): Format of the annotations, one of `READERS`.
        annotations (`Sequence[str | Path]`):
            Annotation files. Each file is one split, unless it contains the split of each sentence.
        output (`str` or `Path`):
            Output folder: new, empty, or the output of an earlier call. Other splits of an earlier call are kept.
        split (`str`, *optional*): Name of the split of a single file. Defaults to the split in the file name.
        durations (`Sequence[str | Path]`, *optional*): Csv files with durations of videos, see [`read_durations`].
        videos (`str` or `Path`, *optional*): Folder of the videos. By default, only the annotations are prepared.
        repair_reversed (`str`, *optional*, defaults to `"drop"`):
            Treatment of segments that end before they start: `"drop"` or `"swap"`.
        check_videos (`bool`, *optional*, defaults to `False`): Whether to decode all videos and report broken ones.
        num_workers (`int`, *optional*): Number of processes that open videos. Defaults to the number of CPUs.
        push_to_hub (`str`, *optional*): Hub id to upload the data set to.
        validation_share, test_share (`float`, *optional*, default to 0.0):
            Shares of the videos of the split "train" to move to the splits "validation" and "test", see
            [`_draw_splits`].
        seed (`int`, *optional*, defaults to 0): Random seed for [`_draw_splits`].

    Returns:
        `dict`: Report with the fields of [`Report`], summed over the splits of this call, and these entries:

        - `splits`: Fields of [`Report`] for each split in the folder, including splits of earlier calls.
        - `respelled_videos` (`video`, `file`): Videos found in another spelling, if any, see [`VideoFiles`].
        - `moved_videos` (`video`, `file`): Videos found in another folder, if any, see [`VideoFiles`].
        - `shared_videos` (`video`, `splits`): Videos in several splits of the folder, if any.
        - `broken_videos` (`video`, `reason`): Unreadable videos, if any or with `check_videos`.
        - `different_durations` (`video`, `annotated_seconds`, `own_seconds`): Videos whose duration differs from the
          annotation by more than 1 s, if any or with `check_videos`.

    Raises:
        FileNotFoundError: If a file or the folder of videos does not exist, or if no video is found.
        RuntimeError: If a worker process cannot start.
        ValueError: If arguments conflict, a file is malformed, no sentence of a split is kept, the output folder
            contains other files, or several files match a video.
    """
    num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    _check_arguments(format, annotations, split, durations, videos, repair_reversed, check_videos, num_workers)
    _check_shares(validation_share, test_share)
    output = Path(output).resolve()
    existing, existing_reports = _load_existing(output)

    durations_by_id = read_durations(map(Path, durations or []))
    grouped: dict[str, list[AnnotatedVideo]] = {}
    files: dict[str, Path] = {}
    for path in map(Path, annotations):
        for name, sentences in _group_by_split(READERS[format](path), path, split).items():
            if name in files:
                raise ValueError(
                    f"Received two files of the same split: {name} ({files[name].name}), {name} ({path.name}). "
                    "Prepare each file separately with --split."
                )
            files[name] = path
            grouped[name] = group_by_video(sentences, durations_by_id)
    shares = {name: share for name, share in (("validation", validation_share), ("test", test_share)) if share}
    if shares and ("train" not in grouped or shares.keys() & grouped.keys()):
        raise ValueError(
            f"Received shares for {' and '.join(shares)}, which require a split train and no other split of that "
            f"name; the annotations have the splits {', '.join(grouped)}. Omit the shares, or pass --split train."
        )

    # A video of several splits is one file.
    by_name: dict[str, AnnotatedVideo] = {}
    for video in chain(*grouped.values()):
        by_name.setdefault(video.video, video)
    video_files = VideoFiles(videos)
    paths = {} if videos is None else find_videos(by_name, video_files, Path(videos))
    if videos is not None:
        _check_videos_found(paths, video_files, Path(videos))
    keys = {name: without_extension(paths.get(name) or name) for name in by_name}
    if shares:
        grouped |= _draw_splits(grouped["train"], keys, shares, seed)
        files |= dict.fromkeys(shares, files["train"])
    local = {name: path for name, path in paths.items() if path and not is_url(path)}
    inspections = inspect_videos(local, Path(videos or ""), check_videos, num_workers)
    different = [
        {"video": name, "annotated_seconds": annotated, "own_seconds": inspection.duration_seconds}
        for name, inspection in inspections.items()
        if (annotated := by_name[name].duration_seconds) is not None
        and inspection.duration_seconds is not None
        and abs(annotated - inspection.duration_seconds) > MAX_DIFFERENCE_SECONDS
    ]
    broken = [{"video": name, "reason": found.problem} for name, found in inspections.items() if found.problem]

    splits, reports = {}, {}
    for name, split_videos in grouped.items():
        for video in split_videos:
            if video.duration_seconds is None and video.video in inspections:
                video.duration_seconds = inspections[video.video].duration_seconds
        rows, reports[name] = clean_videos(split_videos, paths, repair_reversed)
        if not rows:
            reasons = _count_reasons(reports[name].dropped) or "the file contains no sentences"
            raise ValueError(f"No sentence of {files[name]} was kept ({reasons}). Omit the file, or check --format.")
        splits[name] = Dataset.from_list(rows, features=FEATURES)

    report: dict[str, Any] = asdict(sum_reports(reports.values()))
    for kind, found in (("respelled_videos", video_files.respelled), ("moved_videos", video_files.moved)):
        if found:
            report[kind] = [{"video": name, "file": paths[name]} for name in found]
    names = {
        name: dict.fromkeys(without_extension(video) for video in split["video"])
        for name, split in (existing | splits).items()
    }
    if shared := find_shared_videos(names):
        report["shared_videos"] = [
            {"video": video, "splits": [name for name, split_names in names.items() if video in split_names]}
            for video in shared
        ]
    if check_videos or broken:
        report["broken_videos"] = broken
    if check_videos or different:
        report["different_durations"] = different
    report["splits"] = existing_reports | {name: asdict(split_report) for name, split_report in reports.items()}
    save_splits(existing | splits, report, output)
    _print_summary(report, files, output, videos, len(by_name))
    if push_to_hub is not None:
        DatasetDict.load_from_disk(str(output)).push_to_hub(push_to_hub)
    return report


def _check_arguments(
    format: str,
    annotations: Sequence[str | Path],
    split: str | None,
    durations: Sequence[str | Path] | None,
    videos: str | Path | None,
    repair_reversed: str,
    check_videos: bool,
    num_workers: int,
) -> None:
    if format not in READERS:
        raise ValueError(f"Received format={format!r}; expected one of {list(READERS)}.")
    if repair_reversed not in ("drop", "swap"):
        raise ValueError(f"Received repair_reversed={repair_reversed!r}; expected 'drop' or 'swap'.")
    if num_workers < 1:
        raise ValueError(f"Received num_workers={num_workers}; expected at least 1.")
    for path in map(Path, [*annotations, *(durations or [])]):
        if not path.is_file():
            raise FileNotFoundError(f"The file {path} does not exist; check the path.")
    if videos is not None and not Path(videos).is_dir():
        raise FileNotFoundError(f"The folder {videos} does not exist; correct --videos, or omit it.")
    if check_videos and videos is None:
        raise ValueError("Received --check_videos without --videos; pass the folder of the videos.")
    if split is not None and len(annotations) > 1:
        raise ValueError(f"Received --split {split} for {len(annotations)} files; expected a single file.")
    if split is not None and not re.fullmatch(SPLIT_NAME, split):
        raise ValueError(f"Received --split {split!r}; expected letters, digits and underscores.")


def _check_shares(validation_share: float, test_share: float) -> None:
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise ValueError(f"Received --{name} {share}; expected a share from 0 to below 1, such as 0.1.")
    if validation_share + test_share >= 1:
        raise ValueError(
            f"Received --validation_share {validation_share} and --test_share {test_share}, which leave no "
            "training videos; expected shares that sum to less than 1."
        )


def _count_reasons(dropped: list[dict[str, str]]) -> str:
    # Remove the times, which differ between entries.
    reasons = Counter(re.split(r" \(| of \d", entry["reason"])[0] for entry in dropped)
    return ", ".join(f"{count} because {reason}" for reason, count in reasons.items())


def _shorten(names: list[str], separator: str = ", ", more: str = ", see report.json") -> str:
    rest = len(names) - NUM_PRINTED
    return separator.join([*names[:NUM_PRINTED], *([f"and {rest:,} more{more}"] if rest > 0 else [])])


def _print_summary(
    report: dict[str, Any], files: dict[str, Path], output: Path, videos: str | Path | None, num_videos: int
) -> None:
    for name, path in files.items():
        split_report = report["splits"][name]
        print(
            f"{name} ({path.name}): {split_report['read']:,} sentences read, {split_report['kept']:,} kept, of "
            f"{split_report['videos']:,} videos; {split_report['clipped']:,} clipped to their video, "
            f"{split_report['repaired']:,} repaired, {len(split_report['dropped']):,} dropped"
        )
        if split_report["not_there"]:
            print(f"  marked as not in their video: {split_report['not_there']:,}")
        if split_report["dropped"]:
            print(f"  dropped: {_count_reasons(split_report['dropped'])}")
        if split_report["dropped_segments"]:
            print(f"  dropped segments of kept sentences: {_count_reasons(split_report['dropped_segments'])}")
        if split_report["repeated"]:
            print(f"  repeated, and kept: {split_report['repeated']:,}")
        if split_report["unequal_durations"]:
            print(f"  videos with several durations (using the longest): {split_report['unequal_durations']:,}")
    if report["missing"]:
        missing_share = f"{report['missing_videos']:,} of {num_videos:,}"
        print(f"{missing_share} videos are missing: {_shorten(report['missing'])}")
    for kind, how in (("respelled_videos", "in another spelling"), ("moved_videos", "in another folder")):
        if report.get(kind):
            lines = [f"{entry['video']}: {entry['file']}" for entry in report[kind]]
            print(f"{len(lines):,} videos were found {how}:{LINE_BREAK}{_shorten(lines, LINE_BREAK)}")
    if report.get("shared_videos"):
        lines = [f"{entry['video']} ({', '.join(entry['splits'])})" for entry in report["shared_videos"]]
        print(
            f"Warning: {len(lines):,} videos are in several splits. Do not train on one and evaluate on another: "
            f"{_shorten(lines)}"
        )
    if report["without_duration"]:
        print(
            f"{len(report['without_duration']):,} videos have no known duration, so the ends of segments were "
            f"not clipped. Pass --durations or --videos: {_shorten(report['without_duration'])}"
        )
    if report.get("broken_videos"):
        lines = [f"{entry['video']}: {entry['reason']}" for entry in report["broken_videos"]]
        print(f"{len(lines):,} videos are broken:{LINE_BREAK}{_shorten(lines, LINE_BREAK)}")
    if report.get("different_durations"):
        lines = [
            f"{entry['video']}: {entry['own_seconds']:.2f} s, annotated as {entry['annotated_seconds']:.2f} s"
            for entry in report["different_durations"]
        ]
        print(
            f"{len(lines):,} videos differ from their annotated duration by more than {MAX_DIFFERENCE_SECONDS:g} s. "
            f"Their annotations were not changed:{LINE_BREAK}{_shorten(lines, LINE_BREAK)}"
        )
    print(f"Data set saved to {output}, report to {output / 'report.json'}.")
    print_next_commands(output, videos, list(report["splits"]))


def print_next_commands(output: str | Path, videos: str | Path | None, splits: Sequence[str]) -> None:
    """
    Print the commands to train and evaluate on a data set.

    Args:
        output (`str` or `Path`): Folder of the data set.
        videos (`str` or `Path`, *optional*): Folder of the videos. Defaults to the folder of the data set.
        splits (`Sequence[str]`): Names of the splits.
    """
    others = [split for split in splits if split != "train"]
    evaluated = "test" if "test" in splits else (others or list(splits))[-1]
    folder = shlex.quote(str(output))
    root = "" if videos is None else f" --video_root {shlex.quote(str(videos))}"
    if "train" in splits:
        chosen_by = f" --validation_split {others[0]}" if others and others[0] != evaluated else ""
        print(f"To train on it: scada train RECIPE.json --dataset {folder}{root} --eval_split {evaluated}{chosen_by}")
    print(f"To evaluate a model on it: scada evaluate MODEL {folder} --split {evaluated}{root}")
