"""Running a recipe: what trains, at which rate, what is measured, and a real video learnt by heart (slow)."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from fresh_process import run_python
from safetensors.torch import load_file
from transformers import EvalPrediction, HfArgumentParser, TrainerCallback, pipeline, set_seed

from modeling_scada import (
    ScadaForTemporalGrounding,
    ScadaProcessor,
    TemporalGroundingCollator,
    TemporalGroundingTrainer,
    TemporalGroundingTrainingArguments,
    compute_metrics,
    load_annotations,
    prepare_tuning,
    ranked_ious,
)
from modeling_scada.training import recipe as recipe_scada
from modeling_scada.training import trainer as trainer_scada
from modeling_scada.training.recipe import build_model, last_checkpoint, parse_arguments, run, warn_of_shared_videos
from processing.metrics import rejection_metrics
from processing.recipe_arguments import DataArguments, ModelArguments, TuningArguments
from processing.video_io import VideoReadError


REPOSITORY = Path(__file__).resolve().parents[3]


def parse(recipe: dict):
    parser = HfArgumentParser((ModelArguments, DataArguments, TemporalGroundingTrainingArguments))
    return parser.parse_dict(recipe)


def changed_weights(recipe: dict) -> tuple[set[str], dict[str, torch.Tensor]]:
    """
    Runs the script. Returns the names of the model's own weights that training moved, as they are in the folder it
    leaves, and an adapter's weights.
    """
    model_args, data_args, training_args = parse(recipe)
    set_seed(training_args.seed)
    before = build_model(model_args)[0].state_dict()
    run(model_args, data_args, training_args)
    after = ScadaForTemporalGrounding.from_pretrained(recipe["output_dir"]).state_dict()
    changed, adapter = set(), {}
    for name, value in after.items():
        own_name = name.replace(".base_layer", "").replace(".modules_to_save.default", "")
        if ".original_module." in name:
            assert torch.equal(before[name.replace(".original_module", "")], value)
        elif own_name not in before:
            adapter[name] = value
        elif not torch.equal(before[own_name], value):
            changed.add(own_name)
    return changed, adapter


def parts(names: set[str]) -> set[str]:
    """The parts of the model that the names belong to; of the backbone, the layers too."""
    return {re.search(r"head|text_encoder|embeddings|layer\.\d+|layernorm", name)[0] for name in names}


def run_script(recipe: dict, path: Path) -> None:
    """The script with a recipe as its single argument, in a process of its own."""
    path.write_text(json.dumps(recipe))
    done = run_python([REPOSITORY / "scripts" / "run_temporal_grounding.py", path], REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_the_model_has_the_mean_of_the_processor(recipe, tmp_path):
    """So frames leave the workers as bytes, and the pipeline reads them as such."""
    own = {"image_mean": [0.1, 0.5, 0.7], "image_std": [0.2, 0.4, 0.9]}
    (tmp_path / "video" / "preprocessor_config.json").write_text(json.dumps(own))
    seen, calls = set(), TemporalGroundingCollator.__call__

    def call(self, rows):
        batch = calls(self, rows)
        seen.add(batch["pixel_values_videos"].dtype)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TemporalGroundingCollator, "__call__", call)
        run(*parse(recipe | {"tuning": "frozen"}))
    assert seen == {torch.uint8}
    config = ScadaForTemporalGrounding.from_pretrained(recipe["output_dir"]).config
    assert {"image_mean": config.image_mean, "image_std": config.image_deviation} == own
    processor = ScadaProcessor.from_pretrained(recipe["output_dir"]).video_processor
    assert processor.is_model_to_normalize(config) and processor.do_normalize


BACKBONE = {"embeddings", "layer.0", "layer.1", "layernorm"}


@pytest.mark.smoke
def test_full_tuning_trains_backbone_and_head_but_not_the_text(recipe):
    changed, adapter = changed_weights(recipe | {"tuning": "full"})
    assert parts(changed) == BACKBONE | {"head"} and not adapter
    metrics = json.loads((Path(recipe["output_dir"]) / "eval_results.json").read_text())
    expected = {f"eval_R{n}@{m}" for n in (1, 5) for m in (0.3, 0.5, 0.7)} | {"eval_mIoU"}
    assert expected <= set(metrics)
    assert all(0 <= metrics[name] <= 100 for name in expected)


@pytest.mark.parametrize(
    "tuning, expected",
    [({"tuning": "frozen"}, {"head"}), ({"tuning": "partial", "inner_layers": "last 1"}, {"layer.1", "head"})],
)
def test_frozen_and_partial_tuning_train_what_they_say(recipe, tuning, expected):
    changed, adapter = changed_weights(recipe | tuning)
    assert parts(changed) == expected and not adapter


@pytest.mark.smoke
@pytest.mark.parametrize(
    "tuning, trained",
    [
        ({"tuning": "lora"}, {"layer.0 lora_A", "layer.0 lora_B", "layer.1 lora_A", "layer.1 lora_B"}),
        ({"tuning": "tia", "inner_layers": "last 1"}, {"layer.1 scada_inner"}),
        (
            {"tuning": "scada", "scada_branches": "both", "inner_layers": "last 1"},
            {"layer.1 scada_inner", "layer.0 scada_outer", "layer.1 scada_outer"},
        ),
        ({"tuning": "scada"}, {"layer.1 scada_pooling"}),
        ({"tuning": "scada", "scada_branches": "inner"}, {"layer.0 scada_inner", "layer.1 scada_inner"}),
        ({"tuning": "scada", "scada_branches": "outer", "outer_layers": "even 1"}, {"layer.1 scada_outer"}),
    ],
    ids=["lora", "tia", "scada both", "scada", "scada inner", "scada outer"],
)
def test_an_adapter_trains_with_the_head_and_loads_with_its_model_from_one_folder(recipe, tuning, trained):
    changed, adapter = changed_weights(recipe | tuning | {"reduction": 4, "adapter_learning_rate": 1e-2})
    assert parts(changed) == {"head"}
    assert {" ".join(re.search(r"(layer\.\d+).*?((?:lora|scada)_\w+)", name).groups()) for name in adapter} == trained
    # What starts at zero has moved, so this is the trained adapter and not a fresh one.
    last = [value for name, value in adapter.items() if name.endswith(("up.weight", "lora_B.default.weight"))]
    assert last and all(value.abs().max() > 0 for value in last)
    assert any("gate" in name for name in adapter) == (tuning["tuning"] == "scada")


def test_checkpointing_changes_nothing_but_memory(recipe, tmp_path):
    folders = [str(tmp_path / name) for name in ("plain", "checkpointed")]
    for folder, checkpointing in zip(folders, (False, True), strict=True):
        run(*parse(recipe | {"output_dir": folder, "gradient_checkpointing": checkpointing}))
    plain, checkpointed = (load_file(f"{folder}/adapter_model.safetensors") for folder in folders)
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tuning", ["frozen", "scada"])
def test_train_text_trains_the_sentence_encoder(recipe, tuning):
    changed, _ = changed_weights(recipe | {"tuning": tuning, "train_text": True, "text_learning_rate": 1e-3})
    assert parts(changed) == {"head", "text_encoder"}


def test_an_adapter_on_a_saved_model_leaves_that_model_where_it_is(recipe, tmp_path):
    run(*parse(recipe | {"tuning": "frozen"}))
    goes_on = recipe | {"model_name_or_path": recipe["output_dir"], "output_dir": str(tmp_path / "second")}
    run(*parse(goes_on | {"tuning": "scada"}))
    assert not (tmp_path / "second" / "model.safetensors").exists()
    config = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == recipe["output_dir"]
    model = ScadaForTemporalGrounding.from_pretrained(tmp_path / "second")
    assert model.active_adapters() == ["default"]


@pytest.mark.parametrize("arguments", [{"tuning": "scada"}, {"tuning": "lora"}, {"tuning": "tia", "train_text": True}])
def test_an_adapter_goes_on_from_its_weights(recipe, tmp_path, arguments, recwarn):
    """Without a step that changes something, the second folder has the model of the first; then it is trained on."""
    run(*parse(recipe | arguments | {"adapter_learning_rate": 1e-2}))
    first = ScadaForTemporalGrounding.from_pretrained(recipe["output_dir"]).state_dict()
    own = {name: value for name, value in recipe.items() if name not in ("video_model", "text_model")}
    own |= arguments | {"model_name_or_path": recipe["output_dir"]}
    for name, rate in (("same", 0.0), ("further", 1e-2)):
        rates = dict.fromkeys(("learning_rate", "adapter_learning_rate", "text_learning_rate"), rate)
        run(*parse(own | rates | {"output_dir": str(tmp_path / name)}))
        found = ScadaForTemporalGrounding.from_pretrained(str(tmp_path / name)).state_dict()
        assert set(found) == set(first)
        changed = {key for key, tensor in found.items() if not torch.equal(tensor, first[key])}
        if name == "same":
            assert not changed
        else:
            assert any("scada_" in key or "lora_" in key for key in changed) and any("head" in key for key in changed)
            assert not any(".original_module." in key or ".base_layer." in key for key in changed)
    assert not [str(warning.message) for warning in recwarn if "peft_config" in str(warning.message)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scada_branches": "inner"}, r"'inner_layers': .*tuning mode with .*'inner_layers': "),
        ({"tuning": "lora"}, "'SCADA'.*tuning mode with .*'LORA'"),
        ({"tuning": "full"}, "tuning mode with no adapter.*or a model without an adapter"),
    ],
)
def test_another_adapter_than_the_models_is_refused(recipe, change, message):
    run(*parse(recipe | {"tuning": "scada"}))
    model = ScadaForTemporalGrounding.from_pretrained(recipe["output_dir"])
    with pytest.raises(ValueError, match=message):
        prepare_tuning(model, TuningArguments(**{"tuning": "scada"} | change))


@pytest.mark.parametrize("tuning, backbone_rate", [("full", 1e-4), ("scada", 2e-3), ("lora", 2e-3)])
def test_each_part_has_its_learning_rate_and_norms_no_decay(recipe, tuning, backbone_rate):
    arguments = {"tuning": tuning, "train_text": True, "eval_strategy": "no", "adapter_learning_rate": 2e-3}
    model_args, data_args, training_args = parse(recipe | arguments)
    model, processor = build_model(model_args)
    model = prepare_tuning(model, model_args)
    trainer = TemporalGroundingTrainer(model=model, args=training_args, processing_class=processor)
    optimizer = trainer.create_optimizer()
    rates = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    expected = {".video_backbone.": backbone_rate, ".text_encoder.": 1e-5, "head.": 1e-3}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = rates.pop(id(parameter))
        assert group["lr"] == next(rate for prefix, rate in expected.items() if prefix in name)
        assert (group["weight_decay"] == 0) == ("bias" in name or "norm" in name.lower()), name
    assert not rates


def test_a_json_recipe_as_the_single_argument_in_a_process_of_its_own(recipe, tmp_path):
    run_script(recipe, tmp_path / "recipe.json")
    pipe = pipeline("temporal-grounding", model=recipe["output_dir"], device="cpu")
    assert pipe(str(tmp_path / "0.mp4"), "it begins", top_k=1)[0].keys() == {"score", "start", "end"}


def test_ranked_ious_against_segments_known_by_construction():
    # Two videos; the second sentence of the second one is padding. Scores rank proposal 1 before proposal 0.
    logits = torch.tensor([[[0.0, 2.0], [0.0, 2.0]], [[0.0, 2.0], [0.0, 2.0]]])
    segments = torch.tensor([[0.0, 0.5], [0.5, 1.0]]).expand(2, 2, 2, 2)
    labels = torch.tensor([[[[0.5, 1.0]], [[0.0, 0.5]]], [[[0.25, 0.75]], [[-100.0, -100.0]]]])
    ious = ranked_ious((logits, segments), labels)
    score = 1 / (1 + np.exp(-2))  # of the first segment
    assert ious.shape == (2, 2, 6)
    np.testing.assert_allclose(ious[0, 0], [1, 0, 0, 0, 0, score])
    np.testing.assert_allclose(ious[0, 1], [0, 1, 0, 0, 0, score])
    np.testing.assert_allclose(ious[1, 0], [1 / 3, 1 / 3, 0, 0, 0, score])
    assert (ious[1, 1] == -100).all()
    metrics = compute_metrics(EvalPrediction(predictions=ious.numpy(), label_ids=labels.numpy()))
    assert metrics["R1@0.5"] == pytest.approx(100 / 3)
    assert metrics["R5@0.5"] == pytest.approx(200 / 3)
    assert metrics["mIoU"] == pytest.approx(100 * (1 + 0 + 1 / 3) / 3)


def test_metrics_of_sentences_that_are_not_there():
    """Scores 0.9 and 0.4 of two that are there, 0.6, 0.2 and 0.1 of three that are not; and padding."""
    scores = torch.tensor([[0.9, 0.6, 0.4], [0.2, 0.1, 0.5]])
    labels = torch.tensor([[[0.0, 0.5], [-1, -1], [0.5, 1.0]], [[-1, -1], [-1, -1], [-100, -100]]])[:, :, None]
    segments = torch.tensor([[0.0, 0.5]]).expand(2, 3, 1, 2)
    ranked = ranked_ious((scores.logit()[..., None], segments), labels)
    np.testing.assert_allclose(ranked[0, 1], [-1, -1, -1, -1, -1, 0.6], atol=1e-6)
    prediction = EvalPrediction(predictions=ranked.numpy(), label_ids=labels.numpy())
    metrics = compute_metrics(prediction)
    assert metrics["sentences"] == 2 and metrics["R1@0.5"] == 50.0
    assert metrics["AUROC"] == pytest.approx(100 * 5 / 6)  # of six pairs, 0.4 against 0.6 alone is wrong
    # Below 0.75 four are rejected, three of them rightly; below 0.3 two, both rightly: F1 6/7 against 4/5.
    assert metrics["found_threshold"] == pytest.approx(0.75, abs=1e-6)
    assert metrics["RejF1"] == pytest.approx(100 * 6 / 7)
    assert compute_metrics(prediction, found_threshold=0.3)["RejF1"] == pytest.approx(80)


def test_removing_unused_columns_is_refused(recipe):
    with pytest.raises(ValueError, match="remove_unused_columns"):
        parse(recipe | {"remove_unused_columns": True})


# Kills its own process, once and for all, in the middle of the step or of writing the checkpoint after the one given.
KILLED_RUN = """
import os, signal, sys
from modeling_scada import TemporalGroundingTrainer as trainer
from modeling_scada.training.recipe import parse_arguments, run

