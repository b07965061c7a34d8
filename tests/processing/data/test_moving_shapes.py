"""
The generator of MovingShapes: its sentences are read back from the decoded files, and nothing else is seen there.

The checks of sentences and pixels share no code with it.
"""

import json
import re

import av
import datasets
import numpy as np
import pytest

from processing.data import moving_shapes as script


FPS = 10
NUM_TRAIN = 12
RGB = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (40, 90, 255),
    "yellow": (240, 220, 40),
    "purple": (190, 50, 220),
    "white": (240, 240, 240),
}
OPPOSITES = ({"moves left", "moves right"}, {"moves up", "moves down"}, {"grows", "shrinks"})
PATTERN = re.compile(
    r"the (?P<subject>\w+ \w+) (?P<action>moves \w+|grows|shrinks)"
    r"( (?P<relation>before|after) the (?P<other>\w+ \w+) (?P<other_action>moves \w+|grows|shrinks))?"
)


def rng(index, split=0, seed=0):
    return np.random.default_rng([seed, split, index])


def read_frames(data_dir, index):
    with av.open(str(data_dir / "videos" / f"train_{index:05d}.mp4")) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.int16)


@pytest.fixture(scope="module")
def plans():
    return [script.plan_video(rng(index), FPS) for index in range(300)]


