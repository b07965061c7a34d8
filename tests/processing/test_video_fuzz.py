"""Reading videos that are broken, many, or read by other processes: what comes are the right frames or an error."""

import ctypes
import gc
import io
import multiprocessing
import os
import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
from conftest import write_clip
from test_video_io import VP9, decode_all, shown_index

from processing import video_reading
from processing.video_io import ReadLimits, VideoReadError, iterate_frames, probe, read_frames


pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")

SIZE = (32, 32)
LIMITS = ReadLimits(timeout_seconds=5, max_pixels=2**22)
NUM_INSTANTS = 8
MAX_CALL_SECONDS = 10.0
MAX_GROWTH_MB = 300
# Beyond this, memory is refused to the child, so that the machine stays usable.
MAX_ADDRESS_SPACE_BYTES = 4 * 2**30
MAX_FIXTURE_BYTES = 150_000

H264 = {"codec_options": {"g": "10", "sc_threshold": "0", "bf": "0"}}
H264_B_FRAMES = {"codec_options": {"g": "10", "sc_threshold": "0", "bf": "3"}}
CLIPS = {
    "b_frames.mp4": H264_B_FRAMES,
    "faststart.mp4": {**H264, "container_options": {"movflags": "faststart"}},
    "faststart_b_frames.mp4": {**H264_B_FRAMES, "container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {**H264_B_FRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mp4": {"codec": "libx265", "codec_options": {"x265-params": "log-level=error:keyint=10:scenecut=0"}},
    "h264.mkv": H264_B_FRAMES,
    "vp9.webm": {"codec": "libvpx-vp9", "codec_options": {**VP9["codec_options"], "g": "10"}},
    "transport_stream.ts": H264_B_FRAMES,
    "mpeg4.avi": {"codec": "mpeg4", "codec_options": {"g": "10"}},
    "animated.gif": {"codec": "gif", "pix_fmt": "bgr8"},
    "flash.flv": H264,
    # Large enough for decoder threads.
    "threads.mp4": {**H264_B_FRAMES, "height": 272, "width": 320},
    # A little below LIMITS, for its headers to go before another's frames.
    "large.mp4": {"num_frames": 3, "height": 1600, "width": 2560, "codec_options": {"preset": "ultrafast"}},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / name, **{"num_frames": 30, **kwargs}) for name, kwargs in CLIPS.items()]


@pytest.fixture(scope="module")
def clips_and_fixtures(clips) -> list[Path]:
    """With the small ones among the real videos, where they are on this machine."""
    return clips + [path for path in real_videos() if path.stat().st_size <= MAX_FIXTURE_BYTES]


def real_videos() -> list[Path]:
    folder = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "videos"
    return sorted(path for path in folder.glob("*") if path.suffix in (".mp4", ".mkv", ".webm", ".mov"))


# --- mutations: each takes a video's bytes, a generator and all videos, and says what it did ---