what, step, recipe = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def dying(method, *, first):
    def run_or_die(self, *args, **kwargs):
        result = None if first else method(self, *args, **kwargs)
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *args, **kwargs) if first else result
    return run_or_die

if what == "step":
    # Gradients are there, the weights are not updated yet.
    trainer.training_step = dying(trainer.training_step, first=False)
else:
    # The model is written, optimizer and random states are not.
    trainer._save_optimizer_and_scheduler = dying(trainer._save_optimizer_and_scheduler, first=True)
run(*parse_arguments([recipe]))
"""


@pytest.fixture
def long_recipe(recipe, make_clip, tmp_path):
    """Eight steps, two epochs of four videos: what is drawn for a video, dropout and the shuffling all matter."""
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    make_clip(name="3.mp4", num_frames=30, fps=10)
    rows.append(rows[2] | {"video": "3.mp4"})
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return recipe | {
        "tuning": "scada",
        "train_text": True,
        "max_sentences": 1,
        "augment": True,
        "num_train_proposals": 20,
        "max_steps": 8,
        "per_device_train_batch_size": 1,
        "adapter_learning_rate": 1e-2,
        "logging_steps": 3,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
    }


@pytest.mark.parametrize(
    "what, step, goes_on_from",
    [
        pytest.param("step", 7, 6, marks=pytest.mark.slow),
        ("checkpoint", 6, 4),
        pytest.param("checkpoint", 2, None, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(long_recipe, tmp_path, what, step, goes_on_from):
    """Step 4 ends the first epoch, so the runs go on in the middle of an epoch, at the start of one, and from 0."""
    run(*parse(long_recipe))
    killed = long_recipe | {"output_dir": str(tmp_path / "killed")}
    (tmp_path / "killed.json").write_text(json.dumps(killed))
    done = run_python(["-c", KILLED_RUN, what, str(step), tmp_path / "killed.json"], REPOSITORY)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed" / "eval_results.json").exists()
    if what == "checkpoint":
        half = tmp_path / "killed" / f"checkpoint-{step}"
        assert (half / "adapter_model.safetensors").exists() and not (half / "optimizer.pt").exists()
    expected = None if goes_on_from is None else str(tmp_path / "killed" / f"checkpoint-{goes_on_from}")
    assert last_checkpoint(killed["output_dir"]) == expected

    run(*parse(killed))
    states = []
    for folder in (tmp_path / "run", tmp_path / "killed"):
        state = json.loads((folder / "trainer_state.json").read_text())
        states.append([(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry])
    assert states[0] == states[1] and len(states[0]) >= 4
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    checkpoints = [path.name for path in (tmp_path / "killed").glob("checkpoint-*")]
    assert checkpoints == ["checkpoint-8"]


@pytest.mark.parametrize("tuning", ["full", pytest.param("partial", marks=pytest.mark.slow)])
def test_a_stopped_run_of_the_backbone_goes_on_as_if_it_had_not_been(long_recipe, tmp_path, tuning, monkeypatch):
    """VideoMAE, whose biases have older names in a checkpoint. Its best model is the one of the best step, too."""
    whole = long_recipe | {
        "tuning": tuning,
        "backbone_learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_total_limit": None,
        "load_best_model_at_end": True,
        "metric_for_best_model": "mIoU",
    }
    run(*parse(whole))
    stopped = whole | {"output_dir": str(tmp_path / "stopped")}
    training_step = TemporalGroundingTrainer.training_step

    def stop(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TemporalGroundingTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run(*parse(stopped))
    assert Path(last_checkpoint(stopped["output_dir"])).name == "checkpoint-4"
    run(*parse(stopped))

    losses, last = [], []
    for name in ("run", "stopped"):
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        losses.append([(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry])
        last.append(load_file(tmp_path / name / "checkpoint-8" / "model.safetensors"))
        best = load_file(Path(state["best_model_checkpoint"]) / "model.safetensors")
        found = load_file(tmp_path / name / "model.safetensors")
        assert found.keys() == best.keys() and all(torch.equal(value, best[key]) for key, value in found.items())
    assert losses[0] == losses[1] and len(losses[0]) >= 4
    assert last[0].keys() == last[1].keys() and any("q_bias" in name for name in last[0])
    assert max((value.double() - last[1][name].double()).abs().max() for name, value in last[0].items()) == 0.0


def test_a_finished_run_with_other_arguments_is_not_gone_on_with(recipe):
    finished = recipe | {"save_strategy": "steps", "save_steps": 1}
    run(*parse(finished))
    with pytest.raises(ValueError, match=r"learning_rate: 0.001 then, 0.01 now.*another --output_dir"):
        run(*parse(finished | {"learning_rate": 1e-2}))
    with pytest.raises(ValueError, match=r"tuning: 'scada' then, 'frozen' now"):
        run(*parse(finished | {"tuning": "frozen"}))


def test_a_finished_run_is_not_trained_further(recipe):
    """Which ended in the middle of an epoch: two steps make one, and there are three."""
    finished = recipe | {"tuning": "frozen", "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    left = []
    for _ in range(2):
        run(*parse(finished))
        folder = Path(recipe["output_dir"])
        steps = json.loads((folder / "train_results.json").read_text())["steps"]
        left.append((steps, load_file(folder / "model.safetensors")))
    assert [steps for steps, _ in left] == [3, 3] and not (folder / "checkpoint-4").exists()
    assert all(torch.equal(value, left[1][1][name]) for name, value in left[0][1].items())


def gradients(recipe: dict, batch_size: int, steps: int) -> dict[str, torch.Tensor]:
    """What one update gets to see, by name, from `batch_size * steps` videos."""
    training = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps, "max_steps": 1}
    model_args, data_args, training_args = parse(recipe | training | {"max_grad_norm": 0, "eval_strategy": "no"})
    set_seed(0)
    model, processor = build_model(model_args)
    model = prepare_tuning(model, model_args).eval()
    model.train = lambda mode=True: model  # no dropout, which would differ
    seen = {}

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    collator = TemporalGroundingCollator(processor, Path(recipe["dataset"]).parent)
    trainer = TemporalGroundingTrainer(
        model=model,
        args=training_args,
        train_dataset=load_annotations(data_args.dataset, "train"),
        data_collator=collator,
        callbacks=[Recorder()],
    )
    trainer.train()
    return seen


def test_videos_in_training_and_evaluation_are_warned_of_once(monkeypatch):
    """By their ids, or else by their paths or contents."""
    lines = []
    monkeypatch.setattr(recipe_scada.logger, "warning", lines.append)

    def dataset(*videos, **columns):
        return Dataset.from_dict({"video": videos, **columns})

    train, other = dataset("a.mp4", "b.mp4", "c.mp4", "c.mp4"), dataset("d.mp4", "d.mp4")
    warn_of_shared_videos(train, {"validation": other, "test": other})
    warn_of_shared_videos(dataset(b"one"), {"test": dataset(b"two")})
    assert lines == []
    warn_of_shared_videos(train, {"validation": dataset("c.mp4"), "test": dataset("b.mp4", "c.mp4", "d.mp4")})
    warn_of_shared_videos(dataset("x/1.mp4", video_id=["v1"]), {"test": dataset("y/1.webm", video_id=["v1"])})
    assert lines[0].startswith("Training and evaluation share 2 videos, for example b.mp4.")
    assert lines[1].startswith("Training and evaluation share 1 videos, for example y/1.webm.") and len(lines) == 2


def test_accumulated_gradients_are_those_of_one_batch(recipe):
    """The videos have one, two and three sentences: each sentence counts the same, whatever its batch."""
    recipe |= {"num_train_proposals": 16 * 17 // 2, "max_sentences": None}
    together, accumulated = gradients(recipe, 3, 1), gradients(recipe, 1, 3)
    assert together.keys() == accumulated.keys() and together
    assert max(value.abs().max() for value in together.values()) > 1e-2
    for name, value in together.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-4, atol=1e-6)


@pytest.fixture
def even_recipe(recipe, make_clip, tmp_path):
    """Five videos, one step of plain gradient descent with nothing drawn, so that runs can be compared."""
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for index in (3, 4):
        make_clip(name=f"{index}.mp4", num_frames=30, fps=10)
        rows.append(rows[index - 2] | {"video": f"{index}.mp4"})
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    (tmp_path / "text" / "config.json").write_text(json.dumps(config | {"dropout": 0.0, "attention_dropout": 0.0}))
    return recipe | {
        "num_train_proposals": 16 * 17 // 2,
        "max_sentences": None,
        "max_steps": 1,
        "optim": "sgd",
        "max_grad_norm": 0,
        "per_device_train_batch_size": 4,
        "eval_strategy": "no",
    }


def results_of(recipe: dict) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The metrics of a finished run, and its trained weights."""
    folder = Path(recipe["output_dir"])
    metrics = json.loads((folder / "eval_results.json").read_text())
    # `Trainer`'s loss is a mean over batches, and these differ.
    measured = {name: value for name, value in metrics.items() if re.search(r"@|mIoU|sentences", name)}
    return measured, load_file(folder / "adapter_model.safetensors")


