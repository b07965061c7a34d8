"""A library: what an index holds after files come, change and go, and after a kill; a search beside brute force."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import datasets
import pyarrow as pa
import pytest
import torch
from test_adapter_scada import run_code
from test_trainer_arguments import run_in_two_processes
from transformers import pipeline

from modeling_scada import ScadaForTemporalGrounding, ScadaProcessor, ScadaVideoProcessor
from modeling_scada.head_scada import all_proposals, sparse_proposals
from modeling_scada.inference import loading
from modeling_scada.inference.grounding import find_segments
from modeling_scada.library import index as library
from modeling_scada.library import on_ray as library_on_ray
from modeling_scada.library import search as search_module
from modeling_scada.library import storage
from modeling_scada.library.index import find_videos, index_videos
from modeling_scada.library.search import Library, search
from modeling_scada.library.storage import FACTS, to_tensor
from processing.commands.main import main
from processing.data.files import VIDEO_EXTENSIONS
from processing.results.selection import select_shown
from processing.results.table import format_time
from processing.video_io import probe


SENTENCES = ["a cat", "the dog runs away."]


@pytest.fixture
def make_pipe(tiny_config, tiny_tokenizer, randomize_weights):
    """`make_pipe(retrieval_dim=0, seed=0, window_seconds=1.5)`."""

    def make(retrieval_dim=0, seed=0, window_seconds=1.5, dtype=torch.float32):
        tiny_config.retrieval_dim = retrieval_dim
        torch.manual_seed(seed)
        model = randomize_weights(ScadaForTemporalGrounding(tiny_config), std=0.05).eval().to(dtype)
        video_processor = ScadaVideoProcessor(
            num_frames=16, size={"height": 32, "width": 32}, window_seconds=window_seconds
        )
        return pipeline("temporal-grounding", model=model, processor=ScadaProcessor(video_processor, tiny_tokenizer))

    return make


@pytest.fixture
def folder(make_clip, tmp_path) -> Path:
    """Five videos of 1, 1.5, 2, 2.5 and 3 s: 1, 1, 2, 3 and 3 windows; one lies in a folder of its own."""
    (tmp_path / "videos" / "more").mkdir(parents=True)
    for index in range(5):
        name = "more/4.webm" if index == 4 else f"{index}.mp4"
        codec = {"codec": "libvpx"} if index == 4 else {}
        make_clip(f"videos/{name}", num_frames=10 + 5 * index, first_code=40 * index, **codec)
    return tmp_path / "videos"


NOTHING_ELSE = {"broken": [], "other_files": 0, "other_links": 0}
VIDEOS = ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "more/4.webm"]


def rows_of(index: Path) -> list[tuple]:
    """All that an index says, in the order of videos and windows, whatever shards it is in."""
    rows = []
    for path in index.glob("part-*.arrow"):
        table = storage.read_shard(path)
        facts = zip(*(table.column(name).to_pylist() for name in FACTS), strict=True)
        names = [name for name in table.column_names if name not in FACTS]
        tensors = [[to_tensor(table, name)[row].tolist() for name in names] for row in range(table.num_rows)]
        rows += [(*row, *values) for row, values in zip(facts, tensors, strict=True)]
    return sorted(rows)


def assert_same_rows(found: list[tuple], expected: list[tuple]) -> None:
    """Sums that are taken by another number of threads differ in their last digits."""
    assert [row[: len(FACTS)] for row in found] == [row[: len(FACTS)] for row in expected]
    for one, other in zip(found, expected, strict=True):
        for values, others in zip(one[len(FACTS) :], other[len(FACTS) :], strict=True):
            torch.testing.assert_close(torch.tensor(values), torch.tensor(others), rtol=1e-4, atol=1e-4)


def brute_force(pipe, folder: Path, sentence: str, top_k: int) -> list[dict]:
    """The pipeline on each video, ranked together."""
    found = [
        {"video": str(folder / video)} | segment
        for video in VIDEOS
        for segment in pipe(folder / video, sentence, top_k=top_k)
    ]
    return sorted(found, key=lambda segment: -segment["score"])[:top_k]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert [segment["video"] for segment in found] == [segment["video"] for segment in expected]
    for one, other in zip(found, expected, strict=True):
        for name in ("score", "start", "end"):
            assert one[name] == pytest.approx(other[name], abs=3e-5)


# Indexing


@pytest.mark.parametrize(("retrieval_dim", "dtype"), [(0, torch.float32), (8, torch.float32), (8, torch.bfloat16)])
def test_a_row_is_what_the_pipeline_encodes(make_pipe, folder, tmp_path, retrieval_dim, dtype):
    pipe = make_pipe(retrieval_dim, dtype=dtype)
    report = index_videos(folder, pipe, tmp_path / "index")
    assert report == {"videos": 5, "windows": 10, "encoded": 5, "kept": 0, "forgotten": 0, **NOTHING_ELSE}
    (path,) = (tmp_path / "index").glob("part-*.arrow")
    table = storage.read_shard(path)
    rows = datasets.Dataset.from_file(str(path))
    assert rows["video"] == table.column("video").to_pylist() and rows.num_rows == 10
    start = 0
    for video in VIDEOS:
        encoded = pipe.encode(folder / video)
        of_video = slice(start, start + len(encoded.timelines))
        start = of_video.stop
        for name, tensor in encoded.tensors.items():
            assert torch.equal(to_tensor(table, name)[of_video], tensor)
        if retrieval_dim:
            with torch.no_grad():
                embeds = pipe.model.embed_proposals(pipe.to_features(encoded.tensors), sparse_proposals(16))
            stored = to_tensor(table, "proposal_embeds")[of_video]
            assert stored.dtype == torch.float16 and stored.shape == (len(encoded.timelines), 61, 8)
            torch.testing.assert_close(stored.float(), embeds.float(), rtol=0, atol=1e-3)
        for place, (row, timeline) in enumerate(zip(range(of_video.start, start), encoded.timelines, strict=True)):
            facts = rows[row]
            stat = (folder / video).stat()
            assert (facts["video"], facts["window"]) == (video, place)
            assert (facts["size"], facts["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
            assert (facts["start_seconds"], facts["end_seconds"]) == (timeline.start_seconds, timeline.end_seconds)
            assert facts["duration"] == encoded.timelines[-1].end_seconds


def test_files_that_come_change_and_go(make_pipe, make_clip, folder, tmp_path):
    pipe, index = make_pipe(), tmp_path / "index"
    index_videos(folder, pipe, index)
    assert index_videos(folder, pipe, index)["kept"] == 5
    make_clip("videos/5.mp4", num_frames=10)
    make_clip("videos/1.mp4", num_frames=20, first_code=7)
    os.utime(folder / "2.mp4", ns=(0, 0))
    (folder / "0.mp4").unlink()
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("not looked at")
    report = index_videos(folder, pipe, index)
    (broken,) = report.pop("broken")
    assert broken["video"] == "broken.mp4" and broken["reason"].startswith("VideoReadError: ")
    assert report == {
        "videos": 5,
        "windows": 11,
        "encoded": 3,
        "kept": 2,
        "forgotten": 3,
        "other_files": 1,
        "other_links": 0,
    }
    index_videos(folder, pipe, tmp_path / "anew")
    assert rows_of(index) == rows_of(tmp_path / "anew")
    for path in folder.rglob("*.*"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"5 of the 5 videos .* are missing .*all drives are mounted.*--remove_missing"
    ):
        index_videos(folder, pipe, index)
    assert rows_of(index) == rows_of(tmp_path / "anew")
    assert index_videos(folder, pipe, index, remove_missing=True)["forgotten"] == 5
    assert rows_of(index) == [] and search(index, SENTENCES[:1], pipe) == [{"sentence": "a cat", "segments": []}]


def test_find_videos(tmp_path):
    """Each extension, and each folder once, through links as well; the rest is counted, and nothing of macOS."""
    folder, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    for path in (folder / "b" / "c", elsewhere / "far"):
        path.mkdir(parents=True)
    names = [f"b/{number}{extension}" for number, extension in enumerate(VIDEO_EXTENSIONS)] + ["b/c/UP.M2TS"]
    for name in [*names, "._0.mp4", "b/._1.mts", "notes.txt", "b/c/none"]:
        (folder / name).write_bytes(b"12")
    for path in (elsewhere / "1.vob", elsewhere / "far" / "2.mxf", elsewhere / "list.csv"):
        path.write_bytes(b"123")
    (folder / "a").symlink_to(elsewhere)
    (folder / "z.mp4").symlink_to(elsewhere / "1.vob")
    (folder / "again").symlink_to(elsewhere / "far")
    (folder / "b" / "up").symlink_to(folder)
    (elsewhere / "back").symlink_to(folder / "b")
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    Path(os.fsdecode(os.fsencode(folder) + b"/b/caf\xe9.mp4")).write_bytes(b"1")
    found = find_videos(folder)
    sizes = {name: 2 for name in names} | {"a/1.vob": 3, "a/far/2.mxf": 3, "z.mp4": 3}
    assert {name: file.size for name, file in found.videos.items()} == sizes
    assert list(found.videos) == sorted(sizes)
    assert found.broken == [{"video": "b/caf\\xe9.mp4", "reason": "its name is not UTF-8; rename it."}]
    assert (found.num_other_files, found.num_other_links, found.unlisted) == (3, 4, ["gone.mp4"])


def test_a_name_that_is_not_utf_8(make_pipe, make_clip, tmp_path):
    (tmp_path / "videos").mkdir()
    make_clip("videos/a.mp4", num_frames=10)
    shutil.copy(tmp_path / "videos" / "a.mp4", os.fsencode(tmp_path) + b"/videos/caf\xe9.mp4")
    report = index_videos(tmp_path / "videos", make_pipe(), tmp_path / "index")
    assert report["videos"] == 1 and [one["video"] for one in report["broken"]] == ["caf\\xe9.mp4"]


@pytest.mark.parametrize("how", ["not listed", "not entered", "a link that leads nowhere"])
def test_a_folder_that_cannot_be_read(make_pipe, folder, tmp_path, monkeypatch, how):
    """Its videos stay in the index, and are not forgotten without a word; the tests may run as root, who reads all."""
    pipe, index = make_pipe(), tmp_path / "index"
    (folder / "more").rename(tmp_path / "more")
    (folder / "more").symlink_to(tmp_path / "more")
    index_videos(folder, pipe, index)
    before = rows_of(index)
    with monkeypatch.context() as patch:
        if how == "not listed":
            real = os.scandir
            patch.setattr(os, "scandir", lambda path: refuse(path) if Path(path) == folder / "more" else real(path))
        elif how == "not entered":
            real = library.stat_video
            patch.setattr(library, "stat_video", lambda path: refuse(path) if "more" in str(path) else real(path))
        else:
            (tmp_path / "more").rename(tmp_path / "away")
        with pytest.raises(
            ValueError, match=r"1 of the 5 .* are missing in .*, 1 of them behind .*, for example more/4.webm\. "
        ):
            index_videos(folder, pipe, index)
        assert rows_of(index) == before
        (tmp_path / "anew").mkdir()
        report = index_videos(folder, pipe, tmp_path / "anew" / "index")
        assert report["videos"] == 4
        if how == "a link that leads nowhere":
            assert report["other_links"] == 1
        else:
            (broken,) = report["broken"]
            assert broken["video"].startswith("more") and broken["reason"].startswith("PermissionError: ")
        assert index_videos(folder, pipe, index, remove_missing=True)["forgotten"] == 1


def refuse(path):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_another_folder_with_the_same_videos(make_pipe, folder, tmp_path):
    pipe, index = make_pipe(), tmp_path / "index"
    index_videos(folder, pipe, index, model_name="old")
    moved = tmp_path / "drive" / "videos"
    shutil.copytree(folder, moved)
    (tmp_path / "link").symlink_to(moved)
    report = index_videos(tmp_path / "link", pipe, index, model_name="new")
    assert (report["kept"], report["encoded"], report["forgotten"]) == (5, 0, 0)
    facts = json.loads((index / "index.json").read_text())
    assert (facts["videos"], facts["model"]) == ("../drive/videos", "new")
    assert index_videos(moved, pipe, index)["kept"] == 5
    assert json.loads((index / "index.json").read_text()) == facts
    os.utime(folder / "2.mp4", ns=(0, 0))
    with pytest.raises(
        ValueError, match=r"where 1 of its videos .* another size or modification time, for example 2.mp4\. "
    ):
        index_videos(folder, pipe, index)
    assert json.loads((index / "index.json").read_text()) == facts


def test_an_index_through_a_link(make_pipe, folder, tmp_path, monkeypatch):
    pipe = make_pipe()
    for path in (tmp_path / "far" / "away", tmp_path / "index"):
        path.mkdir(parents=True)
    (tmp_path / "far" / "away" / "link").symlink_to(tmp_path / "index")
    index_videos(folder, pipe, tmp_path / "far" / "away" / "link")
    for path in (tmp_path / "index", tmp_path / "far" / "away" / "link"):
        opened = Library(path)
        assert sorted(opened.video_path(video) for video in set(opened.videos)) == [
            str(folder / name) for name in VIDEOS
        ]
        assert opened.missing_videos() == []
        assert index_videos(folder, pipe, path)["kept"] == 5
    monkeypatch.chdir(tmp_path)
    assert Library("index").video_path("0.mp4") == "videos/0.mp4"


def test_a_second_run_leaves_what_the_first_writes(make_pipe, folder, tmp_path, monkeypatch):
    """It starts while the first has written a shard that has no name yet. What a dead process left goes."""
    pipe, index, replace = make_pipe(), tmp_path / "index", os.replace
    second = []

    def replace_later(source, target):
        if not second:
            second.append(None)
            second.append(index_videos(folder, pipe, index))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_later)
    assert index_videos(folder, pipe, index)["encoded"] == second[1]["encoded"] == 5
    assert len(Library(index).videos) == 10
    process = subprocess.Popen(["true"])
    process.wait()
    prefix = f"part-00000-of-00001-0.arrow.{socket.gethostname()}"
    dead, alive = (index / f"{prefix}.{pid}.abcdabcd.tmp" for pid in (process.pid, os.getppid()))
    other, old = (index / f"part-00000-of-00001-0.arrow.{name}.tmp" for name in ("elsewhere.1.abcdabcd", "abcdabcd"))
    for path in (dead, alive, other, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert index_videos(folder, pipe, index)["kept"] == 5
    assert sorted(index.glob("*.tmp")) == sorted([alive, other])


@pytest.mark.parametrize("cut", ["empty", "half", "schema alone", "without its end", "noise"])
def test_a_damaged_shard_is_named(make_pipe, make_clip, tmp_path, cut):
    pipe, index = make_pipe(), tmp_path / "index"
    (tmp_path / "videos").mkdir()
    make_clip("videos/a.mp4", num_frames=20)
    index_videos(tmp_path / "videos", pipe, index)
    (path,) = index.glob("part-*.arrow")
    content = path.read_bytes()
    schema = pa.ipc.open_stream(content).schema.serialize().to_pybytes()
    assert content.startswith(schema)
    damaged = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "schema alone": schema,
        "without its end": content[:-8],
        "noise": bytes(range(256)) * 20 + content[-8:],
    }
    path.write_bytes(damaged[cut])
    for call in (lambda: Library(index), lambda: index_videos(tmp_path / "videos", pipe, index)):
        with pytest.raises(
            ValueError, match=f"{re.escape(str(path))} is damaged .*copy it again, or delete it and run"
        ):
            call()


@pytest.mark.parametrize("text", ["", '{"format": "scada-lib', "[]", '{"format": "scada-library-1", "videos": "v"}'])
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}/index.json is damaged.*copy it again, or run"):
        Library(tmp_path)


def test_interrupted(make_pipe, folder, tmp_path, scada, monkeypatch):
    """What was encoded is written, and said in one line."""
    pipe, index = make_pipe(), tmp_path / "index"
    encode = pipe.encode
    monkeypatch.setattr(loading, "load_pipeline", lambda model, **kwargs: pipe)

    def interrupt(video, **settings):
        if str(video).endswith("3.mp4"):
            raise KeyboardInterrupt
        return encode(video, **settings)

    monkeypatch.setattr(pipe, "encode", interrupt)
    code, out, err = scada("index", folder, "--model", "m", "--output", index)
    assert (code, out) == (130, "") and "Traceback" not in err
    assert err.splitlines()[-1] == (
        f"scada index: interrupted. Encoded videos are in {index}; run the same command again to resume."
    )
    assert sorted({row[0] for row in rows_of(index)}) == VIDEOS[:3]


def test_a_file_that_changes_while_it_is_read(make_pipe, folder, tmp_path, monkeypatch):
    pipe = make_pipe()
    encode = pipe.encode

    def write_and_encode(video, **settings):
        if str(video).endswith("2.mp4"):
            os.utime(video, ns=(1, 1))
        return encode(video, **settings)

    monkeypatch.setattr(pipe, "encode", write_and_encode)
    report = index_videos(folder, pipe, tmp_path / "index")
    assert [video["video"] for video in report["broken"]] == ["2.mp4"] and report["videos"] == 4
    assert index_videos(folder, pipe, tmp_path / "index")["encoded"] == 1


def test_another_model_settings_folder_or_number_of_parts(make_pipe, folder, tmp_path):
    pipe, index = make_pipe(), tmp_path / "index"
    index_videos(folder, pipe, index)
    before = rows_of(index)
    (tmp_path / "others").mkdir()
    for other, videos, shard, message in (
        (make_pipe(seed=1), folder, None, "encoded with the weights .*use the original model"),
        (
            make_pipe(window_seconds=2.0),
            folder,
            None,
            "with window_seconds=1.5, but .*settings are window_seconds=2.0",
        ),
        (pipe, tmp_path / "others", None, "made with videos=../videos; received videos=../others"),
        (pipe, folder, (0, 2), "made with num_parts=1; received num_parts=2"),
        (pipe, folder, (2, 2), "shard 2/2; expected 0/2 to 1/2"),
    ):
        with pytest.raises(ValueError, match=message):
            index_videos(videos, other, index, shard)
    with pytest.raises(ValueError, match=f"the index {re.escape(str(index))}, which was encoded with the weights"):
        search(index, SENTENCES, make_pipe(seed=1))
    with pytest.raises(FileNotFoundError, match="no folder of videos"):
        index_videos(tmp_path / "nowhere", pipe, index)
    with pytest.raises(FileNotFoundError, match="There is no index"):
        search(tmp_path / "nowhere", SENTENCES, pipe)
    assert rows_of(index) == before


def test_a_training_between_two_runs(make_pipe, folder, tmp_path):
    """The index never holds encodings of two states of a model."""
    pipe, index = make_pipe(), tmp_path / "index"
    index_videos(folder, pipe, index)
    before = rows_of(index)
    weight = next(iter(pipe.model.parameters()))
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], fused=True).step()
    os.utime(folder / "2.mp4", ns=(0, 0))
    with pytest.raises(ValueError, match="which was encoded with the weights"):
        index_videos(folder, pipe, index)
    with pytest.raises(ValueError, match="which was encoded with the weights"):
        search(index, SENTENCES, pipe)
    assert rows_of(index) == before


def test_what_is_wrong_with_the_model_is_not_taken_for_broken_videos(make_pipe, folder, tmp_path):
    pipe = make_pipe()
    pipe.processor.video_processor.num_frames = 20  # no multiple of the 16 of a clip
    with pytest.raises(ValueError, match="20 frames"):
        index_videos(folder, pipe, tmp_path / "index")


def test_parts_by_several_processes(make_pipe, folder, tmp_path):
    """Each writes its own shards; all that there are, and again in one process, are the same rows."""
    pipe = make_pipe()
    index_videos(folder, pipe, tmp_path / "whole")
    reports = [index_videos(folder, pipe, tmp_path / "parts", (part, 3)) for part in (2, 0, 1)]
    assert sum(report["videos"] for report in reports) == 5
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    (folder / "3.mp4").unlink()
    report = index_videos(folder, pipe, tmp_path / "parts")
    assert (report["kept"], report["forgotten"], report["encoded"]) == (4, 1, 0)


@pytest.mark.slow
def test_two_processes_of_a_launcher(make_pipe, make_clip, folder, tmp_path, monkeypatch):
    """They share the videos, and the index is one, as one process makes it; so it is when files have changed."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    pipe, index = make_pipe(retrieval_dim=8), tmp_path / "index"
    pipe.save_pretrained(tmp_path / "model")
    (folder / "broken.mp4").write_bytes(b"no video")

    def launch(model):
        return run_in_two_processes(
            "-m", "processing.commands", "index", folder, "--model", tmp_path / model, "--output", index
        )

    def said(process):
        assert process.returncode == 0, process.stderr
        return sorted(re.findall(r"process (\d) of 2: (\d+) videos, .* Encoded (\d) .* kept (\d) ", process.stdout))

    first = launch("model")
    assert said(first) == [("1", "2", "2", "0"), ("2", "3", "3", "0")]
    assert first.stderr.count("Skipped broken.mp4: ") == 1
    index_videos(folder, pipe, tmp_path / "whole")
    assert rows_of(index) == rows_of(tmp_path / "whole")
    (folder / "0.mp4").unlink()
    make_clip("videos/1.mp4", num_frames=20, first_code=7)
    assert said(launch("model")) == [("1", "4", "1", "3"), ("2", "0", "0", "0")]
    index_videos(folder, pipe, tmp_path / "whole")
    assert rows_of(index) == rows_of(tmp_path / "whole")
    make_pipe(retrieval_dim=8, seed=1).save_pretrained(tmp_path / "other")
    refused = launch("other")
    assert refused.returncode != 0 and rows_of(index) == rows_of(tmp_path / "whole")
    assert refused.stderr.count("scada index: Received the index") == 2


