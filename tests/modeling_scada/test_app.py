"""
The application: its functions, and the page in headless Chromium from the outside.

The whole file is skipped where Gradio is not installed. The tests in a browser need playwright and Chromium, too.
"""

import re
import socket
import sys
import threading
import tomllib
from html import unescape
from pathlib import Path

import pytest
from transformers import pipeline

from modeling_scada.library.index import index_videos
from modeling_scada.library.search import Library, search
from processing.commands.main import main
from processing.video_io import probe, read_frames


gr = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
app = pytest.importorskip("modeling_scada.app")

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "hub_configs" / "models" / "moving_shapes_model"
SENTENCES = ["the red circle moves left", "<b>a</b> </script> & 'so'"]


@pytest.fixture(scope="module")
def pipe():
    return pipeline("temporal-grounding", model=str(MODEL), device="cpu")


def test_the_second_question_reads_nothing_again(pipe, make_clip, monkeypatch):
    """Answers are the pipeline's; the video may even be gone by the second one. Another video is encoded."""
    path, other = str(make_clip("a.mp4", num_frames=20)), str(make_clip("b.mp4", num_frames=30, first_code=90))
    read = []
    monkeypatch.setattr(pipe, "encode", lambda video, **kw: read.append(video) or type(pipe).encode(pipe, video, **kw))
    record, cache = app.run_ground_tab(pipe, path, "\n".join(SENTENCES), 2, None)
    expected = pipe(path, SENTENCES, top_k=2)
    assert (record["video"], record["duration"]) == (path, 2.0)
    for result, segments in zip(record["results"], expected, strict=True):
        assert [{**found, "sentence": result["sentence"]} for found in result["segments"]] == [
            pytest.approx(segment, abs=1e-5) for segment in segments
        ]
    app.run_ground_tab(pipe, path, "another", 1, cache)
    assert read == [path]
    assert app.run_ground_tab(pipe, other, "another", 1, cache)[0]["duration"] == 3.0 and read == [path, other]


def test_index(pipe, make_clip, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        make_clip(f"videos/{name}", num_frames=20)
    index_videos(tmp_path / "videos", pipe, tmp_path / "index")
    library = Library(tmp_path / "index")
    record = app.run_search_tab(pipe, library, f"\n {SENTENCES[0]} \n\n", 3)
    assert record["results"] == search(library, SENTENCES[:1], pipe, top_k=3)
    page = unescape(app.embed_result_page(record, "a model"))
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
    url = app.start_app(demo, library)
    try:
        for path, code in ((library.video_path("a.mp4"), 200), (library.video_path("b.mp4"), 200), (str(secret), 403)):
            assert httpx.get(url + app.gradio_file_url(path)).status_code == code
    finally:
        demo.close()


def test_page_and_clip(pipe, make_clip, tmp_path):
    """Nothing that was typed ends the frame or the script; a clip has the segment's length."""
    path = str(make_clip("a.mp4", num_frames=40))
    record, _ = app.run_ground_tab(pipe, path, "\n".join(SENTENCES), 2, None)
    frame = app.embed_result_page(record, "a model")
    assert frame.count("<") == 2  # the frame's own tags
    page = unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])
    assert (
        f'src="gradio_api/file={path}"' in page
        and '"can_cut": true' in page
        and page.count("<script") == page.count("</script") == 2
    )
    segment = record["results"][1]["segments"][1]
    clip = app.cut_for_player(record, 1, 1, tmp_path / "clips")
    assert probe(clip).duration_seconds == pytest.approx(segment["end"] - segment["start"], abs=0.11)


def test_wrong_input(pipe, make_clip, tmp_path):
    """Messages have no folder of this machine, and no number of an error."""
    (tmp_path / "notes.mp4").write_text("no video")
    for path, text, message in (
        (str(make_clip("a.mp4")), " \n ", "There is no sentence yet. Type at least one sentence, one per line."),
        (None, "a cat", "There is no video yet. Upload one first."),
        (str(tmp_path / "notes.mp4"), "a cat", "Could not read the video notes.mp4: "),
        (str(tmp_path / "gone.mp4"), "a cat", "gone.mp4"),
    ):
        with pytest.raises(gr.Error) as raised:
            app._show_errors([str(tmp_path)], app.run_ground_tab, pipe, path, text, 3, None)
        assert message in unescape(raised.value.message)
        assert str(tmp_path) not in raised.value.message and "Errno" not in raised.value.message