def test_two_processes_train_and_measure_as_one_does(even_recipe, tmp_path):
    """Batches of unlike numbers of sentences; five videos do not divide by two processes."""
    run(*parse(even_recipe))
    two = even_recipe | {"output_dir": str(tmp_path / "two"), "per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    (tmp_path / "two.json").write_text(json.dumps(two))
    # What `accelerate launch` runs on one machine; by itself it starts several processes on GPUs alone.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(REPOSITORY / "scripts" / "run_temporal_grounding.py"), str(tmp_path / "two.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "trainer_state.json").read_text())["max_steps"] == 1
    (metrics, weights), (other_metrics, other_weights) = results_of(even_recipe), results_of(two)
    assert metrics["eval_sentences"] == 11 and metrics == pytest.approx(other_metrics, abs=1e-4)
    assert weights.keys() == other_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=1e-4, atol=1e-6)


def test_streamed_annotations_train_the_same_model(even_recipe, tmp_path):
    """A batch of all five videos, so that their order does not matter."""
    run(*parse(even_recipe | {"per_device_train_batch_size": 5}))
    streamed = even_recipe | {"output_dir": str(tmp_path / "streamed"), "streaming": True}
    run(*parse(streamed | {"per_device_train_batch_size": 5}))
    (metrics, weights), (other_metrics, other_weights) = results_of(even_recipe), results_of(streamed)
    assert metrics == pytest.approx(other_metrics, abs=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=1e-4, atol=1e-6)


