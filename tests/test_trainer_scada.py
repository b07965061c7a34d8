"""Training from Python, by the public names alone: this project's trainer, and transformers' own."""

import json

import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_scada import (
    RowSampler,
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
from processing.recipe_arguments import ModelArguments


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
