"""
SCADA, the Sentence-Conditioned Adapter, as a peft method: `get_peft_model(model, ScadaAdapterConfig())`.

[`ScadaLayer`] wraps whole layers of the video backbone. An inner branch modifies the output of its layer. An outer
branch adds the output of its layer directly to the fused features. The sentence multiplies the channels of both
branches (arXiv 2604.02860; shapes and initialisation are docs/design.md section 6 [D], after AdaTAD's adapter). A
pooling branch [D] is an outer branch in which the sentence also selects the places to average over.

The sentences of a video share most of the computation:
- Layers before the first inner branch run once per video. This branch first projects to fewer channels, then expands
  the batch from videos to sentences. All later layers run once per sentence.
- Outer branches do not expand the batch. They average over space before the multiplication, so each sentence costs
  only one sequence of `N` vectors.
- Pooling branches do not expand the batch either. Each sentence costs `N h w` vectors of the small width `r`.
- Frozen layers before the first branch store no activations for the backward pass.

Encoders pass no arguments to their layers. The model therefore sets the sentences as the [`Condition`] of each wrapper
before the backbone runs, and removes them afterwards. Each thread has its own conditions, so threads can share a
model. A wrapper reads its condition only in the forward pass. Checkpointing reruns only the wrapped layer, possibly in
another thread.
"""

import enum
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .backbone_scada import get_hidden_states, match_memory_format
from .sentences_scada import expand_to_sentences


try:  # the Hub code of models without an adapter also works without peft
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
except ImportError as error:
    raise ImportError("SCADA adapters need peft, which is not installed; run `pip install peft`.") from error


# Fields of the configuration with the layers of each kind of branch.
LAYER_LISTS = ("inner_layers", "outer_layers", "pooling_layers")


class ScadaPeftType(enum.StrEnum):
    """Name of the method in peft, as an enum of its own because peft's enum cannot be extended."""

    SCADA = "SCADA"


def resolve_layers(layers: list[int] | str, num_layers: int) -> list[int]:
    """
    Return the layer indices that a list or rule selects in a backbone of `num_layers` layers.

    Args:
        layers (`list[int]` or `str`): Indices (negative indices count from the end), or a rule for any depth: `"all"`,
            `"last 3"`, `"last 1/3"`, `"even 4"` (4 evenly spaced layers, up to the last layer), `"even 1/2"`. A rule
            for more layers than the backbone has selects all layers.
        num_layers (`int`): Number of layers of the backbone.

    Returns:
        `list[int]`: Non-negative indices in ascending order.

    Raises:
        ValueError: If `layers` is neither a list of integers nor a rule, or if an index is duplicate or out of range.

    Example:

    ```python
    >>> from modeling_scada.adapter_scada import resolve_layers

    >>> resolve_layers("last 1/3", 12), resolve_layers("even 4", 12)
    ([8, 9, 10, 11], [2, 5, 8, 11])

    ```
    """
    if isinstance(layers, str):
        if layers == "all":
            return list(range(num_layers))
        rule = re.fullmatch(r"(last|even) ([1-9]\d*)(?:/([1-9]\d*))?", layers)
        if rule is None:
            raise ValueError(
                f"Received the rule {layers!r} for layers; expected a list of indices, 'all', or 'last' or 'even' "
                "with a number or a fraction, such as 'last 3', 'last 1/3', 'even 4'."
            )
        count = int(rule[2]) if rule[3] is None else round(num_layers * int(rule[2]) / int(rule[3]))
        count = min(max(count, 1), num_layers)
        if rule[1] == "last":
            return list(range(num_layers - count, num_layers))
        return [round((k + 1) * num_layers / count) - 1 for k in range(count)]
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in layers):
        raise ValueError(f"Received {layers!r} for layers; expected a list of integers or a rule such as 'last 3'.")
    indices = sorted(index + num_layers if index < 0 else index for index in layers)
    if len(set(indices)) < len(indices) or any(not 0 <= index < num_layers for index in indices):
        raise ValueError(
            f"Received the layers {list(layers)} for a backbone of {num_layers} layers; expected each index once, "
            f"from {-num_layers} to {num_layers - 1}."
        )
    return indices


