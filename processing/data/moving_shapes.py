"""
MovingShapes, a small synthetic data set for temporal sentence grounding: mp4 videos and their annotations.

These properties prevent shortcuts:
- Two or three objects act one after the other. Each object shares its colour or its shape with another object and
  performs two opposite actions, the same ones as the other objects. Colour, shape or action alone is therefore
  ambiguous. The object alone leaves two or more events, and no single frame shows an action.
- An object appears before its action and stays afterwards, so its appearance does not mark the segment.
- In about a third of the videos, one object performs the same action twice. Its sentences contain "before" and "after"
  another event.
- Times are continuous, and lengths and gaps are random, so no fixed segment scores well.

The crowded variant requires spatial detail, because averaging over the picture loses the answer:
- Six to nine objects of three colours and three shapes are visible all the time, each near its own cell of a 3 x 3
  grid. About three objects act at once.
- No two objects share both colour and shape, but each object shares its colour with another one and its shape with a
  third one. Each object performs the two opposite actions of the video once, at its own times. Any two of colour,
  shape and action therefore leave two or more events. No sentence contains "before" or "after".

Each video has its own random generator, seeded by (seed, split, index), so the number of workers has no effect.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .synthetic_videos import H264_OPTIONS, make_data_set, write_synthetic_video


SPLITS = ("train", "test")

COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (40, 90, 255),
    "yellow": (240, 220, 40),
    "purple": (190, 50, 220),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
OPPOSITE_ACTIONS = (("moves left", "moves right"), ("moves up", "moves down"), ("grows", "shrinks"))
ACTIONS = tuple(action for pair in OPPOSITE_ACTIONS for action in pair)
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}

# All lengths are fractions of the canvas, so a seed gives the same annotations at every image size.
MIN_RADIUS, MAX_RADIUS = 11 / 64, 13 / 64
GROWTH = 1.8
MIN_MOVE, MAX_MOVE = 0.35, 0.5
MARGIN = 0.01

MIN_DURATION_SECONDS, MAX_DURATION_SECONDS = 10.0, 20.0
# Fractions of the duration.
MIN_EVENT_LENGTH, MAX_EVENT_LENGTH, MAX_TOTAL_LENGTH = 0.07, 0.35, 0.8

# The crowded variant. Few and distinct colours and shapes, so a tiny model learns to distinguish them at this size
# within minutes.
CROWDED_COLOURS = ("red", "blue", "white")
CROWDED_SHAPES = ("circle", "triangle", "cross")
MAX_EXCLUDED = 3
CROWDED_MIN_RADIUS, CROWDED_MAX_RADIUS = 0.11, 0.12
CROWDED_GROWTH = 1.6
CROWDED_MIN_MOVE, CROWDED_MAX_MOVE = 0.17, 0.2
CROWDED_MAX_JITTER = 0.02
CROWDED_MIN_EVENT_LENGTH = 0.1

# Maximum time that an object stands still before and after its action, limited to half of the gap to the next event.
MAX_IDLE_SECONDS = 0.6


class State(NamedTuple):
    """Centre and radius of an object, as fractions of the canvas; `y` points down."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Event:
    """Linear transition of an object from the state `before` to `after`. The object is still outside its segment."""

    colour: str
    shape: str
    action: str
    appears_seconds: float
    start_seconds: float
    end_seconds: float
    vanishes_seconds: float
    before: State
    after: State

    def state_at(self, time_seconds: float) -> State:
        """Return the state of the object at a time between its appearance and disappearance."""
        progress = (time_seconds - self.start_seconds) / (self.end_seconds - self.start_seconds)
        progress = min(max(progress, 0.0), 1.0)
        return State(*(a + progress * (b - a) for a, b in zip(self.before, self.after, strict=True)))


@dataclass(frozen=True)
class VideoPlan:
    """
    Content of a video, before rendering.

    Args:
        duration_seconds (`float`): `num_frames / fps`.
        num_frames (`int`): Number of frames. Frame `k` shows the time `k / fps`.
        background (`tuple[int, int, int]`): RGB colour of the background.
        events (`list[Event]`):
            Non-overlapping events in temporal order. In the crowded variant, events are ordered by object, then by
            time.
        sentences (`list[str]`): One sentence per event, in random order.
        segments (`list[list[list[float]]]`): Segments `[start, end]` of each sentence in seconds, always one.
    """

    duration_seconds: float
    num_frames: int
    background: tuple[int, int, int]
    events: list[Event]
    sentences: list[str]
    segments: list[list[list[float]]]


