"""
The application: its functions, and the page in headless Chromium from the outside.

The whole file is skipped where Gradio is not installed. The test in a browser needs playwright and Chromium, too.
"""

import re
import sys
import tomllib
from html import unescape
from pathlib import Path

import httpx
import pytest
from transformers import pipeline

from processing.command_line import main
from processing.library import Library, index_videos, search
from processing.video_io import probe


gr = pytest.importorskip("gradio")
app = pytest.importorskip("processing.app")

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "hub_configs" / "moving_shapes_model"
SENTENCES = ["the red circle moves left", "<b>a</b> </script> & 'so'"]


@pytest.fixture(scope="module")
def pipe():
    return pipeline("temporal-grounding", model=str(MODEL), device="cpu")


def test_the_second_question_reads_nothing_again(pipe, make_clip, monkeypatch):
    """Answers are the pipeline's; the video may even be gone by the second one. Another video is encoded."""
    path, other = str(make_clip("a.mp4", num_frames=20)), str(make_clip("b.mp4", num_frames=30, first_code=90))
    read = []
    monkeypatch.setattr(pipe, "encode", lambda video: read.append(video) or type(pipe).encode(pipe, video))
    record, known = app.ask_video(pipe, path, "\n".join(SENTENCES), 2, None)
    expected = pipe(path, SENTENCES, top_k=2)
    assert (record["video"], record["duration"]) == (path, 2.0)
    for result, segments in zip(record["results"], expected, strict=True):
        assert [{**found, "sentence": result["sentence"]} for found in result["segments"]] == [
            pytest.approx(segment, abs=1e-5) for segment in segments
        ]
    app.ask_video(pipe, path, "another", 1, known)
    assert read == [path]
    assert app.ask_video(pipe, other, "another", 1, known)[0]["duration"] == 3.0 and read == [path, other]


def test_index(pipe, make_clip, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        make_clip(f"videos/{name}", num_frames=20)
    index_videos(tmp_path / "videos", pipe, tmp_path / "index")
    library = Library(tmp_path / "index")
    record = app.ask_library(pipe, library, f"\n {SENTENCES[0]} \n\n", 3)
    assert record["results"] == search(library, SENTENCES[:1], pipe, top_k=3)
    page = unescape(app.show(record, "a model"))
    for video in {segment["video"] for segment in record["results"][0]["segments"]}:
        assert f'"source": "gradio_api/file={video}"' in page


def test_videos_that_links_lead_to_are_served(pipe, make_clip, tmp_path):
    """Those that were indexed, and not what lies next to them."""
    (tmp_path / "videos").mkdir()
    linked = make_clip("elsewhere.mp4", num_frames=20)
    (tmp_path / "videos" / "a.mp4").symlink_to(linked)
    make_clip("videos/b.mp4", num_frames=20)
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    index_videos(tmp_path / "videos", pipe, tmp_path / "index")
    library = Library(tmp_path / "index")
    demo = app.make_app(pipe, "a model", library)
    _, url, _ = app.launch(demo, library, prevent_thread_lock=True, quiet=True)
    try:
        for path, code in ((library.path_of("a.mp4"), 200), (library.path_of("b.mp4"), 200), (str(secret), 403)):
            assert httpx.get(url + app.link_to(path)).status_code == code
    finally:
        demo.close()


def test_page_and_clip(pipe, make_clip, tmp_path):
    """Nothing that was typed ends the frame or the script; a clip has the segment's length."""
    path = str(make_clip("a.mp4", num_frames=40))
    record, _ = app.ask_video(pipe, path, "\n".join(SENTENCES), 2, None)
    frame = app.show(record, "a model")
    assert frame.count("<") == 2  # the frame's own tags
    page = unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])
    assert f'src="gradio_api/file={path}"' in page and page.count("<script") == page.count("</script") == 2
    choices = app.choices_of(record)
    assert [index for _, index in choices] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert choices[2][0].startswith(f"1. {SENTENCES[1]}: ")
    record["results"][1]["segments"][0]["found"] = False
    assert [", not found" in label for label, _ in app.choices_of(record)] == [False, False, True, False]
    segment = record["results"][1]["segments"][1]
    clip = app.cut_one(record, 1, 1, tmp_path / "clips")
    assert probe(clip).duration_seconds == pytest.approx(segment["end"] - segment["start"], abs=0.11)


def test_wrong_input(pipe, make_clip, tmp_path):
    (tmp_path / "notes.mp4").write_text("no video")
    for path, text, message in (
        (str(make_clip("a.mp4")), " \n ", "Received no sentence; type"),
        (None, "a cat", "Received no video; drop one in"),
        (str(tmp_path / "notes.mp4"), "a cat", "notes.mp4"),
    ):
        with pytest.raises(gr.Error, match=message):
            app._as_message(app.ask_video, pipe, path, text, 3, None)


def test_wrong_calls(tmp_path, monkeypatch, capsys):
    assert main(["app"]) == 1 and "Received neither --model nor --index" in capsys.readouterr().err
    assert main(["app", "--index", str(tmp_path)]) == 1 and "There is no index at" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "processing.app")
    assert main(["app", "--model", "m"]) == 1
    assert 'install it with `pip install ".[app]"`' in capsys.readouterr().err


def test_space_needs_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["app"]
    space = ROOT / "hub_configs" / "space"
    assert (space / "requirements.txt").read_text().splitlines() == needed
    (version,) = re.findall(r"^gradio==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"sdk_version: {version}\n" in (space / "README.md").read_text(encoding="utf-8").split("---")[1]


@pytest.fixture
def browser(chromium):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
        browser = driver.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


def test_in_a_browser(pipe, make_clip, browser):
    """Upload, ask, click, play, cut: from the outside."""
    vp9 = {"codec": "libvpx-vp9", "codec_options": {"cpu-used": "8", "deadline": "realtime", "g": "10"}}
    clip = make_clip("a clip.webm", num_frames=50, **vp9)
    demo = app.make_app(pipe, "a model")
    _, url, _ = app.launch(demo, prevent_thread_lock=True, quiet=True)
    try:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto(url)
        page.locator("#find").click()
        page.get_by_text("Received no sentence").wait_for()
        page.locator("#sentences textarea").fill("\n".join(SENTENCES))
        page.locator("#video input[type=file]").set_input_files(clip)
        page.locator("#video").get_by_text("webm").first.wait_for()
        page.locator("#find").click()
        frame = page.frame_locator("#found iframe")
        frame.locator(".segment").first.wait_for()
        assert frame.locator("h2").count() == 2 and SENTENCES[1] in frame.locator("h2").nth(1).inner_text()
        frame.locator("tbody").nth(1).locator("tr").first.click()
        inner = page.locator("#found iframe").element_handle().content_frame()
        inner.wait_for_function("video.readyState >= 2 && video.currentTime > playing.start")
        found = inner.evaluate("data.results[1].segments[0]")
        assert inner.evaluate("playing.start") == pytest.approx(found["start"])
        assert found["start"] <= inner.evaluate("video.currentTime") <= found["end"] + 0.3
        assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out on a phone
        page.locator("#cut").click()
        page.locator("#clip a[download]").first.wait_for()
        with page.expect_download() as download:
            page.locator("#clip a[download]").first.click()
        first = inner.evaluate("data.results[0].segments[0]")
        assert probe(download.value.path()).duration_seconds == pytest.approx(first["end"] - first["start"], abs=0.11)
    finally:
        demo.close()