def test_shares_of_what_is_done(pipe, make_clip, tmp_path, monkeypatch):
    """Of a video in three windows, and of an index of five windows that is asked twice, a window at a time."""
    (tmp_path / "videos").mkdir()
    for name, num_frames in (("a", 50), ("b", 20), ("c", 20)):
        make_clip(f"videos/{name}.mp4", num_frames=num_frames)
    monkeypatch.setattr(pipe.processor.video_processor, "window_seconds", 2.5)
    shares = []
    app.run_ground_tab(pipe, str(tmp_path / "videos" / "a.mp4"), "it", 2, None, progress=shares.append)
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    index_videos(tmp_path / "videos", pipe, tmp_path / "index")
    monkeypatch.setattr("modeling_scada.library.search.HEAD_BATCH_SIZE", 1)
    shares.clear()
    app.run_search_tab(pipe, Library(tmp_path / "index"), "it\nthat", 2, progress=shares.append)
    assert shares == pytest.approx([k / 10 for k in range(1, 11)])


def test_a_model_that_cannot_encode_is_refused_at_the_start(pipe, monkeypatch):
    """Rather than at each visitor's question."""
    monkeypatch.setattr(type(pipe.model.model), "_first_sentence_dependent_layer", lambda model: 0)
    with pytest.raises(ValueError, match="whose first layer depends on the sentence"):
        app.make_app(pipe, "a model")


def test_wrong_calls(tmp_path, monkeypatch, capsys):
    assert main(["app"]) == 1 and "Received neither --model nor --index" in capsys.readouterr().err
    assert main(["app", "--index", str(tmp_path)]) == 1 and "There is no index at" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["app", "--model", str(MODEL), "--port", port]) == 1
        message = (
            f"Could not listen at 127.0.0.1, port {port}: Address already in use. Choose another --host or --port."
        )
        assert capsys.readouterr().err == f"scada app: {message}\n"
    for bad in (["--port", "0"], ["--port", "x"], ["--threshold", "2"], ["--device", "gpu"]):
        with pytest.raises(SystemExit):
            main(["app", "--model", "m", *bad])
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "modeling_scada.app")
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


@pytest.fixture
def open_page(browser):
    """`open_page(demo, library) -> page`: the application, on a phone's width."""
    demos = []

    def open_page(demo, library=None):
        demos.append(demo)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto(app.start_app(demo, library))
        return page

    yield open_page
    for demo in demos:
        demo.close()


def give(page, path):
    page.locator("#video input[type=file]").set_input_files(path)
    page.locator("#video").get_by_text(path.suffix[1:]).first.wait_for()