@dataclass
class ScadaAdapterConfig(PeftConfig):
    """
    Configuration of the Sentence-Conditioned Adapter, for `get_peft_model` and `add_adapter`.

    Args:
        reduction (`int`, *optional*, defaults to 8):
            Bottleneck factor: branches have `C // reduction` channels for a backbone of width `C`.
        kernel_size (`int`, *optional*, defaults to 3):
            Kernel size of the temporal convolutions in both branches, in snippets; must be odd.
        inner_layers (`list[int]` or `str`, *optional*, defaults to `[]`):
            Layers with an inner branch: indices, `"all"`, or a rule (see [`resolve_layers`]); `[]` for no layer. From
            the first inner branch on, training memory grows with the number of sentences per video.
        outer_layers (`list[int]` or `str`, *optional*, defaults to `[]`):
            Layers with an outer branch, in the same format. Memory hardly depends on the number of sentences.
        pooling_layers (`list[int]` or `str`, *optional*):
            Layers with a pooling branch [D], in the same format. A pooling branch selects places by the sentence, as
            inner branches do, but the backbone runs once per video. Defaults to `"last 1"` without other branches, and
            to `[]` with inner or outer branches.
        conditioning (`bool`, *optional*, defaults to `True`):
            Whether the sentence multiplies the channels of inner and outer branches. Without conditioning, an inner
            branch is the temporal-informative adapter of AdaTAD and does not depend on the sentence. Pooling branches
            always depend on the sentence.
        modules_to_save (`list[str]`, *optional*, defaults to `["head"]`):
            Modules to train in full and to save with the adapter.
        num_layers (`int`, *optional*):
            Number of layers of the trained backbone, written by `save_pretrained`. Loading the adapter onto a backbone
            of another depth raises an error.

    Raises:
        ValueError: If a number is out of range, a rule is invalid, or all layer lists are empty.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from modeling_scada import ScadaAdapterConfig, ScadaConfig, ScadaForTemporalGrounding

    >>> model = ScadaForTemporalGrounding(ScadaConfig())
    >>> model = get_peft_model(model, ScadaAdapterConfig(outer_layers="all"))
    >>> model.targeted_module_names[0]
    'model.video_backbone.encoder.encoder.layer.0'

    ```
    """

    reduction: int = field(default=8, metadata={"help": "Bottleneck factor: branches have C // reduction channels."})
    kernel_size: int = field(default=3, metadata={"help": "Temporal kernel size, in snippets; odd."})
    inner_layers: list[int] | str = field(
        default_factory=list, metadata={"help": "Layers with an inner branch: indices, 'all', 'last 3', 'even 1/2'."}
    )
    outer_layers: list[int] | str = field(
        default_factory=list, metadata={"help": "Layers with an outer branch: indices, 'all', 'last 3', 'even 1/2'."}
    )
    pooling_layers: list[int] | str | None = field(
        default=None,
        metadata={"help": "Layers with a pooling branch: indices, 'all', 'even 1/2'. By default the last, if alone."},
    )
    conditioning: bool = field(
        default=True, metadata={"help": "Whether the sentence scales the channels of inner and outer branches."}
    )
    modules_to_save: list[str] | None = field(
        default_factory=lambda: ["head"],
        metadata={"help": "Modules to train in full and to save with the adapter."},
    )
    num_layers: int | None = field(
        default=None, metadata={"help": "Number of layers of the trained backbone; saving writes it."}
    )

    # Depth of the last adapted model. `num_layers` stays unset, so that the configuration also fits other models.
    _num_layers = None
    # peft's tuners read this attribute, but `ScadaTuner` chooses modules from the layer lists.
    target_modules = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ScadaPeftType.SCADA
        for name in ("reduction", "kernel_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Received {name}={value!r}; expected a positive integer.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"Received kernel_size={self.kernel_size}; expected an odd number of snippets.")
        if self.pooling_layers is None:
            # Saved adapters without this argument have inner or outer branches.
            self.pooling_layers = [] if self.inner_layers or self.outer_layers else "last 1"
        for name in LAYER_LISTS:
            value = getattr(self, name)
            if isinstance(value, str):
                resolve_layers(value, 1)
            elif isinstance(value, (list, tuple)):
                setattr(self, name, list(value))
            else:
                raise ValueError(
                    f"Received {name}={value!r}; expected a list of indices (may be empty) or a rule such as 'last 3'."
                )
        if not isinstance(self.conditioning, bool):
            raise ValueError(f"Received conditioning={self.conditioning!r}; expected True or False.")
        if not any(getattr(self, name) for name in LAYER_LISTS):
            raise ValueError("Received no layers; name some in `inner_layers`, `outer_layers` or `pooling_layers`.")

    def to_dict(self) -> dict[str, Any]:
        """Return peft's dictionary with the depth of the adapted backbone."""
        return super().to_dict() | {"num_layers": self._num_layers or self.num_layers}


@dataclass(frozen=True)
class Condition:
    """
    Information about a batch of `B` videos and `Q` sentences for a wrapped layer.

    Args:
        sentence_embeds (`torch.Tensor` of shape `(Q, C_text)`, *optional*): Sentence vectors; `None` to encode videos
            for later sentences.
        video_index (`torch.LongTensor` of shape `(Q,)`, *optional*): Video of each sentence.
        grid ([`TokenGrid`]): Arrangement of the video tokens.
        per_sentence (`bool`): Whether the layer's input has `Q` rows (per sentence) or `B` rows (per video). Shapes
            are ambiguous if `B = Q`.
    """

    sentence_embeds: Any
    video_index: Any
    grid: Any
    per_sentence: bool


def _zero_biases(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)


class SentenceGate(nn.Module):
    """Sentence-conditioned scale `z * (1 + W_cond q)`, initialised as the identity."""

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.projection = nn.Linear(text_dim, dim, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, features: torch.Tensor, sentence_embeds: torch.Tensor) -> torch.Tensor:
        # features: (Q, ..., r), sentence_embeds: (Q, C_text)
        scale = 1 + self.projection(sentence_embeds.to(self.projection.weight.dtype))
        return features * scale.view(len(scale), *[1] * (features.dim() - 2), -1)


def _depthwise_over_time(dim: int, kernel_size: int) -> nn.Conv2d:
    """Return a depthwise temporal convolution for [`_mix_over_time`]."""
    # A 2D convolution over (N, h * w) keeps the memory order of the features; a 1D one over (N,) would not.
    return nn.Conv2d(dim, dim, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=dim)


def _mix_over_time(features: torch.Tensor, depthwise: nn.Conv2d, pointwise: nn.Linear) -> torch.Tensor:
    """Return `z + pointwise(depthwise(z))` for features `z` of shape `(Q, N, h * w, r)`."""
    return features + pointwise(depthwise(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class InnerBranch(nn.Module):
    """
    Residual branch after a layer: down-projection, sentence gate, temporal convolutions and up-projection.

    Args:
        dim (`int`): Width `C` of the backbone.
        bottleneck_dim (`int`): Width `r` of the branch.
        text_dim (`int` or `None`): Width of the sentence vectors; `None` for a branch without conditioning.
        kernel_size (`int`): Kernel size of the temporal convolution, in snippets. The convolution crosses clip
            borders and pads the ends of the video with zeros.
    """

    def __init__(self, dim: int, bottleneck_dim: int, text_dim: int | None, kernel_size: int):
        super().__init__()
        self.down = nn.Linear(dim, bottleneck_dim)
        self.gate = None if text_dim is None else SentenceGate(text_dim, bottleneck_dim)
        self.depthwise = _depthwise_over_time(bottleneck_dim, kernel_size)
        self.pointwise = nn.Linear(bottleneck_dim, bottleneck_dim)
        self.up = nn.Linear(bottleneck_dim, dim)
        self.gamma = nn.Parameter(torch.ones(()))
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.kaiming_normal_(self.depthwise.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.pointwise.weight, nonlinearity="relu")
        nn.init.zeros_(self.up.weight)
        _zero_biases(self)

    def forward(self, features: torch.Tensor, condition: Condition) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(B or Q, N, h, w, C)`): Output of the layer.
            condition ([`Condition`]): Information about the batch.

        Returns:
            `torch.Tensor` of shape `(B or Q, N, h, w, C)`: `Q` rows if the input has `Q` rows or the branch is
            conditioned.
        """
        z = F.gelu(self.down(features.to(self.down.weight.dtype)))
        if self.gate is not None:
            if not condition.per_sentence:
                z = expand_to_sentences(z, condition.video_index)
                features = expand_to_sentences(features, condition.video_index)
            z = self.gate(z, condition.sentence_embeds)
        z = _mix_over_time(z.flatten(2, 3), self.depthwise, self.pointwise).view(z.shape)
        # gamma * (W z + b), in a form whose backward pass needs no tensor of width C.
        update = F.linear(z, self.gamma * self.up.weight, self.gamma * self.up.bias)
        return features + update.to(features.dtype)


class FusedBranch(nn.Module):
    """Branch from a layer to the fused features, with a part `encode` that all sentences of a video share."""

    encode: Callable[[torch.Tensor], torch.Tensor]
    apply_sentence: Callable[[torch.Tensor, Condition], torch.Tensor]

    def forward(self, features: torch.Tensor, condition: Condition) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(B or Q, N, h, w, C)`): Output of the layer, before its inner branch.
            condition ([`Condition`]): Information about the batch.

        Returns:
            `torch.Tensor` of shape `(Q, N, out_dim)`: Update of the backbone's spatially averaged features, in the
            dtype of the branch.
        """
        return self.apply_sentence(self.encode(features), condition)


class OuterBranch(FusedBranch):
    """
    Branch from a layer to the fused features: spatial down-convolution, spatial mean, sentence gate and temporal
    up-convolution.

    The convolutions have kernels `(1, 3, 3)` and `(kernel_size, 1, 1)`. The second kernel has no spatial extent, so
    the branch averages over space before this convolution and before the multiplication.

    Args:
        dim (`int`): Width `C` of the layer.
        bottleneck_dim (`int`): Width `r` of the branch.
        text_dim (`int` or `None`): Width of the sentence vectors; `None` for a branch without conditioning.
        kernel_size (`int`): Kernel size of the temporal convolution, in snippets. The convolution crosses clip
            borders and pads the ends of the video with zeros.
        out_dim (`int`, *optional*): Width of the last layer; defaults to `C`.
    """

    def __init__(
        self, dim: int, bottleneck_dim: int, text_dim: int | None, kernel_size: int, out_dim: int | None = None
    ):
        super().__init__()
        self.down = nn.Conv2d(dim, bottleneck_dim, 3, stride=2, padding=1)
        self.gate = None if text_dim is None else SentenceGate(text_dim, bottleneck_dim)
        self.up = nn.Conv1d(bottleneck_dim, out_dim or dim, kernel_size, padding=kernel_size // 2)
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)
        _zero_biases(self)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Encode features `(B or Q, N, h, w, C)` as a sequence `(B or Q, N, r)`, the sentence-free part."""
        frames = features.to(self.down.weight.dtype).flatten(0, 1).permute(0, 3, 1, 2)  # (B * N, C, h, w)
        return F.gelu(self.down(frames)).mean(dim=(2, 3)).view(*features.shape[:2], -1)

    def apply_sentence(self, sequence: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Turn a sequence `(B or Q, N, r)` into features `(Q, N, out_dim)`, the sentence-dependent part."""
        if not condition.per_sentence:
            sequence = expand_to_sentences(sequence, condition.video_index)
        if self.gate is not None:
            sequence = self.gate(sequence, condition.sentence_embeds)
        return self.up(sequence.transpose(1, 2)).transpose(1, 2)


class PoolingBlock(nn.Module):
    """
    Residual block of a [`PoolingBranch`] at each place: norm, sentence gate, temporal convolutions and MLP.

    Args:
        dim (`int`): Width `r` of the branch.
        text_dim (`int`): Width of the sentence vectors.
        kernel_size (`int`): Kernel size of the temporal convolution, in snippets.
    """

    def __init__(self, dim: int, text_dim: int, kernel_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = SentenceGate(text_dim, dim)
        nn.init.normal_(self.gate.projection.weight, std=text_dim**-0.5)  # not the identity, see `PoolingBranch`
        self.depthwise = _depthwise_over_time(dim, kernel_size)
        self.pointwise = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, features: torch.Tensor, sentence_embeds: torch.Tensor) -> torch.Tensor:
        # features: (Q, N, h * w, r), sentence_embeds: (Q, C_text)
        update = self.gate(self.norm(features), sentence_embeds)
        return features + self.mlp(_mix_over_time(update, self.depthwise, self.pointwise))


class PoolingBranch(FusedBranch):
    """
    Branch from a layer to the fused features in which the sentence selects the places of a frame [D].

    The branch reduces the channels of each place once per video. For each sentence, two blocks gate the channels of
    each place, and attention averages over the places: the sentence is the query, the places are keys and values. An
    outer branch averages before the multiplication and cannot select a place. Unlike the gates of inner and outer
    branches, these gates do not start as the identity, because training then stays on a plateau for longer. The last
    convolution starts at zero, so a fresh branch changes nothing.

    Args:
        dim (`int`): Width `C` of the layer.
        bottleneck_dim (`int`): Width `r` of the branch.
        text_dim (`int`): Width of the sentence vectors.
        kernel_size (`int`): Kernel size of the temporal convolutions, in snippets. The convolutions cross clip borders
            and pad the ends of the video with zeros.
        out_dim (`int`): Width of the last layer.
    """

    num_blocks = 2
    max_heads = 4

    def __init__(self, dim: int, bottleneck_dim: int, text_dim: int, kernel_size: int, out_dim: int):
        super().__init__()
        self.num_heads = math.gcd(bottleneck_dim, self.max_heads)
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, bottleneck_dim)
        self.blocks = nn.ModuleList(
            [PoolingBlock(bottleneck_dim, text_dim, kernel_size) for _ in range(self.num_blocks)]
        )
        self.pooling_norm = nn.LayerNorm(bottleneck_dim)
        self.query = nn.Linear(text_dim, bottleneck_dim)
        self.key = nn.Linear(bottleneck_dim, bottleneck_dim)
        self.up = nn.Conv1d(bottleneck_dim, out_dim, kernel_size, padding=kernel_size // 2)
        nn.init.trunc_normal_(self.down.weight, std=0.1)
        nn.init.normal_(self.query.weight, std=text_dim**-0.5)
        nn.init.zeros_(self.up.weight)
        _zero_biases(self)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Encode features `(B or Q, N, h, w, C)` as a sequence `(B or Q, N, h w r)`, the sentence-free part."""
        return F.gelu(self.down(self.norm(features.to(self.down.weight.dtype)))).flatten(2)

    def apply_sentence(self, sequence: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Turn a sequence `(B or Q, N, h w r)` into features `(Q, N, out_dim)`, the sentence-dependent part."""
        if not condition.per_sentence:
            sequence = expand_to_sentences(sequence, condition.video_index)
        sentence_embeds = condition.sentence_embeds.to(self.down.weight.dtype)
        places = sequence.unflatten(-1, (-1, self.down.out_features))  # (Q, N, h * w, r)
        for block in self.blocks:
            places = block(places, sentence_embeds)
        places = self.pooling_norm(places)
        heads = (self.num_heads, self.down.out_features // self.num_heads)
        values, keys = places.unflatten(-1, heads), self.key(places).unflatten(-1, heads)
        query = self.query(sentence_embeds).unflatten(-1, heads)[:, None, None]
        weights = ((keys * query).sum(-1, keepdim=True) / heads[1] ** 0.5).softmax(2)  # (Q, N, h * w, heads, 1)
        pooled = (weights * values).sum(2).flatten(2)
        return self.up(pooled.transpose(1, 2)).transpose(1, 2)


@dataclass
class ForwardContext:
    """
    State of a wrapped layer during one call of the model: the condition and the output of the outer branches.

    Without sentences, `outer_features` holds the sequences of the outer branches.
    """

    condition: Condition
    outer_features: torch.Tensor | None = None


class ForwardContextStack(threading.local):
    """
    Stack of a thread's active model calls, because a hook inside a call may call the model again.

    Copies and unpickled stacks start empty, because calls belong to the original model.
    """

    def __init__(self):
        self.stack: list[ForwardContext] = []

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()


class ScadaLayer(nn.Module, BaseTunerLayer):
    """
    Wrapped layer of the video backbone, with inner, outer and pooling branches per adapter.

    Args:
        base_layer (`nn.Module`): Layer to wrap.
        dim (`int`): Width `C` of the layer.
        text_dim (`int`): Width of the sentence vectors.
        out_dim (`int`): Width of the last layer and of the outer features.
    """

    adapter_layer_names = ("scada_inner", "scada_outer", "scada_pooling")

    def __init__(self, base_layer: nn.Module, dim: int, text_dim: int, out_dim: int):
        super().__init__()
        self.base_layer = base_layer
        self.dim = dim
        self.text_dim = text_dim
        self.out_dim = out_dim
        self.scada_inner = nn.ModuleDict()
        self.scada_outer = nn.ModuleDict()
        self.scada_pooling = nn.ModuleDict()
        self._contexts = ForwardContextStack()

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        weight = next(base_layer.parameters())
        return weight.device, weight.dtype

    def add_branches(
        self, adapter_name: str, config: ScadaAdapterConfig, has_inner: bool, has_outer: bool, has_pooling: bool
    ) -> None:
        """Add the branches of an adapter, initialised to leave the features unchanged."""
        text_dim = self.text_dim if config.conditioning else None
        sizes = (self.dim, self.dim // config.reduction, text_dim, config.kernel_size)
        if has_inner:
            self.scada_inner[adapter_name] = InnerBranch(*sizes)
        if has_outer:
            self.scada_outer[adapter_name] = OuterBranch(*sizes, self.out_dim)
        if has_pooling:
            self.scada_pooling[adapter_name] = PoolingBranch(
                self.dim, self.dim // config.reduction, self.text_dim, config.kernel_size, self.out_dim
            )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _active(self, branches: nn.ModuleDict) -> list[Any]:
        if self.disable_adapters:
            return []
        return [branches[name] for name in self.active_adapters if name in branches]

    def _active_outer(self) -> list[Any]:
        """Return the active branches to the fused features."""
        return [*self._active(self.scada_outer), *self._active(self.scada_pooling)]

    @property
    def depends_on_sentence(self) -> bool:
        """Whether the sentence changes the output states of this layer."""
        return any(branch.gate is not None for branch in self._active(self.scada_inner))

    @property
    def has_outer_branch(self) -> bool:
        """Whether this layer has an active outer or pooling branch."""
        return bool(self._active_outer())

    def set_condition(
        self,
        sentence_embeds: torch.Tensor | None,
        video_index: torch.Tensor | None,
        grid: Any,
        per_sentence: bool,
    ) -> bool:
        """
        Begin a call of the model in this thread; `take_outer_features` ends the call.

        Args:
            sentence_embeds, video_index, grid, per_sentence: See [`Condition`].

        Returns:
            `bool`: Whether the output of this layer has one row per sentence instead of one per video.
        """
        self._contexts.stack.append(ForwardContext(Condition(sentence_embeds, video_index, grid, per_sentence)))
        return per_sentence or self.depends_on_sentence

    def take_outer_features(self) -> torch.Tensor | None:
        """
        End the call begun by `set_condition`.

        Returns:
            `torch.Tensor`, *optional*: Outer features of shape `(Q, N, C)`. In a call without sentences, the
            concatenated sequences of the branches, of shape `(B, N, X)`, an input of `outer_features`. `None` if no
            outer or pooling branch ran.
        """
        return self._contexts.stack.pop().outer_features

    def outer_features(
        self, sequences: torch.Tensor, sentence_embeds: torch.Tensor, video_index: torch.Tensor
    ) -> torch.Tensor:
        """
        Compute outer features from stored sequences.

        Args:
            sequences (`torch.Tensor` of shape `(B, N, X)`): Output of `take_outer_features` in a call without
                sentences.
            sentence_embeds, video_index: See [`Condition`].

        Returns:
            `torch.Tensor` of shape `(Q, N, C)`: Outer features.
        """
        condition = Condition(sentence_embeds, video_index, None, per_sentence=False)
        outer, pooling = (
            [branch.up.in_channels for branch in self._active(branches)]
            for branches in (self.scada_outer, self.scada_pooling)
        )
        pooling_channels = sequences.shape[-1] - sum(outer)  # `h w r` for each pooling branch
        parts = sequences.split([*outer, *(pooling_channels * dim // sum(pooling) for dim in pooling)], dim=-1)
        pairs = zip(self._active_outer(), parts, strict=True)
        return torch.stack([branch.apply_sentence(part, condition) for branch, part in pairs]).sum(0)

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> Any:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(clips, tokens, C)`): Input of the layer.

        Returns:
            `torch.Tensor` of shape `(clips, tokens, C)`: Output of the layer, or its output tuple with this tensor
            first. From a conditioned inner branch on, the clips are repeated per sentence.

        Raises:
            RuntimeError: If this thread is not calling the model, or if the batch does not match the call.
        """
        output = self.base_layer(hidden_states, *args, **kwargs)
        inner, outer = self._active(self.scada_inner), self._active_outer()
        if not inner and not outer:
            return output
        tokens = get_hidden_states(output)
        if not self._contexts.stack:
            raise RuntimeError(
                "Received features without sentences: a layer with a SCADA adapter runs only inside ScadaModel or "
                "ScadaForTemporalGrounding. Call the model, or disable the adapter first."
            )
        call = self._contexts.stack[-1]
        condition = call.condition
        grid = condition.grid
        num_rows = len(condition.video_index) if condition.per_sentence else grid.num_videos
        if not grid.holds(tokens, num_rows):
            raise RuntimeError(
                f"Received features of shape {tuple(tokens.shape)}; expected {num_rows} videos or sentences, as in "
                "the current call of ScadaModel. Call the model instead of its backbone."
            )
        features, class_tokens = grid.to_features(tokens)  # (B or Q, N, h, w, C)
        if outer and condition.sentence_embeds is None:
            call.outer_features = torch.cat([branch.encode(features) for branch in outer], dim=-1)
        elif outer:
            call.outer_features = torch.stack([branch(features, condition) for branch in outer]).sum(0)
        for branch in inner:
            features = branch(features, condition)
            if branch.gate is not None and not condition.per_sentence:
                # Later branches, of other active adapters, also receive one row per sentence.
                condition = replace(condition, per_sentence=True)
                if class_tokens is not None:
                    class_tokens = expand_to_sentences(class_tokens, condition.video_index)
        if inner:
            # With the same memory format, a fresh adapter leaves the outputs of the next layers unchanged.
            tokens = match_memory_format(grid.to_tokens(features, class_tokens), tokens)
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens


class ScadaTuner(BaseTuner):
    """Tuner for peft that wraps the configured layers of the video backbone."""

    prefix = "scada_"
    tuner_layer_cls = ScadaLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        base_model: Any = getattr(model, "base_model", None)
        if not hasattr(base_model, "video_backbone"):
            raise ValueError(
                f"Received a {type(model).__name__}; SCADA adapts ScadaForTemporalGrounding or ScadaModel, because "
                "the adapter needs sentences."
            )
        layers, dims = base_model.video_backbone.layers, base_model.video_backbone.layer_dims
        if peft_config.num_layers not in (None, len(layers)):
            raise ValueError(
                f"The adapter was trained on a video backbone of {peft_config.num_layers} layers, but this backbone "
                f"has {len(layers)} layers. Load the adapter onto its base model: "
                f"{peft_config.base_model_name_or_path or 'unknown, because its configuration does not name one'}."
            )
        peft_config._num_layers = len(layers)
        inner, outer, pooling = (resolve_layers(getattr(peft_config, name), len(layers)) for name in LAYER_LISTS)
        if peft_config.reduction > (dim := min(dims[index] for index in {*inner, *outer, *pooling})):
            raise ValueError(
                f"Received reduction={peft_config.reduction} for a backbone of width {dim}; expected at most {dim}."
            )
        names = {id(module): name for name, module in model.named_modules()}
        text_dim = base_model.text_encoder.config.hidden_size
        self._sizes = {names[id(layer)]: (dim, text_dim, dims[-1]) for layer, dim in zip(layers, dims, strict=True)}
        self._placement = {
            names[id(layers[index])]: {
                "has_inner": index in inner,
                "has_outer": index in outer,
                "has_pooling": index in pooling,
            }
            for index in sorted({*inner, *outer, *pooling})
        }

    def _check_target_module_exists(self, peft_config: Any, key: str) -> bool:  # type: ignore[override]
        return key in self._placement

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if not isinstance(target, ScadaLayer):
            target = ScadaLayer(target, *self._sizes[current_key])
            self._replace_module(parent, target_name, target, target.base_layer)
        target.add_branches(adapter_name, peft_config, **self._placement[current_key])

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # peft expects the adapter name directly before the weight name. A branch contains layers, so here the adapter
        # name comes directly after the branch name.
        return re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}\.", r"\1.", key)

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "A SCADA adapter cannot be merged: its update depends on the sentence and is not linear in the features, "
            "so it is not equivalent to any backbone weights. Keep the adapter (save_pretrained saves it "
            "separately), or remove it with unload()."
        )


def register_peft_method() -> None:
    """Register the method with peft. Repeated calls keep the first registration."""
    name: Any = ScadaPeftType.SCADA
    PEFT_TYPE_TO_CONFIG_MAPPING.setdefault(name, ScadaAdapterConfig)
    PEFT_TYPE_TO_TUNER_MAPPING.setdefault(name, ScadaTuner)
    PEFT_TYPE_TO_PREFIX_MAPPING.setdefault(name, ScadaTuner.prefix)


__all__ = ["ScadaAdapterConfig"]
