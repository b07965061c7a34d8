"""Settings and fixtures for all tests. Fixtures generate all clips, so tests download nothing."""

import os
import platform
import shutil
from importlib import metadata


# Set before any import of transformers and related packages, because they read it once.
os.environ["HF_HUB_OFFLINE"] = "1"
# One thread per worker, because each core already runs a worker. Child processes inherit this setting.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Sequence  # noqa: E402
from fractions import Fraction  # noqa: E402
from pathlib import Path  # noqa: E402

import av  # noqa: E402
import hub_server  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402


hub = hub_server.hub  # a fixture

PACKAGES = (
    "torch transformers tokenizers huggingface_hub peft accelerate datasets evaluate av numpy gradio ray"
).split()


def pytest_report_header() -> str:
    """Return a header line with the release of each package."""
    installed = [f"{name} {metadata.version(name)}" for name in PACKAGES if any(metadata.distributions(name=name))]
    return f"releases: Python {platform.python_version()}, {', '.join(installed)}"


MAX_CODE = 255


def code_image(code: int, height: int, width: int) -> np.ndarray:
    """Return a `(height, width, 3)` image that encodes a number: low digit left, high digit right, as grey levels."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[:, : width // 2] = 20 + 14 * (code % 16)
    image[:, width // 2 :] = 20 + 14 * (code // 16)
    return image


def write_clip(
    path: Path,
    num_frames: int = 20,
    fps: int = 10,
    times_seconds: Sequence[float] | None = None,
    start_seconds: float = 0.0,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation_degrees: int = 0,
    height: int = 48,
    width: int = 64,
    first_code: int = 0,
) -> Path:
    """
    Write a clip whose frame `k` encodes the number `first_code + k` (see `read_codes`). The extension selects the
    container.

    `times_seconds` sets the timestamp of each frame (variable frame rate) instead of `fps`. `start_seconds` is added
    to all timestamps.
    """
    if times_seconds is None:
        times_seconds = [k / fps for k in range(num_frames)]
    if first_code + len(times_seconds) > MAX_CODE + 1:
        raise ValueError(
            f"Received {len(times_seconds)} frames, but a frame can only encode a number up to {MAX_CODE}."
        )
    with av.open(str(path), mode="w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=codec_options or {})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation_degrees:
            stream.set_display_rotation(rotation_degrees)
        for k, time_seconds in enumerate(times_seconds):
            frame = av.VideoFrame.from_ndarray(code_image(first_code + k, height, width), format="rgb24")
            frame.pts = round((start_seconds + time_seconds) * 1000)
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Return `make_clip(name="clip.mp4", **kwargs) -> Path`, which writes a clip to `tmp_path` (see `write_clip`)."""

    def make(name: str = "clip.mp4", **kwargs) -> Path:
        return write_clip(tmp_path / name, **kwargs)

    return make


