"""The sentences of a call: their shapes checked, and which of them there are beside the padding."""

import torch

from .video_features_scada import ScadaVideoFeatures


def check_sentences(
    pixel_values_videos: torch.Tensor | None,
    video_features: ScadaVideoFeatures | None,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    sentence_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fills in the masks that were not given and checks that the shapes fit each other."""
    if (pixel_values_videos is None) == (video_features is None):
        raise ValueError(
            f"Received {'neither' if video_features is None else 'both'} of `pixel_values_videos` and "
            "`video_features`; pass frames, or what `encode_video` made of them."
        )
    num_videos = len(pixel_values_videos) if video_features is None else video_features.num_videos  # type: ignore
    if input_ids is None:
        raise ValueError("Received no `input_ids`; pass the tokens of the sentences, as ScadaProcessor makes them.")
    if input_ids.dim() != 3 or len(input_ids) != num_videos:
        raise ValueError(
            f"Received `input_ids` of shape {tuple(input_ids.shape)} for {num_videos} videos; expected (videos, "
            "sentences, tokens), as ScadaProcessor makes it."
        )
    # On the CPU, where they are read; in a graph nothing is.
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
    """Which of the `(B, M)` sentences there are not, on the device of the other tensor."""
    return ~sentence_mask.bool().to(other.device, non_blocking=True)


def sentence_positions(sentence_mask: torch.Tensor) -> torch.Tensor:
    """
    The places of the sentences among the `B M` with padding, `(Q,)`.

    In a graph, whose shapes cannot depend on a mask, these are all places.
    """
    if torch.compiler.is_compiling():
        return torch.arange(sentence_mask.numel(), device=sentence_mask.device)
    return sentence_mask.flatten().nonzero()[:, 0]


def expand_to_sentences(video_rows: torch.Tensor, video_index: torch.Tensor) -> torch.Tensor:
    """
    Rows of `B` videos, `(B, ...)`, for each of their sentences, `(Q, ...)`; `video_index`, `(Q,)`, names the videos.

    In a graph all videos have as many sentences, with padding, and one video's follow each other. There, the rows are
    repeated: adding up by an index on several threads of a CPU, compiled, writes past the end of the gradients (torch
    2.13).
    """
    if torch.compiler.is_compiling():
        num_sentences = len(video_index) // len(video_rows)
        return video_rows[:, None].expand(-1, num_sentences, *video_rows.shape[1:]).flatten(0, 1)
    return video_rows.index_select(0, video_index)