@dataclass(frozen=True)
class Video(VideoPlan):
    """[`VideoPlan`] with its `frames` (`np.ndarray` of shape `(T, H, W, 3)`, `uint8`)."""

    frames: np.ndarray


def _draw_actions(rng: np.random.Generator) -> list[str]:
    """Draw two opposite actions in random order and, in half of the cases, a third action."""
    actions = list(OPPOSITE_ACTIONS[rng.integers(len(OPPOSITE_ACTIONS))])
    rng.shuffle(actions)
    if rng.random() < 0.5:
        actions.append(str(rng.choice([action for action in ACTIONS if action not in actions])))
    return actions


def _draw_pairs(
    rng: np.random.Generator, actions: list[str], has_repeat: bool
) -> tuple[list[tuple[int, str]], tuple[int, str] | None]:
    """
    Draw pairs of object and action. Each object performs two opposite actions, so the object alone is ambiguous.

    Objects are numbered `2 * colour + shape`, so `index ^ 1` has the same colour, and `index ^ 2` has the same shape.

    Returns:
        `tuple`: 4 to 6 pairs (object index, action), and the pair that occurs twice or `None`.
    """
    target = int(rng.integers(4))
    others = [target ^ 1, target ^ 2]
    rng.shuffle(others)
    # A repeated pair needs time, so these videos have two objects.
    objects = [target, *others[: 1 if has_repeat else int(rng.integers(1, 3))]]
    pairs = [(index, action) for index in objects for action in actions[:2]]
    repeated = pairs[0] if has_repeat else None
    if repeated:
        pairs.append(repeated)
    if len(actions) > 2 and len(pairs) < 6:
        pairs.append((int(rng.choice(objects)), actions[2]))
    return pairs, repeated


def _find_references(pairs: list[tuple[int, str]], repeated: tuple[int, str]) -> list[int]:
    """Return the positions of events of other objects between the two occurrences of the pair `repeated`."""
    first = pairs.index(repeated)
    second = pairs.index(repeated, first + 1)
    return [i for i in range(first + 1, second) if pairs[i][0] != repeated[0]]


def _draw_states(rng: np.random.Generator, action: str) -> tuple[State, State]:
    """Draw the states before and after an action, both fully inside the canvas."""
    radius = rng.uniform(MIN_RADIUS, MAX_RADIUS)
    large = radius * GROWTH if action in ("grows", "shrinks") else radius
    low, high = MARGIN + large, 1 - MARGIN - large
    if action == "grows":
        x, y = rng.uniform(low, high, 2)
        return State(x, y, radius), State(x, y, large)
    if action == "shrinks":
        x, y = rng.uniform(low, high, 2)
        return State(x, y, large), State(x, y, radius)
    dx, dy = DIRECTIONS[action]
    length = rng.uniform(MIN_MOVE, MAX_MOVE)
    x = rng.uniform(low + length * (dx < 0), high - length * (dx > 0))
    y = rng.uniform(low + length * (dy < 0), high - length * (dy > 0))
    return State(x, y, radius), State(x + dx * length, y + dy * length, radius)


def _draw_segments(
    rng: np.random.Generator, num_events: int, duration_seconds: float, min_length: float = MIN_EVENT_LENGTH
) -> list[tuple[float, float]]:
    """
    Draw consecutive segments in seconds, with random gaps and log-uniform lengths of at least `min_length` of the
    duration. If the segments do not fit, all lengths are scaled down.
    """
    lengths = np.exp(rng.uniform(np.log(min_length), np.log(MAX_EVENT_LENGTH), num_events))
    lengths *= min(1.0, MAX_TOTAL_LENGTH / lengths.sum())
    gaps = rng.dirichlet(np.ones(num_events + 1)) * (1 - lengths.sum())
    starts = np.cumsum(gaps[:-1]) + np.cumsum(lengths) - lengths
    return [
        (float(start * duration_seconds), float((start + length) * duration_seconds))
        for start, length in zip(starts, lengths, strict=True)
    ]


