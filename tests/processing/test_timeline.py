import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.timeline import Timeline


windows = st.tuples(
    st.floats(0, 7200),
    st.floats(0.04, 7200),
    st.integers(1, 20_000),
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
)


@settings(deadline=None)  # a busy machine is no failure
@given(windows)
def test_maps_are_inverse(window):
    start_seconds, duration_seconds, num_steps, fractions = window
    timeline = Timeline(start_seconds, start_seconds + duration_seconds, num_steps)
    times_seconds = start_seconds + np.array(fractions) * duration_seconds
    np.testing.assert_allclose(
        timeline.grid_to_seconds(timeline.seconds_to_grid(times_seconds)), times_seconds, rtol=0, atol=1e-6
    )
    times_grid = np.array(fractions) * num_steps
    np.testing.assert_allclose(
        timeline.seconds_to_grid(timeline.grid_to_seconds(times_grid)), times_grid, rtol=0, atol=1e-6
    )


def test_maps_by_hand():
    timeline = Timeline(10.0, 30.0, num_steps=8)  # steps of 2.5 s
    assert timeline.duration_seconds == 20.0
    np.testing.assert_array_equal(timeline.seconds_to_grid([10.0, 12.5, 13.75, 30.0]), [0.0, 1.0, 1.5, 8.0])
    np.testing.assert_array_equal(timeline.grid_to_seconds([0.0, 0.5, 8.0]), [10.0, 11.25, 30.0])


def test_one_step_is_the_unit_interval():
    timeline = Timeline(4.0, 8.0)
    np.testing.assert_array_equal(timeline.seconds_to_grid([[4.0, 5.0], [6.0, 8.0]]), [[0.0, 0.25], [0.5, 1.0]])


@pytest.mark.parametrize("num_steps", [1, 3, 128, 512])
def test_centers(num_steps):
    start_seconds, end_seconds = 1.5, 9.25
    expected_seconds = [
        start_seconds + (k + 0.5) * (end_seconds - start_seconds) / num_steps for k in range(num_steps)
    ]
    timeline = Timeline(start_seconds, end_seconds, num_steps)
    assert timeline.center_seconds().tolist() == expected_seconds
    np.testing.assert_allclose(timeline.seconds_to_grid(expected_seconds), np.arange(num_steps) + 0.5, atol=1e-9)


def test_any_shape_in_float64():
    timeline = Timeline(0.0, 3600.0, 128)
    for shape in [(), (0,), (2,), (3, 4, 2)]:
        for mapped in (timeline.seconds_to_grid(np.ones(shape, np.float32)), timeline.grid_to_seconds(np.ones(shape))):
            assert np.shape(mapped) == shape
            assert np.asarray(mapped).dtype == np.float64


def test_outside_the_window_is_not_clipped():
    np.testing.assert_array_equal(Timeline(10.0, 20.0, 10).seconds_to_grid([5.0, 25.0]), [-5.0, 15.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((float("nan"), 1.0), "finite"),
        ((0.0, float("inf")), "finite"),
        ((2.0, 2.0), "end after the start"),
        ((3.0, 2.0), "end after the start"),
        ((0.0, 1.0, 0), "positive integer"),
        ((0.0, 1.0, 2.5), "positive integer"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Timeline(*arguments)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Timeline(0.0, 1.0).num_steps = 2
