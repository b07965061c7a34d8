"""Search an index: the retrieval branch ranks windows, then the head scores segments in the best windows."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from processing.fingerprint import check_fingerprint
from processing.pipeline_temporal_grounding import TemporalGroundingPipeline, as_sentences
from processing.timeline import Timeline

from .index import HEAD_BATCH_SIZE, stat_video, window_ranges
from .storage import EMBEDS, FACTS, VideoFile, find_videos_folder, list_files, read_index, read_shard, to_tensor


# Number of windows whose embeddings are multiplied at once.
SIMILARITY_BATCH_SIZE = 64


class Library:
    """
    Index opened for search. Its rows are windows, sorted by video.

    Args:
        index (`str` or `PathLike`): Folder of the index.
        video_root (`str` or `PathLike`, *optional*):
            Folder of the videos. By default their folder at indexing time, relative to the index.

    Raises:
        FileNotFoundError: If the index or the folder of the videos does not exist.
        ValueError: If the index is corrupt, or was written by an incompatible version.
    """

    def __init__(self, index: str | os.PathLike, video_root: str | os.PathLike | None = None):
        self.path = Path(index)
        self.facts = read_index(self.path)
        if video_root is not None and not os.path.isdir(video_root):
            raise FileNotFoundError(f"There is no folder of videos at {video_root}.")
        self.has_own_folder = video_root is None
        self.folder = os.path.normpath(video_root or find_videos_folder(self.path, self.facts))
        if video_root is None and not self.path.is_absolute():
            self.folder = os.path.relpath(self.folder)
        self.tables = [read_shard(path) for path in sorted(self.path.glob("part-*.arrow"))]
        found: list[tuple[str, int, int, int]] = []
        shard_by_video: dict[str, int] = {}
        self.files: dict[str, VideoFile] = {}
        for number, table in enumerate(self.tables):
            windows = table.column("window").to_pylist()
            for row, ((video, *file), window) in enumerate(zip(list_files(table), windows, strict=True)):
                # If two processes encoded the same video, only one copy counts.
                if shard_by_video.setdefault(video, number) == number:
                    self.files[video] = VideoFile(*file)
                    found.append((video, window, number, row))
        found.sort()
        self.videos = [video for video, *_ in found]
        self.places = np.array([place for _, _, *place in found], dtype=np.int64).reshape(-1, 2)
        # The memory-mapped tensors of the rows, by name and shard.
        names = [name for name in self.tables[0].column_names if name not in FACTS] if self.tables else []
        self.columns = {name: [to_tensor(table, name) for table in self.tables] for name in names}
        starts, ends = (
            [table.column(name).to_numpy() for table in self.tables] for name in ("start_seconds", "end_seconds")
        )
        self.timelines = [
            Timeline(float(starts[number][row]), float(ends[number][row])) for number, row in self.places.tolist()
        ]

    def video_path(self, video: str) -> str:
        """Return the path of a video's file."""
        return os.path.normpath(os.path.join(self.folder, video))

    def missing_videos(self) -> list[str]:
        """Return the paths of the video files that do not exist."""
        paths = (self.video_path(video) for video in dict.fromkeys(self.videos))
        return [path for path in paths if not os.path.isfile(path)]

    def changed_videos(self) -> list[str]:
        """
        Return the paths of the videos whose size or modification time has changed since indexing.

        With a `video_root`, only sizes are compared, because a copy may have different modification times.
        """
        changed = []
        for video, file in sorted(self.files.items()):
            path = self.video_path(video)
            try:
                found = stat_video(Path(path))
            except OSError:
                continue  # `missing_videos` reports it
            if found.size != file.size or (self.has_own_folder and found != file):
                changed.append(path)
        return changed

    def tensors(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Return a copy of the encoded tensors of some windows."""
        places = self.places[rows].tolist()
        return {
            name: torch.stack([column[number][row] for number, row in places])
            for name, column in self.columns.items()
            if name != EMBEDS
        }

    def window_similarities(self, sentence_embeds: torch.Tensor) -> torch.Tensor:
        """
        Score every window for every sentence.

        Args:
            sentence_embeds (`torch.Tensor` of shape `(Q, E)`): Sentence embeddings of the retrieval branch.

        Returns:
            `torch.Tensor` of shape `(Q, rows)`: Largest dot product between the sentence and a proposal of the window.
        """
        by_table = []
        for embeds in self.columns[EMBEDS]:
            products = [
                (embeds[start:stop].float() @ sentence_embeds.T).amax(1)
                for start, stop in window_ranges(len(embeds), SIMILARITY_BATCH_SIZE)
            ]
            by_table.append(torch.cat(products))
        starts = np.cumsum([0, *map(len, by_table)])
        return torch.cat(by_table)[torch.from_numpy(starts[self.places[:, 0]] + self.places[:, 1])].T


@torch.no_grad()
def search(
    index: "str | os.PathLike | Library",
    sentences: str | list[str],
    pipe: TemporalGroundingPipeline,
    top_k: int = 10,
    num_candidates: int = 200,
    nms: float | None = 0.5,
    progress: Callable[[float], Any] | None = None,
) -> list[dict[str, Any]]:
    """
    Find the segments that sentences describe, in all videos of an index.

    A retrieval branch ranks the windows by dot product, and the head then scores only the best windows. Without a
    retrieval branch, the head scores all windows.

    Args:
        index (`str`, `PathLike` or [`Library`]): Index to search.
        sentences (`str` or `list[str]`): Sentence or sentences to search for.
        pipe ([`TemporalGroundingPipeline`]): Pipeline with the model that encoded the index.
        top_k (`int`, *optional*, defaults to 10): Maximum number of segments per sentence, over all videos.
        num_candidates (`int`, *optional*, defaults to 200): Number of windows that the head scores per sentence.
        nms (`float`, *optional*, defaults to 0.5):
            Width of the decay of soft non-maximum suppression within each video. `None` ranks by score alone.
        progress (`Callable`, *optional*):
            Function called with the share of the windows that the head has scored, from 0 to 1.

    Returns:
        `list[dict]`: One dictionary per sentence, with `sentence` and `segments`. Each segment is a dictionary with
        `video`, `score`, `start` and `end`, sorted by score. `video` is the path of the file, and times are in seconds
        from its first frame. Segments also have `found` if the processor has a threshold for it.

    Raises:
        ValueError: If the index belongs to another model or other settings, or no sentence is given.
        FileNotFoundError: If the index does not exist.
    """
    if num_candidates < 1:
        raise ValueError(f"Received num_candidates={num_candidates}; expected a positive number of windows.")
    library = index if isinstance(index, Library) else Library(index)
    check_fingerprint(f"the index {library.path}", library.facts["made_with"], pipe.fingerprint())
    sentences = as_sentences(sentences)
    encoded = pipe.processor.encode_text([sentences])
    rows = [np.arange(len(library.videos))] * len(sentences)
    model: Any = pipe.model
    if model.config.retrieval_dim and len(library.videos) > num_candidates:
        tokens = [torch.from_numpy(encoded[name][0]).to(pipe.device) for name in ("input_ids", "attention_mask")]
        with pipe.get_inference_context()():
            embeds = model.embed_sentences(*tokens).float().cpu()
        products = library.window_similarities(embeds)
        rows = [np.sort(best.numpy()) for best in products.topk(num_candidates).indices]
    results: list[dict[str, Any]] = []
    for sentence, sentence_rows in zip(sentences, rows, strict=True):

        def report_share(share: float, num_finished: int = len(results)) -> None:
            if progress is not None:
                progress((num_finished + share) / len(sentences))

        found: list[dict[str, Any]] = [
            {"video": library.video_path(video), **segment}
            for video, result in _ground(library, sentence_rows, sentence, pipe, top_k, nms, report_share)
            for segment in pipe.format_segments(result)
        ]
        found.sort(key=lambda segment: -segment["score"])
        results.append({"sentence": sentence, "segments": found[:top_k]})
    return results


def _ground(
    library: Library,
    rows: np.ndarray,
    sentence: str,
    pipe: TemporalGroundingPipeline,
    top_k: int,
    nms: float | None,
    progress: Callable[[float], None],
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each video of some windows with its segments. Memory holds the outputs of one batch and one video."""
    pending: list[dict[str, torch.Tensor]] = []
    waiting: list[int] = []

    def finish() -> tuple[str, dict[str, np.ndarray]]:
        outputs = {name: torch.cat([one[name] for one in pending]) for name in pending[0]}
        timelines = [library.timelines[row] for row in waiting]
        ((result,),) = pipe.processor.post_process_temporal_grounding(
            outputs, timelines, top_k=top_k, nms=nms, merge_windows=True
        )
        video = library.videos[waiting[0]]
        pending.clear()
        waiting.clear()
        return video, result

    for start, stop in window_ranges(len(rows), HEAD_BATCH_SIZE):
        outputs = pipe.ground_encoded(library.tensors(rows[start:stop]), [sentence])
        for place, row in enumerate(rows[start:stop]):
            if waiting and library.videos[row] != library.videos[waiting[0]]:
                yield finish()
            pending.append({name: tensor[place : place + 1] for name, tensor in outputs.items()})
            waiting.append(row)
        progress(stop / len(rows))
    if waiting:
        yield finish()


__all__ = ["Library", "search"]
