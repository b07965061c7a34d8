"""Checks, masks and indices for the padded sentences of a batch."""

import torch

from .video_features_scada import ScadaVideoFeatures


def check_sentences(
    pixel_values_videos: torch.Tensor | None,
    video_features: ScadaVideoFeatures | None,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    sentence_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Check the shapes of the inputs, and fill in missing masks with ones.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: `input_ids`, `attention_mask` and `sentence_mask`.

    Raises:
        ValueError: If both or neither of pixels and features are given, if `input_ids` is missing, or if shapes do not
            match.
    """
    if (pixel_values_videos is None) == (video_features is None):
        raise ValueError(
            f"Received {'neither' if video_features is None else 'both'} of `pixel_values_videos` and "
            "`video_features`; pass either frames or the output of `encode_video`."
        )
    num_videos = len(pixel_values_videos) if video_features is None else video_features.num_videos  # type: ignore
    if input_ids is None:
        raise ValueError("Received no `input_ids`; pass the tokens of the sentences, as returned by ScadaProcessor.")
    if input_ids.dim() != 3 or len(input_ids) != num_videos:
        raise ValueError(
            f"Received `input_ids` of shape {tuple(input_ids.shape)} for {num_videos} videos; expected (videos, "
            "sentences, tokens), as returned by ScadaProcessor."
        )
    # Masks stay on the CPU, where Python reads their values. A compiled graph reads no values.
    device = input_ids.device if torch.compiler.is_compiling() else "cpu"
    if attention_mask is None:
        attention_mask = torch.ones(input_ids.shape, dtype=torch.long, device=device)
    if sentence_mask is None:
        sentence_mask = torch.ones(input_ids.shape[:2], dtype=torch.long, device=device)
    if attention_mask.shape != input_ids.shape or sentence_mask.shape != input_ids.shape[:2]:
        raise ValueError(
            f"Received `attention_mask` of shape {tuple(attention_mask.shape)} and `sentence_mask` of shape "
            f"{tuple(sentence_mask.shape)}; expected {tuple(input_ids.shape)} and {tuple(input_ids.shape[:2])}."
        )
    return input_ids, attention_mask, sentence_mask


def padding_mask(sentence_mask: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return a mask of shape `(B, M)`, True for padding sentences, on the device of `other`."""
    return ~sentence_mask.bool().to(other.device, non_blocking=True)


def sentence_positions(sentence_mask: torch.Tensor) -> torch.Tensor:
    """
    Return the positions of the `Q` sentences in the padded batch of `B M` sentences, of shape `(Q,)`.

    A compiled graph gets all `B M` positions, because its shapes cannot depend on a mask.
    """
    if torch.compiler.is_compiling():
        return torch.arange(sentence_mask.numel(), device=sentence_mask.device)
    return sentence_mask.flatten().nonzero()[:, 0]


def expand_to_sentences(video_rows: torch.Tensor, video_index: torch.Tensor) -> torch.Tensor:
    """
    Repeat the rows of `B` videos, `(B, ...)`, for each sentence, `(Q, ...)`; `video_index`, `(Q,)`, maps sentences to
    videos.

    In a compiled graph, all videos have the same number of sentences (with padding), in consecutive rows. The graph
    repeats the rows by `expand`, because the compiled gradient of `index_select` writes past the end of its buffer on
    multi-threaded CPUs (torch 2.13).
    """
    if torch.compiler.is_compiling():
        num_sentences = len(video_index) // len(video_rows)
        return video_rows[:, None].expand(-1, num_sentences, *video_rows.shape[1:]).flatten(0, 1)
    return video_rows.index_select(0, video_index)
