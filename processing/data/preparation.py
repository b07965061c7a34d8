"""
Preparing annotations for training and evaluation: sentences of annotation files are cleaned, their videos inspected,
and one data set with a row a video is saved, with a report of what was read, clipped, repaired and dropped.
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
from .files import VideoFiles, without_extension
from .formats import READERS, Sentence, malformed, read_durations
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
# "train", "val_1" and the like, as a word of a file's name; the last ones are those of the -CD and -CG splits.
SPLIT_IN_FILE_NAME = re.compile(
    r"(?<![a-z0-9])(train|validation|val(_\d)?|test(_iid|_ood|_trivial)?|novel_composition|novel_word)(?![a-z0-9])"
)
SPLIT_NAME = r"\w+"
# So many names are printed; all are in the report.
NUM_PRINTED = 10
LINE_BREAK = "\n  "


def group_by_split(sentences: Iterable[Sentence], path: Path, split: str | None) -> dict[str, list[Sentence]]:
    """
    The sentences of a file by their split: the one that the file says for each, else `split`, else the one that the
    file's name tells.

    Raises:
        ValueError: If the file says the split of some sentences only, if it is no possible name, or if it says the
            splits and `split` is given.
    """
    splits: dict[str, list[Sentence]] = {}
    file_split = split or split_name(path)
    has_column = None
    for sentence in sentences:
        if has_column not in (None, sentence.split is not None):
            raise malformed(sentence.where, sentence.split or "no split", "a split for each sentence, or for no one")
        has_column = sentence.split is not None
        if has_column and split is not None:
            raise ValueError(
                f"Received --split {split}, but {path.name} says the split of each sentence; leave it out."
            )
        if has_column and not re.fullmatch(SPLIT_NAME, str(sentence.split)):
            raise malformed(
                sentence.where, sentence.split, "a split of letters, digits and underscores, such as train"
            )
        splits.setdefault(sentence.split or file_split, []).append(sentence)
    return splits or {file_split: []}


def draw_splits(
    videos: list[AnnotatedVideo], keys: Mapping[str, str], shares: Mapping[str, float], seed: int
) -> dict[str, list[AnnotatedVideo]]:
    """
    Videos drawn at random into the split "train" and others. All names of a file come into one split.

    Args:
        videos (`list[AnnotatedVideo]`): The videos.
        keys (`Mapping[str, str]`): For the name of each video what is equal for all names of its file.
        shares (`Mapping[str, float]`): The share of the videos of each other split, each above 0, together below 1.
        seed (`int`): Seed of the draw, which does not depend on the order of the videos.

    Returns:
        `dict[str, list[AnnotatedVideo]]`: "train" and the other splits, each in the order of `videos`.

    Raises:
        ValueError: If the videos are too few for a video in each split.
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
            f"{len(drawn)} videos are too few to draw {' and '.join(shares)} from and to train on the rest; lower the "
            "shares."
        )
    splits: dict[str, list[AnnotatedVideo]] = {split: [] for split in ("train", *shares)}
    for video in videos:
        splits[split_by_key[keys[video.video]]].append(video)
    return splits


def find_videos(names: Iterable[str], files: VideoFiles, folder: Path) -> dict[str, str | None]:
    """For each name the path of its file relative to `folder`, or the URL that it is; `None` if there is no file."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            path = str(files.find(name))
        except FileNotFoundError:
            found[name] = None  # listed in the report
            continue
        found[name] = Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path
    return found


def check_videos_found(paths: Mapping[str, str | None], files: VideoFiles, folder: Path) -> None:
    """
    Raises:
        FileNotFoundError: If names were looked for, and no file was found for any of them; URLs count as found.
    """
    if not paths or any(paths.values()):
        return
    there = [path.relative_to(folder).as_posix() for path in files.list_below()]
    name = next(iter(paths))
    raise FileNotFoundError(
        f"None of the {len(paths):,} videos is in {str(folder)!r}. Looked for {name!r} and the others, with any "
        "extension that videos have, with or without 'v_' before the name, in any spelling, and in the folders below. "
        + (f"The videos there are: {_shorten(there, more='')}. " if there else "No video is there. ")
        + "Name their folder with --videos, correct the names in the annotations, or leave --videos out to prepare "
        "the annotations alone."
    )


def split_name(path: Path) -> str:
    """The split that a file's name tells, else "train": `highlight_val_release.jsonl` is "val"."""
    found = SPLIT_IN_FILE_NAME.search(path.stem.lower())
    return found.group(1) if found else "train"


