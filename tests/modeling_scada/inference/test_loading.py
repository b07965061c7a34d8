"""Models that cannot be loaded: one line with the name, the last cause, and what to do."""

import json
import re
import shutil

import pytest
from peft import get_peft_model

from modeling_scada import ScadaAdapterConfig
from modeling_scada.inference.loading import load_pipeline, loading_model
from modeling_scada.training.recipe import build_model
from processing.recipe_arguments import ModelArguments


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def folder(folders, tiny_model, tiny_processor, tmp_path):
    """A model with an adapter, both in one folder; a copy that may be damaged."""
    whole = folders / "whole"
    if not whole.exists():
        tiny_model.save_pretrained(whole)
        tiny_processor.save_pretrained(whole)
        adapted = get_peft_model(tiny_model, ScadaAdapterConfig(inner_layers=[1], outer_layers=[0]))
        adapted.save_pretrained(whole)
    return shutil.copytree(whole, tmp_path / "my model")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def message_of(load, *args) -> str:
    with pytest.raises(RuntimeError) as error:
        load(*args)
    message = str(error.value)
    assert "\n" not in message and "Traceback" not in message and len(message) < 600
    return message


def test_a_model_that_moved(tmp_path):
    for name in (str(tmp_path / "gone"), "../gone/model", "a b/c"):
        message = message_of(load_pipeline, name)
        assert message.startswith(f"Could not load the model {name}: it is neither a local folder nor a Hub id.")
        assert message.endswith("with --model.") and "Repo id" not in message


def test_a_model_that_is_not_on_the_hub():
    message = message_of(load_pipeline, "no-such/model")
    assert message.startswith("Could not load the model no-such/model: We couldn't connect")
    assert "It is not a local folder. Pass the folder" in message


def test_an_adapter_whose_base_model_moved(folder):
    (folder / "config.json").unlink()
    change(folder / "adapter_config.json", base_model_name_or_path="/gone/base")
    message = message_of(load_pipeline, str(folder))
    assert f"{folder}: the base model /gone/base in adapter_config.json is neither" in message


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_weights_that_were_cut_off_are_named(folder, name):
    with open(folder / name, "r+b") as file:
        file.truncate(200)
    message = message_of(load_pipeline, str(folder))
    assert message.startswith(f"Could not load the model {folder}: ")
    assert message.endswith(f"Corrupt or truncated: {name}. Copy or download again.")


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "Expecting property name"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (lambda folder: (folder / "processor_config.json").unlink(), "Can't load video processor"),
        (lambda folder: change(folder / "config.json", grid_size="x"), "'grid_size' expected int"),
        (lambda folder: change(folder / "config.json", model_type="bert"), "Unrecognized configuration class"),
        (
            lambda folder: change(folder / "adapter_config.json", num_layers=99),
            "backbone of 99 layers, but this backbone",
        ),
        (lambda folder: change(folder / "adapter_config.json", reduction=4), "of another shape: "),
        (lambda folder: change(folder / "adapter_config.json", peft_type="NEW"), "KeyError: 'NEW'"),
        (
            lambda folder: shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors"),
            "missing: ",
        ),
    ],
)
def test_the_last_cause_is_said_and_what_to_do(folder, damage, cause):
    damage(folder)
    message = message_of(load_pipeline, str(folder))
    assert message.startswith(f"Could not load the model {folder}: ")
    assert re.search(re.escape(cause), message), message
    assert message.endswith("Check the folder, or pass another one with --model.")


def test_training_names_the_model_and_its_option(folder, tmp_path):
    gone = str(tmp_path / "gone")
    for option in ("model_name_or_path", "video_model", "text_model"):
        arguments = ModelArguments(**({"video_model": str(folder)} | {option: gone}))
        message = message_of(build_model, arguments)
        assert message.startswith(f"Could not load the model {gone}: it is neither") and f"with --{option}." in message


def test_what_else_is_raised_passes():
    with pytest.raises(ZeroDivisionError), loading_model("my-name/model"):
        raise ZeroDivisionError


def test_a_whole_model_loads(folder):
    assert load_pipeline(str(folder)).model.active_adapters() == ["default"]