def _plan_events(rng: np.random.Generator, duration_seconds: float) -> tuple[list[Event], list[str]]:
    """
    Draw the events of a video with two or three objects, and a sentence for each event.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        duration_seconds (`float`): Duration of the video in seconds.

    Returns:
        `tuple`: Events in temporal order, and their sentences in the same order.
    """
    colours = [str(colour) for colour in rng.choice(list(COLOURS), 2, replace=False)]
    shapes = [str(shape) for shape in rng.choice(SHAPES, 2, replace=False)]
    kinds = [(colour, shape) for colour in colours for shape in shapes]

    actions, has_repeat = _draw_actions(rng), rng.random() < 1 / 3
    pairs, repeated = _draw_pairs(rng, actions, has_repeat)
    references: list[int] = []
    while True:
        ordered_pairs = [pairs[i] for i in rng.permutation(len(pairs))]
        if repeated is None:
            break
        references = _find_references(ordered_pairs, repeated)
        if references:
            break

    descriptions = [f"the {' '.join(kinds[index])} {action}" for index, action in ordered_pairs]
    times = _draw_segments(rng, len(ordered_pairs), duration_seconds)
    events = []
    for k, ((index, action), (start_seconds, end_seconds)) in enumerate(zip(ordered_pairs, times, strict=True)):
        colour, shape = kinds[index]
        free_from_seconds = (times[k - 1][1] + start_seconds) / 2 if k else 0.0
        free_to_seconds = (end_seconds + times[k + 1][0]) / 2 if k + 1 < len(times) else duration_seconds
        appears_seconds = max(free_from_seconds, start_seconds - rng.uniform(0, MAX_IDLE_SECONDS))
        vanishes_seconds = min(free_to_seconds, end_seconds + rng.uniform(0, MAX_IDLE_SECONDS))
        before, after = _draw_states(rng, action)
        events.append(
            Event(
                colour=colour,
                shape=shape,
                action=action,
                appears_seconds=appears_seconds,
                start_seconds=start_seconds,
                end_seconds=end_seconds,
                vanishes_seconds=vanishes_seconds,
                before=before,
                after=after,
            )
        )
    sentences = list(descriptions)
    if repeated is not None:
        reference = descriptions[rng.choice(references)]
        first = ordered_pairs.index(repeated)
        second = ordered_pairs.index(repeated, first + 1)
        sentences[first] += f" before {reference}"
        sentences[second] += f" after {reference}"
    return events, sentences


def _draw_kinds(rng: np.random.Generator) -> list[tuple[str, str]]:
    """
    Draw the objects of a crowded video: all nine pairs (colour, shape) except for up to three.

    The excluded pairs share no colour and no shape, so each colour and each shape occurs at least twice.

    Returns:
        `list[tuple[str, str]]`: Six to nine pairs (colour, shape) in random order.
    """
    shapes = [str(shape) for shape in rng.permutation(CROWDED_SHAPES)]
    diagonal = list(zip(CROWDED_COLOURS, shapes, strict=True))
    excluded = [diagonal[i] for i in rng.permutation(3)[: rng.integers(MAX_EXCLUDED + 1)]]
    kinds = [kind for kind in product(CROWDED_COLOURS, shapes) if kind not in excluded]
    rng.shuffle(kinds)
    return kinds


def _draw_crowded_states(rng: np.random.Generator, actions: list[str], cell: int) -> list[State]:
    """
    Draw the states of an object before, between and after its two actions. The second action undoes the first.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        actions (`list[str]`): Two opposite actions.
        cell (`int`): Cell of the 3 x 3 grid, row by row. The object stays near the cell and inside the canvas.
    """
    row, column = divmod(cell, 3)
    radius = rng.uniform(CROWDED_MIN_RADIUS, CROWDED_MAX_RADIUS)
    large, half_way = radius, np.zeros(2)
    if actions[0] in DIRECTIONS:
        half_way = np.array(DIRECTIONS[actions[0]]) * rng.uniform(CROWDED_MIN_MOVE, CROWDED_MAX_MOVE) / 2
    else:
        large = radius * CROWDED_GROWTH
    place = (np.array([column, row]) + 0.5) / 3 + rng.uniform(-CROWDED_MAX_JITTER, CROWDED_MAX_JITTER, 2)
    room = MARGIN + large + np.abs(half_way)
    place = np.clip(place, room, 1 - room)
    radii = (large, radius) if actions[0] == "shrinks" else (radius, large)
    places = (place - half_way, place + half_way)
    first, second = (State(x, y, size) for (x, y), size in zip(places, radii, strict=True))
    return [first, second, first]


