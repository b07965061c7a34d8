"""Pixels as `uint8`, which the model normalises: the same as floats that the processor normalised, at each place."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.utils.data import DataLoader
from transformers import Trainer, pipeline

from modeling_scada import (
    RowSampler,
    ScadaConfig,
    ScadaForTemporalGrounding,
    ScadaProcessor,
    ScadaVideoProcessor,
    TemporalGroundingCollator,
    TemporalGroundingTrainer,
    TemporalGroundingTrainingArguments,
    TuningArguments,
    prepare_tuning,
)
from processing.data.collator import crop_video
from processing.data.row_sampler import draw_crop


MEAN, STD = [0.1, 0.5, 0.7], [0.2, 0.4, 0.9]
SENTENCES = ["a cat", "the dog runs away."]


@pytest.fixture
def clip(make_clip):
    return str(make_clip(num_frames=50))


@pytest.fixture
def processor(tiny_tokenizer):
    video_processor = ScadaVideoProcessor(
        num_frames=16, size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD
    )
    return ScadaProcessor(video_processor, tiny_tokenizer)


@pytest.fixture
def make_model(tiny_config, randomize_weights):
    """`make_model(tuning="frozen", **config)`: it normalises by MEAN and STD."""

    def make(tuning="frozen", branches="both", **config):
        config = {"image_mean": MEAN, "image_deviation": STD} | config
        own = copy.deepcopy(tiny_config)
        for name, value in config.items():
            setattr(own, name, value)
        own.text_config.dropout = own.text_config.attention_dropout = 0.0
        torch.manual_seed(0)
        model = ScadaForTemporalGrounding(own)
        model = prepare_tuning(model, TuningArguments(tuning, scada_branches=branches, reduction=4))
        return randomize_weights(model).eval()

    return make


@pytest.fixture
def row(clip):
    return {"video": clip, "video_id": "clip", "sentences": SENTENCES, "segments": [[1.0, 2.0], [3.0, 4.5]]}


def normalized(pixels):
    """By NumPy, in double precision."""
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    return torch.from_numpy((pixels.numpy() / 255 - mean) / std)


# The processor


@pytest.mark.parametrize("form", ["file", "array"])
def test_the_processor_hands_out_bytes(processor, clip, form):
    frames = np.random.default_rng(0).integers(0, 256, (20, 40, 48, 3), dtype=np.uint8)
    video, metadata = (clip, None) if form == "file" else (frames, {"fps": 10})
    floats = processor.video_processor(video, video_metadata=metadata)["pixel_values_videos"]
    pixels = processor.video_processor(video, video_metadata=metadata, do_normalize=False)["pixel_values_videos"]
    assert pixels.dtype == torch.uint8 and floats.dtype == torch.float32 and pixels.is_contiguous()
    assert pixels.nbytes == floats.nbytes / 4 == 16 * 3 * 32 * 32
    torch.testing.assert_close(floats, normalized(pixels).float(), rtol=1e-5, atol=1e-5)
    inputs = processor(videos=video, text="a", video_metadata=metadata, do_normalize=False)
    assert torch.equal(inputs["pixel_values_videos"], pixels)


@pytest.mark.parametrize("size", [32, 1])
def test_each_window_has_bytes_of_its_own(processor, clip, size):
    """Frames of one pixel lie in memory the same way, channels first or last."""
    processor.video_processor.window_seconds = 2.0
    processor.video_processor.size = {"height": size, "width": size}
    floats = list(processor.video_processor.iterate_windows(clip))
    windows = list(processor.video_processor.iterate_windows(clip, do_normalize=False))
    assert len(windows) == len(floats) == 4
    for window, other in zip(windows, floats, strict=True):
        assert window["pixel_values_videos"].dtype == torch.uint8 and window["timelines"] == other["timelines"]
        expected = normalized(window["pixel_values_videos"]).float()
        torch.testing.assert_close(other["pixel_values_videos"], expected, rtol=1e-5, atol=1e-5)
    for one, other in itertools.pairwise(windows):
        assert not torch.equal(one["pixel_values_videos"], other["pixel_values_videos"])


def test_a_saved_processor_hands_out_what_it_did(processor, clip, tmp_path):
    for do_normalize, dtype in ((False, torch.uint8), (True, torch.float32)):
        processor.video_processor.do_normalize = do_normalize
        processor.save_pretrained(tmp_path)
        loaded = ScadaProcessor.from_pretrained(tmp_path).video_processor
        assert loaded(clip)["pixel_values_videos"].dtype == dtype
        assert loaded(clip, do_normalize=not do_normalize)["pixel_values_videos"].dtype != dtype
    (path,) = tmp_path.glob("processor_config.json")  # as it was saved before there was a choice
    config = json.loads(path.read_text())
    assert config["video_processor"].pop("do_normalize") is True
    path.write_text(json.dumps(config))
    assert ScadaVideoProcessor.from_pretrained(tmp_path)(clip)["pixel_values_videos"].dtype == torch.float32


# The model


def as_pair(batch):
    """A batch with pixels as bytes, and the same with normalised floats."""
    pixels = torch.randint(0, 256, batch["pixel_values_videos"].shape, dtype=torch.uint8)
    return [batch | {"pixel_values_videos": values} for values in (pixels, normalized(pixels).float())]


@pytest.mark.parametrize(
    ("tuning", "branches", "retrieval_dim"),
    [("full", "both", 0), ("tia", "both", 0), ("scada", "outer", 0), ("scada", "both", 0), ("scada", "outer", 8)],
)
def test_bytes_give_what_floats_give(make_model, tiny_batch, tuning, branches, retrieval_dim):
    model = make_model(tuning, branches, retrieval_dim=retrieval_dim)
    bytes_in, floats_in = as_pair(tiny_batch)
    gradients = []
    for batch in (bytes_in, floats_in):
        model.zero_grad()
        outputs = model(**batch)
        outputs.loss.backward()
        weights = [weight.grad for weight in model.parameters() if weight.grad is not None]
        gradients.append([outputs.loss, outputs.logits, outputs.pred_segments, *weights])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    # The comparison means something: mean and deviation matter.
    other = model(**floats_in | {"pixel_values_videos": 1.01 * floats_in["pixel_values_videos"]})
    assert (other.logits - gradients[1][1]).abs().max() > 1e-3


def test_encoded_bytes_are_encoded_floats(make_model, tiny_batch):
    model = make_model("scada", "outer")
    encoded = [model.encode_video(batch["pixel_values_videos"]).tensors() for batch in as_pair(tiny_batch)]
    torch.testing.assert_close(*encoded, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_half", ["model", "autocast"])
def test_mean_and_deviation_stay_in_full_precision(make_model, tiny_batch, in_half):
    """In bfloat16 they would be off by up to 0.4 %."""
    model = make_model("full")
    seen = []
    model.model.video_backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model = model.bfloat16() if in_half == "model" else model
    bytes_in, floats_in = as_pair(tiny_batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=in_half == "autocast"), torch.no_grad():
        model(**bytes_in)
    torch.testing.assert_close(seen[0].float(), floats_in["pixel_values_videos"], rtol=1e-5, atol=1e-5)


def test_bytes_without_mean_and_deviation_are_refused(make_model, tiny_batch):
    model = make_model(image_mean=None, image_deviation=None)
    bytes_in, floats_in = as_pair(tiny_batch)
    with pytest.raises(ValueError, match="uint8 pixels for a model whose configuration has no `image_mean`"):
        model(**bytes_in)
    with pytest.raises(ValueError, match="uint8 pixels"):
        model.encode_video(bytes_in["pixel_values_videos"])
    assert model(**floats_in).loss > 0


def test_mean_and_deviation_are_saved(make_model, tiny_batch, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = ScadaForTemporalGrounding.from_pretrained(tmp_path).eval()
    bytes_in, _ = as_pair(tiny_batch)
    assert torch.equal(loaded(**bytes_in).logits, model(**bytes_in).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config.pop("image_mean"), config.pop("image_deviation")) == (MEAN, STD)
    # As it was saved before there were any.
    old = ScadaConfig.from_dict(config)
    assert old.image_mean is None and old.image_deviation is None


def test_the_earlier_name_of_the_deviation_is_read(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["image_std"] = config.pop("image_deviation")
    path.write_text(json.dumps(config))
    old = ScadaForTemporalGrounding.from_pretrained(tmp_path).config
    encoders = model.model.video_backbone.encoder, model.model.text_encoder
    from_backbones = ScadaForTemporalGrounding.from_backbones(*encoders, image_mean=MEAN, image_std=STD).config
    for config in (old, ScadaConfig(image_mean=MEAN, image_std=STD), from_backbones):
        assert config.image_deviation == config.image_std == STD
        assert "image_std" not in config.to_dict() and config.to_dict()["image_deviation"] == STD
    with pytest.raises(StrictDataclassClassValidationError, match="expected three numbers each"):
        ScadaConfig(image_mean=MEAN, image_std=[0.2, 0.0, 0.9])


def test_no_field_looks_like_the_deviation_of_an_initialisation(tiny_config):
    """transformers' common tests set `..._std` to 1e-10, and other tools scale it."""
    tiny_config.image_mean, tiny_config.image_deviation = MEAN, STD
    for name, value in list(vars(tiny_config).items()):
        if any(part in name for part in ("_range", "_std", "initializer_factor", "layer_scale")):
            setattr(tiny_config, name, 1e-10)
            assert isinstance(value, float), name
    ScadaForTemporalGrounding(tiny_config)