def test_a_broken_video_stops_the_run_or_is_left_out_and_counted(even_recipe, tmp_path):
    clip = (tmp_path / "1.mp4").read_bytes()
    (tmp_path / "1.mp4").write_bytes(clip[: len(clip) // 2])
    (tmp_path / "3.mp4").unlink()
    with pytest.raises((VideoReadError, FileNotFoundError), match=r"[13]\.mp4"):
        run(*parse(even_recipe))
    run(*parse(even_recipe | {"per_device_train_batch_size": 5, "skip_broken_videos": True}))
    train_results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert train_results["broken_videos"] == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "broken_videos.jsonl").read_text().splitlines()]
    assert {line["video"] for line in lines} == {"1.mp4", "3.mp4"}
    metrics, weights = results_of(even_recipe)

    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    good = [row for row in rows if row["video"] not in ("1.mp4", "3.mp4")]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in good))
    run(*parse(even_recipe | {"per_device_train_batch_size": 3, "output_dir": str(tmp_path / "good")}))
    good_metrics, good_weights = results_of({"output_dir": str(tmp_path / "good")})
    assert metrics["eval_sentences"] == good_metrics["eval_sentences"] == 7
    for name in (f"eval_R{n}@{m}" for n in (1, 5) for m in (0.3, 0.5, 0.7)):
        assert metrics[name] == good_metrics[name]
    for name, value in good_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