def load_existing(output: Path) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """
    What an earlier call wrote to the output folder: its splits and their reports. First puts right what a call that
    was killed left beside it.

    Raises:
        ValueError: If something else is in the folder.
    """
    new, old = _siblings(output)
    if old.exists() and not output.exists():
        old.rename(output)  # killed between the two renames of `save`
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}, {}
    refusal = "Name a new or an empty folder, or one that this script wrote, which then gets another split."
    if not (output / "dataset_dict.json").is_file() or not (output / "report.json").is_file():
        raise ValueError(f"{output} exists, and is no data set that this script wrote. {refusal}")
    splits = DatasetDict.load_from_disk(str(output))
    # The folder is replaced as a whole, so what is not ours would be lost.
    others = sorted({path.name for path in output.iterdir()} - {"dataset_dict.json", "report.json", *splits})
    if others or any(split.features != FEATURES for split in splits.values()):
        reason = f"has {others} in it" if others else "has other columns than this script writes"
        raise ValueError(f"{output} {reason}. {refusal}")
    return dict(splits), json.loads((output / "report.json").read_text(encoding="utf-8"))["splits"]


def save(splits: dict[str, Dataset], report: dict[str, Any], output: Path) -> None:
    """Writes data set and report next to the output folder, then swaps: the folder is never there in part."""
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
    """Where the folder is put together, and where the one that it replaces goes for the moment."""
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

    Videos are opened in processes of their own. In a script, call this under `if __name__ == "__main__":`, since these
    processes import the script again.

    Args:
        format (`str`): Format of the annotations, one of `READERS`.
        annotations (`Sequence[str | Path]`):
            Annotation files. Each is a split, unless its sentences say theirs.
        output (`str` or `Path`):
            Folder to write to: new, empty, or written by an earlier call, whose other splits stay.
        split (`str`, *optional*): Name of the split; only for a single file, whose name tells it if not given.
        durations (`Sequence[str | Path]`, *optional*): Durations of videos, see [`read_durations`].
        videos (`str` or `Path`, *optional*): Folder of the videos; without it the annotations alone are prepared.
        repair_reversed (`str`, *optional*, defaults to `"drop"`):
            What to do with segments that end before they start: `"drop"` or `"swap"`.
        check_videos (`bool`, *optional*, defaults to `False`): Decode all videos, and report those that are broken.
        num_workers (`int`, *optional*): Number of processes that open videos, by default one for each CPU.
        push_to_hub (`str`, *optional*): Hub id to upload the data set to.
        validation_share, test_share (`float`, *optional*, default to 0.0):
            Shares of the videos of the split "train" that become the splits "validation" and "test", see
            [`draw_splits`].
        seed (`int`, *optional*, defaults to 0): Seed of that draw.

    Returns:
        `dict`: The report: fields of [`Report`] over the splits of this call; `splits`, the same for each split in the
        folder, those of earlier calls too; `respelled_videos` (`video`, `file`) if files were found in another
        spelling, `moved_videos` (the same) if they were found elsewhere than their names say, see [`VideoFiles`];
        `shared_videos` (`video`, `splits`) if videos are in several splits of the folder; `broken_videos` (`video`,
        `reason`) if videos were checked or one could not be opened; `different_durations` (`video`,
        `annotated_seconds`, `own_seconds`) if videos were checked or one differs by more than 1 s.

    Raises:
        FileNotFoundError: If a file or the folder of videos does not exist, or if no video is found.
        RuntimeError: If the processes that open videos cannot start.
        ValueError: If arguments do not fit each other, a file is malformed, a split has no sentence left, or the
            output folder holds something else; or if several files fit a video's name.
    """
    num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    _check_arguments(format, annotations, split, durations, videos, repair_reversed, check_videos, num_workers)
    _check_shares(validation_share, test_share)
    output = Path(output).resolve()
    existing, existing_reports = load_existing(output)

    durations_by_id = read_durations(map(Path, durations or []))
    grouped: dict[str, list[AnnotatedVideo]] = {}
    files: dict[str, Path] = {}
    for path in map(Path, annotations):
        for name, sentences in group_by_split(READERS[format](path), path, split).items():
            if name in files:
                raise ValueError(
                    f"Received files of one and the same split: {name} ({files[name].name}), {name} ({path.name}). "
                    "Prepare them one by one with --split."
                )
            files[name] = path
            grouped[name] = group_by_video(sentences, durations_by_id)
    shares = {name: share for name, share in (("validation", validation_share), ("test", test_share)) if share}
    if shares and ("train" not in grouped or shares.keys() & grouped.keys()):
        raise ValueError(
            f"Received shares for {' and '.join(shares)}, which are drawn from the split train; the annotations have "
            f"the splits {', '.join(grouped)}. Leave the shares out, or name the file's split with --split train."
        )

    # A video that several splits annotate is one file.
    by_name: dict[str, AnnotatedVideo] = {}
    for video in chain(*grouped.values()):
        by_name.setdefault(video.video, video)
    video_files = VideoFiles(videos)
    paths = {} if videos is None else find_videos(by_name, video_files, Path(videos))
    if videos is not None:
        check_videos_found(paths, video_files, Path(videos))
    keys = {name: without_extension(paths.get(name) or name) for name in by_name}
    if shares:
        grouped |= draw_splits(grouped["train"], keys, shares, seed)
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
    for name, split_items in grouped.items():
        for video in split_items:
            if video.duration_seconds is None and video.video in inspections:
                video.duration_seconds = inspections[video.video].duration_seconds
        rows, reports[name] = clean_videos(split_items, paths, repair_reversed)
        if not rows:
            reasons = _count_reasons(reports[name].dropped) or "there is none in it"
            raise ValueError(f"No sentence of {files[name]} is left ({reasons}); leave it out, or check --format.")
        splits[name] = Dataset.from_list(rows, features=FEATURES)

    report: dict[str, Any] = asdict(sum_reports(reports.values()))
    for kind, found in (("respelled_videos", video_files.respelled), ("moved_videos", video_files.moved)):
        if found:
            report[kind] = [{"video": name, "file": paths[name]} for name in found]
    names = {
        name: dict.fromkeys(without_extension(video) for video in split_items["video"])
        for name, split_items in (existing | splits).items()
    }
    if shared := find_shared_videos(names):
        report["shared_videos"] = [
            {"video": video, "splits": [name for name, split_items in names.items() if video in split_items]}
            for video in shared
        ]
    if check_videos or broken:
        report["broken_videos"] = broken
    if check_videos or different:
        report["different_durations"] = different
    report["splits"] = existing_reports | {name: asdict(split_items) for name, split_items in reports.items()}
    save(existing | splits, report, output)
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
            raise FileNotFoundError(f"There is no file {path}; check its path.")
    if videos is not None and not Path(videos).is_dir():
        raise FileNotFoundError(f"There is no folder {videos}; name that of the videos, or leave --videos out.")
    if check_videos and videos is None:
        raise ValueError("Received --check_videos without --videos; name the folder of the videos.")
    if split is not None and len(annotations) > 1:
        raise ValueError(f"Received --split {split} for {len(annotations)} files; it can name that of a single one.")
    if split is not None and not re.fullmatch(SPLIT_NAME, split):
        raise ValueError(f"Received --split {split!r}; expected letters, digits and underscores.")


def _check_shares(validation_share: float, test_share: float) -> None:
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise ValueError(f"Received --{name} {share}; expected a share from 0 to below 1, such as 0.1.")
    if validation_share + test_share >= 1:
        raise ValueError(
            f"Received --validation_share {validation_share} and --test_share {test_share}, which leave no video to "
            "train on; expected shares that sum to less than 1."
        )


def _count_reasons(dropped: list[dict[str, str]]) -> str:
    # Without the times, which differ from one to the next.
    reasons = Counter(re.split(r" \(| of \d", entry["reason"])[0] for entry in dropped)
    return ", ".join(f"{count} because {reason}" for reason, count in reasons.items())


def _shorten(names: list[str], separator: str = ", ", more: str = ", see report.json") -> str:
    rest = len(names) - NUM_PRINTED
    return separator.join([*names[:NUM_PRINTED], *([f"and {rest:,} more{more}"] if rest > 0 else [])])


def _print_summary(
    report: dict[str, Any], files: dict[str, Path], output: Path, videos: str | Path | None, num_videos: int
) -> None:
    for name, path in files.items():
        split_items = report["splits"][name]
        print(
            f"{name} ({path.name}): {split_items['read']:,} sentences read, {split_items['kept']:,} kept, of "
            f"{split_items['videos']:,} videos; {split_items['clipped']:,} clipped to their video, "
            f"{split_items['repaired']:,} repaired, {len(split_items['dropped']):,} dropped"
        )
        if split_items["not_there"]:
            print(f"  not in their video, by the file: {split_items['not_there']:,}")
        if split_items["dropped"]:
            print(f"  dropped: {_count_reasons(split_items['dropped'])}")
        if split_items["dropped_segments"]:
            print(f"  of sentences with others left: {_count_reasons(split_items['dropped_segments'])}")
        if split_items["repeated"]:
            print(f"  the same as a sentence further up, and kept: {split_items['repeated']:,}")
        if split_items["unequal_durations"]:
            print(
                f"  videos with several durations, of which the longest was taken: "
                f"{split_items['unequal_durations']:,}"
            )
    if report["missing"]:
        missing_share = f"{report['missing_videos']:,} of {num_videos:,}"
        print(f"{missing_share} videos are missing: {_shorten(report['missing'])}")
    for kind, how in (("respelled_videos", "in another spelling"), ("moved_videos", "elsewhere than named")):
        if report.get(kind):
            lines = [f"{entry['video']}: {entry['file']}" for entry in report[kind]]
            print(f"{len(lines):,} videos were found {how}:{LINE_BREAK}{_shorten(lines, LINE_BREAK)}")
    if report.get("shared_videos"):
        lines = [f"{entry['video']} ({', '.join(entry['splits'])})" for entry in report["shared_videos"]]
        print(
            f"Warning: {len(lines):,} videos are in several splits; do not train on one and evaluate on another: "
            f"{_shorten(lines)}"
        )
    if report["without_duration"]:
        print(
            f"{len(report['without_duration']):,} videos have no known duration, so ends of their segments could not "
            f"be clipped; give --durations or --videos: {_shorten(report['without_duration'])}"
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
            f"{len(lines):,} videos are more than {MAX_DIFFERENCE_SECONDS:g} s longer or shorter than annotated; "
            f"their annotations stay as they are:{LINE_BREAK}{_shorten(lines, LINE_BREAK)}"
        )
    print(f"Written to {output}, all names and reasons to {output / 'report.json'}.")
    print_next_commands(output, videos, list(report["splits"]))


def print_next_commands(output: str | Path, videos: str | Path | None, splits: Sequence[str]) -> None:
    """
    Prints the commands that train and evaluate on a data set.

    Args:
        output (`str` or `Path`): Folder of the data set.
        videos (`str` or `Path`, *optional*): Folder of its videos, if it is another one.
        splits (`Sequence[str]`): Names of its splits.
    """
    others = [split for split in splits if split != "train"]
    evaluated = "test" if "test" in splits else (others or list(splits))[-1]
    folder = shlex.quote(str(output))
    root = "" if videos is None else f" --video_root {shlex.quote(str(videos))}"
    if "train" in splits:
        chosen_by = f" --validation_split {others[0]}" if others and others[0] != evaluated else ""
        print(f"To train on it: scada train RECIPE.json --dataset {folder}{root} --eval_split {evaluated}{chosen_by}")
    print(f"To evaluate a model on it: scada evaluate MODEL {folder} --split {evaluated}{root}")
