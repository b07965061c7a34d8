"""Arguments of `Trainer` without a meaning here, training that diverges, checkpoints that are not whole, streams."""

import ast
import json
import os
import re
import resource
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import HfArgumentParser

from modeling_scada import ScadaAdapterConfig, TemporalGroundingTrainer, TemporalGroundingTrainingArguments
from modeling_scada.training import trainer as trainer_scada
from modeling_scada.training.recipe import last_checkpoint, parse_arguments, run
from processing.recipe_arguments import DataArguments, ModelArguments


REPOSITORY = Path(__file__).resolve().parents[3]


def parse(recipe):
    parser = HfArgumentParser((ModelArguments, DataArguments, TemporalGroundingTrainingArguments))
    return parser.parse_dict(recipe)


def run_in_two_processes(script, *arguments):
    """What `accelerate launch` runs on one machine; by itself it starts several processes on GPUs alone."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, *map(str, (script, *arguments))]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)


# --- arguments without a meaning ---

REFUSED = {
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "use_liger_kernel": True,
    "use_cache": True,
    "include_num_input_tokens_seen": "all",
    "batch_eval_metrics": True,
    "include_for_metrics": ["inputs"],
    "optim_target_modules": "all-linear",
    "label_names": ["targets"],
    "debug": "underflow_overflow",
    "do_predict": True,
    "hub_token": "secret",
    "hub_revision": "other",
    "hub_always_push": True,
    "eval_do_concat_batches": False,
    "accelerator_config": {"dispatch_batches": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_without_a_meaning_are_refused_with_the_reason(name, tmp_path):
    named = "dispatch_batches" if name == "accelerator_config" else name
    with pytest.raises(ValueError, match=rf"^Received {named}=.*(:|;) .+\.$"):
        TemporalGroundingTrainingArguments(output_dir=str(tmp_path), **{name: REFUSED[name]})


def test_from_the_command_line(recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1.*segments, not classes"):
        parse_arguments([str(tmp_path / "recipe.json"), "--label_smoothing_factor", "0.1"])
    with pytest.raises(ValueError, match="include_for_metrics=.*'inputs'"):
        parse_arguments([str(tmp_path / "recipe.json"), "--include_for_metrics", "inputs"])
    parse_arguments([str(tmp_path / "recipe.json"), "--label_smoothing_factor", "0"])


def with_durations(recipe, durations):
    """The recipe's three videos with their durations, copied to as many rows."""
    path = Path(recipe["dataset"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [rows[k % 3] | {"video_id": f"{k}", "duration": duration} for k, duration in enumerate(durations)]
    path.write_text("\n".join(json.dumps(row) for row in rows))


def test_videos_of_like_duration_come_together(tiny_model, tmp_path):
    """Transformers sorts within 50 batches drawn at random, so that those of two hardly differ."""
    durations = torch.rand(400, generator=torch.Generator().manual_seed(0)).tolist()
    arguments = TemporalGroundingTrainingArguments(
        output_dir=str(tmp_path),
        train_sampling_strategy="group_by_length",
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        use_cpu=True,
    )
    rows = Dataset.from_dict({"video": [f"{k}.mp4" for k in range(400)], "duration": durations})
    collate = {"data_collator": lambda rows: [row["duration"] for row in rows]}
    trainer = TemporalGroundingTrainer(tiny_model, arguments, train_dataset=rows, eval_dataset=rows, **collate)
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        batches = list(loader)
        assert sorted(duration for batch in batches for duration in batch) == sorted(durations)
        # By chance a third.
        assert sum(abs(first - second) for first, second in batches) / len(batches) < 0.05


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_lengths_that_are_missing(recipe, strategy):
    by_length = recipe | {"train_sampling_strategy": strategy}
    for arguments in (by_length, by_length | {"streaming": True}):
        with pytest.raises(ValueError, match=rf"train_sampling_strategy='{strategy}'.*'duration'"):
            run(*parse(arguments))
    with_durations(recipe, [2.0, None, 2.0])
    with pytest.raises(ValueError, match=rf"train_sampling_strategy='{strategy}'.*'duration'"):
        run(*parse(by_length))
    with_durations(recipe, [2.0, 2.0, 2.0])
    run(*parse(by_length))


def test_bf16_without_a_gpu_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_scada, "is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match="Received bf16=True on a machine without a GPU.*omit --bf16.*--use_cpu"):
        TemporalGroundingTrainingArguments(output_dir=str(tmp_path), bf16=True)
    assert TemporalGroundingTrainingArguments(output_dir=str(tmp_path), bf16=True, use_cpu=True).bf16


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_logs_are_numbers_and_nothing_warns(recipe, capsys, disable_tqdm):
    """As printed and as kept; on a machine that may be without a GPU, of which nothing is said."""
    own = {"disable_tqdm": disable_tqdm, "logging_steps": 1, "use_cpu": not torch.cuda.is_available() and disable_tqdm}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=FutureWarning)
        warnings.filterwarnings("error", message=".*pin_memory")
        run(*parse(recipe | own))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    logs = [ast.literal_eval(line) for line in printed]
    assert sum("loss" in entry for entry in logs) == 2 and any("eval_mIoU" in entry for entry in logs)
    history = json.loads((Path(recipe["output_dir"]) / "trainer_state.json").read_text())["log_history"]
    for entry in logs + history:
        assert all(isinstance(value, (int, float)) for value in entry.values()), entry
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert [entry["loss"] for entry in logs if "loss" in entry] == pytest.approx(losses, rel=1e-3)


# --- a disk that is full ---


@pytest.mark.parametrize("tuning", ["scada", "full"])
@pytest.mark.parametrize("what", ["model", "optimizer"])
def test_a_disk_that_is_full_in_training(recipe, monkeypatch, tuning, what):
    """No file may grow beyond some bytes from the second checkpoint on; the first is named, and gone on from."""
    saving = recipe | {"tuning": tuning, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    name = "_save_checkpoint" if what == "model" else "_save_optimizer_and_scheduler"
    save, limits = getattr(TemporalGroundingTrainer, name), resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, *args, **kwargs):
        if self.state.global_step < 2:
            return save(self, *args, **kwargs)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            return save(self, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    folder = Path(recipe["output_dir"])
    with monkeypatch.context() as patch:
        patch.setattr(TemporalGroundingTrainer, name, full)
        with pytest.raises(OSError, match=rf"checkpoint-2 \(.*last complete checkpoint is {folder}/checkpoint-1: "):
            run(*parse(saving))
    assert last_checkpoint(str(folder)) == str(folder / "checkpoint-1")
    run(*parse(saving))
    assert last_checkpoint(str(folder)) == str(folder / "checkpoint-3")


# --- training that diverges ---


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training(recipe, monkeypatch, value):
    """At that step, before its gradient is taken; what was saved before is still there, bit for bit."""
    saving = recipe | {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "tuning": "frozen"}
    compute_loss = TemporalGroundingTrainer.compute_loss
    seen = {}

    def spoilt(self, model, inputs, *args, **kwargs):
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        if model.training and self.state.global_step == 2:
            seen["weights"] = {name: weight.clone() for name, weight in model.named_parameters()}
            seen["model"] = model
            seen["files"] = contents(Path(recipe["output_dir"]))
            loss = loss * value
        return loss

    monkeypatch.setattr(TemporalGroundingTrainer, "compute_loss", spoilt)
    with pytest.raises(FloatingPointError, match=rf"loss of step 3 is \[{value}\]; learning rates: .*\(head\)"):
        run(*parse(saving))
    folder = Path(recipe["output_dir"])
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert contents(folder) == seen["files"] and not (folder / "model.safetensors").exists()
    assert all(torch.equal(weight, seen["weights"][name]) for name, weight in seen["model"].named_parameters())


def test_a_run_that_really_diverges(recipe):
    """What is good in the folder stays; the rates of all parts that train are named."""
    run(*parse(recipe | {"tuning": "full"}))
    good = load_file(Path(recipe["output_dir"]) / "model.safetensors")
    wild = {"tuning": "full", "max_steps": 30, "max_grad_norm": 0, "learning_rate": 1e18, "optim": "sgd"}
    with pytest.raises(FloatingPointError) as caught:
        run(*parse(recipe | wild | {"backbone_learning_rate": 1e17, "lr_scheduler_type": "constant"}))
    assert re.search(r"step \d+ is .*nan|inf", str(caught.value))
    assert "1e+18 (head)" in str(caught.value) and "1e+17 (video_backbone)" in str(caught.value)
    kept = load_file(Path(recipe["output_dir"]) / "model.safetensors")
    assert all(torch.equal(good[name], value) for name, value in kept.items()) and kept.keys() == good.keys()


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_is_not_finite_stops_training(recipe, max_grad_norm, monkeypatch):
    """Its step would be the first of NaN weights, and if it is the last, its loss tells nothing."""

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(context, loss):
            return loss.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * float("nan")

    compute_loss = TemporalGroundingTrainer.compute_loss

    def spoilt(self, model, *args, **kwargs):
        loss = compute_loss(self, model, *args, **kwargs)
        return Spoil.apply(loss) if model.training and self.state.global_step == 1 else loss

    monkeypatch.setattr(TemporalGroundingTrainer, "compute_loss", spoilt)
    with pytest.raises(FloatingPointError, match=r"norm of the gradient of step 2 is nan.*\(head\)"):
        run(*parse(recipe | {"max_grad_norm": max_grad_norm}))
    assert not (Path(recipe["output_dir"]) / "adapter_model.safetensors").exists()


ONE_OF_TWO_DIVERGES = """
import os, sys, torch
from modeling_scada import ScadaAdapterConfig, TemporalGroundingTrainer as trainer
from modeling_scada.training.recipe import parse_arguments, run

compute_loss = trainer.compute_loss

def spoilt(self, model, *args, **kwargs):
    loss = compute_loss(self, model, *args, **kwargs)
    return loss * float("nan") if os.environ["RANK"] == "1" and self.state.global_step == 1 else loss

trainer.compute_loss = spoilt
try:
    run(*parse_arguments([sys.argv[1]]))
except FloatingPointError as error:
    print(f"rank {os.environ['RANK']} stopped: {error}", flush=True)
    torch.distributed.barrier()
    os._exit(0)  # threads of gloo may hang, or abort, when Python takes them down in the middle of a run
"""


def test_two_processes_stop_together(recipe, tmp_path):
    """Also the one that has a finite loss, and would save what the other's does to the weights."""
    two = recipe | {"per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1, "ddp_backend": "gloo"}
    (tmp_path / "two.json").write_text(json.dumps(two))
    (tmp_path / "diverges.py").write_text(ONE_OF_TWO_DIVERGES)
    done = run_in_two_processes(tmp_path / "diverges.py", tmp_path / "two.json")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert re.search(rf"rank {rank} stopped: The loss of step 2 is \[.*nan\]", done.stdout), done.stdout
    folder = Path(recipe["output_dir"])
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (folder / "adapter_model.safetensors").exists()


# --- checkpoints that are not whole ---


def test_a_checkpoint_of_the_model_alone_is_not_gone_on_with(recipe):
    alone = recipe | {"save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    run(*parse(alone))
    folder = Path(recipe["output_dir"])
    before = contents(folder / "checkpoint-2")
    reason = r"checkpoint-{} has no optimizer and no schedule, because --save_only_model omits them"
    with pytest.raises(ValueError, match=reason.format(2)):
        run(*parse(alone))
    with pytest.raises(ValueError, match=reason.format(1)):
        run(*parse(recipe | {"resume_from_checkpoint": str(folder / "checkpoint-1")}))
    assert contents(folder / "checkpoint-2") == before
    for name in ("True", str(folder / "checkpoint-7")):
        with pytest.raises(ValueError, match=rf"no checkpoint to resume from at {name}"):
            run(*parse(recipe | {"resume_from_checkpoint": name}))


def test_the_best_of_an_adapter_with_a_name_of_its_own(tiny_model, tmp_path):
    """transformers saves it a folder deeper and does not find it again, which left the last weights as the best."""
    model = get_peft_model(tiny_model, ScadaAdapterConfig(reduction=4), adapter_name="mine")
    settings = {"output_dir": str(tmp_path), "eval_strategy": "steps", "save_strategy": "steps", "use_cpu": True}
    best = TemporalGroundingTrainingArguments(load_best_model_at_end=True, metric_for_best_model="mIoU", **settings)
    rows = Dataset.from_dict({"video": ["a.mp4"]})
    with pytest.raises(ValueError, match="load_best_model_at_end=True for the adapters .'mine'."):
        TemporalGroundingTrainer(model, best, train_dataset=rows, eval_dataset=rows)
    TemporalGroundingTrainer(model, TemporalGroundingTrainingArguments(**settings), eval_dataset=rows)


# --- streams ---

NOTES = """
import os, sys
from modeling_scada import ScadaAdapterConfig, TemporalGroundingCollator as collator
from modeling_scada.training.recipe import parse_arguments, run

collate = collator.__call__

def note(self, rows):
    if "crop" in rows[0]:  # of training
        with open(sys.argv[2], "a") as file:
            file.writelines(f"{os.environ['RANK']} {row['video_id']}\\n" for row in rows)
    return collate(self, rows)

collator.__call__ = note
run(*parse_arguments([sys.argv[1]]))
"""


def test_two_processes_with_two_workers_see_every_video_of_a_stream(recipe, tmp_path):
    """Four shards of four videos, one epoch of four steps: each video once, in one of the two processes."""
    rows = [json.loads(line) for line in Path(recipe["dataset"]).read_text().splitlines()]
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        lines = [json.dumps(rows[k % 3] | {"video_id": f"video{4 * shard + k}"}) for k in range(4)]
        (tmp_path / "shards" / f"train-{shard}.jsonl").write_text("\n".join(lines))
    streamed = recipe | {
        "dataset": str(tmp_path / "shards"),
        "video_root": str(tmp_path),
        "streaming": True,
        "dataloader_num_workers": 2,
        "dataloader_prefetch_factor": 1,
        "augment": True,
        "max_steps": 4,
        "eval_strategy": "no",
        "ddp_backend": "gloo",
    }
    (tmp_path / "streamed.json").write_text(json.dumps(streamed))
    (tmp_path / "notes.py").write_text(NOTES)
    done = run_in_two_processes(tmp_path / "notes.py", tmp_path / "streamed.json", tmp_path / "seen")
    assert done.returncode == 0, done.stderr
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    # Workers may have begun to read what would be the next epoch.
    assert set(Counter(video for _, video in seen)) == {f"video{k}" for k in range(16)}
    of_rank = [{video for rank, video in seen if rank == name} for name in ("0", "1")]
    assert len(of_rank[0]) == len(of_rank[1]) == 8 and not of_rank[0] & of_rank[1]
    metrics = json.loads((Path(recipe["output_dir"]) / "eval_results.json").read_text())
    assert metrics["eval_sentences"] == sum(len(rows[k % 3]["sentences"]) for k in range(4)) * 4
