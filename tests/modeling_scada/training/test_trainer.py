"""Training from Python, by the public names alone: this project's trainer, and transformers' own."""

import copy
import json

import pytest
import test_backbones
import test_convolutional_backbones
import test_image_backbones
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from modeling_scada import (
    RowSampler,
    ScadaConfig,
    ScadaForTemporalGrounding,
    TemporalGroundingCollator,
    TemporalGroundingTrainer,
    TemporalGroundingTrainingArguments,
    TuningArguments,
    compute_metrics,
    load_annotations,
    prepare_tuning,
    ranked_ious,
)
from modeling_scada.backbone_scada import ENCODER_TYPES
from processing.recipe_arguments import TUNING_MODES, ModelArguments


@pytest.fixture
def rows(make_clip, tmp_path):
    """Three videos with one to three sentences, one segment each."""
    sentences, segments = ["it begins", "it goes on", "it ends"], [[0.0, 0.5], [0.5, 1.5], [1.5, 2.0]]
    lines = []
    for index in range(3):
        video = make_clip(f"{index}.mp4", num_frames=20, fps=10).name
        lines.append({"video": video, "sentences": sentences[: index + 1], "segments": segments[: index + 1]})
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return load_annotations(str(tmp_path / "rows.jsonl"), "train")


ARGUMENTS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "save_strategy": "no",
    "learning_rate": 1e-3,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.mark.smoke
@pytest.mark.parametrize("tuning", ["frozen", "scada"])
def test_a_plain_trainer_trains_and_measures(rows, tiny_model, tiny_processor, tmp_path, tuning):
    model = prepare_tuning(tiny_model, TuningArguments(tuning, reduction=4))
    before = {name: value.clone() for name, value in model.named_parameters()}
    common = {
        "model": model,
        "train_dataset": rows,
        "eval_dataset": rows,
        "data_collator": TemporalGroundingCollator(tiny_processor, tmp_path),
        "compute_metrics": compute_metrics,
    }
    plain = Trainer(
        args=TrainingArguments(output_dir=str(tmp_path / "plain"), remove_unused_columns=False, **ARGUMENTS),
        preprocess_logits_for_metrics=ranked_ious,
        **common,
    )
    plain.train()
    changed = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert changed and changed <= trainable
    assert any("scada_" in name for name in changed) == (tuning == "scada")
    metrics = plain.evaluate()
    assert metrics["eval_sentences"] == 6 and 0 < metrics["eval_mIoU"] <= 100
    # By another way to the same numbers: the trainer of this project reduces in its own step of prediction.
    own = TemporalGroundingTrainer(
        args=TemporalGroundingTrainingArguments(output_dir=str(tmp_path / "own"), **ARGUMENTS), **common
    )
    expected = own.evaluate()
    measured = [name for name in expected if "@" in name or "mIoU" in name]
    assert len(measured) == 7
    assert {name: metrics[name] for name in measured} == {name: expected[name] for name in measured}


@pytest.mark.parametrize("is_stream", [False, True], ids=["rows", "stream"])
def test_a_plain_trainer_draws_in_training_and_evaluates_all(rows, tiny_model, tiny_processor, tmp_path, is_stream):
    """One sentence of a video a step; of the six sentences, all are evaluated."""
    sampler = RowSampler(tiny_processor, max_sentences=1, augment=True, seed=0)
    told, seen = [], []
    sampler.set_epoch = lambda epoch, tell=sampler.set_epoch: (told.append(epoch), tell(epoch))

    class Collator(TemporalGroundingCollator):
        def __call__(self, batch):
            seen.extend((row["video"], *row["sentences"]) for row in batch)
            return super().__call__(batch)

    arguments = ARGUMENTS | {"max_steps": 4, "remove_unused_columns": False}
    train = load_annotations(str(tmp_path / "rows.jsonl"), "train", streaming=True) if is_stream else rows
    trainer = Trainer(
        model=prepare_tuning(tiny_model, TuningArguments("frozen")),
        args=TrainingArguments(output_dir=str(tmp_path / "plain"), **arguments),
        train_dataset=sampler.apply(train),
        eval_dataset=rows,
        data_collator=Collator(tiny_processor, tmp_path),
        preprocess_logits_for_metrics=ranked_ious,
        compute_metrics=compute_metrics,
        callbacks=[sampler],
    )
    trainer.train()
    expected = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        expected += [(row["video"], *row["sentences"]) for row in sampler.draw_rows(list(rows))]
    assert told[:4] == [0, 0, 1, 2] and sorted(seen) == sorted(expected) and all(len(row) == 2 for row in seen)
    seen.clear()
    assert trainer.evaluate()["eval_sentences"] == 6
    assert sorted(seen) == [(row["video"], *row["sentences"]) for row in rows]


