"""The script that grounds sentences in a video: what it prints and writes, beside the pipeline and the video."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_process import run_python
from transformers import pipeline

from modeling_scada import ScadaForTemporalGrounding, ScadaProcessor
from modeling_scada.inference import grounding, loading
from processing.commands.main import main
from processing.post_processing import temporal_iou
from processing.results import folder as result_folder
from processing.results import page as result_page
from processing.results import picture as result_picture
from processing.results.clips import cut_segments
from processing.results.selection import select_shown
from processing.results.table import format_score, format_table, format_time
from processing.video_io import probe, read_frames


ROOT = Path(__file__).resolve().parents[3]

SENTENCES = ["the door opens", "he sits down, then <b>leaves</b> for $5"]
VP9 = {"codec": "libvpx-vp9", "codec_options": {"cpu-used": "8", "deadline": "realtime", "g": "10"}}


@pytest.fixture
def model(tiny_config, tiny_processor, randomize_weights, tmp_path):
    """A model's folder; small weights, so that scores do not all end up at 1."""
    torch.manual_seed(0)
    model = randomize_weights(ScadaForTemporalGrounding(tiny_config), std=0.05)
    model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def clip(make_clip):
    """Five seconds, a key frame each 0.7 s."""
    return make_clip(num_frames=50, codec_options={"g": "7", "bf": "0", "sc_threshold": "0"})


