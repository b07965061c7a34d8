"""
SCADA, the Sentence-Conditioned Adapter, as a method of peft: `get_peft_model(model, ScadaAdapterConfig())`.

Whole layers of the video backbone are wrapped ([`ScadaLayer`]). An inner branch stands on the path, after the layer;
an outer branch stands beside it and leads straight to the fused features. Both are multiplied by the sentence (arXiv
2604.02860; shapes and initialisation are docs/design.md section 6 [D], after AdaTAD's adapter).

What is shared between the sentences of a video:
- Up to the first inner branch everything is computed once a video. There, after its projection to fewer channels, the
  batch grows from videos to sentences, and stays grown.
- Outer branches need no growth: their spatial mean comes before the multiplication, so that a sentence costs no more
  than a sequence of `N` vectors.
- Nothing that is frozen and comes before the first branch keeps activations for the backward pass.

The sentences reach a wrapper as the [`Condition`] of a call, set before the backbone runs and gone after it: encoders
hand no arguments to their layers. Each thread has calls of its own, so that one model serves many threads. A wrapper
reads its condition in the forward pass alone: what is checkpointed, and runs again in the backward pass (which may be
another thread's), is the layer inside it.
"""

import enum
import re
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .backbone_scada import get_hidden_states, match_memory_format
from .sentences_scada import expand_to_sentences


try:  # models without an adapter load from the Hub where peft is not installed
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
except ImportError as error:
    raise ImportError("SCADA adapters need peft, which is not installed; run `pip install peft`.") from error


class ScadaPeftType(enum.StrEnum):
    """The name under which peft finds the method; peft's own list of names cannot be extended."""

    SCADA = "SCADA"


def resolve_layers(layers: list[int] | str, num_layers: int) -> list[int]:
    """
    The layers that a placement names, for a backbone of `num_layers` layers.

    Args:
        layers (`list[int]` or `str`): Indices, negative ones counted from the end, or a rule that works for any depth:
            `"all"`, `"last 3"`, `"last 1/3"`, `"even 4"` (4 layers evenly spaced, up to the last), `"even 1/2"`. A
            rule that asks for more layers than there are gets all.
        num_layers (`int`): Layers of the backbone.

    Returns:
        `list[int]`: Indices from 0 on, in order.

    Raises:
        ValueError: If it is neither, or if an index is out of range or given twice.

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
                "with a number or a share, such as 'last 3', 'last 1/3', 'even 4'."
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
            A branch has `C // reduction` channels, `C` being the backbone's width.
        kernel_size (`int`, *optional*, defaults to 3):
            Snippets that the temporal convolutions of both branches span; odd.
        inner_layers (`list[int]` or `str`, *optional*, defaults to `"last 3"`):
            Layers with an inner branch: indices, `"all"`, or a rule (see [`resolve_layers`]). `[]` for none. Memory
            for training grows with the number of sentences a video from the first of them on.
        outer_layers (`list[int]` or `str`, *optional*, defaults to `"even 4"`):
            Layers with an outer branch, given likewise. Memory hardly depends on the number of sentences.
        conditioning (`bool`, *optional*, defaults to `True`):
            Whether the sentence multiplies the branches' channels. Without it, an inner branch is the
            temporal-informative adapter of AdaTAD, and does not depend on the sentence.
        modules_to_save (`list[str]`, *optional*, defaults to `["head"]`):
            Modules that train in full and are saved with the adapter.
        num_layers (`int`, *optional*):
            Layers of the backbone that the adapter was trained on; saving writes it, and loading onto a backbone of
            another depth is refused.

    Raises:
        ValueError: If a number is out of range, a rule is not understood, or no layer is named.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from modeling_scada import ScadaAdapterConfig, ScadaConfig, ScadaForTemporalGrounding

    >>> model = ScadaForTemporalGrounding(ScadaConfig())
    >>> model = get_peft_model(model, ScadaAdapterConfig(inner_layers=[], outer_layers="all"))
    >>> model.targeted_module_names[0]
    'model.video_backbone.encoder.encoder.layer.0'

    ```
    """

    reduction: int = field(default=8, metadata={"help": "Branches have C // reduction channels."})
    kernel_size: int = field(default=3, metadata={"help": "Snippets the temporal convolutions span; odd."})
    inner_layers: list[int] | str = field(
        default="last 3", metadata={"help": "Layers with an inner branch: indices, 'all', 'last 3', 'even 1/2'."}
    )
    outer_layers: list[int] | str = field(
        default="even 4", metadata={"help": "Layers with an outer branch: indices, 'all', 'last 3', 'even 1/2'."}
    )
    conditioning: bool = field(default=True, metadata={"help": "Whether the sentence multiplies the branches."})
    modules_to_save: list[str] | None = field(
        default_factory=lambda: ["head"],
        metadata={"help": "Modules that train in full and are saved with the adapter."},
    )
    num_layers: int | None = field(
        default=None, metadata={"help": "Layers of the backbone that the adapter was trained on; saving writes it."}
    )

    # Of the model that it was used for last; a configuration may be used for others, until it is saved with one.
    _num_layers = None
    # peft's tuners read it; which modules are wrapped follows from the layers.
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
        for name in ("inner_layers", "outer_layers"):
            value = getattr(self, name)
            if isinstance(value, str):
                resolve_layers(value, 1)
            elif isinstance(value, (list, tuple)):
                setattr(self, name, list(value))
            else:
                raise ValueError(
                    f"Received {name}={value!r}; expected a list of indices, [] for none, or a rule such as 'last 3'."
                )
        if not isinstance(self.conditioning, bool):
            raise ValueError(f"Received conditioning={self.conditioning!r}; expected True or False.")
        if not self.inner_layers and not self.outer_layers:
            raise ValueError("Received no layers; name some in `inner_layers` or `outer_layers`.")

    def to_dict(self) -> dict[str, Any]:
        """As in peft, with the depth of the backbone that the adapter is on."""
        return super().to_dict() | {"num_layers": self._num_layers or self.num_layers}