def _plan_crowded_events(rng: np.random.Generator, duration_seconds: float) -> tuple[list[Event], list[str]]:
    """
    Draw the events of a crowded video, and a sentence for each event.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        duration_seconds (`float`): Duration of the video in seconds.

    Returns:
        `tuple`: Events, two per object in temporal order, and their sentences in the same order.
    """
    opposites = OPPOSITE_ACTIONS[rng.integers(len(OPPOSITE_ACTIONS))]
    kinds = _draw_kinds(rng)
    events = []
    for (colour, shape), cell in zip(kinds, rng.permutation(9), strict=False):
        actions = [str(action) for action in rng.permutation(opposites)]
        states = _draw_crowded_states(rng, actions, int(cell))
        times = _draw_segments(rng, 2, duration_seconds, CROWDED_MIN_EVENT_LENGTH)
        # The object is always visible: the second event starts to show it when the first event stops.
        change_seconds = (times[0][1] + times[1][0]) / 2
        shown_seconds = [0.0, change_seconds, duration_seconds]
        for k, (action, (start_seconds, end_seconds)) in enumerate(zip(actions, times, strict=True)):
            events.append(
                Event(
                    colour=colour,
                    shape=shape,
                    action=action,
                    appears_seconds=shown_seconds[k],
                    start_seconds=start_seconds,
                    end_seconds=end_seconds,
                    vanishes_seconds=shown_seconds[k + 1],
                    before=states[k],
                    after=states[k + 1],
                )
            )
    return events, [f"the {event.colour} {event.shape} {event.action}" for event in events]


def plan_video(rng: np.random.Generator, fps: int = 10, crowded: bool = False) -> VideoPlan:
    """
    Draw the events and sentences of a video, without rendering its frames.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        fps (`int`, *optional*, defaults to 10): Frames per second. The duration is a whole number of frames.
        crowded (`bool`, *optional*, defaults to `False`): Whether to generate the crowded variant.

    Returns:
        [`VideoPlan`]: Content of the video.
    """
    if fps < 1:
        raise ValueError(f"`fps` must be at least 1, got {fps}.")
    num_frames = round(rng.uniform(MIN_DURATION_SECONDS, MAX_DURATION_SECONDS) * fps)
    duration_seconds = num_frames / fps
    red, green, blue = (int(value) for value in rng.integers(8, 40, 3))
    events, sentences = (_plan_crowded_events if crowded else _plan_events)(rng, duration_seconds)

    # Shuffled, because the position of a sentence in the list should not reveal its time.
    shuffled = rng.permutation(len(events))
    return VideoPlan(
        duration_seconds=duration_seconds,
        num_frames=num_frames,
        background=(red, green, blue),
        events=events,
        sentences=[sentences[i] for i in shuffled],
        segments=[[[events[i].start_seconds, events[i].end_seconds]] for i in shuffled],
    )


def _draw_object(image: np.ndarray, colour: str, shape: str, state: State) -> None:
    """
    Draw an object into `image` (`np.ndarray` of shape `(H, W, 3)`, `uint8`), in place.

    The edge is one pixel wide and follows the signed distance, so motion by a fraction of a pixel is visible.
    """
    size = image.shape[0]
    center_x, center_y, radius = (value * size for value in state)
    left, right = max(math.floor(center_x - radius - 1), 0), min(math.ceil(center_x + radius + 1), size)
    top, bottom = max(math.floor(center_y - radius - 1), 0), min(math.ceil(center_y + radius + 1), size)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - center_y
    x = np.abs(np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - center_x)
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - radius
    elif shape == "square":
        distance = np.maximum(x, np.abs(y)) - 0.88 * radius
    elif shape == "triangle":
        distance = np.maximum(y - radius, (2 * x - y - radius) / math.sqrt(5))
    else:
        long, short, y = radius, 0.36 * radius, np.abs(y)
        distance = np.minimum(np.maximum(x - long, y - short), np.maximum(x - short, y - long))
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    patch = image[top:bottom, left:right]
    patch[:] = np.rint(patch + alpha * (np.array(COLOURS[colour], dtype=np.float32) - patch))


