"""
Colours of `read_frames` against the formulas of the standards, and what becomes of odd files.

The files hold flat patches of known Y'CbCr or RGB values, coded without loss. What they have to come out as is worked
out here from the standards' Kr and Kb alone, so that libswscale is not compared with itself.
"""

import io
import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from processing.video_io import VideoReadError, probe, read_frames, resize_frames


# Kr and Kb of ITU-R BT.601, BT.709 and BT.2020. A file that names no matrix is taken for BT.601, as FFmpeg does.
WEIGHTS = {
    "bt709": (0.2126, 0.0722),
    "smpte170m": (0.299, 0.114),
    "bt2020nc": (0.2627, 0.0593),
    "unspecified": (0.299, 0.114),
}
# By ITU-T H.273.
MATRIX_CODES = {"bt709": 1, "unspecified": 2, "smpte170m": 6, "bt2020nc": 9}
LIMITED, FULL = 1, 2
PATCH = 32  # pixels; four by four patches a picture
# Black, white, grey, the primaries and their complements, values outside the limits, and two that are hardly coloured.
YUV = np.array(
    [
        *[(16, 128, 128), (235, 128, 128), (126, 128, 128), (81, 90, 240), (145, 54, 34), (41, 240, 110)],
        *[(210, 16, 146), (170, 166, 16), (106, 202, 222), (0, 128, 128), (255, 128, 128), (60, 240, 128)],
        *[(200, 16, 240), (128, 1, 254), (100, 128, 200), (130, 137, 122)],
    ]
)
RGB = np.array(
    [
        *[(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)],
        *[(0, 255, 255), (255, 0, 255), (1, 2, 3), (200, 60, 0), (17, 99, 203), (254, 1, 128), (90, 91, 92)],
        *[(33, 200, 120), (250, 240, 230)],
    ]
)
# Rows and columns from one chroma value to the next.
CHROMA_STEPS = {"420": (2, 2), "422": (1, 2), "444": (1, 1), "nv12": (2, 2)}
ALPHA = np.array([0, 255, 128, 0, 0, 0, 1, 254, 64, 32, 0, 0, 255, 3, 200, 100])

# In grey levels: stored values and results are rounded, and libswscale counts in fixed point.
TOLERANCE = 1.3


def to_rgb(yuv, matrix, is_full, bits=8):
    """Y'CbCr of some bits, as `(N, 3)`, to R'G'B' from 0 to 255, not rounded."""
    kr, kb = WEIGHTS[matrix]
    unit = 2 ** (bits - 8)
    luma_0, luma_span, chroma_span = (0, 2**bits - 1, 2**bits - 1) if is_full else (16 * unit, 219 * unit, 224 * unit)
    y, cb, cr = np.asarray(yuv, dtype=float).T
    y, cb, cr = (y - luma_0) / luma_span, (cb - 128 * unit) / chroma_span, (cr - 128 * unit) / chroma_span
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(255 * np.stack([red, green, blue], axis=-1), 0, 255)


def patches(values, dtype=np.uint8):
    """Sixteen values as a picture of four by four patches; of `(16, C)` values, with C channels."""
    grid = np.reshape(values, (4, 4, -1)).astype(dtype)
    return grid.repeat(PATCH, axis=0).repeat(PATCH, axis=1).squeeze()


