"""Sampling of training rows: a subset of their sentences, negative sentences of other videos, and a crop."""

import re
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import TrainerCallback

from ..processing_scada import ScadaProcessor
from .cropping import draw_crop
from .files import video_file_name


# Augmentation of AdaTAD (OpenTAD's configurations: frames are read at 182 pixels, and crops are resized to 160). The
# other values are the usual bounds of a random resized crop.
READ_MARGIN = 182 / 160
NEGATIVE_TRIES = 10
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


class RowSampler(TrainerCallback):
    """
    Random sampling of sentences, negative sentences and crops for training.

    Apply the sampler to the training set only, because an evaluation uses all sentences.
    [`TemporalGroundingCollator`] then reads the videos and builds the batch. With a `seed`, also pass the sampler to
    the trainer as a callback, to receive the epoch.

    Args:
        processor ([`ScadaProcessor`]): Processor of the collator. Its frame size determines the crops.
        max_sentences (`int`, *optional*):
            Maximum number of sentences per video, sampled anew on each access. Defaults to all sentences.
        negative_sentences (`int`, *optional*, defaults to 0):
            Maximum number of added sentences of other videos, which have no segment. A video gets at most as many
            negative sentences as it has sentences. A sentence with the words of one of the video's own sentences is
            skipped.
        sentences_of_others (`Sequence[str]`, *optional*):
            Pool of negative sentences, such as all sentences of the data set. Defaults to the other rows of the batch.
        augment (`bool`, *optional*, defaults to `False`):
            Whether to apply a random resized crop, and a flip unless a sentence of the video contains left or right.
            All frames of a video share the same crop.
        blind (`bool`, *optional*, defaults to `False`):
            Whether to replace pixels by noise, to measure the accuracy of guesses from annotations alone.
        seed (`int`, *optional*):
            Random seed. Samples then depend only on the seed, the epoch and the video (`video_id`, or its path), so a
            resumed run continues with the same samples. By default, torch's global generator is used.

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
            raise ValueError(f"Received negative_sentences={negative_sentences}; expected 0 or a positive number.")
        size = processor.video_processor.size
        self.read_size = [round(READ_MARGIN * size[side]) for side in ("height", "width")]
        self.max_sentences = max_sentences
        self.negative_sentences = negative_sentences
        self.sentences_of_others = sentences_of_others
        self.augment = augment
        self.blind = blind
        self.seed = seed
        # Shared memory, so persistent workers see the epoch change.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()

    def __deepcopy__(self, memo: dict) -> "RowSampler":
        # Shuffling or selecting a data set copies its transform, and a copy would not receive the epoch.
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the `epoch` (`int`), which determines the samples together with the `seed`."""
        self._epoch.fill_(epoch)

    def on_init_end(self, args, state, control, **kwargs):
        self.set_epoch(0)  # rows may be read before training begins, for example to measure their lengths

    def on_train_begin(self, args, state, control, **kwargs):
        self.set_epoch(int(state.epoch))

    def on_epoch_end(self, args, state, control, **kwargs):
        # Count epochs, because `state.epoch` is a fraction of `max_steps` in the first pass over a stream.
        self.set_epoch(int(self._epoch) + 1)

    def apply(self, dataset: Dataset | IterableDataset, batch_size: int = 1) -> Dataset | IterableDataset:
        """
        Apply the sampler to a data set. Rows are sampled anew on each access.

        Args:
            dataset (`Dataset` or `IterableDataset`): Rows of [`load_annotations`].
            batch_size (`int`, *optional*, defaults to 1):
                Number of rows of a stream to sample together, see `sentences_of_others`. A `Dataset` uses the batches
                of the `DataLoader` instead.

        Returns:
            `Dataset` or `IterableDataset`: Same rows, with the sampled `sentences` and `segments`.
        """
        if isinstance(dataset, IterableDataset):
            return dataset.map(self, batched=True, batch_size=batch_size)
        return dataset.with_transform(self)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """
        Sample a batch of rows.

        Args:
            batch (`dict[str, list]`): Columns of `B` rows with `video`, `sentences` and `segments` (seconds).

        Returns:
            `dict[str, list]`: Same columns, with the original `sentences` and `segments` in `annotated`. With
            `augment`, also a `crop` (see [`draw_crop`]), and with `blind`, also a `noise_seed`.

        Raises:
            ValueError: If `seed` is set but the epoch is not.
        """
        if not {"video", "sentences", "segments"} <= batch.keys():
            return batch  # a subset of the columns, for example after `select_columns`
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        drawn = self.draw_rows(rows)
        return {name: [row[name] for row in drawn] for name in drawn[0]} if drawn else batch

    def draw_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Sample a list of rows, as `__call__` does for columns."""
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
            # Do not advance torch's global generator if nothing is sampled, because the model uses it too.
            draws = self.max_sentences is not None or self.augment or self.blind or self.negative_sentences
            return generator.manual_seed(int(torch.randint(2**62, ()))) if draws else generator
        epoch = int(self._epoch)
        if epoch < 0:
            raise ValueError(
                f"Received seed={self.seed}, but the epoch is not set. Sentences and crops differ between epochs. "
                "Pass the sampler to the trainer (callbacks=[sampler]), or call its set_epoch."
            )
        name = f"{row.get('video_id') or video_file_name(row['video'])} {row['sentences'][0]}"
        return generator.manual_seed(zlib.crc32(f"{self.seed} {epoch} {name}".encode()))

    def _draw_sentences(self, num_sentences: int, generator: torch.Generator) -> list[int]:
        if self.max_sentences is None or num_sentences <= self.max_sentences:
            return list(range(num_sentences))
        return sorted(torch.randperm(num_sentences, generator=generator)[: self.max_sentences].tolist())

    def _draw_negatives(
        self, rows: list[dict[str, Any]], index: int, most: int, generator: torch.Generator
    ) -> list[str]:
        """Sample at most `most` sentences (and at most `negative_sentences`) that the video of a row does not have."""
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


def _words(sentence: str) -> str:
    return " ".join(sentence.casefold().split()).rstrip(" .")


__all__ = ["RowSampler"]