@pytest.fixture(scope="session")
def read_codes() -> Callable[[np.ndarray], list[int]]:
    """Return `read_codes(frames) -> list[int]`, which decodes the numbers in `(T, H, W, 3)` frames, at any scale."""

    def read(frames: np.ndarray) -> list[int]:
        width = frames.shape[2]
        # Exclude the middle, because scaling and compression blend the two halves.
        low = frames[:, :, : width // 4].mean(axis=(1, 2, 3))
        high = frames[:, :, -(width // 4) :].mean(axis=(1, 2, 3))
        digits = [np.rint((level - 20) / 14).astype(int) for level in (low, high)]
        return (digits[0] + 16 * digits[1]).tolist()

    return read


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Return the shared folder of real videos and annotations outside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
    if not folder.is_dir():
        pytest.skip("the shared fixtures are not on this machine")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the Chromium command: the environment variable CHROMIUM, or `chromium` on the path."""
    command = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if command is None:
        pytest.skip("Chromium is not installed")
    return command


# Tiny model and matching inputs. Fixtures import heavy packages themselves, so other tests start quickly.


@pytest.fixture
def tiny_config():
    """Return a tiny VideoMAE (32 x 32 pixels, 16-frame clips), DistilBERT (100 tokens) and head (16 time steps)."""
    from modeling_scada import ScadaConfig

    video_config = {
        "model_type": "videomae",
        "image_size": 32,
        "patch_size": 16,
        "num_frames": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "use_mean_pooling": False,  # with a final norm, as in checkpoints without a classifier
    }
    text_config = {
        "model_type": "distilbert",
        "vocab_size": 100,
        "max_position_embeddings": 64,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 64,
    }
    return ScadaConfig(
        video_config=video_config, text_config=text_config, hidden_size=16, grid_size=16, num_train_proposals=32
    )


@pytest.fixture(scope="session")
def randomize_weights() -> Callable:
    """
    Return `randomize_weights(model, seed=0)`, which adds noise to every parameter and returns the model.

    Without noise, models of one seed are equal even if saving and loading fail, and zero-initialized layers have no
    effect.
    """
    import torch

    def randomize(model, seed: int = 0, std: float = 0.1):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(std * torch.randn(parameter.shape, generator=generator))
        return model

    return randomize


@pytest.fixture
def tiny_model(tiny_config, randomize_weights):
    """Return `ScadaForTemporalGrounding(tiny_config)` in evaluation mode, with random weights. Seeds torch."""
    import torch

    from modeling_scada import ScadaForTemporalGrounding

    torch.manual_seed(0)
    return randomize_weights(ScadaForTemporalGrounding(tiny_config)).eval()


@pytest.fixture
def tiny_batch() -> dict:
    """
    Return a batch of two videos with two clips each.

    The first video has two sentences, one with padding tokens and one with two target segments. The second video has
    one sentence.
    """
    import torch

    generator = torch.Generator().manual_seed(1)
    attention_mask = torch.tensor([[[1] * 6, [1] * 4 + [0] * 2], [[1] * 5 + [0], [0] * 6]])
    targets = [[[[0.1, 0.4], [0.6, 0.9]], [[0.2, 0.8], [-100, -100]]], [[[0.0, 0.3], [-100, -100]], [[-100] * 2] * 2]]
    return {
        "pixel_values_videos": torch.randn(2, 32, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(5, 100, (2, 2, 6), generator=generator) * attention_mask,
        "attention_mask": attention_mask,
        "sentence_mask": torch.tensor([[1, 1], [1, 0]]),
        "labels": torch.tensor(targets, dtype=torch.float32),
    }


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Return a fast tokenizer with one token per letter or digit and token ids below 100."""
    from string import ascii_lowercase, digits

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [*ascii_lowercase, *digits]
    tokens = [*special, *characters, *(f"##{character}" for character in characters), *".,!?'-"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture
def tiny_processor(tiny_tokenizer):
    """Return a `ScadaProcessor` for `tiny_model`, with 16 frames of 32 x 32 pixels."""
    from modeling_scada import ScadaProcessor, ScadaVideoProcessor

    return ScadaProcessor(ScadaVideoProcessor(num_frames=16, size={"height": 32, "width": 32}), tiny_tokenizer)


@pytest.fixture
def recipe(tmp_path, make_clip, tiny_config, tiny_tokenizer, randomize_weights):
    """Return a recipe for two training steps on three clips with one to three sentences, with local encoders."""
    import json

    from transformers import AutoModel

    for name, config in (("video", tiny_config.video_config), ("text", tiny_config.text_config)):
        randomize_weights(AutoModel.from_config(config), std=0.02).save_pretrained(tmp_path / name)
    tiny_tokenizer.save_pretrained(tmp_path / "text")
    rows = []
    for index in range(3):
        make_clip(name=f"{index}.mp4", num_frames=20, fps=10)
        rows.append(
            {
                "video": f"{index}.mp4",
                "sentences": ["it begins", "it goes on", "it ends"][: index + 1],
                "segments": [[0.0, 0.5], [0.5, 1.5], [1.5, 2.0]][: index + 1],
            }
        )
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {
        "video_model": str(tmp_path / "video"),
        "text_model": str(tmp_path / "text"),
        "dataset": str(tmp_path / "rows.jsonl"),
        "eval_split": "train",
        "num_frames": 16,
        "image_size": 32,
        "head_hidden_size": 16,
        "grid_size": 16,
        "max_sentences": 2,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-3,
        "backbone_learning_rate": 1e-4,
        "text_learning_rate": 1e-5,
        "warmup_steps": 0,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "run"),
    }
