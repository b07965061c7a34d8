"""Draw what a step takes of a row: some of its sentences, sentences of other videos, a crop."""

import math
import re
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import TrainerCallback

from ..processing_scada import ScadaProcessor
from .files import video_name


# As AdaTAD augments (OpenTAD's configurations: frames are read at 182 pixels for crops that become 160; the rest are
# the usual bounds of a random resized crop).
READ_MARGIN = 182 / 160
CROP_AREAS = (0.08, 1.0)
CROP_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10
NEGATIVE_TRIES = 10
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


class RowSampler(TrainerCallback):
    """
    Draw what a training step takes of each video. Apply it to the training set alone: an evaluation takes all.

    [`TemporalGroundingCollator`] then reads the videos and joins the rows. With a `seed`, pass this object to the
    trainer as well, as a callback, which tells it the epoch.

    Args:
        processor ([`ScadaProcessor`]): The one of the collator; crops are made for its frame size.
        max_sentences (`int`, *optional*):
            Draws at most this number of a video's sentences, afresh each time; takes all of them if not given.
        negative_sentences (`int`, *optional*, defaults to 0):
            Adds at most this number of sentences of other videos, and no more than the video's own. They are not in
            the video, and have no segment. One with the words of an own sentence is not drawn.
        sentences_of_others (`Sequence[str]`, *optional*):
            What negative sentences are drawn from, such as all sentences of the data set; those of the rows that are
            drawn together if not given.
        augment (`bool`, *optional*, defaults to `False`):
            Draws a random resized crop, and a flip if no sentence of the video says left or right: one for the whole
            video.
        blind (`bool`, *optional*, defaults to `False`):
            Replaces the pixels by noise: what the annotations alone let a model guess.
        seed (`int`, *optional*):
            Makes what is drawn for a video depend on the seed, the epoch and the video alone, so that a run that was
            stopped goes on as if it had not been. A video is known by its `video_id`, or else by its path. If not
            given, draws follow torch's generator.

    Raises:
        ValueError: If `max_sentences` is not positive, or `negative_sentences` is negative.

    Example:

    ```python
    >>> sampler = RowSampler(processor, max_sentences=4, seed=0)  # doctest: +SKIP
    >>> trainer = Trainer(model, args, collator, sampler.apply(train), test, callbacks=[sampler])  # doctest: +SKIP

    ```"""

    def __init__(
        self,
        processor: ScadaProcessor,
        max_sentences: int | None = None,
        negative_sentences: int = 0,
        sentences_of_others: Sequence[str] | None = None,
        augment: bool = False,
        blind: bool = False,
        seed: int | None = None,
    ):
        if max_sentences is not None and max_sentences < 1:
            raise ValueError(f"Received max_sentences={max_sentences}; expected a positive number, or None for all.")
        if negative_sentences < 0:
            raise ValueError(f"Received negative_sentences={negative_sentences}; expected a number from 0 on.")
        size = processor.video_processor.size
        self.read_size = [round(READ_MARGIN * size[side]) for side in ("height", "width")]
        self.max_sentences = max_sentences
        self.negative_sentences = negative_sentences
        self.sentences_of_others = sentences_of_others
        self.augment = augment
        self.blind = blind
        self.seed = seed
        # Shared, so that workers that live on from epoch to epoch see it change.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()

    def __deepcopy__(self, memo: dict) -> "RowSampler":
        # A data set that is shuffled or selected copies its transform, and a copy would not be told the epoch.
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw afresh what is drawn with a `seed`, for another `epoch` (`int`)."""
        self._epoch.fill_(epoch)

    def on_init_end(self, args, state, control, **kwargs):
        self.set_epoch(0)  # rows may be looked at before training begins, such as for their lengths

    def on_train_begin(self, args, state, control, **kwargs):
        self.set_epoch(int(state.epoch))

    def on_epoch_end(self, args, state, control, **kwargs):
        # Counted, as `state.epoch` is a share of `max_steps` in the first pass over a stream.
        self.set_epoch(int(self._epoch) + 1)

    def apply(self, dataset: Dataset | IterableDataset, batch_size: int = 1) -> Dataset | IterableDataset:
        """
        Make a data set draw its rows anew each time they are read.

        Args:
            dataset (`Dataset` or `IterableDataset`): Rows of [`load_annotations`].
            batch_size (`int`, *optional*, defaults to 1):
                Rows of a stream that are drawn together, see `sentences_of_others`. Of a `Dataset` a batch of the
                loader is.

        Returns:
            `Dataset` or `IterableDataset`: The same rows, of which `sentences` and `segments` are those that were
            drawn.
        """
        if isinstance(dataset, IterableDataset):
            return dataset.map(self, batched=True, batch_size=batch_size)
        return dataset.with_transform(self)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """
        Draw for rows that are read together.

        Args:
            batch (`dict[str, list]`): Columns of `B` rows with `video`, `sentences` and `segments` (seconds).

        Returns:
            `dict[str, list]`: The same columns, and in `annotated` the `sentences` and `segments` before the draw;
            with `augment` a `crop` (see [`draw_crop`]), with `blind` a `noise_seed`.

        Raises:
            ValueError: If there is a `seed`, but no epoch was told.
        """
        if not {"video", "sentences", "segments"} <= batch.keys():
            return batch  # some of the columns, as `select_columns` leaves them
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        drawn = self.draw_rows(rows)
        return {name: [row[name] for row in drawn] for name in drawn[0]} if drawn else batch

    def draw_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As a call, for a list of rows."""
        return [self._draw_row(rows, index) for index in range(len(rows))]

    def _draw_row(self, rows: list[dict[str, Any]], index: int) -> dict[str, Any]:
        row = rows[index]
        generator = self._generator(row)
        kept = self._draw_sentences(len(row["sentences"]), generator)
        drawn = row | {
            "sentences": [row["sentences"][i] for i in kept],
            "segments": [row["segments"][i] for i in kept],
            "annotated": {name: row[name] for name in ("sentences", "segments")},
        }
        if self.augment:
            may_flip = not any(SIDES.search(sentence) for sentence in row["sentences"])
            drawn["crop"] = draw_crop(self.read_size, may_flip, generator)
        if self.blind:
            drawn["noise_seed"] = generator.initial_seed()
        if self.negative_sentences:
            negatives = self._draw_negatives(rows, index, len(kept), generator)
            drawn["sentences"] += negatives
            drawn["segments"] += [[]] * len(negatives)
        return drawn

    def _generator(self, row: dict[str, Any]) -> torch.Generator:
        generator = torch.Generator()
        if self.seed is None:
            # Where nothing is drawn, nothing is taken from the generator that the model draws from too.
            draws = self.max_sentences is not None or self.augment or self.blind or self.negative_sentences
            return generator.manual_seed(int(torch.randint(2**62, ()))) if draws else generator
        epoch = int(self._epoch)
        if epoch < 0:
            raise ValueError(
                f"Received seed={self.seed} but no epoch, and each epoch draws other sentences and crops. Pass the "
                "sampler to the trainer too (callbacks=[sampler]), or call its set_epoch."
            )
        name = f"{row.get('video_id') or video_name(row['video'])} {row['sentences'][0]}"
        return generator.manual_seed(zlib.crc32(f"{self.seed} {epoch} {name}".encode()))

    def _draw_sentences(self, num_sentences: int, generator: torch.Generator) -> list[int]:
        if self.max_sentences is None or num_sentences <= self.max_sentences:
            return list(range(num_sentences))
        return sorted(torch.randperm(num_sentences, generator=generator)[: self.max_sentences].tolist())

    def _draw_negatives(
        self, rows: list[dict[str, Any]], index: int, most: int, generator: torch.Generator
    ) -> list[str]:
        """Sentences that the video of a row does not have, at most `most` and `negative_sentences`."""
        others = self.sentences_of_others
        if others is None:
            others = [sentence for row in rows[:index] + rows[index + 1 :] for sentence in row["sentences"]]
        taken = {_words(sentence) for sentence in rows[index]["sentences"]}
        drawn: list[str] = []
        for _ in range(NEGATIVE_TRIES * most if others else 0):
            if len(drawn) == min(most, self.negative_sentences):
                break
            sentence = others[int(torch.randint(len(others), (), generator=generator))]
            if _words(sentence) not in taken:
                taken.add(_words(sentence))
                drawn.append(sentence)
        return drawn