EXTREMES = (0, 1, 7, 8, 0x7F, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
BOXES = "ftyp moov mvhd trak tkhd edts elst mdia mdhd hdlr minf stbl stsd avc1 hvc1 hev1 avcC hvcC stts stss ctts stsc"
BOXES += " stsz stco mdat moof mfhd traf tfhd tfdt trun sidx mvex trex mfra tfra"
TIME_BOXES = "mvhd tkhd elst mdhd stts stss ctts stsc stsz stco tfhd tfdt trun sidx trex mfhd"
DIMENSIONS = ((0, 0), (1, 1), (64, 65535), (640, 480), (2040, 2040), (4096, 4096), (16384, 16384), (65535, 65535))


def pick_block(data: bytearray, rng: np.random.Generator) -> tuple[int, int]:
    """A start and a stop, of a few bytes to a third of the file."""
    length = min(int(np.exp(rng.uniform(0, np.log(len(data) / 3 + 2)))), len(data))
    start = int(rng.integers(0, len(data) - length + 1))
    return start, start + length


def flip_bits(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    num_bits = int(np.exp(rng.uniform(0, np.log(200))))
    # All over the file, or close together.
    start, stop = (0, len(data)) if rng.random() < 0.5 else pick_block(data, rng)
    for place in rng.integers(start * 8, stop * 8, num_bits):
        data[place // 8] ^= 1 << (place % 8)
    return f"{num_bits} bits flipped in [{start}, {stop})"


def cut_end(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    length = int(rng.integers(0, len(data)))
    del data[length:]
    return f"cut to {length} bytes"


def cut_start(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    length = int(rng.integers(1, max(len(data) // 4, 2)))
    del data[:length]
    return f"first {length} bytes cut off"


def cut_middle(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    start, stop = pick_block(data, rng)
    del data[start:stop]
    return f"[{start}, {stop}) cut out"


def zero_block(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    start, stop = pick_block(data, rng)
    value = int(rng.choice([0, 0xFF]))
    data[start:stop] = bytes([value]) * (stop - start)
    return f"[{start}, {stop}) filled with {value}"


def repeat_block(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    start, stop = pick_block(data, rng)
    times = int(rng.integers(1, 4))
    data[stop:stop] = data[start:stop] * times
    return f"[{start}, {stop}) repeated {times} times"


def swap_blocks(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    start, stop = pick_block(data, rng)
    place = int(rng.integers(0, len(data) - (stop - start) + 1))
    moved, there = data[start:stop], data[place : place + stop - start]
    data[start:stop] = there
    data[place : place + len(moved)] = moved
    return f"[{start}, {stop}) and as much at {place} swapped"


def graft_headers(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    name = str(rng.choice(list(others)))
    other = others[name]
    first = b"moov", b"mdat", b"\x1f\x43\xb6\x75", b"movi"
    own, its = ([place for mark in first if (place := part.find(mark)) > 0] for part in (bytes(data), other))
    if own and its and rng.random() < 0.7:
        start, stop = int(rng.choice(own)), int(rng.choice(its))
    else:
        start = stop = int(rng.integers(0, min(len(data), len(other)) + 1))
    data[:start] = other[:stop]
    return f"first {start} bytes replaced by the first {stop} of {name}"


def overwrite_word(data: bytearray, rng: np.random.Generator, place: int, num_bytes: int = 4) -> str:
    value = int(rng.choice(EXTREMES)) % 256**num_bytes
    data[place : place + num_bytes] = value.to_bytes(num_bytes, "big" if rng.random() < 0.8 else "little")
    return f"{value:#x} in {num_bytes} bytes at {place}"


def pick_box(data: bytearray, rng: np.random.Generator, names: str) -> int | None:
    """Where the name of a random mp4 box stands."""
    found = [place for name in names.split() if (place := data.find(name.encode())) >= 4]
    return int(rng.choice(found)) if found else None


def overwrite_box_size(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    place = pick_box(data, rng, BOXES)
    if place is None:
        return overwrite_word(data, rng, int(rng.integers(0, max(len(data) - 4, 1))))
    name = data[place : place + 4].decode()
    return f"size of {name}: {overwrite_word(data, rng, place - 4)}"


def overwrite_times(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    place = pick_box(data, rng, TIME_BOXES)
    if place is None:
        return overwrite_word(data, rng, int(rng.integers(0, min(len(data), 600))), int(rng.choice([1, 2, 4])))
    name = data[place : place + 4].decode()
    return f"in {name}: {overwrite_word(data, rng, place + 4 * int(rng.integers(1, 16)))}"


def shift_times(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    """Times a little off are more likely to be believed than extreme ones."""
    place = pick_box(data, rng, "stts stss ctts trun elst stsc")
    place = int(rng.integers(0, max(len(data) - 4, 1))) if place is None else place + 7 + 4 * int(rng.integers(1, 20))
    place = min(place, len(data) - 1)
    data[place] = (data[place] + int(rng.integers(-9, 10))) % 256
    return f"byte {place} changed to {data[place]}"


def overwrite_dimensions(data: bytearray, rng: np.random.Generator, others: dict[str, bytes]) -> str:
    def encodings(width: int, height: int) -> list[bytes]:
        sides = width % 65536, height % 65536
        return [
            b"".join(side.to_bytes(2, "big") for side in sides),
            b"".join(side.to_bytes(2, "little") for side in sides),
            b"".join(side.to_bytes(2, "big") + bytes(2) for side in sides),  # 16.16, as in tkhd
            b"".join(side.to_bytes(4, "little") for side in sides),
            b"".join((max(side, 1) - 1).to_bytes(2, "big") for side in sides),  # as in VP9, where aligned
            b"\xb0\x81" + bytes([sides[0] % 256]) + b"\xba\x81" + bytes([sides[1] % 256]),  # Matroska
        ]

    new = DIMENSIONS[int(rng.integers(0, len(DIMENSIONS)))]
    num_changed = 0
    for old in ((64, 48), (320, 272), (2560, 1600), (320, 568), (568, 320)):
        for old_bytes, new_bytes in zip(encodings(*old), encodings(*new), strict=True):
            place = data.find(old_bytes)
            while place >= 0 and rng.random() < 0.8:
                data[place : place + len(old_bytes)] = new_bytes
                num_changed += 1
                place = data.find(old_bytes, place + len(old_bytes))
    return f"dimensions to {new[0]} x {new[1]} in {num_changed} places"


MUTATIONS = (
    flip_bits,
    flip_bits,
    flip_bits,
    cut_end,
    cut_start,
    cut_middle,
    zero_block,
    repeat_block,
    swap_blocks,
    graft_headers,
    overwrite_box_size,
    overwrite_times,
    shift_times,
    overwrite_dimensions,
)


def make_mutant(seed: int, originals: dict[str, bytes]) -> tuple[str, bytes, str]:
    """The name of the video that was mutated, the mutant, and what was done to it."""
    rng = np.random.default_rng(seed)
    name = str(rng.choice(list(originals)))
    data = bytearray(originals[name])
    done = []
    for _ in range(1 if rng.random() < 0.8 else 2):
        if data:
            done.append(MUTATIONS[int(rng.integers(0, len(MUTATIONS)))](data, rng, originals))
    return name, bytes(data), f"{name}: {'; '.join(done)}"


# --- reading mutants in a child process ---


@dataclass(frozen=True)
class Outcome:
    """
    What came of a mutant. `problem` is empty if that is as it should be, and `ffmpeg` if what is not is not for this
    package to mend.
    """

    seed: int
    description: str = ""
    gave_frames: bool = False
    differs: str = ""
    seconds: float = 0.0
    growth_mb: float = 0.0
    problem: str = ""
    ffmpeg: str = ""


@dataclass(frozen=True)
class Mutant:
    seed: int
    source: bytes | Path
    # Of the video that was mutated.
    duration_seconds: float


def status_mb(key: str) -> float:
    """`VmRSS` (resident memory), `VmHWM` (its peak) or `VmSize` of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


class _ReadsThrough:
    """In place of `_PacketReader`: every file is read through."""

    def __init__(self, video):
        raise video_reading._IrregularVideo


def read_through():
    return mock.patch.object(video_reading, "_PacketReader", _ReadsThrough)


def refuse_damaged(upright_rgb: Callable, video, frame, *args) -> np.ndarray:
    """In place of `_upright_rgb`, which every frame that is returned goes through."""
    assert not frame.is_corrupt, f"the frame at {frame.pts} is damaged"
    return upright_rgb(video, frame, *args)


def frames_until_error(source, instants_seconds: Sequence[float]) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    try:
        for frame in iterate_frames(source, instants_seconds, SIZE, LIMITS):
            frames.append(frame)
    except VideoReadError:
        pass
    return frames


def why_frames_differ(source) -> str:
    """
    The reason why what comes of a damaged file depends on how much of it is decoded, if that shows with PyAV alone.

    - Its frames do not come in the order of their times. Read through, those that are late are dropped; where less is
      decoded, it does not show that they are.
    - FFmpeg does not say that a part of an HEVC picture is missing: what was in memory before shows there.
    """
    pictures = []
    for skip_frame in ("DEFAULT", "NONREF"):
        frames = []
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            stream = container.streams.video[0]
            stream.codec_context.skip_frame = skip_frame
            try:
                for packet in container.demux(stream):
                    try:
                        frames += packet.decode()
                    except av.error.FFmpegError:
                        pass
            except IndexError:
                pass
            codec = stream.codec_context.name
        pictures.append({frame.pts: frame.to_ndarray() for frame in frames})
        times = [frame.pts for frame in frames if frame.pts is not None]
        if times != sorted(times):
            return "times go back"
    whole, part = pictures
    if codec == "hevc" and any(pts in whole and not np.array_equal(whole[pts], part[pts]) for pts in part):
        return "missing parts of pictures"
    return ""


def opening_peak_mb(source) -> float:
    """Most resident memory while FFmpeg alone opens a file."""
    Path("/proc/self/clear_refs").write_text("5")
    try:
        av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)).close()
    except av.error.FFmpegError:
        pass
    return status_mb("VmHWM")


def inspect_reading(mutant: Mutant) -> Outcome:
    """Read a mutant in all ways."""
    with mock.patch.object(video_reading, "_upright_rgb", partial(refuse_damaged, video_reading._upright_rgb)):
        return _inspect_reading(mutant)


def _inspect_reading(mutant: Mutant) -> Outcome:
    outcome = Outcome(mutant.seed)
    slowest_seconds = 0.0

    def timed(function, *args, **kwargs):
        nonlocal slowest_seconds
        start = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            slowest_seconds = max(slowest_seconds, time.monotonic() - start)

    try:
        facts = timed(probe, mutant.source, LIMITS)
        assert 0 < facts.duration_seconds <= LIMITS.max_duration_seconds, facts
        assert facts.height > 0 and facts.width > 0 and facts.height * facts.width <= LIMITS.max_pixels, facts
    except VideoReadError:
        pass
    rng = np.random.default_rng([mutant.seed, 1])
    span_seconds = mutant.duration_seconds * rng.uniform(0.1, 1)
    instants_seconds = rng.uniform(0, span_seconds, NUM_INSTANTS)
    try:
        frames = timed(read_frames, mutant.source, instants_seconds, SIZE, limits=LIMITS)
        assert frames.shape == (NUM_INSTANTS, *SIZE, 3) and frames.dtype == np.uint8, (frames.shape, frames.dtype)
        outcome = replace(outcome, gave_frames=True)
    except VideoReadError as error:
        assert str(error).startswith("Could not read the video"), error
    order = np.argsort(instants_seconds)
    with read_through():
        others = timed(frames_until_error, mutant.source, instants_seconds[order])
    one_by_one = timed(frames_until_error, mutant.source, instants_seconds[order])
    if outcome.gave_frames:
        assert len(one_by_one) == NUM_INSTANTS and np.array_equal(np.stack(one_by_one), frames[order])
    differences = [
        f"{instants_seconds[order][place]:.4f} s of {NUM_INSTANTS} instants"
        for place, (frame, other) in enumerate(zip(one_by_one, others, strict=False))
        if not np.array_equal(frame, other)
    ]
    # On its own, an instant is jumped to.
    for place in rng.choice(NUM_INSTANTS, 3, replace=False):
        alone = timed(frames_until_error, mutant.source, instants_seconds[order][place : place + 1])
        if alone and place < len(others) and not np.array_equal(alone[0], others[place]):
            differences.append(f"{instants_seconds[order][place]:.4f} s alone")
    problem = f"a call took {slowest_seconds:.1f} s" if slowest_seconds > MAX_CALL_SECONDS else ""
    return replace(
        outcome,
        seconds=slowest_seconds,
        differs=", ".join(differences),
        ffmpeg=why_frames_differ(mutant.source) if differences else "",
        problem=problem,
    )


def inspect_in_child(
    connection, inspect: Callable[[Mutant], Outcome], paths: Sequence[Path], seeds: Sequence[int]
) -> None:
    """Say of each mutant first what it is, then its outcome."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most_bytes = int(status_mb("VmSize") * 2**20) + MAX_ADDRESS_SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    warnings.simplefilter("error")
    originals = {path.name: path.read_bytes() for path in paths}
    durations_seconds = {path.name: probe(path).duration_seconds for path in paths}
    file = paths[0].parent / f"mutant_{os.getpid()}"
    start_mb = allowed_mb = status_mb("VmHWM")
    for seed in seeds:
        name, data, description = make_mutant(seed, originals)
        connection.send(Outcome(seed, description))
        source: bytes | Path = data
        if seed % 2:
            file.write_bytes(data)
            source = file
        try:
            outcome = inspect(Mutant(seed, source, durations_seconds[name]))
        except Exception:
            outcome = Outcome(seed, problem=traceback.format_exc())
        peak_mb = status_mb("VmHWM")
        if peak_mb > allowed_mb + MAX_GROWTH_MB:
            # Nothing of this package can act before FFmpeg has read the tables of a file.
            if opening_peak_mb(source) > start_mb + MAX_GROWTH_MB:
                outcome = replace(outcome, ffmpeg=f"opening takes {peak_mb:.0f} MB")
                Path("/proc/self/clear_refs").write_text("5")
            else:
                outcome = replace(outcome, problem=f"{outcome.problem} resident memory grew to {peak_mb:.0f} MB")
                allowed_mb = peak_mb
        connection.send(
            replace(outcome, description=description, growth_mb=0.0 if outcome.ffmpeg else peak_mb - start_mb)
        )
    file.unlink(missing_ok=True)
    connection.close()


def run_mutants(
    inspect: Callable[[Mutant], Outcome], paths: Sequence[Path], seeds: Sequence[int], seconds: float = 60.0
) -> Iterator[Outcome]:
    """
    The outcomes of all mutants. A child that crashes, or is silent for more than `seconds`, has its mutant to blame;
    another goes on with the next one.
    """
    context = multiprocessing.get_context("spawn")
    left = list(seeds)
    while left:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=inspect_in_child, args=(sender, inspect, paths, left), daemon=True)
        child.start()
        sender.close()
        current = None
        problem = ""
        try:
            while left and not problem:
                if receiver.poll(seconds):
                    message = receiver.recv()
                    # Every other message is an outcome.
                    if current is None:
                        current = message
                    else:
                        yield message
                        left.remove(message.seed)
                        current = None
                else:
                    problem = f"no answer in {seconds:.0f} s"
        except EOFError:
            child.join()
            problem = f"the child ended with exit code {child.exitcode}"
        finally:
            child.kill()
            child.join()
            receiver.close()
        if problem:
            # Without a mutant, it is the harness that does not work.
            assert current is not None, problem
            yield replace(current, problem=problem)
            left.remove(current.seed)


def check_mutants(paths: Sequence[Path], seeds: Sequence[int], seconds: float = 60.0) -> None:
    start = time.monotonic()
    outcomes = list(run_mutants(inspect_reading, paths, seeds, seconds))
    assert [outcome.seed for outcome in outcomes] == list(seeds)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    differing = [outcome for outcome in outcomes if outcome.differs]
    num_read = sum(outcome.gave_frames for outcome in outcomes)
    print(
        f"\n{len(outcomes)} mutants in {time.monotonic() - start:.0f} s, {num_read} gave frames, "
        f"{len(differing)} differ; slowest call {slowest.seconds:.2f} s (seed {slowest.seed}, {slowest.description}); "
        f"memory grew by {max(outcome.growth_mb for outcome in outcomes):.0f} MB"
    )
    print(Counter(outcome.description.split(":")[0] for outcome in outcomes if outcome.gave_frames))
    failures = [
        f"seed {outcome.seed}, {outcome.description}: {outcome.problem}" for outcome in outcomes if outcome.problem
    ]
    failures += [
        f"seed {outcome.seed}, {outcome.description}: differs at {outcome.differs}"
        for outcome in differing
        if not outcome.ffmpeg
    ]
    excused = [outcome for outcome in outcomes if outcome.ffmpeg]
    for outcome in excused:
        print(f"seed {outcome.seed}, {outcome.description}: {outcome.ffmpeg}")
    assert not failures, "\n".join(failures)
    # Mutants that are all good, or all beyond reading, would test little.
    assert len(excused) <= 0.01 * len(outcomes)
    assert 0.1 < num_read / len(outcomes) < 0.9


def test_mutants(clips):
    check_mutants(clips, range(100))


@pytest.mark.slow
def test_many_mutants(clips_and_fixtures):
    check_mutants(clips_and_fixtures, range(1000, 5000))


def test_frames_larger_than_the_header_said_they_may_be(clips):
    """A GIF whose screen is too large for FFmpeg to look into beforehand: its size is known from the frame alone."""
    data = bytearray(next(path for path in clips if path.suffix == ".gif").read_bytes())
    data[6:10] = (4096).to_bytes(2, "little") * 2
    for function in (probe, partial(read_frames, seconds=[0.0], size=SIZE)):
        with pytest.raises(VideoReadError):
            function(bytes(data), limits=LIMITS)
    assert probe(bytes(data)).width == 4096


def test_damage_in_the_first_frame_is_not_shown(clips_and_fixtures):
    """FFmpeg patches it up, and marks it, but not those that refer to it."""
    path = next((path for path in clips_and_fixtures if path.name == "video_90.mov"), None)
    if path is None:
        pytest.skip("the shared fixtures are not on this machine")
    data = bytearray(path.read_bytes())
    data[3271:6997] = bytes(6997 - 3271)
    with pytest.raises(VideoReadError, match="a frame is damaged"):
        read_frames(bytes(data), [0.0, 0.05])


def inspect_badly(mutant: Mutant) -> Outcome:
    """A reader that does all that none may do."""
    if mutant.seed == 1:
        os.abort()
    if mutant.seed == 2:
        time.sleep(600)
    if mutant.seed == 3:
        raise KeyError("of no use to a caller")
    if mutant.seed == 4:
        np.ones((MAX_GROWTH_MB + 50) * 2**20, np.uint8)
    if mutant.seed == 5:
        np.ones(MAX_ADDRESS_SPACE_BYTES, np.uint8)
    return Outcome(mutant.seed, gave_frames=True)


def test_harness_tells_which_mutant_it_was(clips):
    outcomes = list(run_mutants(inspect_badly, clips[:2], range(7), seconds=5.0))
    assert [outcome.seed for outcome in outcomes] == list(range(7))
    assert all(
        outcome.description.startswith(clips[0].name) or clips[1].name in outcome.description for outcome in outcomes
    )
    problems = [outcome.problem for outcome in outcomes]
    assert problems[0] == problems[6] == "" and outcomes[0].gave_frames and outcomes[6].gave_frames
    assert "exit code -6" in problems[1]
    assert "no answer in 5 s" in problems[2]
    assert "KeyError" in problems[3]
    assert "resident memory grew" in problems[4]
    assert "MemoryError" in problems[5]


def test_harness_notices_other_frames(clips, monkeypatch):
    """A reader of packets that takes the next frame for the one on display."""
    last_tick = video_reading._PacketReader._last_tick
    monkeypatch.setattr(
        video_reading._PacketReader, "_last_tick", lambda self, seconds: last_tick(self, seconds + 0.1)
    )
    assert not inspect_reading(Mutant(0, clips[0], 0.0)).problem
    outcome = inspect_reading(Mutant(0, clips[0], 2.5))
    assert outcome.gave_frames and "s alone" in outcome.differs


def test_a_seed_makes_the_same_mutant(clips):
    originals = {path.name: path.read_bytes() for path in clips}
    made = [make_mutant(seed, originals) for seed in range(50)]
    assert made == [make_mutant(seed, originals) for seed in range(50)]
    assert sum(data != originals[name] for name, data, _ in made) >= 45


# --- leaks ---


def read_many(connection, paths: Sequence[Path], num_reads: int, num_warm_up: int) -> None:
    """Tell (reads, open handles, threads, resident MB) from time to time."""
    originals = {path.name: path.read_bytes() for path in paths}
    file = paths[0].parent / f"broken_{os.getpid()}"
    rng = np.random.default_rng(0)
    num_errors = 0
    for number in range(num_reads + 1):
        if number == num_warm_up or number == num_reads or (number > num_warm_up and number % 1000 == 0):
            gc.collect()
            # What is free inside of the heap, as after a file with large tables, is not what is looked for.
            getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
            handles, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
            connection.send((number, handles, threads, status_mb("VmRSS"), num_errors))
        path = paths[number % len(paths)]
        if rng.random() < 0.3:
            _, data, _ = make_mutant(int(rng.integers(0, 2**32)), {path.name: originals[path.name]})
            file.write_bytes(data)
            path = file
        kind = int(rng.integers(0, 4))
        instants_seconds = np.sort(rng.uniform(0, 2.9, int(rng.integers(1, 6))))
        try:
            if kind == 0:
                read_frames(path, instants_seconds, SIZE, limits=LIMITS)
            elif kind == 1:
                read_frames(path.read_bytes(), instants_seconds, SIZE, limits=LIMITS)
            elif kind == 2:
                with open(path, "rb") as opened:
                    probe(opened, LIMITS)
                    read_frames(opened, instants_seconds, SIZE, limits=LIMITS)
            else:
                frames = iterate_frames(path, instants_seconds, SIZE, LIMITS)
                next(frames)
                if number % 2:
                    frames.close()
                del frames
        except VideoReadError:
            num_errors += 1
    file.unlink(missing_ok=True)
    connection.close()


def check_leaks(clips: Sequence[Path], num_reads: int, num_warm_up: int, max_growth: float) -> None:
    paths = [path for path in clips if path.name != "large.mp4"]
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=read_many, args=(sender, paths, num_reads, num_warm_up), daemon=True)
    start = time.monotonic()
    child.start()
    sender.close()
    told = []
    try:
        while receiver.poll(120):
            told.append(receiver.recv())
    except EOFError:
        pass
    finally:
        child.kill()
        child.join()
        receiver.close()
    print(f"\n{time.monotonic() - start:.0f} s; (reads, handles, threads, resident MB, errors):", *told, sep="\n")
    numbers, handles, threads, resident_mb, num_errors = zip(*told, strict=True)
    assert numbers[-1] == num_reads
    assert len(set(handles)) == 1, handles
    assert len(set(threads)) == 1, threads
    assert resident_mb[-1] <= resident_mb[0] * (1 + max_growth), resident_mb
    assert num_errors[-1] > num_reads / 30


def test_reading_leaves_nothing_open(clips):
    check_leaks(clips, num_reads=200, num_warm_up=100, max_growth=0.2)


@pytest.mark.slow
def test_reading_leaves_nothing_behind(clips):
    check_leaks(clips, num_reads=10_000, num_warm_up=1000, max_growth=0.05)


# --- workers of a DataLoader ---


class VideoDataset:
    """Frames of a video at the item's own instants."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return 2 * len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        path = self.paths[index % len(self.paths)]
        instants_seconds = np.random.default_rng(index).uniform(0, 2.9, 4)
        return read_frames(path if index % 3 else path.read_bytes(), instants_seconds, SIZE)


@pytest.mark.parametrize(
    "start_method",
    ["fork", pytest.param("spawn", marks=pytest.mark.slow), pytest.param("forkserver", marks=pytest.mark.slow)],
)
def test_workers_read_the_same(start_method, clips):
    from torch.utils.data import DataLoader

    dataset = VideoDataset([path for path in clips if path.name != "large.mp4"])
    load = partial(DataLoader, dataset, batch_size=4)
    expected = [batch.numpy() for batch in load(num_workers=0)]
    # Threads that decode are there when the workers start, and those of an earlier reading have ended.
    threaded = next(path for path in clips if path.name == "threads.mp4")
    before = len(os.listdir("/proc/self/task"))
    frames = iterate_frames(threaded, [0.05, 1.05, 2.05])
    first = next(frames)
    assert (os.cpu_count() or 1) == 1 or len(os.listdir("/proc/self/task")) > before
    for persistent in (True, False):
        loader = load(num_workers=2, multiprocessing_context=start_method, persistent_workers=persistent, timeout=120)
        for _ in range(2 if persistent else 1):
            batches = [batch.numpy() for batch in loader]
            assert len(batches) == len(expected)
            for batch, other in zip(batches, expected, strict=True):
                np.testing.assert_array_equal(batch, other)
        del loader
    rest = list(frames)
    np.testing.assert_array_equal(np.stack([first, *rest]), read_frames(threaded, [0.05, 1.05, 2.05]))


# --- real videos ---


@pytest.mark.parametrize("path", real_videos(), ids=lambda path: path.name)
def test_real_videos_at_random_instants(path):
    """In any order, in order, in small steps, and with instants that occur more than once."""
    frames, times_seconds, end_seconds = decode_all(path, (48, 64))
    rng = np.random.default_rng(0)
    unordered = rng.uniform(0, end_seconds, 50)
    start_seconds = rng.uniform(0, end_seconds * 0.8)
    draws = {
        "unordered": unordered,
        "ordered": np.sort(rng.uniform(0, end_seconds, 50)),
        "backwards": np.sort(rng.uniform(0, end_seconds, 50))[::-1],
        "close": start_seconds + rng.uniform(0, end_seconds * 0.1, 50),
        "repeated": rng.choice(unordered[:10], 50),
        "timestamps": rng.choice(times_seconds, 50),
    }
    for kind, instants_seconds in draws.items():
        read = read_frames(path, instants_seconds, (48, 64))
        for instant_seconds, frame in zip(instants_seconds, read, strict=True):
            np.testing.assert_array_equal(frame, frames[shown_index(times_seconds, instant_seconds)], err_msg=kind)
    for instant_seconds in unordered[:10]:
        (frame,) = read_frames(path, [instant_seconds], (48, 64))
        np.testing.assert_array_equal(frame, frames[shown_index(times_seconds, instant_seconds)])
