"""
Video backbones: any supported encoder of transformers -> snippet features.

This is the one place that knows model types: what an encoder wants as input, how it orders its tokens, and how its
position embeddings follow another image size.
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
    VideoMAE's patch and position embeddings for any image size.

    The position embeddings are interpolated over `(t, h, w)` from the pretrained grid (docs/design.md section 5 [D]);
    transformers rebuilds a flat sinusoid from the configuration instead, which at another size is a different
    embedding.

    Args:
        embeddings (`VideoMAEEmbeddings`): The pretrained embeddings; parameter names stay as they are.
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
        Args:
            grid (`tuple[int, int, int]`): Tubelets, rows and columns of the tokens.

        Returns:
            `torch.Tensor` of shape `(1, t * h * w, hidden_size)`, in float32.
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
    """A convolution of patches that do not overlap, `(n, C, ...)` to `(n, C_out, ...)`, as one matrix product."""
    sizes = list(zip(pixels.shape[2:], conv.kernel_size, strict=True))
    patches = pixels.reshape(*pixels.shape[:2], *(part for size, patch in sizes for part in (size // patch, patch)))
    grid = range(2, patches.dim(), 2)
    patches = patches.permute(0, *grid, 1, *(dim + 1 for dim in grid)).flatten(1 + len(grid))
    return nn.functional.linear(patches, conv.weight.flatten(1), conv.bias).movedim(-1, 1)


class PatchConv2d(nn.Conv2d):
    """A `Conv2d` of patches that do not overlap, as one matrix product: its own kernels are slow on GPUs."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _embed_patches(self, pixels)


class PatchConv3d(nn.Conv3d):
    """As [`PatchConv2d`], of tubelets."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _embed_patches(self, pixels)


PATCH_CONVS: dict[type, type] = {nn.Conv2d: PatchConv2d, nn.Conv3d: PatchConv3d}


@dataclass(frozen=True)
class EncoderType:
    """
    What one of transformers' encoders needs, and how its tokens lie.

    Args:
        clip_length (`str`, *optional*): Configuration's name for the frames of a clip; none for an image encoder,
            which takes frames one by one.
        image_size (`str`, *optional*): Configuration's name for the only image size that positions exist for; none if
            they follow the image.
        is_convolutional (`bool`): Whether its layers are stages of a width and a size each, over `(rows, C, t, h, w)`
            or, of an image encoder, `(rows, C, h, w)`.
        num_class_tokens (`int`): Tokens before those of patches; a configuration's registers come on top.
        is_patch_major (`bool`): Whether a clip's tokens are ordered (h, w, t) rather than (t, h, w).
        arguments (`dict`): What the encoder is called with beside the pixels.
        unused (`dict[str, Callable]`): Parts that only other tasks need, whose weights would never get a gradient, and
            what to put in their place.
    """

    clip_length: str | None = None
    image_size: str | None = None
    is_convolutional: bool = False
    num_class_tokens: int = 0
    is_patch_major: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    unused: dict[str, Callable[[], nn.Module | None]] = field(default_factory=dict)


def _nothing() -> None:
    return None


INTERPOLATED = {"interpolate_pos_encoding": True}
# By `model_type`. A further encoder is a line here, if its layers take and return (rows, tokens, C), or are `stages`.
ENCODER_TYPES = {
    "videomae": EncoderType(clip_length="num_frames"),
    "vjepa2": EncoderType(
        clip_length="frames_per_clip",
        image_size="crop_size",
        arguments={"skip_predictor": True},
        unused={"predictor": _nothing},
    ),
    "vivit": EncoderType(
        clip_length="num_frames", image_size="image_size", num_class_tokens=1, unused={"pooler": _nothing}
    ),
    "timesformer": EncoderType(
        clip_length="num_frames", image_size="image_size", num_class_tokens=1, is_patch_major=True
    ),
    "clip_vision_model": EncoderType(
        num_class_tokens=1, arguments=INTERPOLATED, unused={"post_layernorm": nn.Identity}
    ),
    "siglip_vision_model": EncoderType(arguments=INTERPOLATED, unused={"head": _nothing}),
    "dinov2": EncoderType(num_class_tokens=1, unused={"mask_token": _nothing}),
    "dinov2_with_registers": EncoderType(num_class_tokens=1, unused={"mask_token": _nothing}),
    "dinov3_vit": EncoderType(num_class_tokens=1, unused={"mask_token": _nothing}),
    "c3d": EncoderType(clip_length="num_frames", is_convolutional=True, arguments={"output_feature_maps": False}),
    "i3d": EncoderType(clip_length="num_frames", is_convolutional=True, arguments={"output_feature_maps": False}),
    "resnet": EncoderType(is_convolutional=True),
    "regnet": EncoderType(is_convolutional=True),
    # Their last norm comes after the mean over the picture.
    "convnext": EncoderType(is_convolutional=True, unused={"layernorm": nn.Identity}),
    "convnextv2": EncoderType(is_convolutional=True, unused={"layernorm": nn.Identity}),
    "efficientnet_lite": EncoderType(is_convolutional=True),
}

OWN_ENCODERS = {"c3d": C3DModel, "i3d": I3DModel, "efficientnet_lite": EfficientNetLiteModel}
AutoModel.register(C3DConfig, C3DModel, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
AutoModel.register(I3DConfig, I3DModel, exist_ok=True)


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with new weights, of `AutoModel` or one of ours."""
    # Not by `AutoModel`, which goes by classes: code from the Hub may come as two copies, one for the configurations.
    own: Any = OWN_ENCODERS.get(config.model_type)
    return AutoModel.from_config(config) if own is None else own(config)


