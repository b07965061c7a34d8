"""Video-centric batches: a sample is a video with its sentences, so it is read and encoded once for all of them."""

from pathlib import Path
from typing import Any

import torch

from .annotations import resolve_video
from .processing_scada import ScadaProcessor


class TemporalGroundingCollator:
    """
    Rows of [`load_annotations`] to a batch of the model. Videos are read here, so in the workers of the `DataLoader`.

    Args:
        processor ([`ScadaProcessor`]): Reads videos, tokenizes sentences, turns seconds into labels.
        video_root (`str` or `Path`, *optional*): Folder that relative paths start from.
        max_sentences (`int`, *optional*):
            At most so many sentences of a video, drawn afresh each time; all of them if not given.
        blind (`bool`, *optional*, defaults to `False`):
            Replaces the pixels by noise: what the annotations alone let a model guess.

    Raises:
        ValueError: If `max_sentences` is not positive, or see [`ScadaProcessor`].
        FileNotFoundError, VideoReadError: If a video cannot be read.
    """

    def __init__(
        self,
        processor: ScadaProcessor,
        video_root: str | Path | None = None,
        max_sentences: int | None = None,
        blind: bool = False,
    ):
        if max_sentences is not None and max_sentences < 1:
            raise ValueError(f"Received max_sentences={max_sentences}; expected a positive number, or None for all.")
        self.processor = processor
        self.video_root = video_root
        self.max_sentences = max_sentences
        self.blind = blind

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows (`list[dict]`): `B` rows with `video`, `sentences` and `segments` (seconds).

        Returns:
            `dict[str, torch.Tensor]`: As [`ScadaProcessor`] makes it, with `labels`.
        """
        drawn = [self._draw(len(row["sentences"])) for row in rows]
        batch = self.processor(
            videos=[resolve_video(row["video"], self.video_root) for row in rows],
            text=[[row["sentences"][i] for i in indices] for row, indices in zip(rows, drawn, strict=True)],
            segments=[[row["segments"][i] for i in indices] for row, indices in zip(rows, drawn, strict=True)],
        )
        if self.blind:
            batch["pixel_values_videos"] = torch.randn_like(batch["pixel_values_videos"])
        return dict(batch)

    def _draw(self, num_sentences: int) -> list[int]:
        if self.max_sentences is None or num_sentences <= self.max_sentences:
            return list(range(num_sentences))
        return sorted(torch.randperm(num_sentences)[: self.max_sentences].tolist())