def test_sentences_with_unlike_numbers_of_segments_are_measured_together(recipe, tmp_path):
    """QVHighlights: the number of targets differs from batch to batch."""
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows = [row | {"segments": [[segment] for segment in row["segments"]]} for row in rows]
    rows[0]["segments"][0] = [[0.0, 0.5], [1.0, 1.5], [1.5, 2.0]]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    metrics = run(*parse(recipe | {"per_device_eval_batch_size": 1}))
    assert metrics["eval_sentences"] == 6


def test_the_threshold_is_the_best_one_of_the_validation_split(recipe, tmp_path, monkeypatch):
    """Of the sentences that the run asked on each split: the saved threshold is the validation's, by a plain loop."""
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    (tmp_path / "folder").mkdir()
    for split, of_split in (("train", rows), ("validation", rows[:2]), ("test", rows[1:])):
        of_split = [row | {"video": str(tmp_path / row["video"])} for row in of_split]
        (tmp_path / "folder" / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in of_split))
    asked = []

    def recorded(scores, is_present, found_threshold=None):
        asked.append((scores.tolist(), is_present.tolist()))
        return rejection_metrics(scores, is_present, found_threshold)

    monkeypatch.setattr(trainer_scada, "rejection_metrics", recorded)
    splits = {"dataset": str(tmp_path / "folder"), "train_split": "train", "validation_split": "validation"}
    arguments = splits | {"eval_split": "test", "negative_sentences": 2, "max_steps": 3, "eval_strategy": "no"}
    metrics = run(*parse(recipe | arguments))
    threshold = ScadaProcessor.from_pretrained(recipe["output_dir"]).found_threshold

    def f1(scores, is_present, threshold):
        """Of rejecting what is not there."""
        rejected = [score < threshold for score in scores]
        right = sum(there < 1 and out for there, out in zip(is_present, rejected, strict=True))
        return 200 * right / (sum(rejected) + is_present.count(False))

    assert len(asked) == 2 and all(True in is_present and False in is_present for _, is_present in asked)
    validation, test = asked
    best = max(f1(*validation, candidate) for candidate in [*validation[0], 2.0])
    assert f1(*validation, threshold) == pytest.approx(best) and best > 0
    assert metrics["eval_found_threshold"] == threshold
    assert metrics["eval_RejF1"] == pytest.approx(f1(*test, threshold))