def test_the_arguments_of_before_still_work_and_warn(rows, tiny_model, tiny_processor, tmp_path):
    """A collator that draws what a sampler does, and another for evaluations, which have all sentences."""
    with pytest.warns(FutureWarning, match=r"\['max_sentences', 'seed'\].*RowSampler"):
        collator = TemporalGroundingCollator(tiny_processor, tmp_path, max_sentences=1, seed=0)
    arguments = ARGUMENTS | {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 3}
    with pytest.warns(FutureWarning, match="eval_collator"):
        trainer = TemporalGroundingTrainer(
            model=prepare_tuning(tiny_model, TuningArguments("frozen")),
            args=TemporalGroundingTrainingArguments(output_dir=str(tmp_path / "run"), **arguments),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=collator,
            eval_collator=TemporalGroundingCollator(tiny_processor, tmp_path),
            compute_metrics=compute_metrics,
        )
    told = []
    collator.sampler.set_epoch = lambda epoch, tell=collator.sampler.set_epoch: (told.append(epoch), tell(epoch))
    trainer.train()
    collator.sampler.set_epoch(0)
    assert told == [0, 1, 2, 0] and trainer.evaluate()["eval_sentences"] == 6
    sampler = RowSampler(tiny_processor, max_sentences=1, seed=0)
    sampler.set_epoch(0)
    plain = TemporalGroundingCollator(tiny_processor, tmp_path)(sampler.draw_rows(list(rows)))
    for name, value in collator(list(rows)).items():
        assert torch.equal(value, plain[name])


def test_a_search_with_optuna(rows, tiny_config, tiny_processor, tmp_path):
    """Each trial starts from the same weights at a rate of its own, and ends at the loss that this rate gives."""
    optuna = pytest.importorskip("optuna", reason="optuna, which searches, is not installed")
    optuna.logging.disable_default_handler()

    def make_trainer(learning_rate: float) -> TemporalGroundingTrainer:
        arguments = ARGUMENTS | {"learning_rate": learning_rate, "eval_strategy": "epoch", "seed": 0}
        return TemporalGroundingTrainer(
            model_init=lambda: prepare_tuning(ScadaForTemporalGrounding(tiny_config), TuningArguments("scada")),
            args=TemporalGroundingTrainingArguments(output_dir=str(tmp_path / "runs"), **arguments),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=TemporalGroundingCollator(tiny_processor, tmp_path),
        )

    rates, losses = [1e-3, 1e-2], {}
    best = make_trainer(rates[0]).hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        compute_objective=lambda metrics: losses.setdefault(len(losses), metrics["eval_loss"]),
        direction="minimize",
        backend="optuna",
        n_trials=2,
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}, seed=0),
    )
    alone = {}
    for rate in rates:
        trainer = make_trainer(rate)
        trainer.train()
        alone[rate] = trainer.evaluate()["eval_loss"]
    assert sorted(losses.values()) == pytest.approx(sorted(alone.values()), abs=1e-5)
    assert alone[rates[0]] != pytest.approx(alone[rates[1]], abs=1e-4)
    assert best.hyperparameters == {"learning_rate": min(rates, key=alone.get)}


@pytest.mark.parametrize("arguments", [TuningArguments, ModelArguments])
def test_a_mode_or_branch_that_is_none_is_refused(arguments):
    with pytest.raises(ValueError, match="tuning='adapter'; expected one of frozen, partial, full, lora, tia, scada"):
        arguments(tuning="adapter")
    with pytest.raises(ValueError, match="scada_branches='all'; expected one of inner, outer, both"):
        arguments(scada_branches="all")


def test_public_names():
    import modeling_scada

    for name in modeling_scada.__all__:
        assert getattr(modeling_scada, name).__name__ == name
        assert name in dir(modeling_scada)
    with pytest.raises(AttributeError, match="no attribute 'TemporalGroundingTrainer2'"):
        modeling_scada.TemporalGroundingTrainer2  # noqa: B018


# --- weights that come back ---

# transformers saves these under other names than they have in memory.
RENAMED = ("videomae", "vivit", "dinov2", "dinov2_with_registers", "dinov3_vit")
IMAGES = test_image_backbones.CONFIGS | test_convolutional_backbones.CONFIGS
CHECKPOINT = "checkpoint-1"