@dataclass(frozen=True)
class TokenGrid:
    """
    How the tokens of a batch lie in time and space.

    Args:
        num_videos (`int`): Videos `B`.
        num_clips (`int`): Clips of a video.
        size (`tuple[int, int, int]`): Snippets, rows and columns `(t, h, w)` of a clip.
        num_class_tokens (`int`): Tokens of a clip that come before these.
        is_patch_major (`bool`): Whether they are ordered (h, w, t) rather than (t, h, w).
    """

    num_videos: int
    num_clips: int
    size: tuple[int, int, int]
    num_class_tokens: int = 0
    is_patch_major: bool = False

    def holds(self, states: torch.Tensor, num_rows: int) -> bool:
        """Whether the states `(rows * clips, tokens, C)` can be those of so many videos or sentences."""
        num_tokens = self.num_class_tokens + self.size[0] * self.size[1] * self.size[2]
        return states.shape[:2] == (num_rows * self.num_clips, num_tokens)

    def to_features(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            tokens (`torch.Tensor` of shape `(rows * clips, tokens, C)`): Of the videos, or of the sentences.

        Returns:
            `tuple`: features `(rows, N, h, w, C)`, of which the clips join in time; and the class tokens
            `(rows, clips, n, C)`, or `None` if there are none.
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
        """The inverse of `to_features`."""
        snippets, height, width = self.size
        tokens = features.reshape(-1, snippets, height * width, features.shape[-1])
        if self.is_patch_major:
            tokens = tokens.transpose(1, 2)
        tokens = tokens.reshape(len(tokens), -1, features.shape[-1])
        return tokens if class_tokens is None else torch.cat([class_tokens.flatten(0, 1), tokens], dim=1)


@dataclass(frozen=True)
class StageGrid:
    """
    As [`TokenGrid`] for convolutional stages, whose states `(rows * clips, C, t, h, w)` say their size themselves.

    Args:
        num_videos (`int`): Videos `B`.
        num_clips (`int`): Clips of a video.
        has_time (`bool`): Whether a clip is more than a frame; if not, states are `(rows * frames, C, h, w)`.
    """

    num_videos: int
    num_clips: int
    has_time: bool

    def holds(self, states: torch.Tensor, num_rows: int) -> bool:
        """Whether the states can be those of so many videos or sentences."""
        return states.dim() == 4 + self.has_time and len(states) == num_rows * self.num_clips

    def to_features(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """States to features `(rows, N, h, w, C)`, of which the clips join in time; there are no class tokens."""
        features = states.unflatten(0, (-1, self.num_clips)).movedim(2, -1)
        return features.flatten(1, 2) if self.has_time else features, None

    def to_tokens(self, features: torch.Tensor, class_tokens: None) -> torch.Tensor:
        """The inverse of `to_features`."""
        clips = features.unflatten(1, (self.num_clips, -1)) if self.has_time else features
        return clips.flatten(0, 1).movedim(-1, 1)


def match_memory_format(states: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """
    The states, their dimensions in the order in memory that those of the other tensor have. In another order some
    convolutions give other bits.
    """
    order = sorted(range(other.dim()), key=other.stride, reverse=True)
    return states.permute(order).contiguous().permute([order.index(dim) for dim in range(other.dim())])


class RecordedStates(threading.local):
    """Input and output of each layer in the call that a thread is in, for those that it asked for."""

    def __init__(self):
        self.states: dict[nn.Module, Any] = {}


recording = RecordedStates()


def _record_states(layer: nn.Module, args: tuple, output: Any) -> None:
    if layer in recording.states:
        recording.states[layer] = (args[0], get_hidden_states(output))


class CaptureLayer(nn.Module):
    """A layer in the encoder of one call, whose output is kept."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.states: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> Any:
        output = self.layer(hidden_states, *args, **kwargs)
        self.states = get_hidden_states(output)
        return output


class ResumingLayer(nn.Module):
    """A layer in the encoder of one call, which gets states from an earlier call in place of those that come."""

    def __init__(self, layer: nn.Module, states: torch.Tensor):
        super().__init__()
        self.layer = layer
        self.states = states

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> Any:
        return self.layer(self.states, *args, **kwargs)


class VideoBackbone(nn.Module):
    """
    Runs an encoder of transformers over a whole video: cuts it into clips, encodes the clips as a batch, and lays the
    tokens out as snippets. An image encoder reads frame by frame.

    Args:
        encoder (`PreTrainedModel`): Of one of `ENCODER_TYPES`. VideoMAE's embeddings are replaced by ones that follow
            the image size, convolutions of patches become matrix products of the same weights, and parts that only
            other tasks need are dropped.

    Raises:
        ValueError: If the encoder is of a type that is not supported.
    """

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        model_type = encoder.config.model_type
        if model_type not in ENCODER_TYPES:
            raise ValueError(
                f"Received a video backbone of model_type {model_type!r}; supported are {sorted(ENCODER_TYPES)}."
            )
        if getattr(encoder.config, "attention_type", None) == "space_only":
            raise ValueError("Received a TimeSformer with attention_type 'space_only', which sees single frames only.")
        if model_type == "videomae" and not isinstance(encoder.embeddings, ResizableVideoMAEEmbeddings):
            encoder.embeddings = ResizableVideoMAEEmbeddings(encoder.embeddings)
        if model_type == "siglip_vision_model":
            encoder.use_head = False  # type: ignore[assignment]
        # Stages have parts of the same names, which they do need.
        is_convolutional = ENCODER_TYPES[model_type].is_convolutional
        for module in [encoder] if is_convolutional else list(encoder.modules()):
            for name, replacement in ENCODER_TYPES[model_type].unused.items():
                if getattr(module, name, None) is not None:
                    setattr(module, name, replacement())
        for module in [] if is_convolutional else encoder.modules():
            # Their images are multiples of the patches, see `grid`.
            if type(module) in PATCH_CONVS and module.kernel_size == module.stride:
                module.__class__ = PATCH_CONVS[type(module)]
        self.encoder: Any = encoder

    @property
    def config(self) -> PreTrainedConfig:
        """The encoder's configuration."""
        return self.encoder.config

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, those that an adapter wraps."""
        if ENCODER_TYPES[self.config.model_type].is_convolutional:
            return getattr(self.encoder, "encoder", self.encoder).stages
        lists = (module for module in self.encoder.modules() if isinstance(module, nn.ModuleList))
        return next(modules for modules in lists if len(modules) == self.config.num_hidden_layers)

    @property
    def layer_dims(self) -> list[int]:
        """Width of the states that each layer returns."""
        config: Any = self.config
        if ENCODER_TYPES[config.model_type].is_convolutional:
            return list(config.hidden_sizes)
        return [config.hidden_size] * config.num_hidden_layers

    def train(self, mode: bool = True) -> "VideoBackbone":
        """
        As `nn.Module.train`, but batch norms stay in evaluation mode unless the encoder's configuration has
        `freeze_batch_norm=False`: the frames of a few videos look alike, so that their own statistics say little.
        """
        super().train(mode)
        if getattr(self.config, "freeze_batch_norm", True):
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def grid(self, pixel_values_videos: torch.Tensor) -> TokenGrid | StageGrid:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`): Normalised frames.

        Returns:
            [`TokenGrid`] or [`StageGrid`]: How the states of these videos will lie.

        Raises:
            ValueError: If the tensor is not `(videos, frames, channels, height, width)`, or if the number of frames
                is no multiple of the clip length, or the image size no multiple of the patch size, or none that the
                encoder has positions for.
        """
        config: Any = self.config
        kind = ENCODER_TYPES[config.model_type]
        clip_length, num_channels, *_ = self._clip_shape((0, 0))
        if pixel_values_videos.dim() != 5 or pixel_values_videos.shape[2] != num_channels:
            raise ValueError(
                f"Received `pixel_values_videos` of shape {tuple(pixel_values_videos.shape)}; expected (videos, "
                f"frames, {num_channels}, height, width), as ScadaProcessor makes it."
            )
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        if num_frames == 0 or num_frames % clip_length:
            raise ValueError(
                f"Received {num_frames} frames a video; the backbone reads clips of {clip_length}. Set the "
                f"processor's `num_frames` to a multiple of {clip_length}."
            )
        if kind.is_convolutional:
            return StageGrid(batch_size, num_frames // clip_length, has_time=kind.clip_length is not None)
        tubelet = getattr(config, "tubelet_size", 1) if kind.clip_length else 1
        if isinstance(tubelet, (list, tuple)):  # ViViT's has the patch in it
            tubelet, *patch_size = tubelet
        else:
            patch_size = config.patch_size
        patch_height, patch_width = _pair(patch_size)
        if height == 0 or width == 0 or height % patch_height or width % patch_width:
            raise ValueError(
                f"Received frames of {height} x {width} pixels; the backbone's patches are {patch_height} x "
                f"{patch_width}. Set the processor's `size` to multiples of them."
            )
        if kind.image_size and (height, width) != _pair(getattr(config, kind.image_size)):
            raise ValueError(
                f"Received frames of {height} x {width} pixels; {config.model_type} has positions for "
                f"{getattr(config, kind.image_size)} alone. Set the processor's `size` to it, or load the backbone "
                f"with another `{kind.image_size}` if its weights allow."
            )
        size = (clip_length // tubelet, height // patch_height, width // patch_width)
        class_tokens = kind.num_class_tokens + getattr(config, "num_register_tokens", 0)
        return TokenGrid(batch_size, num_frames // clip_length, size, class_tokens, kind.is_patch_major)

    def forward(
        self, pixel_values_videos: torch.Tensor, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`): Normalised frames.
            output_hidden_states (`bool`): Whether to return the states of all layers too.

        Returns:
            `tuple`: snippet features `(B, N, h, w, C)` after the encoder's final norm, where it has one, and the
            states before the first and after each layer, each `(B, N, h, w, C)` (of its own `N`, `h`, `w` and `C`
            where layers are convolutional stages), or `None`. An adapter may turn the
            `B` videos into the `Q` sentences it was told of, from one of the layers on.

        Raises:
            ValueError: As [`~VideoBackbone.grid`].
        """
        grid = self.grid(pixel_values_videos)
        layers = list(self.layers) if output_hidden_states else []
        for layer in layers:
            # The encoder's own recording looks inside the layers that an adapter wraps. Hooks stay once they are
            # there: to add and remove them in each call would reach into the calls of other threads, and into copies.
            if _record_states not in layer._forward_hooks.values():
                layer.register_forward_hook(_record_states)
        enclosing, recording.states = recording.states, dict.fromkeys(layers)
        try:
            last = self._encode(self.encoder, pixel_values_videos, grid)
        finally:
            recorded, recording.states = recording.states, enclosing
        features = self._last_features(last, grid)
        if not output_hidden_states:
            return features, None
        states = [recorded[layers[0]][0], *(output for _, output in recorded.values())]
        return features, tuple(grid.to_features(state)[0] for state in states)

    def states_before(self, index: int, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """
        Runs the layers before one of them only.

        Args:
            index (`int`): The layer, from 1 on.
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`): Normalised frames.

        Returns:
            `torch.Tensor` of shape `(B, clips, tokens, C)`, or `(B, clips, C, t, h, w)` of a convolutional stage: what
            `forward_from` goes on with.
        """
        grid = self.grid(pixel_values_videos)
        kept = CaptureLayer(self.layers[index - 1])
        self._encode(self._encoder_with_layers([*self.layers[: index - 1], kept]), pixel_values_videos, grid)
        states: Any = kept.states
        return states.unflatten(0, (grid.num_videos, grid.num_clips))

    def grid_from_states(self, states: torch.Tensor, frame_size: tuple[int, int]) -> TokenGrid | StageGrid:
        """
        Args:
            states (`torch.Tensor`): As `states_before` gives them.
            frame_size (`tuple[int, int]`): Height and width of the frames that they come from, in pixels.

        Returns:
            [`TokenGrid`] or [`StageGrid`]: As `grid` of those frames.
        """
        grid = self.grid(torch.empty(1, *self._clip_shape(frame_size), device="meta"))
        return replace(grid, num_videos=len(states), num_clips=states.shape[1])

    def forward_from(self, index: int, states: torch.Tensor, frame_size: tuple[int, int]) -> torch.Tensor:
        """
        Goes on from where `states_before` stopped.

        Args:
            index (`int`): The layer that comes next, from 1 on.
            states (`torch.Tensor`): As `states_before` gives them.
            frame_size (`tuple[int, int]`): Height and width of the frames that they come from, in pixels.

        Returns:
            `torch.Tensor` of shape `(B, N, h, w, C)`: As `forward` returns them.
        """
        resuming = ResumingLayer(self.layers[index], states.flatten(0, 1))
        encoder = self._encoder_with_layers([resuming, *self.layers[index + 1 :]])
        # What encoders hand to their layers beside the states does not depend on the pixels, only on their size.
        clip = states.new_zeros(1, *self._clip_shape(frame_size))
        last = self._encode(encoder, clip, self.grid(clip))
        return self._last_features(last, self.grid_from_states(states, frame_size))

    def _clip_shape(self, frame_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Frames, channels, height and width of a clip."""
        config: Any = self.config
        kind = ENCODER_TYPES[config.model_type]
        clip_length = getattr(config, kind.clip_length) if kind.clip_length else 1
        return clip_length, getattr(config, "num_channels", None) or config.in_chans, *frame_size

    def _encoder_with_layers(self, layers: Sequence[nn.Module]) -> nn.Module:
        """The encoder with the same weights, but these layers; itself, which others may be calling, it stays as is."""
        all_layers = self.layers
        path = next(name for name, module in self.encoder.named_modules() if module is all_layers).split(".")
        encoder = module = _with_own_children(self.encoder)
        for name in path[:-1]:
            module._modules[name] = module = _with_own_children(module._modules[name])  # type: ignore[arg-type]
        module._modules[path[-1]] = nn.ModuleList(layers)
        return encoder

    def _encode(self, encoder: nn.Module, pixel_values_videos: torch.Tensor, grid: TokenGrid | StageGrid):
        """The encoder's last state of all clips."""
        kind = ENCODER_TYPES[self.config.model_type]
        clips = pixel_values_videos.reshape(grid.num_videos * grid.num_clips, -1, *pixel_values_videos.shape[2:])
        if kind.clip_length is None:
            clips = clips[:, 0]
            if kind.is_convolutional:  # depthwise convolutions take a third of the time so, on a CPU
                clips = clips.contiguous(memory_format=torch.channels_last)
        # Not `encoder.dtype`, which asks for parameters: replicas of DataParallel have weights that are none.
        weights = (getattr(module, "weight", None) for module in self.encoder.modules())
        dtype = next(weight.dtype for weight in weights if weight is not None)
        return encoder(clips.to(dtype), **kind.arguments).last_hidden_state

    def _last_features(self, last: torch.Tensor, grid: TokenGrid | StageGrid) -> torch.Tensor:
        """The encoder's last state as features `(B, N, h, w, C)`."""
        if isinstance(grid, StageGrid) and grid.has_time:  # C3D's and I3D's output has channels last
            last = last.movedim(-1, 1)
        return grid.to_features(last)[0]


def _with_own_children(module: nn.Module) -> nn.Module:
    """The same module with the same weights, whose children can be replaced without replacing the module's."""
    module = copy.copy(module)
    module._modules = dict(module._modules)
    return module


def find_encoder(model: Any) -> Any:
    """The video or image encoder inside a pretrained model, which may be one for a task, or of texts too."""
    # A model that is no task's may use its prefix for a part of itself, as DINOv3 does.
    if type(model) is not MODEL_MAPPING.get(type(model.config), None):
        model = getattr(model, model.base_model_prefix, model)
    # CLIP and SigLIP come with a text encoder of their own.
    return getattr(model, "vision_model", model)


def normalize_pixels(
    pixel_values_videos: torch.Tensor, image_mean: Sequence[float] | None, image_deviation: Sequence[float] | None
) -> torch.Tensor:
    """
    Normalises `uint8` pixels, on their device, as [`ScadaVideoProcessor`] does; floats are normalised already.

    Args:
        pixel_values_videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): uint8 or floats.
        image_mean (`Sequence[float]`, *optional*): Mean of the channels, for pixels in `[0, 1]`.
        image_deviation (`Sequence[float]`, *optional*): Their standard deviation.

    Returns:
        `torch.FloatTensor` of the same shape.

    Raises:
        ValueError: If the pixels are `uint8` and there is no mean.
    """
    if pixel_values_videos.dtype != torch.uint8:
        return pixel_values_videos
    if image_mean is None or image_deviation is None:
        raise ValueError(
            "Received uint8 pixels for a model whose configuration has no `image_mean` and `image_deviation`. Let the "
            "processor normalise (`do_normalize=True`), or set them in the configuration."
        )

    def per_channel(values: Sequence[float]) -> torch.Tensor:
        # Filled on the device: a GPU would have to wait for a copy.
        filled = [
            torch.full((1, 1), value, dtype=torch.float32, device=pixel_values_videos.device) for value in values
        ]
        return 255 * torch.stack(filled)

    return (pixel_values_videos.to(torch.float32) - per_channel(image_mean)) / per_channel(image_deviation)


def get_hidden_states(output: Any) -> torch.Tensor:
    """The states that a layer returns, alone or before its attention weights."""
    return output[0] if isinstance(output, tuple) else output


def _pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
