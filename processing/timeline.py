"""Conversion between seconds and grid coordinates. No other module of the package converts them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Timeline:
    """
    A window of a video, divided into `num_steps` equal steps.

    Grid coordinates are the edges `0..num_steps`. Step `i` covers `[i, i + 1)` and has its centre at `i + 0.5`.
    Coordinates stay fractional. With `num_steps=1`, the grid is the unit interval. Labels and predictions use the
    unit interval.

    Args:
        start_seconds (`float`): Start of the window, in seconds from the video's first frame.
        end_seconds (`float`): End of the window, in seconds from the video's first frame.
        num_steps (`int`, *optional*, defaults to 1): Number of steps, such as frames or snippets.

    Raises:
        `ValueError`: If a time is not finite, the end is not after the start, or `num_steps` is not a positive
            integer.
    """

    start_seconds: float
    end_seconds: float
    num_steps: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_seconds) and math.isfinite(self.end_seconds)):
            raise ValueError(
                f"Received a window from {self.start_seconds} to {self.end_seconds} seconds, expected finite times; "
                "read the end from the video's duration (`probe(video).duration_seconds`)."
            )
        if self.end_seconds <= self.start_seconds:
            raise ValueError(
                f"Received a window from {self.start_seconds} to {self.end_seconds} seconds, expected an end after "
                "the start; check the video's duration, and the order of the two times."
            )
        if self.num_steps < 1 or self.num_steps != int(self.num_steps):
            raise ValueError(
                f"Received num_steps={self.num_steps}, expected a positive integer; pass the number of frames or "
                "snippets in the window."
            )

    @property
    def duration_seconds(self) -> float:
        """Length of the window, in seconds."""
        return self.end_seconds - self.start_seconds

    def seconds_to_grid(self, seconds: ArrayLike) -> np.ndarray:
        """
        Map times to grid coordinates; the inverse of [`~Timeline.grid_to_seconds`].

        Args:
            seconds (`np.ndarray` of shape `(...)`): Times, in seconds from the video's first frame.

        Returns:
            `np.ndarray` of shape `(...)`, float64: Coordinates, in `[0, num_steps]` for times inside the window.
        """
        return (np.asarray(seconds, dtype=np.float64) - self.start_seconds) * self.num_steps / self.duration_seconds

    def grid_to_seconds(self, grid: ArrayLike) -> np.ndarray:
        """
        Map grid coordinates to times; the inverse of [`~Timeline.seconds_to_grid`].

        Args:
            grid (`np.ndarray` of shape `(...)`): Coordinates, in `[0, num_steps]` inside the window.

        Returns:
            `np.ndarray` of shape `(...)`, float64: Times, in seconds from the video's first frame.
        """
        return self.start_seconds + np.asarray(grid, dtype=np.float64) * self.duration_seconds / self.num_steps

    def center_seconds(self) -> np.ndarray:
        """
        Return the centres of the steps. With one step per frame, the centres are the sampling instants.

        Returns:
            `np.ndarray` of shape `(num_steps,)`, float64: `start + (k + 0.5) * (end - start) / num_steps`, in seconds
            from the video's first frame.
        """
        return self.grid_to_seconds(np.arange(self.num_steps) + 0.5)