@pytest.mark.parametrize(
    "values",
    [
        {"image_mean": MEAN},
        {"image_deviation": STD},
        {"image_mean": MEAN[:2], "image_deviation": STD[:2]},
        {"image_mean": MEAN, "image_deviation": [0.2, 0.0, 0.9]},
        {"image_mean": [0.1, float("nan"), 0.7], "image_deviation": STD},
    ],
)
def test_values_that_cannot_be_are_refused(values):
    with pytest.raises(StrictDataclassClassValidationError, match="expected three numbers each"):
        ScadaConfig(**values)


# Who hands out bytes to whom


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({}, torch.uint8),
        ({"image_mean": tuple(MEAN), "image_deviation": tuple(STD)}, torch.uint8),
        ({"image_mean": None, "image_deviation": None}, torch.float32),
        ({"image_deviation": [0.2, 0.4, 0.90001]}, torch.float32),
        ({"image_mean": [0.1, 0.5, 0.70001]}, torch.float32),
    ],
)
def test_the_pipeline_reads_bytes_where_the_model_normalizes_alike(make_model, processor, clip, config, dtype):
    """The answers, and those about an encoded video, are in any case what floats give."""
    pipe = pipeline("temporal-grounding", model=make_model("scada", "outer", **config), processor=processor)
    plain = pipeline(
        "temporal-grounding",
        model=make_model("scada", "outer", image_mean=None, image_deviation=None),
        processor=processor,
    )
    for window_seconds in (None, 2.0):
        processor.video_processor.window_seconds = window_seconds
        expected, encoded_before = plain(clip, SENTENCES), plain.encode(clip)
        seen = []
        hook = pipe.model.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(kwargs["pixel_values_videos"].dtype), with_kwargs=True
        )
        found = pipe(clip, SENTENCES)
        hook.remove()
        assert seen == [dtype] * (1 if window_seconds is None else 4)
        encoded = pipe.encode(clip)
        assert encoded.fingerprint == encoded_before.fingerprint
        for answers in (found, pipe(encoded, SENTENCES), pipe(encoded_before, SENTENCES)):
            for one, other in zip(itertools.chain(*answers), itertools.chain(*expected), strict=True):
                assert one == pytest.approx(other, abs=1e-4)


