"""A stream of images: finished files only, each once, and nothing lost when the command is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from oracles import LIMIT, until

from padim import PadimError
from padim.calibration import Thresholds
from padim.deploy.stream import Record, Stamp, Watch, follow
from padim.errors import ImageError
from padim.pipeline.predict import Prediction


@pytest.fixture(scope="module")
def model(data_root, weights_file, tmp_path_factory):
    from padim.cli.train import main

    output = tmp_path_factory.mktemp("models")
    protocol = ["--resize", 64, "--crop", 64, "--channels", 20, "--weights", weights_file]
    assert main([*map(str, ["--category", "texture", "--data", data_root, "--output", output, *protocol])]) == 0
    return output / "texture/model.safetensors"


@contextmanager
def watching(model, folder, *options):
    """The command in a process of its own, and the lines that it has printed so far."""
    output = folder.parent / f"{time.monotonic_ns()}.txt"
    command = [sys.executable, "-m", "padim.cli.predict", "--model", model, "--watch", folder, "--settle", "0.2"]
    with output.open("wb") as stdout:
        process = subprocess.Popen([*map(str, [*command, *options])], stdout=stdout, stderr=subprocess.PIPE)
    try:
        yield process, lambda: [json.loads(line) for line in output.read_text().splitlines()]
    finally:
        process.kill()
        process.communicate()


def stopped(process, number):
    process.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT)
    return process.returncode, errors.decode()


@pytest.mark.slow
def test_files_are_scored_as_they_appear_and_not_again(model, data_root, tmp_path):
    folder, images = tmp_path / "in", sorted((data_root / "texture/test").rglob("*.png"))
    folder.mkdir()
    shutil.copy(images[0], folder / "first.png")
    with watching(model, folder, "--out", tmp_path / "out") as (process, lines):
        until(lambda: len(lines()) == 1, process)
        (folder / "broken.png").write_bytes(b"not an image")
        (folder / "below").mkdir()
        shutil.copy(images[1], folder / "below/second.png")
        until(lambda: len(lines()) == 3, process)
        assert stopped(process, signal.SIGTERM)[0] == 0
    first, *others = lines()
    assert (first["path"], first["verdict"] in ("normal", "anomalous")) == (str(folder / "first.png"), True)
    assert (tmp_path / "out/first.png_heatmap.png").is_file()
    (broken,) = (line for line in others if line["path"].endswith("broken.png"))
    assert (broken["verdict"], "can't read the image" in broken["error"]) == (None, True)
    record = tmp_path / "out/watched.jsonl"
    assert [json.loads(line) for line in record.read_text().splitlines()] == lines()

    shutil.copy(images[2], folder / "third.png")
    shutil.copy(images[3], folder / "broken.png")  # now it can be read
    with watching(model, folder, "--out", tmp_path / "out") as (process, lines):
        until(lambda: len(lines()) == 2, process)
        code, errors = stopped(process, signal.SIGINT)
        assert (code, errors) == (
            0,
            f"watching {folder} until Ctrl-C or SIGTERM\n3 images are in {record} and not scored again\n",
        )
    assert {line["path"] for line in lines()} == {str(folder / "third.png"), str(folder / "broken.png")}


@pytest.mark.slow
def test_a_file_that_is_being_written_waits(model, data_root, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    content = (data_root / "texture/test/good/000.png").read_bytes()
    with watching(model, folder) as (process, lines):
        with (folder / "slow.png").open("wb", buffering=0) as file:
            for start in range(0, len(content), len(content) // 20):
                file.write(content[start : start + len(content) // 20])
                time.sleep(0.05)
        (line,) = until(lines, process)
        stopped(process, signal.SIGTERM)
    assert "error" not in line


@pytest.mark.slow
def test_a_killed_run_loses_nothing(model, data_root, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    image = data_root / "texture/test/good/000.png"
    for number in range(40):
        shutil.copy(image, folder / f"{number}.png")
    with watching(model, folder) as (process, first):
        until(first, process)
        process.kill()
        process.wait()
    record = folder / "watched.jsonl"
    with record.open("a") as file:
        file.write('{"path": "cut o')  # as a full disk leaves it
    with watching(model, folder) as (process, second):
        until(lambda: len({line["path"] for line in first() + second()}) == 40, process)
        stopped(process, signal.SIGTERM)
    assert len(first()) + len(second()) <= 41  # the one line that was printed and not yet recorded
    with watching(model, folder) as (process, third):
        shutil.copy(image, folder / "last.png")
        until(third, process)
        assert stopped(process, signal.SIGTERM)[0] == 0
    assert [line["path"] for line in third()] == [str(folder / "last.png")]


def test_unchanged_means_size_and_date(tmp_path):
    with Record(tmp_path / "record.jsonl") as record:
        watch = Watch(tmp_path, settle=0.0)
        image = tmp_path / "a.png"
        image.write_bytes(b"1234")
        stamps = watch.finished(record)
        assert stamps == {image: Stamp(4, image.stat().st_mtime_ns)}
        record.add({"name": watch.name(image)} | stamps[image]._asdict())
        assert watch.finished(record) == {}
        os.utime(image, ns=(0, 1))
        assert watch.finished(record) == {image: Stamp(4, 1)}
    with pytest.raises(PadimError, match="is where the results go"):
        Watch(tmp_path, 0.0, tmp_path)
    with pytest.raises(PadimError, match="there is no folder"):
        Watch(tmp_path / "nowhere", 0.0)


@pytest.mark.parametrize("text", [b"{}\n", b'{"na', b'{"name": [], "bytes": 1, "modified_ns": 2}\n[]\n\xff\n'])
def test_foreign_lines_in_a_record_are_passed_over(tmp_path, text):
    path = tmp_path / "record.jsonl"
    path.write_bytes(text)
    with Record(path) as record:
        record.add({"name": "a", "bytes": 1, "modified_ns": 2})
    with Record(path) as record:
        assert ("a", Stamp(1, 2)) in record
        assert len(record) == 1
    assert path.read_bytes().startswith(text)


def test_what_is_no_record_is_left_alone(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08")
    with pytest.raises(PadimError, match="is no record of images: choose another file with --record"):
        Record(path)
    assert path.read_bytes() == b"\x08\x08"
    with pytest.raises(PadimError, match=r"can't use the record .*: Is a directory; choose another"):
        Record(tmp_path)


def test_a_line_of_any_length_is_kept(tmp_path):
    line = {"name": "a", "bytes": 1, "modified_ns": 2}
    with Record(tmp_path / "record.jsonl") as record:
        record.add(line | {"regions": [[0] * 10**6]})
    with Record(tmp_path / "record.jsonl") as record:
        assert ("a", Stamp(1, 2)) in record


def test_a_record_that_was_deleted_is_written_again(tmp_path):
    path = tmp_path / "record.jsonl"
    with Record(path) as record:
        record.add({"name": "a", "bytes": 1, "modified_ns": 2})
        path.unlink()
        record.add({"name": "b", "bytes": 1, "modified_ns": 2})
    assert json.loads(path.read_text())["name"] == "b"


def test_what_the_machine_is_to_blame_for_is_tried_again(model, data_root, tmp_path, monkeypatch, capsys):
    """The first image meets a disk error, another has a name too long for a picture's, one is a pipe."""
    from padim.cli.predict import main
    from padim.data import images
    from padim.deploy.stream import Watch as Real

    folder, source = tmp_path / "in", data_root / "texture/test/good/000.png"
    folder.mkdir()
    long = "n" * 246 + ".png"
    for name in ("first.png", long):
        shutil.copy(source, folder / name)
    os.mkfifo(folder / "pipe.png")
    reads = []

    def once_broken(path, *arguments, open=images.Image.open, **options):
        reads.append(path.name)
        if reads.count("first.png") == 1 and path.name == "first.png":
            raise OSError(5, "Input/output error")
        return open(path, *arguments, **options)

    class UntilDone(Real):
        def finished(self, record):
            if len(record) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().finished(record)

    monkeypatch.setattr(images.Image, "open", once_broken)
    monkeypatch.setattr("padim.data.loader._PAUSES", ())  # or it would have passed at once
    monkeypatch.setattr("padim.deploy.stream.Watch", UntilDone)
    command = ["--model", model, "--watch", folder, "--settle", 0, "--out", tmp_path / "out", "--workers", 1]
    assert main([*map(str, command)]) == 0
    out, err = capsys.readouterr()
    lines = {line["name"]: line for line in map(json.loads, out.splitlines())}
    assert lines.keys() == {"first.png", long, "pipe.png"}
    assert "heatmap" in lines["first.png"]
    assert lines[long]["verdict"] in ("normal", "anomalous")
    assert "File name too long" in lines[long]["error"]
    assert "is not a regular file" in lines["pipe.png"]["error"]
    assert "will be tried again" in err
    assert "pipe.png is not a regular file" in err
    assert err.count("first.png") == 1
    record = map(json.loads, (tmp_path / "out/watched.jsonl").read_text().splitlines())
    assert {line["name"] for line in record} == {"first.png", "pipe.png"}  # the other one has another go


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "pass images and folders, or --watch DIR"),
        (["photos", "--watch", "photos"], "pass images and folders, or --watch DIR"),
        (["photos", "--panel"], "--panel, --mask, --raw and --range are for pictures: say where with --out DIR"),
        (["--watch", "nowhere"], "there is no folder nowhere"),
        (["--watch", ".", "--strict"], "--strict stops at the first unreadable image, which --watch is not to do"),
        (["photos", "--settle", "1"], "--record and --settle are for --watch DIR"),
    ],
)
def test_wrong_options(run, model, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    result = run("predict", "--model", model, *options)
    assert (result.code, result.err) == (2, f"ERROR: {message}\n")


def test_a_folder_that_was_away_for_long_is_looked_at_soon(tmp_path, monkeypatch):
    """The clock goes by what is waited for: an hour until the folder is there again."""
    folder, stop, pauses = tmp_path / "in", threading.Event(), []
    folder.mkdir()
    watch = Watch(folder, settle=1.0)
    folder.rmdir()
    clock = [0.0]

    def wait(seconds):
        if not folder.is_dir():
            clock[0] += 3600
            folder.mkdir()
        else:
            pauses.append(seconds)
            stop.set()

    stop.wait = wait
    monkeypatch.setattr("padim.deploy.stream.time.monotonic", lambda: clock[0])
    with Record(tmp_path / "record.jsonl") as record:
        assert [*follow(watch, record, None, stop)] == []
    assert pauses == [0.5]


def test_what_fails_again_and_again_is_not_asked_for_without_a_pause(tmp_path):
    (tmp_path / "a.png").touch()
    stop, events = threading.Event(), []

    def wait(_):
        events.append("pause")

    def predict(items):
        events.append("try")
        if len(events) > 7:
            stop.set()
        error = ImageError("not allowed")
        error.__cause__ = PermissionError(13, "not allowed")
        yield Prediction(items[0].path, Thresholds(), problem=error), {}

    stop.wait = wait
    with Record(tmp_path / "record.jsonl") as record:
        assert [*follow(Watch(tmp_path, settle=0.0), record, predict, stop)] == []
    assert events == ["try", "pause"] * 4 + ["try"]


def test_a_stop_is_heeded_while_images_are_postponed(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.png").touch()
    stop, asked = threading.Event(), []

    def predict(items):
        asked.append(len(items))
        for item in items:
            stop.set()
            error = ImageError("too many open files")
            error.__cause__ = OSError(24, "too many open files")
            yield Prediction(item.path, Thresholds(), problem=error), {}

    with Record(tmp_path / "record.jsonl") as record:
        assert [*follow(Watch(tmp_path, settle=0.0), record, predict, stop)] == []
    assert len(asked) == 1