@dataclass(frozen=True)
class Condition:
    """
    What a wrapped layer has to know about a batch of `B` videos and `Q` sentences.

    Args:
        sentence_embeds (`torch.Tensor` of shape `(Q, C_text)`, *optional*): Sentence vectors; `None` while videos are
            encoded for sentences to come.
        video_index (`torch.LongTensor` of shape `(Q,)`, *optional*): The video of each sentence.
        grid ([`TokenGrid`]): How the tokens of the videos lie.
        per_sentence (`bool`): Whether the features that reach the layer are those of `Q` sentences or of `B` videos.
            Shapes cannot tell where `B = Q`.
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
    """`z * (1 + W_cond q)`, without effect at first."""

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.projection = nn.Linear(text_dim, dim, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, features: torch.Tensor, sentence_embeds: torch.Tensor) -> torch.Tensor:
        # features: (Q, ..., r), sentence_embeds: (Q, C_text)
        scale = 1 + self.projection(sentence_embeds.to(self.projection.weight.dtype))
        return features * scale.view(len(scale), *[1] * (features.dim() - 2), -1)


class InnerBranch(nn.Module):
    """
    The branch on the path: fewer channels, the sentence, a depthwise and a pointwise convolution over time, and back.

    Args:
        dim (`int`): Width `C` of the backbone.
        bottleneck_dim (`int`): Width `r` of the branch.
        text_dim (`int` or `None`): Width of the sentence vectors; `None` for a branch without conditioning.
        kernel_size (`int`): Snippets the temporal convolution spans, across clip borders, with zeros beyond the video.
    """

    def __init__(self, dim: int, bottleneck_dim: int, text_dim: int | None, kernel_size: int):
        super().__init__()
        self.down = nn.Linear(dim, bottleneck_dim)
        self.gate = None if text_dim is None else SentenceGate(text_dim, bottleneck_dim)
        # Over (N, h * w) rather than (N,), so that features stay in their order in memory.
        self.depthwise = nn.Conv2d(
            bottleneck_dim, bottleneck_dim, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=bottleneck_dim
        )
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
            condition ([`Condition`]): What the layer knows about the batch.

        Returns:
            `torch.Tensor` of shape `(B or Q, N, h, w, C)`: `Q` if there were `Q`, or if the branch is conditioned.
        """
        z = F.gelu(self.down(features.to(self.down.weight.dtype)))
        if self.gate is not None:
            if not condition.per_sentence:
                z = expand_to_sentences(z, condition.video_index)
                features = expand_to_sentences(features, condition.video_index)
            z = self.gate(z, condition.sentence_embeds)
        over_time = self.depthwise(z.flatten(2, 3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (Q, N, h * w, r)
        z = z + self.pointwise(over_time).view(z.shape)
        # gamma * (W z + b), written so that the backward pass needs no tensor of width C.
        update = F.linear(z, self.gamma * self.up.weight, self.gamma * self.up.bias)
        return features + update.to(features.dtype)


class OuterBranch(nn.Module):
    """
    The branch beside the path: less width and less space, the sentence, a convolution over time, the mean over space.

    The two convolutions have kernels of `(1, 3, 3)` and `(kernel_size, 1, 1)`; the second has no extent in space, so
    the mean is taken before it, and before the multiplication.

    Args:
        dim (`int`): Width `C` of the layer.
        bottleneck_dim (`int`): Width `r` of the branch.
        text_dim (`int` or `None`): Width of the sentence vectors; `None` for a branch without conditioning.
        kernel_size (`int`): Snippets the temporal convolution spans, across clip borders, with zeros beyond the video.
        out_dim (`int`, *optional*): Width of the last layer; `C` if not given.
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

    def forward(self, features: torch.Tensor, condition: Condition) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(B or Q, N, h, w, C)`): Output of the layer, before its inner branch.
            condition ([`Condition`]): What the layer knows about the batch.

        Returns:
            `torch.Tensor` of shape `(Q, N, out_dim)`: What is added to the backbone's features, averaged over space.
        """
        return self.apply_sentence(self.encode(features), condition).to(features.dtype)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """What `forward` does before the sentence: features `(B or Q, N, h, w, C)` to a sequence `(B or Q, N, r)`."""
        frames = features.to(self.down.weight.dtype).flatten(0, 1).permute(0, 3, 1, 2)  # (B * N, C, h, w)
        return F.gelu(self.down(frames)).mean(dim=(2, 3)).view(*features.shape[:2], -1)

    def apply_sentence(self, sequence: torch.Tensor, condition: Condition) -> torch.Tensor:
        """What `forward` does from the sentence on: a sequence `(B or Q, N, r)` to features `(Q, N, out_dim)`."""
        if not condition.per_sentence:
            sequence = expand_to_sentences(sequence, condition.video_index)
        if self.gate is not None:
            sequence = self.gate(sequence, condition.sentence_embeds)
        return self.up(sequence.transpose(1, 2)).transpose(1, 2)


@dataclass
class ForwardContext:
    """
    What a wrapped layer holds while the model is called: the sentences, and what its outer branches gave, which is
    their sequences where there are no sentences yet.
    """

    condition: Condition
    outer_features: torch.Tensor | None = None


class ForwardContextStack(threading.local):
    """
    The calls that a thread is in, the innermost last: a hook inside a call may call the model again.

    Copied or pickled, also while others call, it starts without any: they are none of the copy's.
    """

    def __init__(self):
        self.stack: list[ForwardContext] = []

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()


class ScadaLayer(nn.Module, BaseTunerLayer):
    """
    A layer of the video backbone with an inner branch, an outer branch, or both, for each adapter.

    Args:
        base_layer (`nn.Module`): The layer.
        dim (`int`): Width `C` of the layer.
        text_dim (`int`): Width of the sentence vectors.
        out_dim (`int`): Width of the last layer, which outer branches lead to.
    """

    adapter_layer_names = ("scada_inner", "scada_outer")

    def __init__(self, base_layer: nn.Module, dim: int, text_dim: int, out_dim: int):
        super().__init__()
        self.base_layer = base_layer
        self.dim = dim
        self.text_dim = text_dim
        self.out_dim = out_dim
        self.scada_inner = nn.ModuleDict()
        self.scada_outer = nn.ModuleDict()
        self._contexts = ForwardContextStack()

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        weight = next(base_layer.parameters())
        return weight.device, weight.dtype

    def add_branches(self, adapter_name: str, config: ScadaAdapterConfig, has_inner: bool, has_outer: bool) -> None:
        """Adds an adapter's branches, initialised so that they change nothing."""
        text_dim = self.text_dim if config.conditioning else None
        sizes = (self.dim, self.dim // config.reduction, text_dim, config.kernel_size)
        if has_inner:
            self.scada_inner[adapter_name] = InnerBranch(*sizes)
        if has_outer:
            self.scada_outer[adapter_name] = OuterBranch(*sizes, self.out_dim)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _active(self, branches: nn.ModuleDict) -> list[Any]:
        if self.disable_adapters:
            return []
        return [branches[name] for name in self.active_adapters if name in branches]

    @property
    def depends_on_sentence(self) -> bool:
        """Whether the sentence changes the states that leave this layer."""
        return any(branch.gate is not None for branch in self._active(self.scada_inner))

    @property
    def has_outer_branch(self) -> bool:
        """Whether anything leads from this layer to the fused features."""
        return bool(self._active(self.scada_outer))

    def set_condition(
        self,
        sentence_embeds: torch.Tensor | None,
        video_index: torch.Tensor | None,
        grid: Any,
        per_sentence: bool,
    ) -> bool:
        """
        Begins a call of the model in this thread, which `take_outer_features` ends.

        Args:
            sentence_embeds, video_index, grid, per_sentence: See [`Condition`].

        Returns:
            `bool`: Whether the features that leave this layer are those of sentences rather than of videos.
        """
        self._contexts.stack.append(ForwardContext(Condition(sentence_embeds, video_index, grid, per_sentence)))
        return per_sentence or self.depends_on_sentence

    def take_outer_features(self) -> torch.Tensor | None:
        """
        Ends the call that `set_condition` began.

        Returns:
            `torch.Tensor`, *optional*: The outer branches' features `(Q, N, C)`; in a call without sentences their
            sequences `(B, N, r)`, side by side, which `outer_features` takes. `None` if no outer branch was reached.
        """
        return self._contexts.stack.pop().outer_features

    def outer_features(
        self, sequences: torch.Tensor, sentence_embeds: torch.Tensor, video_index: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            sequences (`torch.Tensor` of shape `(B, N, r)`): What an earlier call without sentences gave.
            sentence_embeds, video_index: See [`Condition`].

        Returns:
            `torch.Tensor` of shape `(Q, N, C)`: The outer branches' features.
        """
        condition = Condition(sentence_embeds, video_index, None, per_sentence=False)
        branches = self._active(self.scada_outer)
        parts = sequences.split([branch.up.in_channels for branch in branches], dim=-1)
        pairs = zip(branches, parts, strict=True)
        return torch.stack([branch.apply_sentence(part, condition) for branch, part in pairs]).sum(0)

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> Any:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(clips, tokens, C)`): Input of the layer.

        Returns:
            `torch.Tensor` of shape `(clips, tokens, C)`, with the clips of all sentences from a conditioned inner
            branch on; as the first of a tuple, if the layer returns one.

        Raises:
            RuntimeError: If the model is not being called in this thread, or with another batch.
        """
        output = self.base_layer(hidden_states, *args, **kwargs)
        inner, outer = self._active(self.scada_inner), self._active(self.scada_outer)
        if not inner and not outer:
            return output
        tokens = get_hidden_states(output)
        if not self._contexts.stack:
            raise RuntimeError(
                "Received features without sentences: a layer with a SCADA adapter runs inside ScadaModel or "
                "ScadaForTemporalGrounding only. Call the model, or disable the adapter first."
            )
        call = self._contexts.stack[-1]
        condition = call.condition
        grid = condition.grid
        num_rows = len(condition.video_index) if condition.per_sentence else grid.num_videos
        if not grid.holds(tokens, num_rows):
            raise RuntimeError(
                f"Received features of shape {tuple(tokens.shape)}; expected those of {num_rows} videos or sentences, "
                "as in the batch that ScadaModel announced. Call the model rather than its backbone."
            )
        features, class_tokens = grid.to_features(tokens)  # (B or Q, N, h, w, C)
        if outer and condition.sentence_embeds is None:
            call.outer_features = torch.cat([branch.encode(features) for branch in outer], dim=-1)
        elif outer:
            call.outer_features = torch.stack([branch(features, condition) for branch in outer]).sum(0)
        for branch in inner:
            features = branch(features, condition)
            if branch.gate is not None and not condition.per_sentence:
                # The batch has grown, for the other adapters too if several are active.
                condition = replace(condition, per_sentence=True)
                if class_tokens is not None:
                    class_tokens = expand_to_sentences(class_tokens, condition.video_index)
        if inner:
            # So that a fresh adapter changes nothing in the layers that follow.
            tokens = match_memory_format(grid.to_tokens(features, class_tokens), tokens)
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens


class ScadaTuner(BaseTuner):
    """peft's side of the method: wraps the layers of the video backbone that the configuration names."""

    prefix = "scada_"
    tuner_layer_cls = ScadaLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        base_model: Any = getattr(model, "base_model", None)
        if not hasattr(base_model, "video_backbone"):
            raise ValueError(
                f"Received a {type(model).__name__}; SCADA adapts ScadaForTemporalGrounding or ScadaModel. Other "
                "models have no sentence for the adapter."
            )
        layers, dims = base_model.video_backbone.layers, base_model.video_backbone.layer_dims
        if peft_config.num_layers not in (None, len(layers)):
            raise ValueError(
                f"The adapter was trained on a video backbone of {peft_config.num_layers} layers, and this one has "
                f"{len(layers)}: its branches do not belong to these layers. Load it onto the model it was trained "
                f"with, {peft_config.base_model_name_or_path or 'which its configuration does not name'}."
            )
        peft_config._num_layers = len(layers)
        inner = resolve_layers(peft_config.inner_layers, len(layers))
        outer = resolve_layers(peft_config.outer_layers, len(layers))
        if peft_config.reduction > (dim := min(dims[index] for index in {*inner, *outer})):
            raise ValueError(
                f"Received reduction={peft_config.reduction} for a backbone of width {dim}; expected at most {dim}."
            )
        names = {id(module): name for name, module in model.named_modules()}
        text_dim = base_model.text_encoder.config.hidden_size
        self._sizes = {names[id(layer)]: (dim, text_dim, dims[-1]) for layer, dim in zip(layers, dims, strict=True)}
        self._placement = {
            names[id(layers[index])]: {"has_inner": index in inner, "has_outer": index in outer}
            for index in sorted({*inner, *outer})
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
        # peft looks for it just above the weight's name; a branch is a module of layers, so here it is above theirs.
        return re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}\.", r"\1.", key)

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "A SCADA adapter cannot be merged: what it adds depends on the sentence and is not linear in the "
            "features, so no weights of the backbone equal it. Keep it (save_pretrained saves it alone), or drop it "
            "with unload()."
        )


def register_peft_method() -> None:
    """Makes peft know the method; may run any number of times, and what came first stays."""
    name: Any = ScadaPeftType.SCADA
    PEFT_TYPE_TO_CONFIG_MAPPING.setdefault(name, ScadaAdapterConfig)
    PEFT_TYPE_TO_TUNER_MAPPING.setdefault(name, ScadaTuner)
    PEFT_TYPE_TO_PREFIX_MAPPING.setdefault(name, ScadaTuner.prefix)


__all__ = ["ScadaAdapterConfig"]