def test_what_a_video_is_encoded_with_names_the_mean_that_counts(make_model, processor, clip):
    """A processor that leaves normalising to the model has a mean that nobody reads."""
    processor.video_processor.do_normalize = False
    processor.video_processor.image_mean = [0.3, 0.3, 0.3]
    pipe = pipeline("temporal-grounding", model=make_model("scada", "outer"), processor=processor)
    encoded = pipe.encode(clip)
    assert (encoded.fingerprint["image_mean"], encoded.fingerprint["image_std"]) == (MEAN, STD)
    pipe.model.config.image_mean = [0.1, 0.5, 0.6]
    with pytest.raises(ValueError, match="image_mean"):
        pipe(encoded, SENTENCES)
    pipe.model.config.image_mean = pipe.model.config.image_deviation = None
    with pytest.raises(ValueError, match="uint8 pixels"):
        pipe.encode(clip)


def test_the_collators_batch(processor, row, clip):
    floats = TemporalGroundingCollator(processor)([row])
    batch = TemporalGroundingCollator(processor, do_normalize=False)([row])
    assert batch["pixel_values_videos"].dtype == torch.uint8
    torch.testing.assert_close(
        floats["pixel_values_videos"], normalized(batch["pixel_values_videos"]).float(), rtol=1e-5, atol=1e-5
    )
    assert all(torch.equal(floats[name], batch[name]) for name in floats if name != "pixel_values_videos")
    processor.video_processor.do_normalize = False
    for do_normalize, dtype in ((None, torch.uint8), (True, torch.float32)):
        collator = TemporalGroundingCollator(processor, do_normalize=do_normalize)
        assert collator([row])["pixel_values_videos"].dtype == dtype


