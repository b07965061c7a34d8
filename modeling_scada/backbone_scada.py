"""
Video backbones: snippet features from any supported encoder of transformers.

All code that depends on the model type is in this file: the inputs of each encoder, its token order, and the
interpolation of its position embeddings.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from .configuration_c3d import C3DConfig
from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .configuration_i3d import I3DConfig
from .modeling_c3d import C3DModel
from .modeling_efficientnet_lite import EfficientNetLiteModel
from .modeling_i3d import I3DModel


class ResizableVideoMAEEmbeddings(nn.Module):
    """
    Patch and position embeddings of VideoMAE for any image size.

    This module interpolates the position embeddings over `(t, h, w)` from the pretrained grid (docs/design.md section
    5 [D]). transformers rebuilds a flat sinusoid from the configuration instead, which yields different embeddings at
    another image size.

    Args:
        embeddings (`VideoMAEEmbeddings`): Pretrained embeddings. The parameters keep their names.
    """

    def __init__(self, embeddings: Any):
        super().__init__()
        self.patch_embeddings = embeddings.patch_embeddings
        config = embeddings.config
        height, width = _pair(config.image_size)
        patch_height, patch_width = _pair(config.patch_size)
        self.pretrained_grid = (
            config.num_frames // config.tubelet_size,
            height // patch_height,
            width // patch_width,
        )
        self.position_embeddings = embeddings.position_embeddings

    def interpolated_position_embeddings(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """
        Return the position embeddings for a token grid.

        Args:
            grid (`tuple[int, int, int]`): Number of tubelets, rows and columns.

        Returns:
            `torch.Tensor` of shape `(1, t * h * w, hidden_size)`: Position embeddings in float32.
        """
        if grid == self.pretrained_grid:
            return self.position_embeddings
        table = self.position_embeddings.reshape(1, *self.pretrained_grid, -1).permute(0, 4, 1, 2, 3)
        table = nn.functional.interpolate(table.float(), size=grid, mode="trilinear", align_corners=False)
        return table.flatten(2).transpose(1, 2)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        # pixel_values: (clips, frames, channels, height, width)
        patches = self.patch_embeddings.projection(pixel_values.transpose(1, 2))  # (clips, C, t, h, w)
        positions = self.interpolated_position_embeddings(tuple(patches.shape[2:]))
        embeddings = patches.flatten(2).transpose(1, 2)  # (clips, t * h * w, C)
        embeddings = embeddings + positions.detach().to(device=embeddings.device, dtype=embeddings.dtype)
        if bool_masked_pos is not None:
            embeddings = embeddings[~bool_masked_pos].reshape(len(embeddings), -1, embeddings.shape[-1])
        return embeddings


def _embed_patches(conv: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Apply a convolution over non-overlapping patches, `(n, C, ...)` to `(n, C_out, ...)`, as a matrix product."""
    sizes = list(zip(pixels.shape[2:], conv.kernel_size, strict=True))
    patches = pixels.reshape(*pixels.shape[:2], *(part for size, patch in sizes for part in (size // patch, patch)))
    grid = range(2, patches.dim(), 2)
    patches = patches.permute(0, *grid, 1, *(dim + 1 for dim in grid)).flatten(1 + len(grid))
    return nn.functional.linear(patches, conv.weight.flatten(1), conv.bias).movedim(-1, 1)


class PatchConv2d(nn.Conv2d):
    """`nn.Conv2d` over non-overlapping patches as a matrix product, because its own kernels are slow on GPUs."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _embed_patches(self, pixels)


class PatchConv3d(nn.Conv3d):
    """`nn.Conv3d` over non-overlapping tubelets as a matrix product; see [`PatchConv2d`]."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _embed_patches(self, pixels)


PATCH_CONVS: dict[type, type] = {nn.Conv2d: PatchConv2d, nn.Conv3d: PatchConv3d}


@dataclass(frozen=True)
class EncoderType:
    """
    Inputs and token order of a type of encoder.

    Args:
        clip_length (`str`, *optional*): Name of the configuration field for the number of frames per clip. `None` for
            image encoders, which read single frames.
        image_size (`str`, *optional*): Name of the configuration field for the only supported image size. `None` if
            the position embeddings adapt to the image size.
        is_convolutional (`bool`): Whether the layers are convolutional stages of different widths and sizes. The
            stages of video encoders run over `(rows, C, t, h, w)`, the stages of image encoders over
            `(rows, C, h, w)`.
        num_class_tokens (`int`): Number of tokens before the patch tokens, without register tokens.
        is_patch_major (`bool`): Whether the tokens of a clip have the order (h, w, t) instead of (t, h, w).
        arguments (`dict`): Keyword arguments of the encoder's `forward`, next to the pixels.
        unused (`dict[str, Callable]`): Names of modules that only other tasks use, each with a function that returns
            its replacement. The weights of these modules would never receive a gradient.
    """

    clip_length: str | None = None
    image_size: str | None = None
    is_convolutional: bool = False
    num_class_tokens: int = 0
    is_patch_major: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    unused: dict[str, Callable[[], nn.Module | None]] = field(default_factory=dict)


def _no_module() -> None:
    return None


INTERPOLATED = {"interpolate_pos_encoding": True}
# Keys are values of `model_type`. To support another encoder, add an entry. The layers must map (rows, tokens, C) to
# the same shape, or be named `stages`.
ENCODER_TYPES = {
    "videomae": EncoderType(clip_length="num_frames"),
    "vjepa2": EncoderType(
        clip_length="frames_per_clip",
        image_size="crop_size",
        arguments={"skip_predictor": True},
        unused={"predictor": _no_module},
    ),
    "vivit": EncoderType(
        clip_length="num_frames", image_size="image_size", num_class_tokens=1, unused={"pooler": _no_module}
    ),
    "timesformer": EncoderType(
        clip_length="num_frames", image_size="image_size", num_class_tokens=1, is_patch_major=True
    ),
    "clip_vision_model": EncoderType(
        num_class_tokens=1, arguments=INTERPOLATED, unused={"post_layernorm": nn.Identity}
    ),
    "siglip_vision_model": EncoderType(arguments=INTERPOLATED, unused={"head": _no_module}),
    "dinov2": EncoderType(num_class_tokens=1, unused={"mask_token": _no_module}),
    "dinov2_with_registers": EncoderType(num_class_tokens=1, unused={"mask_token": _no_module}),
    "dinov3_vit": EncoderType(num_class_tokens=1, unused={"mask_token": _no_module}),
    "c3d": EncoderType(clip_length="num_frames", is_convolutional=True, arguments={"output_feature_maps": False}),
    "i3d": EncoderType(clip_length="num_frames", is_convolutional=True, arguments={"output_feature_maps": False}),
    "resnet": EncoderType(is_convolutional=True),
    "regnet": EncoderType(is_convolutional=True),
    # ConvNeXt applies the last norm after average pooling over the image.
    "convnext": EncoderType(is_convolutional=True, unused={"layernorm": nn.Identity}),
    "convnextv2": EncoderType(is_convolutional=True, unused={"layernorm": nn.Identity}),
    "efficientnet_lite": EncoderType(is_convolutional=True),
}

OWN_ENCODERS = {"c3d": C3DModel, "i3d": I3DModel, "efficientnet_lite": EfficientNetLiteModel}
AutoModel.register(C3DConfig, C3DModel, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
AutoModel.register(I3DConfig, I3DModel, exist_ok=True)


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Build an encoder with random weights from its configuration."""
    # `AutoModel` looks up classes, and code from the Hub can hold a second copy of a configuration class.
    own_class: Any = OWN_ENCODERS.get(config.model_type)
    return AutoModel.from_config(config) if own_class is None else own_class(config)


@dataclass(frozen=True)
class TokenGrid:
    """
    Layout of the tokens of a batch in time and space. Rows denote videos or, with an adapter, sentences.

    Args:
        num_videos (`int`): Number of videos `B`.
        num_clips (`int`): Number of clips per video.
        size (`tuple[int, int, int]`): Number of snippets, rows and columns `(t, h, w)` per clip.
        num_class_tokens (`int`): Number of tokens before the patch tokens of each clip.
        is_patch_major (`bool`): Whether the patch tokens have the order (h, w, t) instead of (t, h, w).
    """

    num_videos: int
    num_clips: int
    size: tuple[int, int, int]
    num_class_tokens: int = 0
    is_patch_major: bool = False

    def holds(self, states: torch.Tensor, num_rows: int) -> bool:
        """Return whether states `(rows * clips, tokens, C)` have the shape for `num_rows` videos or sentences."""
        num_tokens = self.num_class_tokens + self.size[0] * self.size[1] * self.size[2]
        return states.shape[:2] == (num_rows * self.num_clips, num_tokens)

    def to_features(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Arrange tokens in time and space, and concatenate the clips of each video in time.

        Args:
            tokens (`torch.Tensor` of shape `(rows * clips, tokens, C)`): Tokens per video or per sentence.

        Returns:
            `tuple`: Features `(rows, N, h, w, C)`, and class tokens `(rows, clips, n, C)` or `None` if the encoder has
            no class tokens.
        """
        snippets, height, width = self.size
        class_tokens = None
        if self.num_class_tokens:
            class_tokens, tokens = tokens.split([self.num_class_tokens, tokens.shape[1] - self.num_class_tokens], 1)
            class_tokens = class_tokens.unflatten(0, (-1, self.num_clips))
        if self.is_patch_major:
            tokens = tokens.unflatten(1, (height * width, snippets)).transpose(1, 2)
        return tokens.reshape(-1, self.num_clips * snippets, height, width, tokens.shape[-1]), class_tokens

    def to_tokens(self, features: torch.Tensor, class_tokens: torch.Tensor | None) -> torch.Tensor:
        """Invert `to_features`."""
        snippets, height, width = self.size
        tokens = features.reshape(-1, snippets, height * width, features.shape[-1])
        if self.is_patch_major:
            tokens = tokens.transpose(1, 2)
        tokens = tokens.reshape(len(tokens), -1, features.shape[-1])
        return tokens if class_tokens is None else torch.cat([class_tokens.flatten(0, 1), tokens], dim=1)


@dataclass(frozen=True)
class StageGrid:
    """
    Layout of the states of convolutional stages, `(rows * clips, C, t, h, w)`; see [`TokenGrid`].

    Args:
        num_videos (`int`): Number of videos `B`.
        num_clips (`int`): Number of clips per video.
        has_time (`bool`): Whether states have a time dimension. The states of image encoders are
            `(rows * frames, C, h, w)`.
    """

    num_videos: int
    num_clips: int
    has_time: bool

    def holds(self, states: torch.Tensor, num_rows: int) -> bool:
        """Return whether the states have the shape for `num_rows` videos or sentences."""
        return states.dim() == 4 + self.has_time and len(states) == num_rows * self.num_clips

    def to_features(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Concatenate the clips of each video in time, to `(rows, N, h, w, C)`; the second value is `None`."""
        features = states.unflatten(0, (-1, self.num_clips)).movedim(2, -1)
        return features.flatten(1, 2) if self.has_time else features, None

    def to_tokens(self, features: torch.Tensor, class_tokens: None) -> torch.Tensor:
        """Invert `to_features`."""
        clips = features.unflatten(1, (self.num_clips, -1)) if self.has_time else features
        return clips.flatten(0, 1).movedim(-1, 1)


def spatial_mean_pool(features: torch.Tensor, spatial_pool_size: int) -> torch.Tensor:
    """Pool `(X, N, h, w, C)` to `(X, N, spatial_pool_size² C)`, and concatenate the areas row by row."""
    if spatial_pool_size == 1:
        return features.mean(dim=(2, 3))
    areas = nn.functional.adaptive_avg_pool2d(features.flatten(0, 1).permute(0, 3, 1, 2), spatial_pool_size)
    return areas.permute(0, 2, 3, 1).flatten(1).unflatten(0, features.shape[:2])


def match_memory_format(states: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """
    Return the states in the memory format of another tensor.

    The outputs of some convolutions differ slightly between memory formats.
    """
    order = sorted(range(other.dim()), key=other.stride, reverse=True)
    return states.permute(order).contiguous().permute([order.index(dim) for dim in range(other.dim())])


class RecordedStates(threading.local):
    """Inputs and outputs of the layers that the current call of a thread records."""

    def __init__(self):
        self.states: dict[nn.Module, Any] = {}


recording = RecordedStates()


def _record_states(layer: nn.Module, args: tuple, output: Any) -> None:
    if layer in recording.states:
        recording.states[layer] = (args[0], get_hidden_states(output))


class CaptureLayer(nn.Module):
    """Wrapper that stores the output of a layer during one call."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.states: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> Any:
        output = self.layer(hidden_states, *args, **kwargs)
        self.states = get_hidden_states(output)
        return output


class ResumingLayer(nn.Module):
    """Wrapper that replaces the input of a layer with stored states during one call."""

    def __init__(self, layer: nn.Module, states: torch.Tensor):
        super().__init__()
        self.layer = layer
        self.states = states

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> Any:
        return self.layer(self.states, *args, **kwargs)


class VideoBackbone(nn.Module):
    """
    Video backbone with an encoder of transformers. It splits each video into clips, encodes the clips as a batch, and
    arranges the tokens as snippets. Image encoders read single frames.

    Args:
        encoder (`PreTrainedModel`): Encoder of a type in `ENCODER_TYPES`. The backbone modifies it in place. The
            position embeddings of VideoMAE adapt to the image size. Patch convolutions become matrix products with the
            same weights. The backbone removes modules that only other tasks use.

    Raises:
        ValueError: If the type of encoder is not supported.
    """

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        model_type = encoder.config.model_type
        if model_type not in ENCODER_TYPES:
            raise ValueError(
                f"Received a video backbone of model_type {model_type!r}; expected one of {sorted(ENCODER_TYPES)}."
            )
        if getattr(encoder.config, "attention_type", None) == "space_only":
            raise ValueError(
                "Received a TimeSformer with attention_type 'space_only', which encodes each frame alone. Use "
                "'divided_space_time' or 'joint_space_time'."
            )
        if model_type == "videomae" and not isinstance(encoder.embeddings, ResizableVideoMAEEmbeddings):
            encoder.embeddings = ResizableVideoMAEEmbeddings(encoder.embeddings)
        if model_type == "siglip_vision_model":
            encoder.use_head = False  # type: ignore[assignment]
        # The stages of convolutional encoders use modules with the same names, so only the top level is searched.
        is_convolutional = ENCODER_TYPES[model_type].is_convolutional
        for module in [encoder] if is_convolutional else list(encoder.modules()):
            for name, replacement in ENCODER_TYPES[model_type].unused.items():
                if getattr(module, name, None) is not None:
                    setattr(module, name, replacement())
        for module in [] if is_convolutional else encoder.modules():
            # `grid` checks that the image size is a multiple of the patch size.
            if type(module) in PATCH_CONVS and module.kernel_size == module.stride:
                module.__class__ = PATCH_CONVS[type(module)]
        self.encoder: Any = encoder

    @property
    def config(self) -> PreTrainedConfig:
        """Return the configuration of the encoder."""
        return self.encoder.config

    @property
    def layers(self) -> nn.ModuleList:
        """Return the layers of the encoder. An adapter wraps these modules."""
        if ENCODER_TYPES[self.config.model_type].is_convolutional:
            return getattr(self.encoder, "encoder", self.encoder).stages
        lists = (module for module in self.encoder.modules() if isinstance(module, nn.ModuleList))
        return next(modules for modules in lists if len(modules) == self.config.num_hidden_layers)

    @property
    def layer_dims(self) -> list[int]:
        """Return the width of each layer's output."""
        config: Any = self.config
        if ENCODER_TYPES[config.model_type].is_convolutional:
            return list(config.hidden_sizes)
        return [config.hidden_size] * config.num_hidden_layers

    def train(self, mode: bool = True) -> "VideoBackbone":
        """
        Set training or evaluation mode.

        Batch norm layers stay in evaluation mode unless the encoder's configuration sets `freeze_batch_norm=False`,
        because the frames of a few videos look alike and yield poor batch statistics.
        """
        super().train(mode)
        if getattr(self.config, "freeze_batch_norm", True):
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def grid(self, pixel_values_videos: torch.Tensor) -> TokenGrid | StageGrid:
        """
        Return the layout of the encoder's states for a batch of videos.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`): Normalized frames.

        Returns:
            [`TokenGrid`] or [`StageGrid`]: Layout of the states.

        Raises:
            ValueError: If the shape is not `(videos, frames, channels, height, width)`, or if the encoder does not
                support the number or size of the frames. The number must be a multiple of the clip length, the size a
                multiple of the patch size.
        """
        config: Any = self.config
        encoder_type = ENCODER_TYPES[config.model_type]
        clip_length, num_channels, *_ = self._clip_shape((0, 0))
        if pixel_values_videos.dim() != 5 or pixel_values_videos.shape[2] != num_channels:
            raise ValueError(
                f"Received `pixel_values_videos` of shape {tuple(pixel_values_videos.shape)}; expected (videos, "
                f"frames, {num_channels}, height, width), as returned by ScadaProcessor."
            )
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        if num_frames == 0 or num_frames % clip_length:
            raise ValueError(
                f"Received {num_frames} frames per video; the backbone reads clips of {clip_length}. Set the "
                f"processor's `num_frames` to a multiple of {clip_length}."
            )
        if encoder_type.is_convolutional:
            return StageGrid(batch_size, num_frames // clip_length, has_time=encoder_type.clip_length is not None)
        tubelet = getattr(config, "tubelet_size", 1) if encoder_type.clip_length else 1
        if isinstance(tubelet, (list, tuple)):  # ViViT's also holds the patch size
            tubelet, *patch_size = tubelet
        else:
            patch_size = config.patch_size
        patch_height, patch_width = _pair(patch_size)
        if height == 0 or width == 0 or height % patch_height or width % patch_width:
            raise ValueError(
                f"Received frames of {height} x {width} pixels; the backbone's patches are {patch_height} x "
                f"{patch_width}. Set the processor's `size` to multiples of the patch size."
            )
        if encoder_type.image_size and (height, width) != _pair(getattr(config, encoder_type.image_size)):
            raise ValueError(
                f"Received frames of {height} x {width} pixels; {config.model_type} supports only the "
                f"size {getattr(config, encoder_type.image_size)}. Set the processor's `size` to this value, or load "
                f"the backbone with another `{encoder_type.image_size}` if its weights support it."
            )
        size = (clip_length // tubelet, height // patch_height, width // patch_width)
        class_tokens = encoder_type.num_class_tokens + getattr(config, "num_register_tokens", 0)
        return TokenGrid(batch_size, num_frames // clip_length, size, class_tokens, encoder_type.is_patch_major)

    def forward(
        self, pixel_values_videos: torch.Tensor, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Encode videos.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`): Normalized frames.
            output_hidden_states (`bool`): Whether to also return the hidden states of all layers.

        Returns:
            `tuple`: Snippet features `(B, N, h, w, C)` after the encoder's final norm, if it has one, and the hidden
            states or `None`. The hidden states are the input of the first layer and the output of each layer, each
            `(B, N, h, w, C)`. For convolutional stages, `N`, `h`, `w` and `C` differ per stage. With an adapter, the
            first dimension can change from the `B` videos to the `Q` sentences of its condition at one of the layers.

        Raises:
            ValueError: See [`~VideoBackbone.grid`].
        """
        grid = self.grid(pixel_values_videos)
        layers = list(self.layers) if output_hidden_states else []
        for layer in layers:
            # The encoder's own `output_hidden_states` would record the states before the adapter. The hooks stay
            # registered, because adding and removing them per call would affect other threads and copies.
            if _record_states not in layer._forward_hooks.values():
                layer.register_forward_hook(_record_states)
        previous_states, recording.states = recording.states, dict.fromkeys(layers)
        try:
            last_hidden_state = self._encode(self.encoder, pixel_values_videos, grid)
        finally:
            recorded, recording.states = recording.states, previous_states
        features = self._last_features(last_hidden_state, grid)
        if not output_hidden_states:
            return features, None
        states = [recorded[layers[0]][0], *(output for _, output in recorded.values())]
        return features, tuple(grid.to_features(state)[0] for state in states)

    def states_before(self, index: int, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """
        Run only the layers before a given layer.

        Args:
            index (`int`): Index of the given layer, at least 1.
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`): Normalized frames.

        Returns:
            `torch.Tensor` of shape `(B, clips, tokens, C)`, or `(B, clips, C, t, h, w)` for a convolutional stage:
            Input of `forward_from`.
        """
        grid = self.grid(pixel_values_videos)
        capture_layer = CaptureLayer(self.layers[index - 1])
        encoder = self._encoder_with_layers([*self.layers[: index - 1], capture_layer])
        self._encode(encoder, pixel_values_videos, grid)
        states: Any = capture_layer.states
        return states.unflatten(0, (grid.num_videos, grid.num_clips))

    def grid_from_states(self, states: torch.Tensor, frame_size: tuple[int, int]) -> TokenGrid | StageGrid:
        """
        Return the layout of states from `states_before`.

        Args:
            states (`torch.Tensor`): Output of `states_before`.
            frame_size (`tuple[int, int]`): Height and width of the encoded frames, in pixels.

        Returns:
            [`TokenGrid`] or [`StageGrid`]: Layout of the states; equal to `grid` of the encoded frames.
        """
        grid = self.grid(torch.empty(1, *self._clip_shape(frame_size), device="meta"))
        return replace(grid, num_videos=len(states), num_clips=states.shape[1])

    def forward_from(self, index: int, states: torch.Tensor, frame_size: tuple[int, int]) -> torch.Tensor:
        """
        Run the remaining layers after `states_before`.

        Args:
            index (`int`): Index of the first remaining layer, at least 1.
            states (`torch.Tensor`): Output of `states_before`.
            frame_size (`tuple[int, int]`): Height and width of the encoded frames, in pixels.

        Returns:
            `torch.Tensor` of shape `(B, N, h, w, C)`: Snippet features, as returned by `forward`.
        """
        resuming_layer = ResumingLayer(self.layers[index], states.flatten(0, 1))
        encoder = self._encoder_with_layers([resuming_layer, *self.layers[index + 1 :]])
        # A clip of zeros suffices, because the other inputs of the layers depend only on the size of the frames.
        clip = states.new_zeros(1, *self._clip_shape(frame_size))
        last_hidden_state = self._encode(encoder, clip, self.grid(clip))
        return self._last_features(last_hidden_state, self.grid_from_states(states, frame_size))

    def _clip_shape(self, frame_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the number of frames and channels, the height and the width of a clip."""
        config: Any = self.config
        encoder_type = ENCODER_TYPES[config.model_type]
        clip_length = getattr(config, encoder_type.clip_length) if encoder_type.clip_length else 1
        return clip_length, getattr(config, "num_channels", None) or config.in_chans, *frame_size

    def _encoder_with_layers(self, layers: Sequence[nn.Module]) -> nn.Module:
        """Return a copy of the encoder that shares its weights but runs other layers. The original is unchanged."""
        all_layers = self.layers
        path = next(name for name, module in self.encoder.named_modules() if module is all_layers).split(".")
        encoder = module = _with_own_children(self.encoder)
        for name in path[:-1]:
            module._modules[name] = module = _with_own_children(module._modules[name])  # type: ignore[arg-type]
        module._modules[path[-1]] = nn.ModuleList(layers)
        return encoder

    def _encode(self, encoder: nn.Module, pixel_values_videos: torch.Tensor, grid: TokenGrid | StageGrid):
        """Encode all clips and return the last hidden state."""
        encoder_type = ENCODER_TYPES[self.config.model_type]
        clips = pixel_values_videos.reshape(grid.num_videos * grid.num_clips, -1, *pixel_values_videos.shape[2:])
        if encoder_type.clip_length is None:
            clips = clips[:, 0]
            if encoder_type.is_convolutional:  # runs depthwise convolutions in a third of the time on CPUs
                clips = clips.contiguous(memory_format=torch.channels_last)
        # `encoder.dtype` would fail with DataParallel, because the weights of its replicas are not parameters.
        weights = (getattr(module, "weight", None) for module in self.encoder.modules())
        dtype = next(weight.dtype for weight in weights if weight is not None)
        return encoder(clips.to(dtype), **encoder_type.arguments).last_hidden_state

    def _last_features(self, last_hidden_state: torch.Tensor, grid: TokenGrid | StageGrid) -> torch.Tensor:
        """Convert the encoder's last hidden state to features `(B, N, h, w, C)`."""
        if isinstance(grid, StageGrid) and grid.has_time:  # C3D and I3D return channels last
            last_hidden_state = last_hidden_state.movedim(-1, 1)
        return grid.to_features(last_hidden_state)[0]


def _with_own_children(module: nn.Module) -> nn.Module:
    """Return a shallow copy of a module. Replacing a child of the copy leaves the original unchanged."""
    module = copy.copy(module)
    module._modules = dict(module._modules)
    return module


def find_encoder(model: Any) -> Any:
    """Return the video or image encoder of a pretrained model, which can also have a task head or a text encoder."""
    # Base models such as DINOv3 can have a submodule named like `base_model_prefix`.
    if type(model) is not MODEL_MAPPING.get(type(model.config), None):
        model = getattr(model, model.base_model_prefix, model)
    # CLIP and SigLIP also have a text encoder.
    return getattr(model, "vision_model", model)


def normalize_pixels(
    pixel_values_videos: torch.Tensor, image_mean: Sequence[float] | None, image_deviation: Sequence[float] | None
) -> torch.Tensor:
    """
    Normalize `uint8` pixels on their device, as [`ScadaVideoProcessor`] does. Floating-point pixels are returned
    unchanged, because the processor has already normalized them.

    Args:
        pixel_values_videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): Pixels in `uint8`, or normalized pixels.
        image_mean (`Sequence[float]`, *optional*): Mean of each channel, for pixels in `[0, 1]`.
        image_deviation (`Sequence[float]`, *optional*): Standard deviation of each channel, for pixels in `[0, 1]`.

    Returns:
        `torch.FloatTensor` of shape `(B, T, 3, H, W)`: Normalized pixels.

    Raises:
        ValueError: If the pixels are `uint8` and the mean or standard deviation is `None`.
    """
    if pixel_values_videos.dtype != torch.uint8:
        return pixel_values_videos
    if image_mean is None or image_deviation is None:
        raise ValueError(
            "Received uint8 pixels for a model whose configuration has no `image_mean` and `image_deviation`. Pass "
            "`do_normalize=True` to the processor, or set both fields in the configuration."
        )

    def per_channel(values: Sequence[float]) -> torch.Tensor:
        # `torch.full` avoids a copy from the CPU, for which a GPU would have to wait.
        filled = [
            torch.full((1, 1), value, dtype=torch.float32, device=pixel_values_videos.device) for value in values
        ]
        return 255 * torch.stack(filled)

    return (pixel_values_videos.to(torch.float32) - per_channel(image_mean)) / per_channel(image_deviation)


def get_hidden_states(output: Any) -> torch.Tensor:
    """Return the hidden states from the output of a layer, which can be a tuple with attention weights."""
    return output[0] if isinstance(output, tuple) else output


def _pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