def render(plan: VideoPlan, image_size: int, fps: int) -> np.ndarray:
    """
    Render the frames of a plan.

    Args:
        plan ([`VideoPlan`]): Content of the video.
        image_size (`int`): Height and width of the frames.
        fps (`int`): Frames per second of the plan.

    Returns:
        `np.ndarray` of shape `(T, H, W, 3)`: The frames, `uint8` RGB.
    """
    frames = np.empty((plan.num_frames, image_size, image_size, 3), dtype=np.uint8)
    frames[:] = plan.background
    for event in plan.events:
        first, last = math.ceil(event.appears_seconds * fps), math.ceil(event.vanishes_seconds * fps)
        for k in range(first, min(last, plan.num_frames)):
            _draw_object(frames[k], event.colour, event.shape, event.state_at(k / fps))
    return frames


def make_video(rng: np.random.Generator, image_size: int = 64, fps: int = 10, crowded: bool = False) -> Video:
    """
    Generate a video in memory.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        image_size (`int`, *optional*, defaults to 64): Height and width of the frames.
        fps (`int`, *optional*, defaults to 10): Frames per second.
        crowded (`bool`, *optional*, defaults to `False`): Whether to generate the crowded variant.

    Returns:
        [`Video`]: Frames, events, sentences and segments.
    """
    plan = plan_video(rng, fps, crowded)
    return Video(**vars(plan), frames=render(plan, image_size, fps))


def make_example(task: tuple[str, int], output_dir: Path, seed: int, image_size: int, fps: int, crowded: bool) -> dict:
    """Generate and write the video `task = (split, index)`, and return its annotation row."""
    split, index = task
    video = make_video(np.random.default_rng([seed, SPLITS.index(split), index]), image_size, fps, crowded)
    video_id = f"{split}_{index:05d}"
    write_synthetic_video(output_dir / "videos" / f"{video_id}.mp4", video.frames, fps, "libx264", H264_OPTIONS)
    return {
        "video": f"videos/{video_id}.mp4",
        "video_id": video_id,
        "duration": video.duration_seconds,
        "sentences": video.sentences,
        "segments": video.segments,
    }


def make_moving_shapes(
    output_dir: str | Path,
    num_train: int = 1000,
    num_test: int = 100,
    seed: int = 0,
    image_size: int = 64,
    fps: int = 10,
    num_workers: int | None = None,
    crowded: bool = False,
) -> None:
    """
    Generate the data set: `output_dir/videos/*.mp4`, a `datasets.DatasetDict` in `output_dir`, and `generation.json`.

    Args:
        output_dir (`str` or `Path`): New or empty output folder.
        num_train (`int`, *optional*, defaults to 1000): Number of training videos.
        num_test (`int`, *optional*, defaults to 100): Number of test videos, disjoint from the training videos.
        seed (`int`, *optional*, defaults to 0): Random seed.
        image_size (`int`, *optional*, defaults to 64): Height and width of the videos. Must be even for h264.
        fps (`int`, *optional*, defaults to 10): Frames per second.
        num_workers (`int`, *optional*):
            Number of processes. Defaults to the number of CPUs. The result does not depend on it.
        crowded (`bool`, *optional*, defaults to `False`): Whether to generate the crowded variant.

    Raises:
        `ValueError`: If a number is out of range or `output_dir` is not empty.
    """
    at_least = {"num_train": 1, "num_test": 1, "seed": 0, "image_size": 32, "fps": 1}
    arguments = {
        "num_train": num_train,
        "num_test": num_test,
        "seed": seed,
        "image_size": image_size,
        "fps": fps,
        "crowded": crowded,
    }
    for name, minimum in at_least.items():
        if arguments[name] < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {arguments[name]}.")
    if image_size % 2:
        raise ValueError(f"`image_size` must be even because h264 stores colour at half the size, got {image_size}.")
    output_dir = Path(output_dir)
    make_data_set(
        output_dir,
        partial(make_example, output_dir=output_dir, seed=seed, image_size=image_size, fps=fps, crowded=crowded),
        {"train": [("train", i) for i in range(num_train)], "test": [("test", i) for i in range(num_test)]},
        arguments,
        num_workers,
    )