@pytest.fixture
def make_trainer(tiny_config, randomize_weights, tmp_path):
    """`make_trainer(backbone, tuning)`: with a model of random weights, always the same, that is to be tuned so."""

    def make(backbone: str, tuning: str, trainer_class=TemporalGroundingTrainer, **arguments) -> Trainer:
        video_config = IMAGES[backbone] if backbone in IMAGES else test_backbones.video_config(backbone)
        torch.manual_seed(0)
        config = ScadaConfig(
            video_config=copy.deepcopy(video_config), text_config=tiny_config.text_config, hidden_size=16, grid_size=8
        )
        model = randomize_weights(ScadaForTemporalGrounding(config), std=0.02)
        settings = TuningArguments(tuning, reduction=4, inner_layers="last 1", outer_layers="even 2")
        arguments_class = TrainingArguments if trainer_class is Trainer else TemporalGroundingTrainingArguments
        args = arguments_class(
            output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, report_to="none", **arguments
        )
        return trainer_class(model=prepare_tuning(model, settings), args=args)

    return make


def save_trained(trainer: Trainer, folder) -> dict[str, torch.Tensor]:
    """Moves what trains, as training would, and saves it. Returns all weights, by name."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    trainer.save_model(str(folder))
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def load_back(trainer: Trainer, folder, how: str) -> dict[str, torch.Tensor]:
    """As `Trainer` does when it resumes, and when it has found its best model."""
    if how == "resume":
        trainer._load_from_checkpoint(str(folder))
    else:
        trainer.state.best_model_checkpoint = str(folder)
        trainer._load_best_model()
    return trainer.model.state_dict()


def test_every_backbone_is_tried():
    assert set(IMAGES) | set(test_backbones.CASES) == set(ENCODER_TYPES)


@pytest.mark.parametrize(
    ("backbone", "tuning"),
    [
        pytest.param(
            *(backbone, tuning),
            marks=()
            if tuning == "full" or (backbone, tuning) in [("videomae", "partial"), ("videomae", "scada")]
            else pytest.mark.slow,
        )
        for backbone in ENCODER_TYPES
        for tuning in TUNING_MODES
    ],
)
def test_a_checkpoint_comes_back_bit_for_bit(make_trainer, tmp_path, backbone, tuning):
    saved = save_trained(make_trainer(backbone, tuning), tmp_path / CHECKPOINT)
    if tuning == "full":
        in_file = load_file(tmp_path / CHECKPOINT / "model.safetensors")
        assert (set(in_file) != set(saved)) == (backbone in RENAMED)
    for how in ("resume", "best"):
        trainer = make_trainer(backbone, tuning)
        fresh = trainer.model.state_dict()
        assert any(not torch.equal(fresh[name], saved[name]) for name in saved)
        found = load_back(trainer, tmp_path / CHECKPOINT, how)
        assert found.keys() == saved.keys()
        assert max((found[name].double() - saved[name].double()).abs().max() for name in saved) == 0.0


@pytest.mark.parametrize("tuning", ["full", "scada"])
@pytest.mark.parametrize("how", ["resume", "best"])
def test_a_checkpoint_that_lacks_a_weight_or_has_another_is_refused(make_trainer, tmp_path, tuning, how):
    save_trained(make_trainer("videomae", tuning), tmp_path / CHECKPOINT)
    path = next((tmp_path / CHECKPOINT).glob("*model.safetensors"))
    weights = load_file(path)
    name = next(name for name in weights if name.endswith(("v_bias", "up.weight")))
    for changed, message in (
        (
            {key: value for key, value in weights.items() if key != name},
            r"1 missing weights \(.*(value\.bias|up\.weight)\)",
        ),
        (weights | {"model.other.weight": torch.zeros(2)}, r"1 unexpected weights \(.*model\.other\.weight\)"),
    ):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            load_back(make_trainer("videomae", tuning), tmp_path / CHECKPOINT, how)


@pytest.mark.parametrize("backbone", RENAMED)
def test_a_plain_trainer_gets_its_weights_back_too(make_trainer, tmp_path, backbone, caplog):
    saved = save_trained(make_trainer(backbone, "full", Trainer), tmp_path / CHECKPOINT)
    for how in ("resume", "best"):
        found = load_back(make_trainer(backbone, "full", Trainer), tmp_path / CHECKPOINT, how)
        assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert "keys in the checkpoint" not in caplog.text


def test_weights_under_their_names_in_memory_load_as_in_pytorch(make_trainer):
    """All of them, some of them, and with a name that is no weight's."""
    model, other = (make_trainer("videomae", "full").model for _ in range(2))
    weights = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    some = {name: value for name, value in weights.items() if name.startswith("head.")}
    result = other.load_state_dict(some | {"else": torch.zeros(1)}, strict=False)
    assert result.unexpected_keys == ["else"] and set(result.missing_keys) == set(weights) - set(some)
    assert all(torch.equal(value, weights[name]) == (name in some) for name, value in other.state_dict().items())
    with pytest.raises(RuntimeError, match='Unexpected key.*"else"'):
        other.load_state_dict(weights | {"else": torch.zeros(1)})