def test_the_longest_training_video_is_the_models_window(recipe, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows = [row | {"duration": seconds} for row, seconds in zip(rows, (2.0, 7.5, 3.0), strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for arguments, expected in (({}, 9.5), ({"window_seconds": 4.0}, 4.0)):
        run(*parse(recipe | arguments | {"max_steps": 1, "eval_strategy": "no"}))
        assert ScadaProcessor.from_pretrained(recipe["output_dir"]).video_processor.window_seconds == expected


RECIPES = sorted(path for path in (REPOSITORY / "hub_configs" / "recipes").glob("*.json"))
# docs/design.md section 10.
ADAPTER_RATES = {"small": 4e-4, "base": 4e-4, "large": 2e-4, "huge": 1e-4, "giant": 8e-5}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes(path):
    arguments = [str(path), "--use_cpu", "--bf16", "false"]
    model_args, data_args, training_args = parse_arguments(arguments)
    assert model_args.tuning == "scada" and model_args.num_frames % 16 == 0
    if not path.stem.startswith(("moving_shapes", "clips")):  # of experiments with tiny models
        data, _, size = path.stem.partition("_videomae_")
        assert training_args.output_dir == f"outputs/{path.stem}" and data_args.dataset == f"data/{data}"
        assert training_args.adapter_learning_rate == ADAPTER_RATES[size]
        assert training_args.backbone_learning_rate == 1e-5 and training_args.weight_decay == 0.05
        assert model_args.num_frames == {"charades_sta": 512, "activitynet_captions": 768}[data]
        assert model_args.image_size == (168 if size == "giant" else 160)
        assert json.loads(path.read_text())["bf16"]
    for tuning in ("frozen", "full"):
        overridden, *_ = parse_arguments([*arguments, "--tuning", tuning, "--num_frames", "32"])
        assert (overridden.tuning, overridden.num_frames) == (tuning, 32)
        assert overridden.image_size == model_args.image_size


def test_a_recipe_with_a_name_that_is_no_argument_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"dataset": "data", "learning_rat": 1e-3}))
    with pytest.raises(ValueError, match="learning_rat"):
        parse_arguments([str(tmp_path / "recipe.json")])