def patch_error(image, expected):
    """Largest difference in the middle of the patches, in grey levels."""
    side = image.shape[0] // 4
    middles = np.stack([image[side * row + side // 2, side * col + side // 2] for row in range(4) for col in range(4)])
    return np.abs(middles - np.asarray(expected, dtype=float)).max()


def make_frame(pix_fmt, planes):
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix_fmt)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
        padded = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
        padded[: rows.shape[0], : rows.shape[1]] = rows
        plane.update(padded)
    return frame


def yuv_frame(pix_fmt, yuv, bits=8):
    y, cb, cr = (patches(yuv[:, channel], np.uint8 if bits == 8 else np.uint16) for channel in range(3))
    if pix_fmt.startswith("gray"):
        return make_frame(pix_fmt, [y])
    rows, cols = next(steps for name, steps in CHROMA_STEPS.items() if name in pix_fmt)
    cb, cr = cb[::rows, ::cols], cr[::rows, ::cols]
    if pix_fmt == "nv12":
        return make_frame(pix_fmt, [y, np.stack([cb, cr], axis=-1)])
    return make_frame(pix_fmt, [y, cb, cr, patches(ALPHA)] if "yuva" in pix_fmt else [y, cb, cr])


def flat_frame(pix_fmt, height, width, values):
    frame = av.VideoFrame(width, height, pix_fmt)
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return frame


def write(path, codec, frames, options=None, matrix=None, color_range=None, times_seconds=None, aspect=None):
    times_seconds = times_seconds or [k / 10 for k in range(len(frames))]
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        if color_range is not None:
            stream.codec_context.color_range = color_range
        for frame, time_seconds in zip(frames, times_seconds, strict=True):
            frame.pts, frame.time_base = round(1000 * time_seconds), Fraction(1, 1000)
            if matrix is not None:
                frame.colorspace = matrix
            if color_range is not None:
                frame.color_range = color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def check_patches(path, expected, tolerance):
    """At the stored size and scaled down, where libswscale takes other ways."""
    assert patch_error(read_frames(path, [0.05])[0], expected) <= tolerance
    assert patch_error(read_frames(path, [0.05], (64, 64))[0], expected) <= tolerance


# --- matrices and ranges ---

QP_0 = {"qp": "0"}
YUV_FILES = {
    "420": ("ffv1", "mkv", "yuv420p", 8, {}),
    "422": ("ffv1", "mkv", "yuv422p", 8, {}),
    "444": ("ffv1", "mkv", "yuv444p", 8, {}),
    "420_10_bit": ("ffv1", "mkv", "yuv420p10le", 10, {}),
    "444_10_bit": ("ffv1", "mkv", "yuv444p10le", 10, {}),
    "h264": ("libx264", "mp4", "yuv420p", 8, QP_0),
    "h264_444": ("libx264", "mp4", "yuv444p", 8, QP_0),
    "h264_10_bit": ("libx264", "mp4", "yuv420p10le", 10, QP_0),
    "h264_from_nv12": ("libx264", "mp4", "nv12", 8, QP_0),
}


@pytest.mark.parametrize("color_range", [None, LIMITED, FULL], ids=["no_range", "limited", "full"])
@pytest.mark.parametrize("matrix", MATRIX_CODES)
@pytest.mark.parametrize("name", YUV_FILES)
def test_matrix_and_range(name, matrix, color_range, tmp_path):
    """No range given means limited."""
    codec, extension, pix_fmt, bits, options = YUV_FILES[name]
    yuv = YUV if bits == 8 else np.minimum(4 * YUV + np.arange(48).reshape(16, 3) % 4, 1023)
    frames = [yuv_frame(pix_fmt, yuv, bits) for _ in range(2)]
    path = write(tmp_path / f"clip.{extension}", codec, frames, options, MATRIX_CODES[matrix], color_range)
    check_patches(path, to_rgb(yuv, matrix, color_range == FULL, bits), TOLERANCE)


@pytest.mark.parametrize("size", [None, (64, 64)])
@pytest.mark.parametrize("name", ["420", "422", "420_10_bit", "h264"])
def test_subsampled_colours_are_not_darker(name, size, tmp_path):
    """On average over colours inside the limits."""
    codec, extension, pix_fmt, bits, options = YUV_FILES[name]
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(4):
        yuv = rng.integers((60, 90, 90), (190, 166, 166), (16, 3)) * 2 ** (bits - 8)
        frames = [yuv_frame(pix_fmt, yuv, bits) for _ in range(2)]
        path = write(tmp_path / f"clip.{extension}", codec, frames, options, MATRIX_CODES["bt709"], LIMITED)
        image = read_frames(path, [0.05], size)[0]
        side = image.shape[0] // 4
        errors.append(image[side // 2 :: side, side // 2 :: side].reshape(16, 3) - to_rgb(yuv, "bt709", False, bits))
    assert abs(np.mean(errors)) < 0.3


def test_formats_that_mean_full_range(tmp_path):
    """The deprecated yuvj420p; and motion JPEG, which by JFIF is BT.601 and coarse here even at its best quality."""
    frames = [yuv_frame("yuvj420p", YUV) for _ in range(2)]
    path = write(tmp_path / "clip.mp4", "libx264", frames, QP_0, MATRIX_CODES["bt709"])
    check_patches(path, to_rgb(YUV, "bt709", True), TOLERANCE)
    path = write(tmp_path / "clip.avi", "mjpeg", frames, {"qmin": "1", "q": "1"})
    check_patches(path, to_rgb(YUV, "smpte170m", True), TOLERANCE)


@pytest.mark.parametrize(
    ("extension", "pix_fmt"), [("avi", "yuv420p"), ("nut", "yuv420p"), ("nut", "nv12"), ("nut", "yuv420p10le")]
)
def test_containers_without_colour_flags(extension, pix_fmt, tmp_path):
    """Raw pictures in AVI and NUT keep neither matrix nor range: BT.601 and limited."""
    bits = 10 if pix_fmt.endswith("10le") else 8
    yuv = YUV * 2 ** (bits - 8)
    path = write(
        tmp_path / f"clip.{extension}", "rawvideo", [yuv_frame(pix_fmt, yuv, bits) for _ in range(2)], {}, 1, FULL
    )
    check_patches(path, to_rgb(yuv, "smpte170m", False, bits), TOLERANCE)


@pytest.mark.parametrize(
    ("color_range", "is_full"),
    [
        (FULL, True),
        (None, True),  # as libswscale has it
        (LIMITED, False),
    ],
)
def test_grey(color_range, is_full, tmp_path):
    path = write(tmp_path / "clip.mkv", "ffv1", [yuv_frame("gray", YUV) for _ in range(2)], color_range=color_range)
    expected = to_rgb(np.column_stack([YUV[:, 0], np.full((16, 2), 128)]), "bt709", is_full)
    check_patches(path, expected, TOLERANCE)


@pytest.mark.parametrize("matrix_code", [8, 10, 14], ids=["YCgCo", "BT.2020 constant luminance", "ICtCp"])
def test_matrix_that_cannot_be_converted(matrix_code, tmp_path):
    path = write(tmp_path / "clip.mkv", "ffv1", [yuv_frame("yuv420p", YUV) for _ in range(2)], {}, matrix_code)
    with pytest.raises(VideoReadError, match="clip.mkv"):
        read_frames(path, [0.05])


# --- RGB, palettes and alpha ---


RED, GREEN, BLUE = (patches(RGB[:, channel]) for channel in range(3))
A = patches(ALPHA)
RGB_FILES = {
    "h264_rgb": ("libx264rgb", "mkv", "rgb24", [np.stack([RED, GREEN, BLUE], axis=-1)], QP_0),
    "gbrp": ("utvideo", "avi", "gbrp", [GREEN, BLUE, RED], {}),
    "gbrp_vp9": ("libvpx-vp9", "webm", "gbrp", [GREEN, BLUE, RED], {"lossless": "1"}),
    "gbrp_10_bit": ("ffv1", "mkv", "gbrp10le", [p.astype(np.uint16) * 4 for p in (GREEN, BLUE, RED)], {}),
    "png_in_avi": ("png", "avi", "rgb24", [np.stack([RED, GREEN, BLUE], axis=-1)], {}),
    "alpha_ffv1": ("ffv1", "mkv", "bgra", [np.stack([BLUE, GREEN, RED, A], axis=-1)], {}),
    "alpha_qtrle": ("qtrle", "mov", "argb", [np.stack([A, RED, GREEN, BLUE], axis=-1)], {}),
    "alpha_png_in_mov": ("png", "mov", "rgba", [np.stack([RED, GREEN, BLUE, A], axis=-1)], {}),
    "alpha_apng": ("apng", "apng", "rgba", [np.stack([RED, GREEN, BLUE, A], axis=-1)], {}),
}


@pytest.mark.parametrize("name", RGB_FILES)
def test_rgb_as_stored(name, tmp_path):
    """Alpha is ignored: a transparent pixel keeps the colour that is stored for it."""
    codec, extension, pix_fmt, planes, options = RGB_FILES[name]
    frames = [make_frame(pix_fmt, planes) for _ in range(2)]
    check_patches(write(tmp_path / f"clip.{extension}", codec, frames, options), RGB, TOLERANCE)


@pytest.mark.parametrize(
    ("codec", "extension", "options"), [("ffv1", "mkv", {}), ("libvpx-vp9", "webm", {"lossless": "1"})]
)
def test_yuv_with_alpha(codec, extension, options, tmp_path):
    """Nor is the colour of transparent pixels blended with anything."""
    frames = [yuv_frame("yuva420p", YUV) for _ in range(2)]
    path = write(tmp_path / f"clip.{extension}", codec, frames, options, MATRIX_CODES["smpte170m"], LIMITED)
    check_patches(path, to_rgb(YUV, "smpte170m", False), TOLERANCE)


def gif(height, width, pictures):
    """
    A GIF with the palette `RGB`; of each picture top and left edge, palette indices, delay in seconds / 100, and index
    that stands for "as before" or None.
    """

    def packed(indices):
        # Codes of five bits, with the table cleared before it grows to six.
        codes = [16]
        for place in range(0, indices.size, 14):
            codes += [*indices.ravel()[place : place + 14].tolist(), 16]
        bits = sum(code << (5 * place) for place, code in enumerate([*codes, 17]))
        data = bits.to_bytes((5 * len(codes) + 5 + 7) // 8, "little")
        return b"\x04" + b"".join(
            bytes([len(data[k : k + 255])]) + data[k : k + 255] for k in range(0, len(data), 255)
        )

    out = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF3, 0, 0) + RGB.astype(np.uint8).tobytes()
    for top, left, indices, delay, unchanged in pictures:
        out += b"\x21\xf9\x04" + struct.pack("<BHBB", 4 | (unchanged is not None), delay, unchanged or 0, 0)
        out += b"\x2c" + struct.pack("<HHHHB", left, top, indices.shape[1], indices.shape[0], 0)
        out += packed(indices) + b"\0"
    return out + b"\x3b"


def test_gif_with_uneven_delays_and_a_partial_picture():
    first = np.arange(16).reshape(4, 4).repeat(4, axis=0).repeat(4, axis=1)
    second = np.full((6, 8), 5)
    second[:3] = 15  # as before
    data = gif(16, 16, [(0, 0, first, 10, None), (4, 2, second, 25, 15), (0, 0, np.full((16, 16), 3), 50, None)])
    assert probe(data).duration_seconds == pytest.approx(0.85)
    after = first.copy()
    after[7:10, 2:10] = 5
    expected = RGB[np.stack([first, first, after, after, np.full((16, 16), 3)])]
    np.testing.assert_array_equal(read_frames(data, [0.0, 0.095, 0.105, 0.345, 0.8]), expected)


def test_gif_of_one_pixel():
    data = gif(1, 1, [(0, 0, np.array([[10]]), 20, None), (0, 0, np.array([[11]]), 20, None)])
    np.testing.assert_array_equal(read_frames(data, [0.1, 0.3])[:, 0, 0], RGB[10:12])
    assert (read_frames(data, [0.1], (6, 5)) == RGB[10]).all()


def test_animated_png_with_uneven_delays(tmp_path):
    frames = [make_frame("rgb24", [np.full((16, 16, 3), RGB[k], np.uint8)]) for k in (10, 11, 14)]
    path = write(tmp_path / "clip.apng", "apng", frames, times_seconds=[0, 0.1, 0.5])
    np.testing.assert_array_equal(
        read_frames(path, [0.05, 0.15, 0.45, 0.55])[:, 8, 8], RGB[[10, 11, 11, 14]].astype(np.uint8)
    )


def test_animated_webp_is_refused(tmp_path):
    """FFmpeg does not decode it; and does not take it for a still picture either."""
    image = pytest.importorskip("PIL.Image")
    pictures = [image.fromarray(np.full((48, 64, 3), grey, np.uint8)) for grey in (30, 120, 220)]
    path = tmp_path / "clip.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 400, 300])
    for function in (probe, lambda source: read_frames(source, [0.0])):
        with pytest.raises(VideoReadError, match="clip.webp.*no frame was read"):
            function(path)


@pytest.mark.parametrize(
    ("extension", "codec"), [("png", "png"), ("jpg", "mjpeg"), ("bmp", "bmp"), ("webp", "libwebp")]
)
def test_still_picture_is_refused(extension, codec, tmp_path):
    """FFmpeg takes it for a video of one frame, at 25 frames a second."""
    pix_fmt = {"png": "rgb24", "jpg": "yuvj420p", "bmp": "bgr24", "webp": "yuv420p"}[extension]
    frame = flat_frame(pix_fmt, 48, 64, [90] if pix_fmt.endswith("24") else [128, 128, 128])
    path = write(tmp_path / f"still.{extension}", codec, [frame])
    for source in (path, path.read_bytes()):
        for function in (probe, lambda source: read_frames(source, [0.0])):
            with pytest.raises(VideoReadError, match="still picture"):
                function(source)


# --- sizes ---

# A green that BT.601 with limited range takes to (0, 255, 1).
GREEN_YUV, RED_YUV = (145, 54, 34), (81, 90, 240)


@pytest.mark.parametrize(("height", "width"), [(47, 63), (2, 2), (1, 1), (1, 3)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_odd_and_tiny_sizes(pix_fmt, height, width, tmp_path):
    path = write(tmp_path / "clip.avi", "ffv1", [flat_frame(pix_fmt, height, width, GREEN_YUV)] * 2)
    for size in (None, (1, 1), (16, 16), (17, 31)):
        frames = read_frames(path, [0.05], size)
        assert frames.shape == (1, *(size or (height, width)), 3)
        assert np.abs(frames - to_rgb([GREEN_YUV], "unspecified", False)).max() <= TOLERANCE


def test_odd_size_keeps_its_last_row_and_column(tmp_path):
    y = np.full((47, 63), 60, np.uint8)
    y[-1], y[:, -1] = 200, 200
    planes = [y, np.full((24, 32), 128, np.uint8), np.full((24, 32), 128, np.uint8)]
    frame = read_frames(write(tmp_path / "clip.mkv", "ffv1", [make_frame("yuv420p", planes)] * 2), [0.05])[0]
    expected = to_rgb(np.column_stack([y.ravel(), np.full((y.size, 2), 128)]), "unspecified", False)
    np.testing.assert_allclose(frame.reshape(-1, 3), expected, atol=TOLERANCE)


def test_pixels_that_are_not_square_come_as_stored(tmp_path):
    frames = [flat_frame("yuv420p", 48, 64, GREEN_YUV) for _ in range(2)]
    path = write(tmp_path / "clip.mp4", "libx264", frames, QP_0, aspect=Fraction(2, 1))
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2
    assert (probe(path).height, probe(path).width) == (48, 64)
    assert read_frames(path, [0.05]).shape == (1, 48, 64, 3)


def test_interlaced_fields_come_woven(tmp_path):
    """The two fields of a frame stay its even and odd rows: nothing is deinterlaced."""
    y = np.full((64, 64), 60, np.uint8)
    y[1::2] = 180
    frame = make_frame("yuv420p", [y, np.full((32, 32), 128, np.uint8), np.full((32, 32), 128, np.uint8)])
    options = {**QP_0, "x264-params": "interlaced=1:tff=1"}
    path = write(tmp_path / "clip.mp4", "libx264", [frame] * 2, options)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    rows = to_rgb([(60, 128, 128), (180, 128, 128)], "unspecified", False)
    np.testing.assert_allclose(read_frames(path, [0.05])[0, :, 30], np.tile(rows, (32, 1)), atol=TOLERANCE)


# --- changes in mid-stream ---


def h264_part(folder, start_seconds, frame, matrix=None, color_range=None):
    frames = [frame] * 5
    times_seconds = [start_seconds + k / 10 for k in range(5)]
    options = {**QP_0, "bf": "0"}
    path = write(folder / "part.ts", "libx264", frames, options, matrix, color_range, times_seconds)
    return path.read_bytes()


CHANGE_SECONDS = [0.05, 0.45, 0.55, 0.95]


@pytest.mark.parametrize(
    "second", [("yuv420p", 80, 96), ("yuv420p", 32, 40), ("yuv444p", 48, 64), ("yuv444p", 96, 80)]
)
@pytest.mark.parametrize("size", [None, (20, 30)])
def test_size_and_format_that_change(size, second, tmp_path):
    """All frames come in the size asked for, or else in the first one's."""
    data = h264_part(tmp_path, 0.0, flat_frame("yuv420p", 48, 64, RED_YUV))
    data += h264_part(tmp_path, 0.5, flat_frame(*second, GREEN_YUV))
    with av.open(io.BytesIO(data)) as container:
        kinds = [(frame.format.name, frame.height, frame.width) for frame in container.decode(video=0)]
    assert kinds == [("yuv420p", 48, 64)] * 5 + [second] * 5
    expected = to_rgb([RED_YUV, RED_YUV, GREEN_YUV, GREEN_YUV], "unspecified", False)[:, None, None]
    frames = read_frames(data, CHANGE_SECONDS, size)
    assert frames.shape == (4, *(size or (48, 64)), 3)
    assert np.abs(frames - expected).max() <= TOLERANCE
    np.testing.assert_array_equal(read_frames(data, [0.95], size)[0], frames[3])  # whatever is decoded before it
    assert (probe(data).height, probe(data).width) == (48, 64)


@pytest.mark.parametrize("extension", ["mkv", "nut"])
def test_size_that_changes_in_other_containers(extension, tmp_path):
    """H.264 whose packets bring their own headers."""
    path = tmp_path / f"clip.{extension}"
    parts = [
        h264_part(tmp_path, 0.0, flat_frame("yuv420p", *shape, yuv))
        for shape, yuv in (((48, 64), RED_YUV), ((80, 96), GREEN_YUV))
    ]
    with av.open(str(path), mode="w") as output:
        copy = None
        numbers = itertools.count()
        for part in parts:
            with av.open(io.BytesIO(part)) as source:
                copy = copy or output.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        copied = av.Packet(bytes(packet))
                        copied.pts = copied.dts = next(numbers)
                        copied.time_base, copied.duration = Fraction(1, 10), 1
                        copied.stream, copied.is_keyframe = copy, packet.is_keyframe
                        output.mux(copied)
    expected = to_rgb([RED_YUV, RED_YUV, GREEN_YUV, GREEN_YUV], "unspecified", False)[:, None, None]
    frames = read_frames(path, CHANGE_SECONDS)
    assert frames.shape == (4, 48, 64, 3)
    assert np.abs(frames - expected).max() <= TOLERANCE


def test_matrix_and_range_that_change(tmp_path):
    frame = flat_frame("yuv420p", 48, 64, RED_YUV)
    data = h264_part(tmp_path, 0.0, frame, MATRIX_CODES["bt709"], LIMITED)
    data += h264_part(tmp_path, 0.5, frame, MATRIX_CODES["smpte170m"], FULL)
    expected = [to_rgb([RED_YUV], "bt709", False)[0]] * 2 + [to_rgb([RED_YUV], "smpte170m", True)[0]] * 2
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        frames = read_frames(data, np.array(CHANGE_SECONDS)[order])
        np.testing.assert_allclose(frames[:, 24, 32], np.array(expected)[order], atol=TOLERANCE)


# --- which stream ---


@pytest.mark.parametrize(
    ("extension", "codec", "cover"),
    [("mp3", "libmp3lame", "mjpeg"), ("mp3", "libmp3lame", None), ("m4a", "aac", None), ("flac", "flac", "mjpeg")],
)
def test_sound_with_and_without_a_cover_picture_is_refused(extension, codec, cover, tmp_path):
    path = tmp_path / f"song.{extension}"
    with av.open(str(path), mode="w") as container:
        sound = container.add_stream(codec, rate=16000, layout="mono")
        if cover:
            picture = container.add_stream(cover, rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(flat_frame("yuvj420p", 48, 64, RED_YUV)))
            container.mux(picture.encode(None))
        sample_format = "s16" if codec == "flac" else "fltp"
        samples = np.zeros((1, 16000), np.int16 if codec == "flac" else np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format=sample_format, layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    for function in (probe, lambda source: read_frames(source, [0.0])):
        with pytest.raises(VideoReadError, match="no video stream .found: audio"):
            function(path)


def test_second_stream_if_the_first_has_no_decoder(tmp_path):
    path = tmp_path / "two.mkv"
    kinds = [("ffv1", "yuv444p", RED_YUV), ("libx264", "yuv420p", GREEN_YUV)]
    with av.open(str(path), mode="w") as container:
        streams = []
        for codec, pix_fmt, _ in kinds:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
            streams.append(stream)
        for k in range(5):
            for stream, (_, pix_fmt, yuv) in zip(streams, kinds, strict=True):
                frame = flat_frame(pix_fmt, 48, 64, yuv)
                frame.pts, frame.time_base = k, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    data = path.read_bytes()
    for content, yuv in ((data, RED_YUV), (data.replace(b"V_FFV1", b"V_XXXX"), GREEN_YUV)):
        assert probe(content).duration_seconds == pytest.approx(0.5)
        difference = read_frames(content, [0.05, 0.45])[:, 24, 32] - to_rgb([yuv], "unspecified", False)
        assert np.abs(difference).max() <= TOLERANCE


# --- scaling while converting against scaling afterwards ---


def natural_picture(height, width):
    """Noise whose amplitude falls with the frequency, as in photographs, and discs with sharp edges."""
    rng = np.random.default_rng(0)
    y, x = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    amplitudes = 1 / np.maximum(np.hypot(y, x), 1)

    def noise():
        phases = np.exp(2j * np.pi * rng.random(amplitudes.shape))
        values = np.fft.irfft2(amplitudes * phases, s=(height, width))
        return values / values.std()

    grey = noise()
    image = np.stack([128 + 45 * (grey + 0.5 * noise()) for _ in range(3)], axis=-1)
    rows, cols = np.mgrid[:height, :width]
    for _ in range(12):
        row, col, radius = rng.integers(height), rng.integers(width), rng.integers(height // 20, height // 5)
        inside = (rows - row) ** 2 + (cols - col) ** 2 < radius**2
        image[inside] = 0.4 * image[inside] + 0.6 * rng.integers(0, 256, 3)
    return image.clip(0, 255).astype(np.uint8)


def scaling_difference(path, seconds, size):
    while_converting = read_frames(path, seconds, size).astype(int)
    difference = np.abs(while_converting - resize_frames(read_frames(path, seconds), size))
    return difference.mean(), difference.max()


# Mean and largest difference in grey levels. Subsampled chroma is interpolated to other places.
@pytest.mark.parametrize(
    ("pix_fmt", "mean_bound", "max_bound"), [("yuv420p", 0.9, 13), ("yuv444p", 0.6, 6), ("gbrp", 0.0, 0)]
)
@pytest.mark.parametrize("size", [(160, 160), (224, 224)])
def test_scaling_while_converting_is_close_to_scaling_afterwards(size, pix_fmt, mean_bound, max_bound, tmp_path):
    picture = av.VideoFrame.from_ndarray(natural_picture(360, 640), format="rgb24").reformat(format=pix_fmt)
    path = write(tmp_path / "clip.avi", "ffvhuff", [picture] * 2)
    mean, largest = scaling_difference(path, [0.05], size)
    assert mean <= mean_bound and largest <= max_bound


@pytest.mark.parametrize(
    "name",
    [
        "bikes.mp4",
        "nasa_13013.mp4",
        "one-by-one-person-detection.mp4",
        "h265_video.mp4",
        "no_duration.webm",
        "video_90.mov",
    ],
)
def test_scaling_of_real_files(name, fixtures_dir):
    path = fixtures_dir / "videos" / name
    seconds = np.linspace(0.05, probe(path).duration_seconds * 0.95, 4)
    mean, largest = scaling_difference(path, seconds, (160, 160))
    assert mean <= 0.4 and largest <= 60
