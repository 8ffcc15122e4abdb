"""A stream of images: finished files only, each once, and nothing lost when the command is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from padim import PadimError
from padim.watch import Record, Stamp, Watch

LIMIT = 60.0  # seconds; only for a test that would hang otherwise


def until(condition, process=None):
    deadline = time.monotonic() + LIMIT
    while not (result := condition()):
        assert process is None or process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "it didn't happen"
        time.sleep(0.02)
    return result


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
        assert (code, errors) == (0, "")
    assert {line["path"] for line in lines()} == {str(folder / "third.png"), str(folder / "broken.png")}


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
        record.add({"path": str(image)} | stamps[image]._asdict())
        assert watch.finished(record) == {}
        os.utime(image, ns=(0, 1))
        assert watch.finished(record) == {image: Stamp(4, 1)}
    with pytest.raises(PadimError, match="there is no folder"):
        Watch(tmp_path / "nowhere", 0.0)


@pytest.mark.parametrize("text", [b"\xff\xfe\n", b"[]\n", b"null", b'{"path": [], "bytes": 1, "modified_ns": 2}\n'])
def test_foreign_lines_in_a_record_are_passed_over(tmp_path, text):
    path = tmp_path / "record.jsonl"
    path.write_bytes(text)
    with Record(path) as record:
        record.add({"path": "a", "bytes": 1, "modified_ns": 2})
    with Record(path) as record:
        from pathlib import Path

        assert (Path("a"), Stamp(1, 2)) in record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "pass images and folders, or --watch DIR"),
        (["photos", "--watch", "photos"], "pass images and folders, or --watch DIR"),
        (["photos", "--panel"], "--panel, --raw and --range are for pictures: say where with --out DIR"),
        (["--watch", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_wrong_options(run, model, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    result = run("predict", "--model", model, *options)
    assert (result.code, result.err) == (2, f"ERROR: {message}\n")
