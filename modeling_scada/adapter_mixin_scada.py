"""
Methods to add, load, switch and delete the adapters of a model, based on peft alone.

The methods have the names of transformers' own adapter methods, because `save_pretrained`, `from_pretrained`,
pipelines and Auto classes of transformers call these names. The methods of transformers check the version of peft
first, and a release of transformers may require an unreleased version. The methods below use peft's functions for
other libraries (`peft.functional`).
"""

import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils import cached_file, is_peft_available
from transformers.utils.hub import extract_commit_hash


try:  # the Hub code of models without an adapter also works without peft
    from peft import PeftConfig
    from peft.functional import (
        delete_adapter,
        get_peft_model_state_dict,
        inject_adapter_in_model,
        set_adapter,
        set_peft_model_state_dict,
    )
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper
except ImportError:  # `add_adapter` and `load_adapter` raise an error
    pass


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


class AdapterLoadingInfo:
    """Loading report for `from_pretrained`, always empty because `load_adapter` raises an error on a mismatch."""

    def to_dict(self) -> dict[str, Any]:
        return {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}


class ScadaAdapterMixin:
    """Adapter methods of [`ScadaPreTrainedModel`]."""

    peft_config: dict[str, Any]
    # If set, transformers' `save_pretrained` saves only the adapter.
    _hf_peft_config_loaded: bool = False

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """
        Add a new adapter and activate it.

        Args:
            adapter_config (`peft.PeftConfig`): Configuration of the adapter.
            adapter_name (`str`, *optional*, defaults to `"default"`): Name of the adapter.

        Raises:
            ImportError: If peft is not installed.
            TypeError: If `adapter_config` is not a `peft.PeftConfig`.
            ValueError: If the model already has an adapter with this name.
        """
        name = self._new_adapter_name(adapter_name)
        if not isinstance(adapter_config, PeftConfig):
            raise TypeError(
                f"Received a {type(adapter_config).__name__} as `adapter_config`; pass a `peft.PeftConfig`, such as "
                "`ScadaAdapterConfig()`."
            )
        adapter_config.base_model_name_or_path = self.name_or_path  # type: ignore[attr-defined]
        self._inject_adapter(adapter_config, name)
        self.set_adapter(name)

    def load_adapter(
        self,
        peft_model_id: str | PathLike | None = None,
        adapter_name: str | None = None,
        *,
        peft_config: Any = None,
        adapter_state_dict: dict[str, torch.Tensor] | None = None,
        is_trainable: bool = False,
        use_safetensors: bool | None = True,
        local_files_only: bool = False,
        adapter_kwargs: dict[str, Any] | None = None,
        load_config: Any = None,
        **kwargs,
    ) -> AdapterLoadingInfo:
        """
        Load an adapter, and activate it together with its head.

        Args:
            peft_model_id (`str` or `os.PathLike`, *optional*):
                Hub id or folder of the adapter.
            adapter_name (`str`, *optional*, defaults to `"default"`):
                Name of the adapter in this model.
            peft_config (`peft.PeftConfig`, *optional*):
                Configuration to use instead of the file in the folder.
            adapter_state_dict (`dict[str, torch.Tensor]`, *optional*):
                Weights to use instead of the file in the folder.
            is_trainable (`bool`, *optional*, defaults to `False`):
                Whether to keep the adapter trainable. If `False`, freeze the adapter and set the model to evaluation
                mode.
            use_safetensors (`bool`, *optional*, defaults to `True`):
                Whether to load safetensors weights. `False` raises an error.
            local_files_only (`bool`, *optional*, defaults to `False`):
                Whether to search only the cache.
            adapter_kwargs (`dict`, *optional*):
                Options for the Hub: `revision`, `subfolder`, `token`, `cache_dir`.
            load_config (*optional*):
                Loading options from transformers' `from_pretrained`.

        Returns:
            `AdapterLoadingInfo`: Loading report for `from_pretrained`.

        Raises:
            ImportError: If peft is not installed.
            OSError: If the adapter is not found, or has no safetensors weights.
            ValueError: If the model already has an adapter with this name, if the adapter does not fit the model, or
                if `use_safetensors=False`.
            RuntimeError: If weights have another shape.
        """
        if use_safetensors is False:
            raise ValueError("Received use_safetensors=False; pickled weights are not loaded. Convert them first.")
        if kwargs:
            raise TypeError(f"load_adapter() got unexpected keyword arguments {sorted(kwargs)}.")
        if peft_model_id is None and (peft_config is None or adapter_state_dict is None):
            raise ValueError("Pass `peft_model_id`, or both `peft_config` and `adapter_state_dict`.")
        name = self._new_adapter_name(adapter_name)
        if peft_model_id is not None:
            where = dict(getattr(load_config, "download_kwargs", None) or {})
            if where.get("revision") is not None:
                # A commit object resolved by transformers belongs to the repository of the base model.
                where["revision"] = str(where["revision"])
            where |= adapter_kwargs or {}
            if local_files_only:
                where["local_files_only"] = True
            if peft_config is None:
                config_file: Any = cached_file(peft_model_id, ADAPTER_CONFIG, **where)
                peft_config = PeftConfig.from_pretrained(str(Path(config_file).parent))
                # Load the weights from the same commit.
                where["revision"] = extract_commit_hash(config_file, None) or where.get("revision")
            if adapter_state_dict is None:
                missing: Any = {"_raise_exceptions_for_missing_entries": False}
                weights_file: Any = cached_file(peft_model_id, ADAPTER_WEIGHTS, **where, **missing)
                if weights_file is None:
                    raise OSError(
                        f"{peft_model_id} has no {ADAPTER_WEIGHTS}. Pickled weights are not loaded; convert them to "
                        "safetensors first."
                    )
                adapter_state_dict = load_file(weights_file)
        peft_config.inference_mode = not is_trainable
        self._inject_adapter(peft_config, name)
        self._load_adapter_weights(name, adapter_state_dict or {}, peft_model_id or name)
        set_adapter(self, name, inference_mode=not is_trainable)
        if not is_trainable:
            self.eval()  # type: ignore[attr-defined]
        return AdapterLoadingInfo()

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """
        Activate one or more adapters.

        Args:
            adapter_name (`str` or `list[str]`): Name or names of the adapters.

        Raises:
            ValueError: If the model has no such adapter.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self._check_adapter_names(names)
        set_adapter(self, names)

    def active_adapters(self) -> list[str]:
        """
        Return the names of the active adapters.

        Raises:
            ValueError: If the model has no adapter.
        """
        self._check_adapter_names([])
        return list(next(self._adapter_modules(BaseTunerLayer))[1].active_adapters)

    def disable_adapters(self) -> None:
        """
        Disable all adapters, and use the original head.

        Raises:
            ValueError: If the model has no adapter.
        """
        self._enable_adapters(False)

    def enable_adapters(self) -> None:
        """
        Undo `disable_adapters`, including the trained head (unlike transformers' method with this name).

        Raises:
            ValueError: If the model has no adapter.
        """
        self._enable_adapters(True)

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """
        Delete adapters and their weights.

        Args:
            adapter_names (`str` or `list[str]`): Name or names of the adapters.

        Raises:
            ValueError: If the model has no such adapter.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_adapter_names(names)
        model: Any = self
        for name in names:
            config = self.peft_config.pop(name)
            delete_adapter(model, adapter_name=name, prefix=PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type])
        if not self.peft_config:
            del self.peft_config
            self._hf_peft_config_loaded = False

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """
        Return the weights of an adapter under their saved names.

        Args:
            adapter_name (`str`, *optional*): Name of the adapter; defaults to the first active adapter.
            state_dict (`dict`, *optional*): Source of the weights; defaults to the state dict of the model.

        Returns:
            `dict[str, torch.Tensor]`: Weights of the adapter and of its `modules_to_save`.

        Raises:
            ValueError: If the model has no such adapter.
        """
        name = self.active_adapters()[0] if adapter_name is None else adapter_name
        self._check_adapter_names([name])
        # With embedding layers, peft would query the Hub for the base model's vocabulary, which never changes here.
        return get_peft_model_state_dict(self, state_dict=state_dict, adapter_name=name, save_embedding_layers=False)

    def _inject_adapter(self, config: Any, adapter_name: str) -> None:
        with warnings.catch_warnings():
            # peft warns about a second adapter, but the caller requested one.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            inject_adapter_in_model(config, self, adapter_name)  # type: ignore[arg-type]
        self._hf_peft_config_loaded = True

    def _load_adapter_weights(self, adapter_name: str, weights: dict[str, torch.Tensor], source: Any) -> None:
        weights = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in weights.items()}
        model: Any = self
        own = self.get_adapter_state_dict(adapter_name, model.state_dict(keep_vars=True))
        # peft loads the weights of saved modules by exact name. It may rename other weights, saved with older releases
        # of transformers.
        saved_modules = tuple(f"{name}." for name, _ in self._adapter_modules(AuxiliaryTrainingWrapper))
        missing = {name for name in own if name.startswith(saved_modules)} - weights.keys()
        wrong = {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
        unexpected: set[str] = set()
        if not missing and not wrong:
            result: Any = set_peft_model_state_dict(self, weights, adapter_name=adapter_name)
            own_weights = {id(weight) for weight in own.values()}
            names = {name for name, weight in model.state_dict(keep_vars=True).items() if id(weight) in own_weights}
            missing, unexpected = names & set(result.missing_keys), set(result.unexpected_keys)
        problems = {"missing": missing, "of another shape": wrong, "unexpected": unexpected}
        if any(problems.values()):
            self.delete_adapter(adapter_name)
            found = "; ".join(
                f"{problem}: {len(names)}, such as {min(names)}" for problem, names in problems.items() if names
            )
            raise ValueError(
                f"The adapter {source} does not belong to this model. Weights {found}. Load the adapter onto its base "
                "model."
            )

    def _enable_adapters(self, enabled: bool) -> None:
        self._check_adapter_names([])
        for _, module in self._adapter_modules((BaseTunerLayer, AuxiliaryTrainingWrapper)):
            module.enable_adapters(enabled)

    def _adapter_modules(self, classes: Any) -> Iterator[tuple[str, Any]]:
        """Iterate over the names and modules of the given peft classes."""
        modules: Any = self.named_modules()  # type: ignore[attr-defined]
        return ((name, module) for name, module in modules if isinstance(module, classes))

    def _new_adapter_name(self, adapter_name: str | None) -> str:
        if not is_peft_available():
            raise ImportError("Adapters need peft, which is not installed; run `pip install peft`.")
        name = "default" if adapter_name is None else adapter_name
        if self._hf_peft_config_loaded and name in self.peft_config:
            raise ValueError(
                f"Received the adapter name {name!r}, which the model already has; pass another name, or delete that "
                "adapter first."
            )
        return name

    def _check_adapter_names(self, names: list[str]) -> None:
        if not self._hf_peft_config_loaded:
            raise ValueError("The model has no adapter; load one with `load_adapter`, or add one with `add_adapter`.")
        if unknown := [name for name in names if name not in self.peft_config]:
            raise ValueError(f"The model has no adapters {unknown}; it has {list(self.peft_config)}.")