def draw_crop(read_size: Sequence[int], may_flip: bool, generator: torch.Generator) -> dict[str, Any]:
    """
    Draw a random resized crop and a random horizontal flip.

    Args:
        read_size (`Sequence[int]`): Height and width of the frames, in pixels.
        may_flip (`bool`): Whether half of the crops are flipped.
        generator (`torch.Generator`): Of the random numbers.

    Returns:
        `dict[str, Any]`: `read_size`, `box` (top, left, height and width, in pixels of `read_size`) and `flip`.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    height, width = read_size
    crop_height, crop_width = height, width
    for _ in range(CROP_TRIES):
        area = uniform(*CROP_AREAS) * height * width
        ratio = math.exp(uniform(*map(math.log, CROP_RATIOS)))
        tried_height, tried_width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < tried_height <= height and 0 < tried_width <= width:
            crop_height, crop_width = tried_height, tried_width
            break
    top = int(uniform(0, height - crop_height + 1))
    left = int(uniform(0, width - crop_width + 1))
    flip = may_flip and uniform(0, 1) < 0.5
    return {"read_size": [height, width], "box": [top, left, crop_height, crop_width], "flip": flip}


def _words(sentence: str) -> str:
    return " ".join(sentence.casefold().split()).rstrip(" .")


__all__ = ["RowSampler"]
