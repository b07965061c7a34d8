"""What was saved under older names still loads: configurations, recipes, runs, encoded videos."""

import json

import pytest
import torch
from safetensors import safe_open

from modeling_scada import EncodedVideo, ScadaConfig, Timeline
from modeling_scada.training.recipe import parse_arguments


def test_a_configuration_of_before(tiny_config, tmp_path):
    tiny_config.spatial_pool_size = 4
    tiny_config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    saved["num_places"] = saved.pop("spatial_pool_size")
    path.write_text(json.dumps(saved))
    config = ScadaConfig.from_pretrained(tmp_path)
    assert (config.spatial_pool_size, config.num_places) == (4, 4)
    assert "num_places" not in config.to_dict() and config.to_dict()["spatial_pool_size"] == 4
    config.num_places = 2
    assert config.spatial_pool_size == 2


@pytest.mark.parametrize("name", ["num_places", "spatial_pool_size"])
def test_a_recipe_of_before(name, tmp_path):
    recipe = {"dataset": "data", "output_dir": str(tmp_path / "out"), name: 4}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert parse_arguments([str(tmp_path / "recipe.json")])[0].spatial_pool_size == 4
    assert parse_arguments([str(tmp_path / "recipe.json"), f"--{name}", "2"])[0].spatial_pool_size == 2


def test_an_encoded_video_of_before(tmp_path):
    fingerprint = {"model": "a", "num_frames": 4}
    EncodedVideo("it", {"x": torch.ones(1, 2)}, [Timeline(0.0, 1.0, 4)], fingerprint).save(tmp_path / "it")
    with safe_open(tmp_path / "it", framework="pt") as file:
        assert json.loads(file.metadata()["facts"])["made_with"] == fingerprint
    assert EncodedVideo.load(tmp_path / "it").made_with == fingerprint