def test_augmented_bytes_are_augmented_floats_to_a_grey_level(processor, row):
    """The same crop and flip; only the scaling rounds, twice, to whole levels."""
    sampler = RowSampler(processor, augment=True, seed=0)
    collators = [TemporalGroundingCollator(processor, do_normalize=do) for do in (False, True)]
    deviations = 255 * torch.tensor(STD)[:, None, None]
    for epoch in range(6):
        sampler.set_epoch(epoch)
        drawn = sampler.draw_rows([row])
        pixels, floats = (collator(drawn)["pixel_values_videos"] for collator in collators)
        assert pixels.dtype == torch.uint8
        assert ((normalized(pixels) - floats) * deviations).abs().max() < 1.1


def test_scaling_bytes_is_scaling_to_a_grey_level():
    video = torch.randint(0, 256, (4, 3, 37, 41), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crop = draw_crop((37, 41), True, torch.Generator().manual_seed(3))
    scaled = [crop_video(frames, crop, (32, 32)) for frames in (video, video.float())]
    assert scaled[0].dtype == torch.uint8 and (scaled[0] - scaled[1]).abs().max() < 1.1


@pytest.mark.parametrize("settings", [{"augment": True}, {"keep_in_memory": True}, {}], ids=str)
def test_a_broken_video_beside_bytes(processor, row, tmp_path, settings):
    log = tmp_path / "broken.jsonl"
    sampler = RowSampler(processor, augment="augment" in settings)
    collator = TemporalGroundingCollator(
        processor, broken_videos_log=log, keep_in_memory="keep_in_memory" in settings, do_normalize=False
    )
    drawn = sampler.draw_rows([row | {"video": "gone.mp4"}, row])
    batch = collator(drawn)
    assert batch["pixel_values_videos"].dtype == torch.uint8 and batch["pixel_values_videos"].shape[0] == 2
    assert not batch["pixel_values_videos"][0].any() and (batch["labels"][0] == -100).all()
    assert torch.equal(batch["pixel_values_videos"][1], collator(drawn[1:])["pixel_values_videos"][0])


def test_noise_is_floats(processor, row, tmp_path):
    """It has a mean of 0 and a deviation of 1 in the model, whatever those of the pixels."""
    collators = [
        TemporalGroundingCollator(processor, broken_videos_log=tmp_path / "log", do_normalize=do)
        for do in (False, None)
    ]
    sampler = RowSampler(processor, blind=True)
    gone = row | {"video": "gone.mp4"}
    for rows in ([row], [row, gone], [gone]):
        drawn = sampler.draw_rows(rows)
        pixels = [collator(drawn)["pixel_values_videos"] for collator in collators]
        assert pixels[0].dtype == torch.float32 and torch.equal(*pixels)


# Training


def make_trainer(model, processor, rows, folder, own_trainer=True, **settings):
    arguments = TemporalGroundingTrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=1,
        learning_rate=1e-3,
        backbone_learning_rate=1e-3,
        warmup_steps=0,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    return (TemporalGroundingTrainer if own_trainer else Trainer)(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=TemporalGroundingCollator(processor, **settings),
    )


def dtypes_of(trainer):
    loaders = trainer.get_train_dataloader(), trainer.get_eval_dataloader()
    return {batch["pixel_values_videos"].dtype for loader in loaders for batch in loader}


@pytest.mark.parametrize("tuning", ["full", "scada"])
def test_the_trainer_takes_bytes_and_finds_the_same_losses(make_model, processor, row, make_clip, tmp_path, tuning):
    other = row | {"video": str(make_clip("other.mp4", num_frames=30, first_code=70)), "segments": [[0.0, 1.0]] * 2}
    losses, weights = [], []
    for do_normalize, dtype in ((None, torch.uint8), (True, torch.float32)):
        model = make_model(tuning).train()
        trainer = make_trainer(model, processor, [row, other], tmp_path / str(dtype), do_normalize=do_normalize)
        assert dtypes_of(trainer) == {dtype}
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][0] != losses[0][-1]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "own_trainer"),
    [({"image_mean": None, "image_deviation": None}, True), ({"image_mean": [0.1, 0.5, 0.6]}, True), ({}, False)],
)
def test_other_trainings_stay_with_floats(make_model, processor, row, tmp_path, config, own_trainer):
    trainer = make_trainer(make_model("full", **config), processor, [row], tmp_path, own_trainer)
    assert dtypes_of(trainer) == {torch.float32}


def test_bytes_leave_workers(processor, row):
    collator = TemporalGroundingCollator(processor, do_normalize=False)
    loader = DataLoader([row, row], 1, collate_fn=collator, num_workers=1, multiprocessing_context="fork")
    assert [batch["pixel_values_videos"].dtype for batch in loader] == [torch.uint8] * 2