@pytest.fixture(scope="module")
def crowded_plans():
    return [script.plan_video(rng(index), FPS, crowded=True) for index in range(300)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "data"
    script.make_moving_shapes(path, num_train=NUM_TRAIN, num_test=2, num_workers=1)
    return path


@pytest.fixture(scope="module")
def decoded(data_dir):
    """Frames as read back from the training files, with the videos as they were made."""
    pairs = []
    for index in range(NUM_TRAIN):
        pairs.append((read_frames(data_dir, index), script.make_video(rng(index), 64, FPS)))
    return pairs


def find_events(sentence, events):
    """The events that a sentence fits, by reading it word for word."""
    match = PATTERN.fullmatch(sentence)
    assert match, sentence

    def having(subject, action):
        return [event for event in events if (f"{event.colour} {event.shape}", event.action) == (subject, action)]

    found = having(match["subject"], match["action"])
    if match["relation"] is None:
        return found
    (reference,) = having(match["other"], match["other_action"])
    if match["relation"] == "before":
        return [event for event in found if event.end_seconds <= reference.start_seconds]
    return [event for event in found if event.start_seconds >= reference.end_seconds]


def colour_mask(image, colour):
    """Pixels of an object: closer to its colour than to black, so that half of the soft edge counts."""
    return np.abs(image - RGB[colour]).sum(-1) < image.sum(-1)


def test_each_sentence_fits_exactly_one_event(plans):
    for plan in plans:
        assert 4 <= len(plan.events) <= 6
        assert len(plan.sentences) == len(plan.segments) == len(plan.events)
        assert len(set(plan.sentences)) == len(plan.sentences)
        for sentence, segments in zip(plan.sentences, plan.segments, strict=True):
            (event,) = find_events(sentence, plan.events)
            assert segments == [[event.start_seconds, event.end_seconds]]


def test_before_and_after_tell_the_repeated_event_apart(plans):
    num_with_repeat = 0
    for plan in plans:
        descriptions = [f"the {event.colour} {event.shape} {event.action}" for event in plan.events]
        repeated = {description for description in descriptions if descriptions.count(description) > 1}
        related = [sentence for sentence in plan.sentences if " before " in sentence or " after " in sentence]
        # Said where it is needed and nowhere else: "after" itself would be a hint of the time.
        assert {re.split(" before | after ", sentence)[0] for sentence in related} == repeated
        # Another object, as "the red circle grows before the red circle shrinks" says little of what to look for.
        assert all(match["subject"] != match["other"] for match in map(PATTERN.fullmatch, related))
        assert len(repeated) <= 1
        assert sorted(PATTERN.fullmatch(sentence)["relation"] for sentence in related) == (
            ["after", "before"] if repeated else []
        )
        num_with_repeat += len(repeated)
    assert 0.2 < num_with_repeat / len(plans) < 0.45


def test_sentences_have_their_distractors(plans):
    """Neither an object nor an action tells the event: each object does two opposite things, as the others do."""
    numbers_of_objects = set()
    for plan in plans:
        kinds = {(event.colour, event.shape) for event in plan.events}
        numbers_of_objects.add(len(kinds))
        for colour, shape in kinds:
            assert any((colour == other[0]) != (shape == other[1]) for other in kinds)
        actions_of = {kind: {e.action for e in plan.events if (e.colour, e.shape) == kind} for kind in kinds}
        common = set.intersection(*actions_of.values())
        assert any(common >= opposites for opposites in OPPOSITES)
        # What only one object does is at most one event.
        assert sum(len(actions) - 2 for actions in actions_of.values()) <= 1
    assert numbers_of_objects == {2, 3}


def test_order_of_sentences_does_not_tell_the_time(plans):
    ranks = []
    for plan in plans:
        starts = [start for ((start, _),) in plan.segments]
        ranks += list(np.argsort(np.argsort(starts)) - np.arange(len(starts)))
    in_place = np.mean(np.array(ranks) == 0)
    # 1 / 4 to 1 / 6 by chance.
    assert 0.1 < in_place < 0.3


def test_at_most_one_object_is_there_at_any_time(plans):
    for plan in plans:
        times = [0.0]
        for event in plan.events:
            times += [event.appears_seconds, event.start_seconds, event.end_seconds, event.vanishes_seconds]
            assert event.end_seconds - event.start_seconds > 0.5
            assert max(event.start_seconds - event.appears_seconds, event.vanishes_seconds - event.end_seconds) <= 0.6
        times.append(plan.duration_seconds)
        assert np.all(np.diff(times) >= 0)
        assert 10 <= plan.duration_seconds <= 20
        assert plan.duration_seconds == plan.num_frames / FPS


def test_when_an_object_comes_and_goes_does_not_tell_when_it_acts(plans):
    """Of the gap to the neighbours, which bounds the idle time, only the wide ones are looked at."""
    idle = []
    for plan in plans:
        ends = [0.0, *(event.end_seconds for event in plan.events)]
        idle += [
            e.start_seconds - e.appears_seconds
            for e, end in zip(plan.events, ends, strict=False)
            if e.start_seconds - end > 1.2
        ]
    assert len(idle) > 100
    assert np.quantile(idle, 0.1) < 0.12 and np.quantile(idle, 0.9) > 0.48


def test_objects_are_on_the_canvas_and_each_event_draws_its_place(plans):
    states = []
    for plan in plans:
        for event in plan.events:
            for x, y, radius in (event.before, event.after):
                assert min(x, y) - radius >= 0 and max(x, y) + radius <= 1
            states.append(event.before)
    assert len(set(states)) == len(states)
    x, y, _ = np.array(states).T
    for centre in (x, y):
        assert np.quantile(centre, 0.1) < 0.35 and np.quantile(centre, 0.9) > 0.65
    for action in {event.action for plan in plans for event in plan.events}:
        ways = [(event.before, event.after) for plan in plans for event in plan.events if event.action == action]
        # Along the motion too: the middle of the way is not the middle of the picture.
        assert np.all(np.std(np.mean(ways, axis=1)[:, :2], axis=0) > 0.03)


def best_fixed_segment(plans):
    """`R@1, IoU=0.5` of the segment, in parts of the duration, that is right most often."""
    targets = np.array([np.array(segment) / plan.duration_seconds for plan in plans for (segment,) in plan.segments])
    edges = np.linspace(0, 1, 41)
    best = 0.0
    for i, start in enumerate(edges):
        for end in edges[i + 1 :]:
            overlap = np.clip(np.minimum(targets[:, 1], end) - np.maximum(targets[:, 0], start), 0, None)
            union = targets[:, 1] - targets[:, 0] + end - start - overlap
            best = max(best, float(np.mean(overlap / union >= 0.5)))
    print(f"best fixed segment: R@1,IoU=0.5 = {best:.3f}")
    return best


def test_no_fixed_segment_is_a_good_answer(plans):
    assert best_fixed_segment(plans) < 0.15


def test_only_the_acting_object_is_in_the_decoded_frames(decoded):
    """Each frame is background alone, or background and one object of the colour that the event says."""
    num_empty = num_shown = 0
    for frames, video in decoded:
        for k, frame in enumerate(frames):
            there = [e for e in video.events if e.appears_seconds <= k / FPS < e.vanishes_seconds]
            difference = np.abs(frame - np.array(video.background)).max(-1)
            if not there:
                assert difference.max() < 40
                num_empty += 1
                continue
            (event,) = there
            mask = colour_mask(frame, event.colour)
            assert mask.sum() > 40
            # One piece: all of the picture further away from it than its edge is background.
            rows, columns = np.nonzero(mask)
            difference[max(rows.min() - 3, 0) : rows.max() + 4, max(columns.min() - 3, 0) : columns.max() + 4] = 0
            assert difference.max() < 40
            num_shown += 1
    assert num_empty > 100 and num_shown > 500


def test_an_object_is_still_before_and_after_it_acts(decoded):
    num_still = 0
    for frames, video in decoded:
        times_seconds = np.arange(len(frames)) / FPS
        for event in video.events:
            for first, last, state in (
                (event.appears_seconds, event.start_seconds, event.before),
                (event.end_seconds, event.vanishes_seconds, event.after),
            ):
                shown = np.flatnonzero((times_seconds >= first) & (times_seconds <= last))
                shown = shown[times_seconds[shown] < event.vanishes_seconds]
                for a, b in zip(shown[:-1], shown[1:], strict=True):
                    # Exact before the codec; after it a few pixels on edges get their final colour a frame late.
                    assert np.array_equal(video.frames[a], video.frames[b])
                    assert (np.abs(frames[b] - frames[a]).max(-1) > 40).sum() <= 12
                    num_still += 1
                for k in shown:
                    y, x = np.mean(np.nonzero(colour_mask(frames[k], event.colour)), 1) + 0.5
                    # A triangle's centroid is a third of its radius below the middle.
                    assert abs(x - state.x * 64) < 1 and -1 < y - state.y * 64 < 0.34 * state.radius * 64 + 1
    assert num_still > 100


def test_the_decoded_frames_show_what_the_sentences_say(decoded):
    seen = set()
    for frames, video in decoded:
        for sentence, ((start_seconds, end_seconds),) in zip(video.sentences, video.segments, strict=True):
            match = PATTERN.fullmatch(sentence)
            colour, action = match["subject"].split()[0], match["action"]
            shown = range(int(np.ceil(start_seconds * FPS)), int(end_seconds * FPS) + 1)
            masks = [colour_mask(frames[k], colour) for k in shown]
            areas = [mask.sum() for mask in masks]
            centroids = np.array([np.mean(np.nonzero(mask), 1) for mask in masks])
            dy, dx = centroids[-1] - centroids[0]
            growth = areas[-1] / areas[0]
            if action.startswith("moves"):
                shown_action = max({"left": -dx, "right": dx, "up": -dy, "down": dy}.items(), key=lambda item: item[1])
                assert f"moves {shown_action[0]}" == action
                # At least 0.35 of the picture, less the up to two steps at the ends; nothing to the side.
                assert shown_action[1] > 0.35 * 64 * (1 - 2 / FPS / (end_seconds - start_seconds)) - 1
                assert min(abs(dx), abs(dy)) < 1
                assert 0.8 < growth < 1.25
            else:
                # Radius times 1.8 over the whole event, so area times 3.24.
                assert (growth if action == "grows" else 1 / growth) > 1.5
                # A triangle's centroid is a third of its radius below the middle, and the radius grows by 10 pixels.
                assert abs(dx) < 1.5 and abs(dy) < 10 / 3 + 1.5
            seen.add(action)
    assert len(seen) == 6


def test_motion_is_uniform_and_lasts_as_long_as_the_segment(decoded):
    """From the motion in the decoded frames alone: a line through the centroids meets the still places at the ends."""
    num_checked = 0
    for frames, video in decoded:
        for event in video.events:
            if not event.action.startswith("moves"):
                continue
            inside = np.arange(np.ceil(event.start_seconds * FPS), np.floor(event.end_seconds * FPS) + 1).astype(int)
            masks = [colour_mask(frames[k], event.colour) for k in inside]
            axis = 1 if event.action.split()[1] in ("left", "right") else 0
            place = np.array([np.mean(np.nonzero(mask), 1)[axis] for mask in masks]) + 0.5
            speed, offset = np.polyfit(inside / FPS, place, 1)
            assert np.abs(speed * inside / FPS + offset - place).max() < 1
            state = "xy"[1 - axis]
            shift = 0 if axis else np.mean(place - [event.state_at(k / FPS).y * 64 for k in inside])
            times = [(getattr(s, state) * 64 + shift - offset) / speed for s in (event.before, event.after)]
            assert times == pytest.approx([event.start_seconds, event.end_seconds], abs=0.1)
            num_checked += 1
    assert num_checked > 10


def test_shapes_look_like_their_names():
    seen = set()
    for index in range(6):
        video = script.make_video(rng(index), 192, FPS)
        for event in video.events:
            frame = video.frames[int(np.ceil(event.appears_seconds * FPS))]
            rows, columns = np.nonzero(colour_mask(frame.astype(np.int16), event.colour))
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            filled = len(rows) / (height * width)
            lean = (rows.mean() - (rows.min() + rows.max()) / 2) / height
            if lean > 0.1:
                looks = "triangle"
            elif filled > 0.95:
                looks = "square"
            else:
                looks = "circle" if filled > 0.7 else "cross"
            assert looks == event.shape
            seen.add(looks)
    assert len(seen) == 4


def test_equal_seeds_give_equal_videos():
    first, again, other = (script.make_video(rng(0, seed=seed), 64, FPS) for seed in (3, 3, 4))
    assert np.array_equal(first.frames, again.frames)
    assert (first.sentences, first.segments) == (again.sentences, again.segments)
    assert first.segments != other.segments
    # Another size shows the same events.
    assert script.make_video(rng(0, seed=3), 96, FPS).segments == first.segments


def test_saved_data_set(data_dir):
    data = datasets.load_from_disk(str(data_dir))
    assert {split: len(rows) for split, rows in data.items()} == {"train": NUM_TRAIN, "test": 2}
    ids = data["train"]["video_id"][:] + data["test"]["video_id"][:]
    assert len(set(ids)) == NUM_TRAIN + 2
    for split, rows in data.items():
        assert rows.column_names == ["video", "video_id", "duration", "sentences", "segments"]
        for index, row in enumerate(rows):
            assert row["video_id"] == f"{split}_{index:05d}"
            assert row["video"] == f"videos/{split}_{index:05d}.mp4"
            video = script.plan_video(rng(index, split=["train", "test"].index(split)), FPS)
            assert (row["sentences"], row["segments"]) == (video.sentences, video.segments)
            with av.open(str(data_dir / row["video"])) as container:
                stream = container.streams.video[0]
                assert (stream.codec.name, stream.width, stream.height) == ("h264", 64, 64)
                assert abs(float(stream.duration * stream.time_base) - row["duration"]) <= 1 / FPS
                times_seconds = [frame.time for frame in container.decode(video=0)]
                assert times_seconds == pytest.approx(np.arange(video.num_frames) / FPS)
    record = json.loads((data_dir / "generation.json").read_text(encoding="utf-8"))
    assert record["arguments"] == {
        "num_train": NUM_TRAIN,
        "num_test": 2,
        "seed": 0,
        "image_size": 64,
        "fps": FPS,
        "crowded": False,
    }
    assert set(record["versions"]) == {"av", "numpy", "datasets"}


def test_number_of_workers_changes_nothing(data_dir, decoded, tmp_path):
    path = tmp_path / "data"
    script.make_moving_shapes(str(path), num_train=NUM_TRAIN, num_test=2, num_workers=2)
    assert sorted(file.name for file in path.glob("videos/*")) == sorted(f.name for f in data_dir.glob("videos/*"))
    assert (path / "generation.json").read_bytes() == (data_dir / "generation.json").read_bytes()
    one, two = datasets.load_from_disk(str(data_dir)), datasets.load_from_disk(str(path))
    assert all(one[split].to_list() == two[split].to_list() for split in ("train", "test"))
    for index, (frames, _) in enumerate(decoded):
        # libx264 repeats itself only up to a few pixels, in one process too: its SIMD code sees where memory lies.
        difference = np.abs(read_frames(path, index) - frames)
        assert difference.mean() < 0.3 and (difference > 40).mean() < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "`num_train` must be at least 1, got 0"),
        ({"image_size": 65}, "`image_size` must be even"),
        ({"fps": 0}, "`fps` must be at least 1, got 0"),
        ({"num_workers": 0}, "`num_workers` must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        script.make_moving_shapes(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()


def test_full_folder_is_refused(data_dir):
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        script.make_moving_shapes(data_dir)


def test_plain_videos_stay_as_they_are():
    """Seeds name videos: what a seed gave before there was a crowded variant, it gives now."""
    plan = script.plan_video(rng(1), FPS)
    assert (plan.num_frames, plan.background) == (145, (8, 20, 32))
    assert dict(zip(plan.sentences, [segment for (segment,) in plan.segments], strict=True)) == {
        "the blue circle moves left": pytest.approx([0.036000991917306366, 1.3720458834560594]),
        "the yellow circle moves right": pytest.approx([9.417914386353882, 13.541056833516908]),
        "the yellow circle moves left": pytest.approx([1.5311340236422892, 3.271942440691405]),
        "the blue triangle moves right": pytest.approx([5.416479279521257, 6.787105201426493]),
        "the blue circle moves right": pytest.approx([7.496496189789745, 9.299019330213092]),
        "the blue triangle moves left": pytest.approx([3.5160352822137924, 4.742890464134318]),
    }
    after = script.plan_video(rng(1), FPS).events[-1].after
    assert after == pytest.approx((0.790537498792399, 0.6080933468177906, 0.19563657537812365))


def test_crowded_videos_have_six_to_nine_objects_all_the_time(crowded_plans):
    numbers_of_objects = []
    for plan in crowded_plans:
        kinds = [(event.colour, event.shape) for event in plan.events]
        numbers_of_objects.append(len(set(kinds)))
        for kind in kinds:
            first, second = (event for event, other in zip(plan.events, kinds, strict=True) if other == kind)
            assert first.appears_seconds == 0 and second.vanishes_seconds == plan.duration_seconds
            assert first.appears_seconds < first.start_seconds < first.end_seconds < first.vanishes_seconds
            assert second.appears_seconds == first.vanishes_seconds
            assert second.appears_seconds < second.start_seconds < second.end_seconds < second.vanishes_seconds
            # It goes on from where it is, and not far.
            assert first.after == second.before
            for x, y, radius in (first.before, first.after, second.after):
                assert min(x, y) - radius >= 0 and max(x, y) + radius <= 1
                assert abs(x - first.before.x) + abs(y - first.before.y) < 1 / 3
    assert set(numbers_of_objects) == {6, 7, 8, 9}


def test_crowded_objects_act_at_the_same_time(crowded_plans):
    num_acting = np.concatenate(
        [
            np.sum([[e.start_seconds <= t <= e.end_seconds for t in times_seconds] for e in plan.events], axis=0)
            for plan in crowded_plans
            for times_seconds in [np.arange(plan.num_frames) / FPS]
        ]
    )
    assert num_acting.mean() > 2.5
    assert np.mean(num_acting >= 2) > 0.75


def test_crowded_sentences_need_colour_shape_and_action(crowded_plans):
    for plan in crowded_plans:
        assert len(set(plan.sentences)) == len(plan.sentences) == len(plan.segments) == len(plan.events)
        for sentence, segments in zip(plan.sentences, plan.segments, strict=True):
            assert PATTERN.fullmatch(sentence)["relation"] is None
            (event,) = find_events(sentence, plan.events)
            assert segments == [[event.start_seconds, event.end_seconds]]
            _, colour, shape, action = sentence.split(maxsplit=3)
            for known in ({colour, shape}, {colour, action}, {shape, action}):
                assert sum(known <= {e.colour, e.shape, e.action} for e in plan.events) > 1


def test_no_fixed_segment_is_a_good_answer_in_crowded_videos(crowded_plans):
    assert best_fixed_segment(crowded_plans) < 0.2


def test_crowded_frames_show_the_objects():
    """Each object covers part of its place at every time, and most objects are hardly covered by others."""
    visible = []
    for index in range(8):
        video = script.make_video(rng(index), 64, FPS, crowded=True)
        for k in range(0, video.num_frames, 5):
            for event in video.events:
                if event.appears_seconds <= k / FPS < event.vanishes_seconds:
                    x, y, radius = (round(value * 64) for value in event.state_at(k / FPS))
                    patch = video.frames[k, y - radius // 2 : y + radius // 2, x - radius // 2 : x + radius // 2]
                    visible.append(np.mean(np.abs(patch.astype(int) - RGB[event.colour]).max(-1) < 40))
    assert np.mean(np.array(visible) > 0.5) > 0.9


def test_crowded_data_set_is_saved_and_repeats_itself(tmp_path):
    script.make_moving_shapes(tmp_path / "data", num_train=2, num_test=1, num_workers=1, crowded=True)
    data = datasets.load_from_disk(str(tmp_path / "data"))
    for split, rows in data.items():
        for index, row in enumerate(rows):
            video = script.make_video(rng(index, split=["train", "test"].index(split)), 64, FPS, crowded=True)
            assert (row["sentences"], row["segments"]) == (video.sentences, video.segments)
            if split == "train":
                # Another video differs by 50 and more, the codec's blurred colours by 5.
                assert np.abs(read_frames(tmp_path / "data", index) - video.frames).mean() < 10
    record = json.loads((tmp_path / "data" / "generation.json").read_text(encoding="utf-8"))
    assert record["arguments"]["crowded"] is True