def test_the_same_video_twice_counts_once(make_pipe, folder, tmp_path):
    """As of two processes that did the same part at once."""
    pipe, index = make_pipe(), tmp_path / "index"
    index_videos(folder, pipe, index)
    before = rows_of(index)
    (path,) = index.glob("part-*.arrow")
    shutil.copy(path, index / path.name.replace("-of-00001-", "-of-00001-0"))
    assert len(Library(index).videos) == 10
    assert index_videos(folder, pipe, index)["kept"] == 5
    assert rows_of(index) == before


# Killed at the n-th call of what writes to the disk.
KILLED = """
import os, signal, sys
from transformers import pipeline
import modeling_scada
from modeling_scada.library import index as library, on_ray as library_on_ray
library.SHARD_BYTES = 1
pipe = pipeline("temporal-grounding", model=sys.argv[1])
left, name = int(sys.argv[4]), sys.argv[5]
real = getattr(os, name)
def stop(*arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(os, name, stop)
library.index_videos(sys.argv[2], pipe, sys.argv[3])
"""


@pytest.mark.parametrize(
    ("calls", "name"),
    [
        pytest.param(1, "fsync", marks=pytest.mark.slow),
        (1, "link"),
        pytest.param(2, "fsync", marks=pytest.mark.slow),
        (3, "replace"),
        pytest.param(6, "fsync", marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle(make_pipe, folder, tmp_path, calls, name):
    """Before a file is on the disk, before it has its name, and after; a run later, the rows are those of one run."""
    pipe = make_pipe(retrieval_dim=8)
    pipe.save_pretrained(tmp_path / "model")
    arguments = (tmp_path / "model", folder, tmp_path / "index", calls, name)
    run_code(KILLED, *arguments, cwd=tmp_path, status=-signal.SIGKILL)
    there = {row[0] for row in rows_of(tmp_path / "index")}
    assert there < set(VIDEOS)
    (folder / "0.mp4").unlink()  # what is gone goes, too
    report = index_videos(folder, pipe, tmp_path / "index")
    assert report["kept"] == len(there - {"0.mp4"}) and report["videos"] == 4
    assert not list((tmp_path / "index").glob("part-*.tmp"))
    index_videos(folder, pipe, tmp_path / "anew")
    assert rows_of(tmp_path / "index") == rows_of(tmp_path / "anew")


# On Ray. A video's name says what becomes of the worker that reads it.
ON_RAY = """
import json, os, signal, sys, threading, time
from pathlib import Path
import ray
from transformers import pipeline
import modeling_scada
from modeling_scada.library.on_ray import index_videos_on_ray
from processing.pipeline_temporal_grounding import TemporalGroundingPipeline

model, folder, index, started, retried = map(Path, sys.argv[1:])

class Watched(TemporalGroundingPipeline):
    def encode(self, video, **settings):
        if str(video).endswith("2.mp4"):
            if started.exists():
                retried.touch()
            else:
                started.with_suffix(".new").write_text(str(os.getpid()))
                started.with_suffix(".new").rename(started)
                time.sleep(600)
        if str(video).endswith("deadly.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        if str(video).endswith("bug.mp4"):
            raise RuntimeError("a bug")
        return super().encode(video, **settings)

def kill():
    while not started.exists():
        time.sleep(0.05)
    os.kill(int(started.read_text()), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
pipe = pipeline("temporal-grounding", model=str(model), device=-1)
pipe.__class__ = Watched
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
print("report", json.dumps(index_videos_on_ray(folder, pipe, index, num_workers=2)))
(folder / "deadly.mp4").rename(folder / "bug.mp4")
try:
    index_videos_on_ray(folder, pipe, index, num_workers=2)
except Exception as error:
    print("stopped", str(error).splitlines())
"""


@pytest.mark.slow
def test_a_worker_of_ray_is_killed(make_pipe, folder, tmp_path):
    """
    Its video is given to another, and the rows are those of one process. A video that kills each is left out; what
    else fails ends the run, as in one process.
    """
    pytest.importorskip("ray")
    pipe, index = make_pipe(retrieval_dim=8), tmp_path / "index"
    pipe.save_pretrained(tmp_path / "model")
    (folder / "broken.mp4").write_bytes(b"no video")
    index_videos(folder, pipe, tmp_path / "whole")
    shutil.copy(folder / "0.mp4", folder / "deadly.mp4")
    started, retried = tmp_path / "started", tmp_path / "retried"
    arguments = (tmp_path / "model", folder, index, started, retried)
    output = run_code(ON_RAY, *arguments, cwd=tmp_path, PYTHONPATH=os.pathsep.join(sys.path))
    assert retried.exists(), output
    (said,) = re.findall("^report (.*)$", output, flags=re.MULTILINE)
    report = json.loads(said)
    reasons = {video["video"]: video["reason"] for video in report.pop("broken")}
    others = {"other_files": 0, "other_links": 0}
    assert report == {"videos": 5, "windows": 10, "encoded": 5, "kept": 0, "forgotten": 0} | others, output
    assert sorted(reasons) == ["broken.mp4", "deadly.mp4"]
    assert reasons["broken.mp4"].startswith("VideoReadError: ")
    assert reasons["deadly.mp4"].startswith("its worker died in all 3 attempts; ")
    assert re.search("^stopped .*'RuntimeError: a bug'", output, flags=re.MULTILINE)
    assert_same_rows(rows_of(index), rows_of(tmp_path / "whole"))


# Search


@pytest.mark.parametrize("retrieval_dim", [0, 8])
def test_search_is_brute_force(make_pipe, folder, tmp_path, retrieval_dim, monkeypatch):
    """Without a retrieval branch, or where it leaves nothing out; the batches of windows split videos."""
    for module in ("index", "search"):
        monkeypatch.setattr(f"modeling_scada.library.{module}.HEAD_BATCH_SIZE", 4)
    pipe, index = make_pipe(retrieval_dim), tmp_path / "index"
    index_videos(folder, pipe, index)
    for top_k in (3, 12):
        results = search(index, SENTENCES, pipe, top_k=top_k, num_candidates=10)
        assert [result["sentence"] for result in results] == SENTENCES
        for sentence, result in zip(SENTENCES, results, strict=True):
            expected = brute_force(pipe, folder, sentence, top_k)
            assert len({segment["video"] for segment in expected}) > 1
            assert_same(result["segments"], expected)


def test_a_text_is_one_sentence(make_pipe, folder, tmp_path):
    """Not its letters; in a search and in one video."""
    pipe = make_pipe()
    index_videos(folder, pipe, tmp_path / "index")
    (result,) = search(tmp_path / "index", SENTENCES[0], pipe)
    assert result == search(tmp_path / "index", [SENTENCES[0]], pipe)[0] and result["sentence"] == SENTENCES[0]
    video = str(next(path for path in folder.iterdir() if path.suffix == ".mp4"))
    assert find_segments(pipe, video, SENTENCES[0], 2) == find_segments(pipe, video, [SENTENCES[0]], 2)
    for wrong, reason in (
        ([], "no sentence"),
        (["a cat", 3], "sentence 3; expected a text at position 1"),
        (7, "type int"),
    ):
        with pytest.raises(ValueError, match=reason):
            search(tmp_path / "index", wrong, pipe)
        with pytest.raises(ValueError, match=reason):
            find_segments(pipe, video, wrong, 2)


def test_search_says_what_was_found(make_pipe, folder, tmp_path):
    pipe = make_pipe()
    index_videos(folder, pipe, tmp_path / "index")
    (plain,) = search(tmp_path / "index", SENTENCES[:1], pipe, top_k=4)
    scores = [segment["score"] for segment in plain["segments"]]
    pipe.processor.found_threshold = scores[1]
    (result,) = search(tmp_path / "index", SENTENCES[:1], pipe, top_k=4)
    assert (
        result["segments"] == [segment | {"found": segment["score"] >= scores[1]} for segment in plain["segments"]]
        and scores[1] > scores[3]
    )


def test_candidates_are_those_of_the_retrieval_branch(make_pipe, folder, tmp_path, monkeypatch):
    """The first stage against a loop over windows; the second sees its best, and no others."""
    monkeypatch.setattr(search_module, "SIMILARITY_BATCH_SIZE", 3)
    monkeypatch.setattr(library, "SHARD_BYTES", 1)
    pipe, index = make_pipe(8), tmp_path / "index"
    index_videos(folder, pipe, index)
    with torch.no_grad():
        tokens = pipe.processor.encode_text([SENTENCES[:1]])
        embed = pipe.model.embed_sentences(
            *(torch.from_numpy(tokens[name][0]) for name in ("input_ids", "attention_mask"))
        )
        products = {}
        for video in VIDEOS:
            encoded = pipe.encode(folder / video)
            embeds = pipe.model.embed_proposals(pipe.to_features(encoded.tensors), sparse_proposals(16))
            products |= {(video, window): float((one @ embed[0]).max()) for window, one in enumerate(embeds)}
    opened = Library(index)
    assert len(opened.tables) == 5
    actual = opened.window_similarities(embed)
    assert actual[0].tolist() == pytest.approx([products[key] for key in sorted(products)], abs=2e-3)
    asked = []
    ask_windows = pipe.ground_encoded
    monkeypatch.setattr(
        pipe, "ground_encoded", lambda tensors, sentences: asked.append(tensors) or ask_windows(tensors, sentences)
    )
    (result,) = search(opened, SENTENCES[:1], pipe, num_candidates=2)
    assert [len(tensors["snippet_features"]) for tensors in asked] == [2]
    best = sorted(products, key=lambda key: -products[key])[:2]
    assert {segment["video"] for segment in result["segments"]} == {str(folder / video) for video, _ in best}


def test_sparse_proposals():
    """Some of all, among them each step and the whole; every target of three steps is half covered."""
    for grid_size in (2, 3, 16, 100, 128):
        sparse = {tuple(edges) for edges in sparse_proposals(grid_size).tolist()}
        assert len(sparse) == len(sparse_proposals(grid_size))
        assert sparse <= {tuple(edges) for edges in all_proposals(grid_size).tolist()}
        assert (0, grid_size) in sparse and {(step, step + 1) for step in range(grid_size)} <= sparse
        for start, end in all_proposals(grid_size).tolist():
            covered = [
                max(0, min(end, other_end) - max(start, other_start)) / (max(end, other_end) - min(start, other_start))
                for other_start, other_end in sparse
            ]
            assert max(covered) > 0.5 if grid_size < 100 else True
    assert len(sparse_proposals(128)) == 576


# On the command line


@pytest.fixture
def scada(capsys):
    """`scada(*arguments) -> (exit code, stdout, stderr)`."""

    def run(*arguments):
        capsys.readouterr()
        return (main([str(argument) for argument in arguments]), *capsys.readouterr())

    return run


def test_on_the_command_line(make_pipe, folder, tmp_path, scada):
    pipe, index = make_pipe(), tmp_path / "index"
    pipe.save_pretrained(tmp_path / "model")
    (folder / "broken.mp4").write_bytes(b"no video")
    code, out, err = scada("index", folder, "--model", tmp_path / "model", "--output", index)
    assert code == 0 and out == (
        f"{index}: 5 videos, 10 windows. Encoded 5 videos, kept 0 unchanged, removed 0 changed or missing, "
        "skipped 1 unreadable.\n"
    )
    assert "Skipped broken.mp4: VideoReadError: " in err and "6/6" in err
    code, out, err = scada("search", index, *SENTENCES, "--top_k", 3, "--json")
    record = json.loads(out)
    assert code == 0 and record["results"] == search(index, SENTENCES, pipe, top_k=3)
    (tmp_path / "found.json").write_text(out)
    code, out, _ = scada("search", index, *SENTENCES, "--top_k", 3, "--cut", tmp_path / "clips")
    head, *lines = out.splitlines()
    assert head.split() == ["sentence", "rank", "start", "end", "score", "video"] and len(lines) == 6
    for number, line in enumerate(lines):
        segment = record["results"][number // 3]["segments"][number % 3]
        times = [*(format_time(segment[name], False) for name in ("start", "end")), f"{segment['score']:.3f}"]
        assert line.split()[-5:] == [str(number % 3 + 1), *times, segment["video"]]
    clips = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert scada("cut", tmp_path / "found.json", tmp_path / "again", "--top_k", 3)[0] == 0
    assert len(clips) == 6 and sorted(path.name for path in (tmp_path / "again").iterdir()) == clips
    # Each clip has the name, the container, and the rank of its video.
    names = {
        (f"{Path(segment['video']).stem}_{number:02}", f"_rank{rank}{Path(segment['video']).suffix}")
        for number, result in enumerate(record["results"], start=1)
        for rank, segment in enumerate(result["segments"], start=1)
    }
    assert {(re.match(r"[^_]*_\d\d", name)[0], re.search(r"_rank.*", name)[0]) for name in clips} == names


def test_page_of_several_videos(make_pipe, folder, tmp_path, scada):
    """The page has the record, and a relative link to each video with its length; no sentence ends the script."""
    (folder / "3.mp4").rename(folder / "100% <b>.mp4")
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "model")
    index_videos(folder, pipe, tmp_path / "index", model_name=str(tmp_path / "model"))
    path, sentence = tmp_path / "pages" / "found.html", "a cat</script><script>alert(1)</script>"
    code, out, err = scada("search", tmp_path / "index", sentence, "--top_k", 1000, "--json", "--html", path)
    assert code == 0 and f"Wrote {path}" in err
    text = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(data)
    sources = data.pop("sources")
    assert data == select_shown(json.loads(out)) and text.count("<script") == 2
    found = {segment["video"] for segment in data["results"][0]["segments"]}
    assert set(sources) == found == {str(path) for path in folder.rglob("*.*")}
    for video, source in sources.items():
        assert (path.parent / unquote(source["source"])).resolve() == Path(video)
        assert not source["source"].startswith("/") and source["name"] == Path(video).relative_to(folder).as_posix()
        assert source["duration"] == probe(video).duration_seconds and source["start_seconds"] == 0
    assert sources[str(folder / "100% <b>.mp4")]["source"] == "../videos/100%25%20%3Cb%3E.mp4"
    code, _, err = scada("search", tmp_path / "index", "a cat", "--html", tmp_path)
    assert code == 1 and "is a folder; expected a file name" in err


def test_missing_videos_are_said_and_the_rest_is_done(make_pipe, folder, tmp_path, scada, monkeypatch):
    """On the page, by both commands that cut, and before the search; another folder of the videos is taken."""
    pipe, index = make_pipe(), tmp_path / "index"
    index_videos(folder, pipe, index, model_name="m")
    loaded = []
    monkeypatch.setattr(loading, "load_pipeline", lambda model, **kwargs: loaded.append(model) or pipe)
    shutil.copytree(folder, tmp_path / "copy")
    ask = ("search", index, "a cat", "--top_k", 12, "--json")
    code, out, err = scada(*ask)
    assert code == 0 and "missing" not in err
    (tmp_path / "found.json").write_text(out)
    segments = json.loads(out)["results"][0]["segments"]
    gone = segments[0]["video"]
    shown = select_shown(json.loads(out))["results"][0]["segments"]
    kept = [segment for segment in shown if segment["video"] != gone]
    assert 0 < len(kept) < len(segments)
    os.unlink(gone)
    page = tmp_path / "found.html"
    code, out, err = scada(*ask, "--html", page, "--cut", tmp_path / "clips")
    assert code == 0 and json.loads(out)["results"][0]["segments"] == segments
    said = f"1 of the 5 videos in {index} are missing, such as {gone}; pass their folder with --video_root.\n"
    assert err.startswith(said) and f"Cannot play {gone}: " in err and f"Skipped {gone}: " in err
    (data,) = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    sources = json.loads(data)["sources"]
    assert [video for video, source in sources.items() if source["name"].endswith(" (missing)")] == [gone]
    assert sources[gone]["duration"] == max(segment["end"] for segment in segments if segment["video"] == gone)
    assert scada("cut", tmp_path / "found.json", tmp_path / "again", "--top_k", 12)[0] == 0
    for clips in (tmp_path / "clips", tmp_path / "again"):
        assert len(list(clips.iterdir())) == len(kept)
    shutil.rmtree(folder)
    code, out, err = scada("cut", tmp_path / "found.json", tmp_path / "nothing")
    assert code == 1 and err.endswith("because cutting failed for every video.\n")
    code, out, err = scada(*ask, "--video_root", tmp_path / "copy")
    assert code == 0 and "missing" not in err
    moved = [
        {**segment, "video": segment["video"].replace(str(folder), str(tmp_path / "copy"))} for segment in segments
    ]
    assert json.loads(out)["results"][0]["segments"] == moved
    code, out, err = scada(*ask, "--video_root", tmp_path / "nowhere")
    assert code == 1 and "There is no folder of videos at" in err
    facts = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(facts | {"model": str(tmp_path / "no_model")}))
    code, out, err = scada(*ask)
    assert code == 1 and "There is no model at" in err and "pass it with --model" in err


@pytest.mark.parametrize("by", ["size", "time"])
def test_videos_that_changed_since_they_were_indexed_are_said(
    make_pipe, make_clip, folder, tmp_path, scada, monkeypatch, by
):
    """Until the index is brought up to date; of a copy elsewhere, sizes alone are compared."""
    pipe, index, video = make_pipe(), tmp_path / "index", folder / "1.mp4"
    index_videos(folder, pipe, index, model_name="m")
    monkeypatch.setattr(loading, "load_pipeline", lambda model, **kwargs: pipe)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    os.unlink(folder / "2.mp4")
    ask = ("search", index, "a cat", "--json")
    assert "changed in size" not in scada(*ask)[2]
    facts = video.stat()
    if by == "size":
        make_clip("videos/1.mp4", num_frames=40)
        os.utime(video, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    else:
        os.utime(video, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert Library(index).changed_videos() == [str(video)]
    code, out, err = scada(*ask)
    assert code == 0 and json.loads(out)["results"]
    assert (
        f"1 of the 5 videos in {index} have changed in size or modification time since indexing, such as {video}. "
        "Their segments may be wrong; run `scada index` again.\n"
    ) in err
    assert "changed in size" not in scada(*ask, "--video_root", tmp_path / "copy")[2]
    shutil.copyfile(video, tmp_path / "copy" / "1.mp4")
    assert ("changed in size" in scada(*ask, "--video_root", tmp_path / "copy")[2]) == (by == "size")
    index_videos(folder, pipe, index)
    assert "changed in size" not in scada(*ask)[2]


def test_on_the_command_line_what_is_passed_over(make_pipe, folder, tmp_path, scada, monkeypatch):
    pipe, index = make_pipe(), tmp_path / "index"
    monkeypatch.setattr(loading, "load_pipeline", lambda model, **kwargs: pipe)
    (folder / "notes.txt").write_text("a")
    (folder / "again").symlink_to(folder / "more")
    code, out, err = scada("index", folder, "--model", "m", "--output", index)
    assert code == 0 and err.endswith("Ignored 1 file without a video extension, and 1 broken or duplicate link.\n")
    for path in folder.iterdir():
        path.rename(tmp_path / path.name)
    code, out, err = scada("index", folder, "--model", "m", "--output", index)
    assert code == 1 and "5 of the 5 videos" in err and len(list(index.glob("*.arrow"))) == 1
    code, out, err = scada("index", folder, "--model", "m", "--output", index, "--remove_missing")
    assert code == 0 and "removed 5" in out


def test_wrong_calls(make_pipe, folder, tmp_path, scada, monkeypatch):
    code, out, err = scada("index", tmp_path / "nowhere", "--model", "m", "--output", tmp_path / "index")
    assert (code, out) == (1, "") and err.startswith("scada index: There is no folder of videos at")
    code, out, err = scada("search", tmp_path / "nowhere", "it")
    assert (code, out) == (1, "") and err.startswith("scada search: There is no index at")
    for shard in ("4/4", "1", "a/b"):
        with pytest.raises(SystemExit):
            scada("index", folder, "--model", "m", "--output", tmp_path / "index", "--shard", shard)
    code, out, err = scada("index", folder, "--model", "m", "--output", tmp_path / "index", "--num_workers", 2)
    assert (code, out, err) == (1, "", "scada index: Received --num_workers without --ray; also pass --ray.\n")
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = scada("index", folder, "--model", "m", "--output", tmp_path / "index", "--ray")
    assert (code, out) == (1, "") and err.endswith("which is not installed; run `pip install 'ray[data]'`.\n")


def test_calls_on_ray_that_cannot_be_meant(make_pipe, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(library_on_ray, "import_ray", lambda: None)
    with pytest.raises(ValueError, match="num_workers=0; expected a positive number"):
        library_on_ray.index_videos_on_ray(folder, make_pipe(), tmp_path / "index", num_workers=0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="a call from 4 processes; start one process, because Ray starts"):
        library_on_ray.index_videos_on_ray(folder, make_pipe(), tmp_path / "index")