@pytest.fixture
def ground(capsys):
    """`ground(*arguments) -> (exit code, stdout, stderr)`."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["ground", *[str(argument) for argument in arguments]])
        return (code, *capsys.readouterr())

    return run


# --- on the terminal ---


@pytest.mark.smoke
def test_json_is_what_the_pipeline_gives(model, clip, ground):
    code, out, err = ground(clip, *SENTENCES, "--model", model, "--top_k", 3, "--json")
    assert code == 0 and "Loading" in err
    record = json.loads(out)
    assert list(record) == ["video", "duration", "model", "results"]
    assert (record["video"], record["duration"], record["model"]) == (str(clip), 5.0, model)
    assert [result["sentence"] for result in record["results"]] == SENTENCES
    expected = pipeline("temporal-grounding", model=model)(str(clip), SENTENCES, top_k=3)
    for result, segments in zip(record["results"], expected, strict=True):
        assert len(result["segments"]) == 3
        assert result["segments"] == [{name: found[name] for name in ("score", "start", "end")} for found in segments]


def test_table(model, clip, ground):
    record = json.loads(ground(clip, *SENTENCES, "--model", model, "--top_k", 2, "--json")[1])
    code, out, _ = ground(clip, *SENTENCES, "--model", model, "--top_k", 2)
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split() == ["sentence", "rank", "start", "end", "score"]
    assert len(lines) == 4 and len({len(line) for line in (head, *lines)}) == 1  # columns
    for number, line in enumerate(lines):
        segment = record["results"][number // 2]["segments"][number % 2]
        sentence = "" if number % 2 else SENTENCES[number // 2]
        cells = [f"{number % 2 + 1}", f"{segment['start']:.1f}", f"{segment['end']:.1f}", f"{segment['score']:.3f}"]
        assert line.split() == [*sentence.split(), *cells]


def test_what_was_not_found_is_said(model, clip, ground, tmp_path):
    """With a threshold in the processor, each segment below it says so: as JSON, in the table and on the page."""
    best, second = json.loads(ground(clip, "a door", "--model", model, "--top_k", 2, "--json")[1])["results"][0][
        "segments"
    ]
    processor = ScadaProcessor.from_pretrained(model)
    processor.found_threshold = (best["score"] + second["score"]) / 2
    processor.save_pretrained(model)
    _, out, _ = ground(clip, "a door", "--model", model, "--top_k", 2, "--json", "--html", tmp_path / "found.html")
    segments = [best | {"found": True}, second | {"found": False}]
    assert json.loads(out)["results"][0]["segments"] == segments
    assert '"found": false' in (tmp_path / "found.html").read_text(encoding="utf-8")
    lines = ground(clip, "a door", "--model", model, "--top_k", 2)[1].splitlines()
    assert [line.split()[-1] for line in lines] == ["found", "yes", "no"]
    assert len({len(line) for line in lines}) == 1


def test_table_of_several_videos():
    segments = [
        {"score": 0.5, "start": 1.0, "end": 2.0, "found": found, "video": "a b.mp4"} for found in (True, False)
    ]
    lines = format_table({"duration": 9.0, "results": [{"sentence": "he sits", "segments": segments}]}).splitlines()
    assert lines[0].split()[-2:] == ["found", "video"]
    assert [line.split()[-3:] for line in lines[1:]] == [["yes", "a", "b.mp4"], ["no", "a", "b.mp4"]]
    assert lines[1].index("a b") == lines[2].index("a b")


def test_table_of_a_long_video():
    segments = [{"score": 0.5, "start": 59.96, "end": 3725.24}]
    record = {"duration": 4000.0, "results": [{"sentence": "he\nsits", "segments": segments}]}
    assert format_table(record).splitlines()[1].split() == ["he", "sits", "1", "01:00.0", "1:02:05.2", "0.500"]


@pytest.mark.parametrize(
    ("seconds", "short", "long"),
    [(0, "0.0", "00:00.0"), (59.94, "59.9", "00:59.9"), (75.25, "75.3", "01:15.3"), (3599.96, "3600.0", "1:00:00.0")],
)
def test_times(seconds, short, long):
    assert format_time(seconds, is_long=False) == short
    assert format_time(seconds, is_long=True) == long


def test_as_a_command(model, clip, tmp_path):
    """Only JSON on stdout; and when something cannot be written afterwards, one line on stderr and the exit code."""
    command = ["-m", "processing.commands", "ground", "clip.xyz", "it\u2019s a door", "--model", "model"]
    command += ["--json", "--cut", "clips"]
    clip.rename(tmp_path / "clip.xyz")  # of no container that can be written
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = run_python(command, tmp_path, environment)
    record = json.loads(done.stdout)
    assert (record["video"], record["model"], len(record["results"])) == ("clip.xyz", "model", 1)
    assert record["results"][0]["sentence"] == "it\u2019s a door" and len(record["results"][0]["segments"]) == 5
    assert done.returncode == 1 and "Traceback" not in done.stderr
    skipped, error = done.stderr.splitlines()[-2:]
    assert re.fullmatch(r"Skipped clip\.xyz: .*clips/clip_01_it_s_a_door_rank1\.xyz.*", skipped)
    assert error == "scada ground: Wrote no clips to clips, because cutting failed for every video."
    assert not list((tmp_path / "clips").iterdir())


def test_results_that_cannot_be_written(model, clip, ground, tmp_path, monkeypatch):
    """One line of error, before the model is loaded; other results that were asked for are not there either."""
    monkeypatch.delattr(loading, "pipeline")
    (tmp_path / "afile").write_text("")
    (tmp_path / "afolder").mkdir()

    def refused(*arguments):
        code, out, err = ground(clip, "a door", "--model", model, *arguments)
        assert (code, out) == (1, "") and err.count("\n") == 1
        return err

    for option, name in (("--plot", "x.png"), ("--html", "x.html"), ("--cut", "clips")):
        assert re.fullmatch(
            r"scada ground: .*(Not a directory|File exists): .*afile.*\n", refused(option, tmp_path / "afile" / name)
        )
    assert re.fullmatch(r"scada ground: .*File exists: .*clip\.mp4'\n", refused("--cut", clip))
    for option in ("--plot", "--html"):
        assert "afolder is a folder; expected a file name" in refused(option, tmp_path / "afolder")

    def no_room(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(result_folder, "TemporaryFile", no_room)
    for option, name in (("--plot", "x.png"), ("--html", "x.html"), ("--cut", "")):
        assert re.search(r"Permission denied: .*afolder'", refused(option, tmp_path / "afolder" / name))
    assert not list((tmp_path / "afolder").iterdir())


# --- what people see ---


def test_people_see_no_near_copies():
    """Beside a plain loop over the IoUs; segments of two videos are no copies of each other."""
    generator, num_kept = np.random.default_rng(0), []
    for _ in range(50):
        starts_seconds = generator.uniform(0, 8, size=12)
        segments = [
            {"video": f"{generator.integers(2)}.mp4", "score": score, "start": start, "end": start + length}
            for score, start, length in zip(
                -np.sort(-generator.uniform(0.1, 1, size=12)),
                starts_seconds,
                generator.uniform(0.5, 5, size=12),
                strict=True,
            )
        ]
        times_seconds = np.array([[segment["start"], segment["end"]] for segment in segments])
        is_same = np.array([[one["video"] == other["video"] for one in segments] for other in segments])
        is_copy = (temporal_iou(times_seconds, times_seconds) > 0.5) & is_same
        kept = []
        for rank in range(12):
            if not any(is_copy[rank, better] for better in kept):
                kept.append(rank)
        num_kept.append(len(kept))
        record = {"index": "i", "results": [{"sentence": "a door", "segments": segments}]}
        shown = select_shown(record)
        assert shown["results"] == [{"sentence": "a door", "segments": [segments[rank] for rank in kept]}]
        assert len(record["results"][0]["segments"]) == 12
    assert min(num_kept) < 9 and len(set(num_kept)) > 3


def test_people_see_one_segment_of_a_sentence_that_is_not_there():
    def shown(**found):
        scores = (0.002, 0.001)
        segments = [{"score": score, "start": k, "end": k + 1, **found} for k, score in enumerate(scores)]
        return select_shown({"video": "v", "results": [{"sentence": "it", "segments": segments}]})["results"][0]

    assert [segment["start"] for segment in shown()["segments"]] == [0]
    assert [segment["start"] for segment in shown(found=True)["segments"]] == [0, 1]  # as --threshold 0 says
    for found, said in (({}, ", probably not in the video"), ({"found": True}, ""), ({"found": False}, ", not found")):
        assert format_score(shown(**found)["segments"][0]) == f"score 0.002{said}"


def test_grey_lines_on_a_terminal():
    segments = [{"score": score, "start": 1.0, "end": 2.0} for score in (0.01, 0.0099)]
    record = {"duration": 9.0, "results": [{"sentence": "he sits", "segments": segments}]}
    plain, coloured = (format_table(record, has_colours).splitlines() for has_colours in (False, True))
    assert coloured == [plain[0], plain[1], f"\x1b[90m{plain[2]}\x1b[0m"]


def change_scores(monkeypatch, scores):
    """Lets the pipeline give five near copies with these scores to each sentence."""
    asked = []

    def find(pipe, video, sentences, top_k, nms):
        asked.append((top_k, nms))
        segments = [{"score": s, "start": 1.0 + k / 10, "end": 3.0} for k, s in enumerate(scores[:top_k])]
        return [{"sentence": sentence, "segments": segments} for sentence in sentences]

    monkeypatch.setattr(grounding, "find_segments", find)
    return asked


def test_a_sentence_that_is_not_there(model, clip, ground, tmp_path, monkeypatch):
    """One row in grey, and no clip unless one is asked for. JSON has all."""
    change_scores(monkeypatch, [4e-4, 3e-4, 2e-4, 1e-4, 0.0])
    page, clips = tmp_path / "found.html", tmp_path / "clips"
    code, out, err = ground(clip, "the red dog barks", "--model", model, "--html", page, "--cut", clips)
    assert code == 0 and [line.split()[-4:] for line in out.splitlines()[1:]] == [["1", "1.0", "3.0", "0.000"]]
    assert "Not found: 'the red dog barks' (best score 0.000)\n" in err
    assert (
        "No clip for 'the red dog barks', because it was not found. Pass --threshold 0 to cut its best segment" in err
    )
    data = json.loads(Page(page.read_text(encoding="utf-8")).texts["script"][0])
    assert len(data["results"][0]["segments"]) == 1 and not list(clips.iterdir())

    code, out, _ = ground(clip, "a dog", "--model", model, "--json", "--cut", clips, "--threshold", 0)
    assert code == 0 and len(json.loads(out)["results"][0]["segments"]) == 5
    assert [path.name for path in clips.iterdir()] == ["clip_01_a_dog_rank1.mp4"]


def test_threshold_and_nms(model, clip, ground, monkeypatch):
    """What is below the threshold goes, but for the best, which says so; nms goes to the pipeline."""
    asked = change_scores(monkeypatch, [0.5, 0.4, 0.3, 0.2, 0.1])
    for threshold, found in (("0.3", [True, True, True]), ("0.51", [False]), ("0", 5 * [True])):
        out = ground(clip, "it", "--model", model, "--json", "--threshold", threshold, "--nms", "none")[1]
        assert [segment["found"] for segment in json.loads(out)["results"][0]["segments"]] == found
    out = ground(clip, "it", "--model", model, "--nms", "0.2", "--top_k", "2")[1]
    assert out.splitlines()[0].split()[-1] == "score" and len(out.splitlines()) == 2
    assert asked == 3 * [(5, None)] + [(2, 0.2)]
    for bad in (("--threshold", "1.5"), ("--threshold", "x"), ("--nms", "0"), ("--nms", "nan"), ("--device", "gpu")):
        with pytest.raises(SystemExit):
            ground(clip, "it", "--model", model, *bad)


def test_nms_is_the_pipelines(model, clip, ground):
    pipe = pipeline("temporal-grounding", model=model)
    found = {}
    for text, nms in (("none", None), ("0.1", 0.1)):
        out = ground(clip, "a door", "--model", model, "--json", "--nms", text, "--top_k", 3)[1]
        found[text] = json.loads(out)["results"][0]["segments"]
        assert found[text] == pipe(str(clip), "a door", nms=nms, top_k=3)
    assert found["none"] != found["0.1"]


def test_device(model, clip, ground, monkeypatch):
    devices = []
    load = loading.load_pipeline
    monkeypatch.setattr(loading, "load_pipeline", lambda *args, **kw: devices.append(kw) or load(*args, **kw))
    assert ground(clip, "it", "--model", model, "--device", "cpu")[0] == 0 and devices == [{"device": "cpu"}]
    if not torch.backends.mps.is_available():
        code, out, err = ground(clip, "it", "--model", model, "--device", "mps:7")
        assert (code, out) == (1, "") and len(devices) == 1
        assert re.search(
            r"\nscada ground: Received the device mps:7, which this machine does not have \(.*\)\.\n$", err
        )


# --- the picture ---


def test_plot(model, clip, ground, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    path = tmp_path / "pictures" / "found.png"
    code, out, err = ground(clip, *SENTENCES, "--model", model, "--plot", path)
    assert code == 0 and f"Wrote {path}" in err and out.startswith("sentence")
    picture = pyplot.imread(path)[..., :3]
    height, width = picture.shape[:2]
    assert 1200 < width < 1500 and 300 < height < 600
    # Frames in the strip on top, which grow brighter on the left of each with their number; below, bars in red.
    strip = picture[int(0.1 * height)]
    assert len(np.unique(np.round(strip, 1), axis=0)) > 8
    reds = (picture[..., 0] > 0.75) & (picture[..., 1] < 0.4)
    assert reds[: height // 4].sum() == 0 and reds[height // 4 :].sum() > 500
    assert not pyplot.get_fignums()


@pytest.mark.parametrize("score", [0.83, 0.31, 0.004])
def test_plot_shows_how_sure_an_answer_is(score, clip, tmp_path):
    """
    The best segment has as much of the red as its score says, from a tenth on; the rest is the lane's grey. Where the
    score is near zero, a darker grey is in the place of the red.
    """
    pyplot = pytest.importorskip("matplotlib.pyplot")
    segments = [{"score": score, "start": 1.0, "end": 4.0}, {"score": score / 2, "start": 0.0, "end": 5.0}]
    record = {"video": str(clip), "duration": 5.0, "results": [{"sentence": "a door", "segments": segments}]}
    result_picture.draw(record, probe(clip), tmp_path / "found.png")
    picture = np.rint(255 * pyplot.imread(tmp_path / "found.png")[..., :3])
    red, grey = np.array([0xD1, 0x49, 0x5B]), np.array([0xF1, 0xF3, 0xF5])
    num_pixels = []
    for segment in segments:
        share = 0.1 + 0.9 * segment["score"]
        colour = red if score > 0.01 else np.array([0x6B, 0x74, 0x7E])
        num_pixels.append((abs(picture - (share * colour + (1 - share) * grey)).max(axis=2) <= 1.5).sum())
    # The first is three fifths of the width and twice as high; outlines are no part of it.
    assert min(num_pixels) > 5000 and num_pixels[0] == pytest.approx(1.2 * num_pixels[1], rel=0.25)
    is_full_red = (picture[..., 0] > 190) & (picture[..., 1] < 110)
    assert (is_full_red.sum() > 10000) == (score > 0.8) and (is_full_red.sum() > 0) == (score > 0.01)


def test_plot_shows_what_was_not_found(clip, tmp_path):
    """The outline of the same bar is dashed, so there is less of it."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    reds = {}
    for found in (True, False):
        segments = [{"score": 0.3, "start": 1.0, "end": 4.0, "found": found}]
        record = {"video": str(clip), "duration": 5.0, "results": [{"sentence": "a door", "segments": segments}]}
        result_picture.draw(record, probe(clip), tmp_path / "found.png")
        picture = pyplot.imread(tmp_path / "found.png")[..., :3]
        reds[found] = ((picture[..., 0] > 0.75) & (picture[..., 1] < 0.4)).sum()
    assert 0 < reds[False] < 0.85 * reds[True]