def test_in_a_browser(pipe, make_clip, open_page, monkeypatch):
    """Upload, ask, click, play, cut: from the outside."""
    vp9 = {"codec": "libvpx-vp9", "codec_options": {"cpu-used": "8", "deadline": "realtime", "g": "10"}}
    clip = make_clip("a clip.webm", num_frames=50, **vp9)

    def find(pipe, encoded, sentences, top_k, nms):
        segments = [{"score": score, "start": 3 - k, "end": 4 - k} for k, score in enumerate((0.9, 0.8, 0.002))]
        return [{"sentence": sentence, "segments": segments} for sentence in sentences]

    monkeypatch.setattr(app, "find_segments", find)
    goes_on = threading.Event()

    def encode(video, progress):
        progress(0.4)
        assert goes_on.wait(30)
        return type(pipe).encode(pipe, video)

    demo = app.make_app(pipe, "a model")
    monkeypatch.setattr(pipe, "encode", encode)
    page = open_page(demo)
    page.locator("#find").click()
    page.get_by_text("There is no sentence yet").wait_for()
    assert page.locator("footer a, footer button").count() == 0
    give(page, clip)
    page.locator("#sentences textarea").fill("\n".join(SENTENCES))
    page.locator("#sentences textarea").press("Shift+Enter")
    page.locator("#found").get_by_text("40.0%").wait_for()
    goes_on.set()
    frame = page.frame_locator("#found iframe")
    frame.locator(".segment").first.wait_for()
    assert frame.locator("h2").count() == 2 and SENTENCES[1] in frame.locator("h2").nth(1).inner_text()
    assert frame.locator("tbody tr.play").count() == 4  # the third segments have a score near zero
    frame.locator("tbody").nth(1).locator("tr.play").first.click()
    inner = page.locator("#found iframe").element_handle().content_frame()
    inner.wait_for_function("video.readyState >= 2 && video.currentTime > playing.start")
    assert inner.evaluate("playing.start") == pytest.approx(3)
    assert 3 <= inner.evaluate("video.currentTime") <= 4.3

    # What is cut is the row that was clicked; the clip plays, and can be kept.
    frame.locator("tbody").nth(1).locator("button.cut").nth(1).click()
    page.locator("#clip").get_by_text("Clip, 2.0 to 3.0 s").wait_for()
    page.wait_for_function("document.querySelector('#clip video')?.currentTime > 0.1")
    with page.expect_download() as download:
        page.locator("#clip a[download]").first.click()
    assert download.value.suggested_filename.endswith("_rank1.webm")
    codes = [read_frames(video, [instant_seconds])[0] for video, instant_seconds in ((clip, 2.05), (clip, 3.05))]
    first = read_frames(download.value.path(), [0.05])[0].astype(int)
    assert probe(download.value.path()).duration_seconds == pytest.approx(1, abs=0.11)
    assert abs(first - codes[0]).mean() < abs(first - codes[1]).mean()
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out on a phone
    assert inner.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_stays_of_the_video_before(pipe, make_clip, open_page, tmp_path):
    """Neither next to a message nor next to another video."""
    (tmp_path / "notes.mp4").write_text("no video")
    page = open_page(app.make_app(pipe, "a model", threshold=0.0))
    page.locator("#sentences textarea").fill("a cat")

    def ask(path):
        give(page, path)
        page.locator("#find").click()

    ask(make_clip("a.mp4", num_frames=20))
    page.frame_locator("#found iframe").locator("button.cut").first.click()
    page.locator("#clip video").wait_for()
    page.locator("#video button[aria-label=Clear]").first.click()
    page.locator("#found iframe").wait_for(state="detached")
    page.locator("#clip video").wait_for(state="detached")
    ask(make_clip("b.mp4", num_frames=20))
    page.locator("#found iframe").wait_for()
    page.locator("#sentences textarea").fill(" ")
    page.locator("#find").click()
    page.get_by_text("There is no sentence yet").wait_for()
    assert page.locator("#found iframe").count() == 0
    page.locator("#sentences textarea").fill("a cat")
    page.locator("#video button[aria-label=Clear]").first.click()
    ask(tmp_path / "notes.mp4")
    message = page.get_by_text("Could not read the video notes.mp4")
    message.wait_for()
    assert "/tmp" not in message.inner_text() and page.locator("#found iframe").count() == 0


@pytest.mark.slow
def test_an_index_in_a_browser(pipe, make_clip, open_page, tmp_path):
    """Shift+Enter asks the index where no video was dropped in; a clip is cut from the video of its row."""
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_clip(f"videos/{name}", num_frames=20)
    index_videos(tmp_path / "videos", pipe, tmp_path / "index")
    library = Library(tmp_path / "index")
    page = open_page(app.make_app(pipe, "a model", library), library)
    page.locator("#sentences textarea").fill(SENTENCES[0])
    page.locator("#sentences textarea").press("Shift+Enter")
    frame = page.frame_locator("#found iframe")
    row = frame.locator("tr.play").first
    row.wait_for()
    name = row.locator("td.video").inner_text()
    row.locator("button.cut").click()
    page.locator("#clip video").wait_for()
    with page.expect_download() as download:
        page.locator("#clip a[download]").first.click()
    assert download.value.suggested_filename.startswith(f"{Path(name).stem}_01_")
