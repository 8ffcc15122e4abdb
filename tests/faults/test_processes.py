"""Whole commands as processes, and what must not befall their results: kills, full disks, odd names, each other."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image

from padim import Padim, PadimError

SMALL = ["--category", "texture", "--resize", 64, 64, "--crop", "--channels", 20, "--batch-size", 4]
LIMIT = 120.0  # seconds; only for a test that would hang otherwise


def start(name, *arguments):
    command = [sys.executable, "-m", f"padim.cli.{name}", *arguments]
    return subprocess.Popen(list(map(os.fsencode, map(str, command))), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process):
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out.decode(), err.decode()


def train(output, data_root, weights_file, *options):
    return start("train", *SMALL, "--data", data_root, "--weights", weights_file, "--output", output, *options)


def test_a_training_killed_at_any_moment_leaves_a_whole_model_or_none(data_root, weights_file, tmp_path):
    path = tmp_path / "texture/model.safetensors"
    begin = time.monotonic()
    assert finish(train(tmp_path, data_root, weights_file))[0] == 0
    whole = time.monotonic() - begin
    first = path.read_bytes()
    path.unlink()
    moments = random.Random(0)
    for kill in range(4):
        if kill == 2:  # from here on there is an older model, of another seed
            assert finish(train(tmp_path, data_root, weights_file, "--seed", 5))[0] == 0
            older = path.read_bytes()
        process = train(tmp_path, data_root, weights_file)
        time.sleep(whole * moments.uniform(0.5, 1.05))
        process.kill()
        finish(process)
        content = path.read_bytes() if path.exists() else None
        assert content in (None, first) if kill < 2 else content in (older, first)
    code, _, err = finish(train(tmp_path, data_root, weights_file, "--eval"))
    assert (code, err) == (0, "")
    assert path.read_bytes() == first


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"can't mount a small file system here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_one_line_and_keeps_the_old_files(small_disk, data_root, weights_file):
    folder = small_disk / "texture"
    folder.mkdir()
    for name in ("model.safetensors", "train.json"):
        (folder / name).write_text("older")
    code, out, err = finish(train(small_disk, data_root, weights_file))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "No space left on device" in err
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "model.safetensors": "older",
        "train.json": "older",
    }


def test_two_trainings_of_one_model_leave_a_whole_one(data_root, weights_file, tmp_path):
    both = [train(tmp_path, data_root, weights_file, "--seed", seed) for seed in (1, 2)]
    assert [finish(process)[0] for process in both] == [0, 0]
    model = Padim.load(tmp_path / "texture/model.safetensors")
    assert model.config.seed in (1, 2)
    assert sorted(path.name for path in (tmp_path / "texture").iterdir()) == ["model.safetensors", "train.json"]


def test_a_data_set_that_shrinks_while_it_is_read(data_root, weights_file, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data_root / "texture", root / "texture")
    images = sorted((root / "texture/train/good").iterdir())
    process = train(tmp_path / "runs", root, weights_file, "--json", "--workers", 1)
    for path in images[4:]:
        path.unlink()  # before or after it is read
    code, out, _ = finish(process)
    if code == 0:
        summary = json.loads(out)
        assert summary["images"] + summary["skipped"] in (4, 8)
        assert summary["images"] >= 4


@pytest.mark.parametrize("name", [b"with space.png", b"two\nlines.png", b"\xff\xfe.png", b"--epsilon.png"])
def test_any_file_name(name, data_root, weights_file, tmp_path, run):
    root = os.fsencode(tmp_path / "data")
    shutil.copytree(data_root / "texture", tmp_path / "data/texture")
    source = data_root / "texture/train/good/000.png"
    for folder in (b"train/good", b"test/good"):
        shutil.copy(source, os.path.join(root, b"texture", folder, name))
    where = ["--data", tmp_path / "data", "--weights", weights_file, "--output", tmp_path / "runs"]
    result = run("train", *SMALL, *where, "--eval", "--report", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out.splitlines()[0])["images"] == 9
    model, images = tmp_path / "runs/texture/model.safetensors", tmp_path / "data/texture/test/good"
    result = run("predict", "--model", model, images, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    names = [os.fsencode(json.loads(line)["path"]) for line in result.out.splitlines()]
    assert os.path.join(os.fsencode(images), name) in names


def test_a_loop_of_links_ends(data_root, weights_file, tmp_path, run):
    folder = tmp_path / "photos"
    shutil.copytree(data_root / "texture/train/good", folder / "ok")
    (folder / "ok/again").symlink_to(folder)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    protocol = [*SMALL[2:], "--weights", weights_file, "--output", tmp_path / "runs", "--json"]
    result = run("train", "--normal", folder, "--category", "texture", *protocol)
    assert result.code == 0, result.err
    assert json.loads(result.out)["images"] == 8


def test_images_that_never_vary_have_a_model(weights_file, tmp_path, run):
    folder = tmp_path / "grey"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (64, 64), (90, 90, 90)).save(folder / f"{number}.png")
    options = [*SMALL[2:], "--weights", weights_file, "--output", tmp_path, "--json"]
    result = run("train", "--normal", folder, "--category", "grey", *options)
    assert result.code == 0, result.err
    Image.new("RGB", (64, 64), (200, 90, 90)).save(tmp_path / "red.png")
    model = tmp_path / "grey/model.safetensors"
    result = run("predict", "--model", model, folder / "0.png", tmp_path / "red.png", "--out", tmp_path / "out")
    grey, red = map(json.loads, result.out.splitlines())
    assert (grey["verdict"], red["verdict"]) == ("normal", "anomalous")
    assert grey["score"] < 1e-2 < red["score"]


@pytest.mark.parametrize("pixels", [(30_000, 30_000), (13_500, 13_500)])
def test_bombs_are_refused(weights_file, tmp_path, run, pixels):
    """An image of 900 million pixels, and one a little above the limit: a few kilobytes each."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    Image.new("1", pixels).save(folder / "bomb.png")
    Image.MAX_IMAGE_PIXELS = before
    options = [*SMALL[2:], "--weights", weights_file, "--output", tmp_path]
    result = run("train", "--normal", folder, "--category", "bomb", *options)
    assert (result.code, result.out) == (2, "")
    assert "decompression bomb" in result.err


def test_a_model_of_a_swapped_kind_is_an_error(data_root, weights_file, tmp_path, run):
    """Every file that a command reads, in the place of every other."""
    assert run("train", *SMALL, "--data", data_root, "--weights", weights_file, "--output", tmp_path).code == 0
    model = tmp_path / "texture/model.safetensors"
    image = next((data_root / "texture/test/good").iterdir())
    (tmp_path / "config.toml").write_text("channels = 20\n")
    files = {"model": model, "weights": weights_file, "image": image, "toml": tmp_path / "config.toml"}
    for kind, path in files.items():
        commands = {
            "model": ["predict", "--model", path, image],
            "weights": ["train", *SMALL, "--data", data_root, "--output", tmp_path / "other", "--weights", path],
            "image": ["predict", "--model", model, path],
            "toml": ["train", "--category", "texture", "--config", path, "--print-config"],
        }
        for wanted, command in commands.items():
            if wanted == kind:
                continue
            result = run(*command)
            assert result.code == 2, (kind, wanted, result.out)
            assert "Traceback" not in result.err
            assert result.err.startswith(("ERROR", "WARNING"))
    with pytest.raises(PadimError):
        Padim.load(image)