@pytest.mark.parametrize("name", ["found.foo", "found", "found.png.gz"])
def test_a_picture_of_no_format_is_refused_before_the_work(name, model, clip, ground, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, err = ground(clip, "a door", "--model", model, "--plot", tmp_path / name)
    assert (code, out) == (1, "")
    assert err.startswith(f"scada ground: Received the picture {tmp_path / name}; expected one of the extensions ")
    assert "png" in err and err.count("\n") == 1


def test_plot_without_matplotlib(model, clip, ground, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delattr(loading, "pipeline")  # nothing is computed
    code, out, err = ground(clip, "a door", "--model", model, "--plot", tmp_path / "found.png")
    assert (code, out) == (1, "")
    assert err == "scada ground: --plot needs matplotlib, which is not installed; run `pip install matplotlib`.\n"


# --- the page ---


class Page(HTMLParser):
    """The attributes of all elements by their names, and the text of those that have one."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: dict[str, list[dict]] = {}
        self.texts: dict[str, list[str]] = {}
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.elements.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        self.texts.setdefault(self.open, []).append(data)


INJECTIONS = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)> <!-- <script>",
    "a & b \"c\" 'd' $data",
]


def test_page(model, make_clip, ground, tmp_path):
    clip = make_clip("it's <i>& so.mp4", num_frames=20)
    path = tmp_path / "pages" / "found.html"
    code, out, err = ground(clip, *INJECTIONS, "--model", model, "--json", "--html", path)
    assert code == 0 and f"Wrote {path}" in err
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    data, code = page.texts["script"]
    assert json.loads(data) == json.loads(out)
    assert [result["sentence"] for result in json.loads(data)["results"]] == INJECTIONS
    assert [attrs.get("type") for attrs in page.elements["script"]] == ["application/json", None]
    assert "img" not in page.elements and "i" not in page.elements
    assert page.texts["title"][0] == page.texts["h1"][0] == clip.name

    (video,) = page.elements["video"]
    kind, content = video["src"].split(";base64,")
    assert kind == "data:video/mp4" and base64.b64decode(content) == clip.read_bytes()
    # Nothing comes from elsewhere.
    assert {
        name for name in page.elements if name in ("link", "iframe", "object", "embed", "audio", "source")
    } == set()
    assert not re.search(r"https?://|@import|url\(|import\(|fetch\(", text.replace(content, ""))


# Just enough of a browser for the page's script to fill the page in; prints the bars' styles and what h2 elements say.
STUB = """
const made = [];
class Element {
  constructor(name) { Object.assign(this, {name, children: [], dataset: {startSeconds: "0"}, textContent: ""}); }
  style = {setProperty(name, value) { this[name] = value; }};
  appendChild(child) { this.children.push(child); made.push(child); return child; }
  setAttribute() {}
  addEventListener() {}
}
const known = {data: {textContent: DATA}};
const find = name => known[name] ??= new Element(name);
const document = {getElementById: find, querySelector: find, createElement: name => new Element(name)};
SCRIPT
const buttons = made.filter(element => element.name === "button" && element.className?.startsWith("segment"));
const bars = buttons.map(bar => [bar.className, bar.style["--strength"]]);
const titles = made.filter(element => element.name === "h2").map(title => title.children[0].textContent);
console.log(JSON.stringify([bars, titles]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_page_shows_how_sure_an_answer_is(clip, tmp_path):
    scores = [[0.83, 0.31], [0.004, 0.0], [1.0]]
    found = [[{"score": score, "start": 1.0, "end": 4.0} for score in of_sentence] for of_sentence in scores]
    results = [{"sentence": "a door", "segments": segments} for segments in found]
    record = {"video": str(clip), "duration": 5.0, "model": "a model", "results": results}
    result_page.write_page(record, probe(clip), tmp_path / "found.html")
    text = (tmp_path / "found.html").read_text(encoding="utf-8")
    data, code = Page(text).texts["script"]
    stub = STUB.replace("SCRIPT", code.replace('"use strict";', "")).replace("DATA", json.dumps(data))
    done = subprocess.run(["node", "-"], input=stub, capture_output=True, encoding="utf-8", check=True, timeout=60)
    bars, titles = json.loads(done.stdout)
    classes, strengths = zip(*bars, strict=True)
    assert strengths == ("84.7%", "37.9%", "10.4%", "10.0%", "100.0%")
    assert classes == ("segment", "segment", "segment faint", "segment faint", "segment")
    scores = ("0.830", "0.004, probably not in the video", "1.000")
    assert titles == [f"1.0 to 4.0 s, score {score}" for score in scores]
    # That much of the mark's colour, whatever the rank.
    (colour,) = re.findall(r"\.segment \{[^}]*background: ([^;]*);", text)
    assert colour == "color-mix(in srgb, var(--mark) var(--strength), var(--lane))"
    assert ".row:first-child .segment" not in text and ".segment.faint { --mark: var(--soft); }" in text


def test_a_large_video_stays_outside_the_page(model, make_clip, ground, tmp_path, monkeypatch):
    monkeypatch.setattr(result_page, "MAX_EMBEDDED_BYTES", 1000)
    (tmp_path / "my videos").mkdir()
    clip = make_clip("my videos/100%.webm", num_frames=20, **VP9)
    path = tmp_path / "pages" / "found.html"
    code, _, err = ground(clip, "a door", "--model", model, "--html", path)
    assert code == 0
    (video,) = Page(path.read_text(encoding="utf-8")).elements["video"]
    assert video["src"] == "../my%20videos/100%25.webm"
    assert "100%.webm is larger than 0.001 MB" in err and "../my%20videos/100%25.webm" in err


# Appended to a page: plays the second sentence's best segment, and notes in the title where the video is when.
CLICK = """
<script>
const notes = [];
const note = what => { notes.push(what + " " + video.currentTime); document.title = notes.join("; "); };
video.addEventListener("seeking", () => note("sought"));
video.addEventListener("pause", () => note("paused"));
const click = () => document.querySelectorAll(".lane")[1].querySelector(".segment").click();
video.readyState >= 3 ? click() : video.addEventListener("canplay", click, {once: true});
</script>
"""


@pytest.mark.parametrize("form", ["embedded", "beside", "late"])
def test_page_in_a_browser(form, chromium, make_clip, tmp_path, monkeypatch):
    if form == "beside":
        monkeypatch.setattr(result_page, "MAX_EMBEDDED_BYTES", 1000)
    start_seconds = 7.0 if form == "late" else 0.0  # by the clock of the file, which Chromium goes by
    clip = make_clip("a clip.webm", num_frames=50, start_seconds=start_seconds, **VP9)
    segments = [
        [{"score": 0.9, "start": 0.5, "end": 1.25}, {"score": 0.123456, "start": 4.75, "end": 5.0}],
        [{"score": 0.8, "start": 2.5, "end": 3.5}],
    ]
    sentences = ["<b>a door</b>", "</script><script>document.title = 'injected'</script>"]
    results = [{"sentence": s, "segments": found} for s, found in zip(sentences, segments, strict=True)]
    record = {"video": str(clip), "duration": probe(clip).duration_seconds, "model": "a model", "results": results}
    path = tmp_path / "pages" / "found.html"
    result_page.write_page(record, probe(clip), path)
    path.write_text(path.read_text(encoding="utf-8") + CLICK, encoding="utf-8")

    options = "--headless=new --no-sandbox --disable-gpu --autoplay-policy=no-user-gesture-required"
    options += " --virtual-time-budget=20000 --dump-dom"
    command = [chromium, *options.split(), f"--user-data-dir={tmp_path / 'browser'}", path.as_uri()]
    page = Page(subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True).stdout)

    bars = [attrs for attrs in page.elements["button"] if attrs.get("class") == "segment"]
    lefts, widths = zip(*(re.findall(r"([\d.]+)%", bar["style"])[::2] for bar in bars), strict=True)
    duration_seconds = record["duration"]
    flat = [segment for found in segments for segment in found]
    assert [float(left) for left in lefts] == pytest.approx(
        [100 * s["start"] / duration_seconds for s in flat], rel=1e-4
    )
    expected = [100 * (s["end"] - s["start"]) / duration_seconds for s in flat]
    assert [float(width) for width in widths] == pytest.approx(expected, rel=1e-4)
    assert bars[1]["aria-label"] == "<b>a door</b>, rank 2: 4.8 to 5.0, score 0.123"
    assert [text for text in page.texts["th"] if text.strip()][4:] == sentences
    cells = [text for text in page.texts["td"] if text.strip()]
    assert cells == ["0.5", "1.3", "0.900", "4.8", "5.0", "0.123", "2.5", "3.5", "0.800"]
    assert "hidden" in next(attrs for attrs in page.elements["p"] if attrs.get("id") == "problem")

    # The segment was played from its start to its end, and it is marked in both places.
    (sought, at_seconds), (paused, until_seconds) = (note.split() for note in page.texts["title"][0].split("; "))
    assert (sought, paused) == ("sought", "paused")
    assert float(at_seconds) == pytest.approx(2.5 + start_seconds, abs=0.01)
    assert 3.5 <= float(until_seconds) - start_seconds < 3.9
    marked = [name for name, all_attrs in page.elements.items() for attrs in all_attrs if "aria-current" in attrs]
    assert sorted(marked) == ["button", "tr"] and "aria-current" in bars[2]


# --- the clips ---


@pytest.mark.smoke
def test_cut(model, clip, ground, read_codes, tmp_path):
    folder = tmp_path / "all" / "clips"
    code, out, err = ground(clip, *SENTENCES, "?!", "--model", model, "--top_k", 2, "--json", "--cut", folder)
    assert code == 0
    results = json.loads(out)["results"]
    slugs = ["the_door_opens", "he_sits_down_then_b_leaves_b_for_5", "sentence"]
    names = [f"clip_{i:02}_{slug}_rank{rank}.mp4" for i, slug in enumerate(slugs, start=1) for rank in (1, 2)]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name, segment in zip(names, [found for result in results for found in result["segments"]], strict=True):
        start_seconds = int(segment["start"] / 0.7 + 1e-6) * 0.7  # of the key frame
        duration_seconds = probe(folder / name).duration_seconds
        assert segment["end"] <= start_seconds + duration_seconds + 1e-6 < segment["end"] + 0.1 + 1e-6
        instants_seconds = np.arange(round(10 * duration_seconds)) / 10 + 0.05
        codes = read_codes(read_frames(folder / name, instants_seconds))
        first = round(10 * start_seconds)
        assert codes == list(range(first, first + len(codes)))
        covered = f"{start_seconds:.1f} to {start_seconds + duration_seconds:.1f}"
        asked = f"{segment['start']:.1f} to {segment['end']:.1f}"
        assert f"{name}: {covered} s (segment: {asked} s; copied from a key frame)" in err


def test_cut_keeps_the_container(model, make_clip, ground, tmp_path):
    clip = make_clip("clip.webm", num_frames=30, **VP9)
    assert ground(clip, "a door", "--model", model, "--top_k", 1, "--cut", tmp_path / "clips")[0] == 0
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["clip_01_a_door_rank1.webm"]


def test_exact_cut(model, clip, ground, read_codes, tmp_path):
    """A clip begins with the frame on display at its segment's start and ends with its end, as is said."""
    folder = tmp_path / "clips"
    code, out, err = ground(clip, *SENTENCES, "--model", model, "--top_k", 2, "--json", "--cut", folder, "--exact")
    assert code == 0
    segments = [found for result in json.loads(out)["results"] for found in result["segments"]]
    paths = sorted(folder.iterdir())
    assert len(paths) == len(segments) == 4
    for path, segment in zip(paths, segments, strict=True):
        length_seconds = segment["end"] - segment["start"]
        assert probe(path).duration_seconds == pytest.approx(length_seconds, abs=0.002)
        instants_seconds = np.linspace(0.002, length_seconds - 0.004, 9)
        codes = read_codes(read_frames(path, instants_seconds))
        assert codes == [int(10 * (segment["start"] + seconds)) for seconds in instants_seconds]
        times = f"{segment['start']:.1f} to {segment['end']:.1f} s"
        assert f"Wrote {path}: {times} (segment: {times}; re-encoded)" in err


def test_exact_cut_of_a_container_without_times(model, make_clip, ground, tmp_path):
    clip = make_clip("clip.avi", codec="mpeg4", num_frames=30)
    options = ("--model", model, "--top_k", 1, "--cut", tmp_path / "clips", "--exact")
    assert ground(clip, "a door", *options)[0] == 0
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["clip_01_a_door_rank1.mp4"]


def test_clips_are_those_that_people_see(model, clip, ground, tmp_path, monkeypatch):
    """The best of each sentence, or with `--top_k` more; near copies are none of them."""

    def find(pipe, video, sentences, top_k, nms):
        segments = [
            {"score": 0.9, "start": 1.0, "end": 2.0},
            {"score": 0.5, "start": 1.1, "end": 2.0},
            {"score": 0.4, "start": 3.0, "end": 4.0},
        ]
        return [{"sentence": sentence, "segments": segments} for sentence in sentences]

    monkeypatch.setattr(grounding, "find_segments", find)
    for name, options, ranks in (("best", [], [1]), ("three", ["--top_k", 3], [1, 2])):
        _, out, err = ground(clip, "it", "--model", model, "--cut", tmp_path / name, "--exact", "--json", *options)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [f"clip_01_it_rank{k}.mp4" for k in ranks]
        assert len(json.loads(out)["results"][0]["segments"]) == 3
    assert "rank2.mp4: 3.0 to 4.0 s" in err


def test_clips_replace_nothing(clip, tmp_path):
    """Neither clips of a run before nor of other videos, however long their names are; a failure leaves no file."""
    long = clip.rename(tmp_path / ("\u00fc" * 120 + ".mp4"))
    segments = [{"score": 0.9, "start": 1.0, "end": 2.0}]
    record = {"video": str(long), "results": [{"sentence": "\u00e9" * 50, "segments": segments}]}
    (first,), (second,) = (list(cut_segments(record, tmp_path / "clips")) for _ in range(2))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.path.name == "\u00fc" * 45 + "_01_" + "\u00e9" * 40 + "_rank1.mp4"
    assert second.path.name == first.path.name.replace("rank1", "rank1_2")
    record["results"][0]["segments"][0]["start"] = 9.0  # after the end
    with pytest.raises(ValueError, match="expected 0 <= start <= end"):
        list(cut_segments(record, tmp_path / "clips"))
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == [first.path.name, second.path.name]


def test_exact_is_of_cut(model, clip, ground):
    code, out, err = ground(clip, "a door", "--model", model, "--exact")
    assert (code, out) == (1, "")
    assert err == "scada ground: Received --exact without --cut; also pass --cut with a folder for the clips.\n"


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": "gone.mp4"}, "There is no video file at .*gone.mp4"),
        ({"video": "broken.mp4"}, "Could not read the video .*broken.mp4"),
        ({"video": "clip.mp4", "sentence": " "}, "Received the sentence ' '"),
        ({"video": "clip.mp4", "model": "no-such/model"}, "Could not load the model no-such/model"),
        ({"video": "clip.mp4", "model": "./gone"}, "There is no model at ./gone; check the path, or pass a Hub id"),
        ({"video": "clip.mp4", "model": "empty"}, "Could not load the model .*empty"),
        ({"video": "clip.avi", "html": "found.html"}, r"Browsers do not play .*clip.avi; --html supports .mp4"),
    ],
)
def test_bad_input_is_one_line(change, message, model, clip, make_clip, ground, tmp_path):
    make_clip("clip.avi", codec="mpeg4")
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    model = {"empty": tmp_path / "empty"}.get(change.get("model"), change.get("model", model))
    options = ["--html", tmp_path / change["html"]] if "html" in change else []
    code, out, err = ground(
        tmp_path / change["video"], "a door", change.get("sentence", "it"), "--model", model, *options
    )
    assert (code, out) == (1, "")
    assert re.search(rf"^scada ground: {message}[^\n]*\n\Z", err, flags=re.MULTILINE)
    assert "Traceback" not in err
    # What can be known beforehand is said before the model is loaded.
    assert ("Loading" in err) == (change.get("model") in ("no-such/model", "empty"))


def test_damage_is_one_line(model, make_clip, ground):
    """A file that begins well: the error comes from the pipeline."""
    clip = make_clip(num_frames=50, container_options={"movflags": "faststart"})
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 3 // 4])
    code, out, err = ground(clip, "a door", "--model", model)
    assert (code, out) == (1, "")
    assert re.search(r"^scada ground: Could not read the video [^\n]*\n\Z", err, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [["clip.mp4", "a door"], ["clip.mp4", "--model", "m"], ["clip.mp4", "a", "--model", "m", "--top_k", "0"]],
)
def test_bad_arguments(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["ground", *arguments])
    assert stopped.value.code == 2