def test_a_recipe_is_utf_8_on_every_system(tmp_path):
    """Read where the system's encoding is another, as on Windows."""
    (tmp_path / "recipe.json").write_text('{"dataset": "données", "output_dir": "out"}', encoding="utf-8")
    code = (
        "import sys; from modeling_scada.training.recipe import parse_arguments as p; print(ascii(p(sys.argv[1:])[1]))"
    )
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path / "recipe.json")]
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and r"dataset='donn\xe9es'" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_real_video_is_learnt_and_the_saved_folder_finds_the_same_segments(fixtures_dir, tmp_path):
    """139 s, six sentences: IoU of at least 0.7 on five of them, and the same segments in a fresh process."""
    annotations = fixtures_dir / "videos" / "annotations.jsonl"
    recipe = json.loads((REPOSITORY / "hub_configs" / "recipes" / "moving_shapes.json").read_text()) | {
        "tuning": "full",
        "dataset": str(annotations),
        "eval_split": "train",
        "max_steps": 75,
        "num_frames": 128,
        "image_size": 64,
        "grid_size": 64,
        "per_device_train_batch_size": 1,
        "output_dir": str(tmp_path / "run"),
    }
    run_script(recipe, tmp_path / "recipe.json")

    row = json.loads(annotations.read_text().splitlines()[0])
    video = str(annotations.parent / row["video"])
    pipe = pipeline("temporal-grounding", model=recipe["output_dir"], device="cpu")
    found = pipe(video, row["sentences"])
    reached = 0
    for segments, (start_seconds, end_seconds) in zip(found, row["segments"], strict=True):
        best = segments[0]
        shared = max(0.0, min(best["end"], end_seconds) - max(best["start"], start_seconds))
        union = (best["end"] - best["start"]) + (end_seconds - start_seconds) - shared
        reached += shared / union >= 0.7
    assert reached >= 5

    code = (
        "import json, sys, modeling_scada; from transformers import pipeline; "
        "folder, video, sentences = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]); "
        "pipe = pipeline('temporal-grounding', model=folder, device='cpu'); print(json.dumps(pipe(video, sentences)))"
    )
    fresh = run_python(["-c", code, recipe["output_dir"], video, json.dumps(row["sentences"])], REPOSITORY)
    assert fresh.returncode == 0, fresh.stderr
    assert json.loads(fresh.stdout.splitlines()[-1]) == found
