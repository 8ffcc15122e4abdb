"""The C++ example builds, and scores as Python does.

ONNX Runtime's headers are found where CMake looks, which CMAKE_PREFIX_PATH extends; the library is that of Python.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from golden.variants import write_variant
from PIL import Image, features

from padim.calibration import Thresholds
from padim.data.images import read_image
from padim.deploy.runtime import Runtime

SOURCE = Path(__file__).parents[2] / "examples/cpp"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program, built from its sources; skips where something is missing that it is built with."""
    if not shutil.which("cmake"):
        pytest.skip("needs CMake")
    folder = tmp_path_factory.mktemp("cpp")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the names that the linker and the program look for
        (folder / name).symlink_to(library)
    where = ["-S", SOURCE, "-B", folder / "build", f"-DONNXRUNTIME_LIBRARY={folder / 'libonnxruntime.so'}"]
    configured = subprocess.run(["cmake", *where, "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"], capture_output=True)
    message = configured.stderr.decode()
    for missing in ("No CMAKE_CXX_COMPILER", "ONNXRUNTIME_INCLUDE", "STB_INCLUDE", "nlohmann_json"):
        if configured.returncode and missing in message:
            pytest.skip(f"CMake finds no {missing.removeprefix('No ')}")
    assert configured.returncode == 0, message
    subprocess.run(["cmake", "--build", folder / "build"], check=True)
    return folder / "build/padim-score"


@pytest.fixture
def variant(tmp_path):
    """Write a model whose metadata has other values: variant(resize=[40])."""
    numbers = itertools.count()
    return lambda **changes: write_variant(tmp_path / f"model{next(numbers)}.onnx", **changes)


def lines(program, *arguments):
    """What the program says of pictures."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


# Height and width: as it is, larger, smaller, one side of each, in any proportion.
SIZES = [(32, 32), (20, 31), (64, 90), (40, 40), (30, 300), (199, 211), (1000, 701), (333, 100), (17, 60)]


@pytest.mark.parametrize("resize", [[32], [40], [48, 37]], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_scores_and_verdicts_are_pythons(program, variant, tmp_path, interpolation, resize):
    model, sizes, random = variant(resize=resize, interpolation=interpolation), SIZES, np.random.default_rng(0)
    if int(features.version("pil").split(".")[0]) < 13:  # which resize the height of tall pictures last
        sizes = [(height, width) for height, width in SIZES if height < 2 * width]
    paths = [tmp_path / f"{height} x {width}.png" for height, width in sizes]
    for path, size in zip(paths, sizes):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    runtime = Runtime.load(model)
    thresholds = Thresholds.calibrated(runtime.calibration, runtime.provenance.false_alarm_rate)
    for path, line in zip(paths, lines(program, model, *paths), strict=True):
        score = float(runtime.score_image(Image.open(path)).images[0])
        assert line["path"] == str(path)
        assert line["score"] == pytest.approx(score, rel=1e-4)
        assert np.float32(line["threshold"]) == np.float32(thresholds.threshold)
        assert line["verdict"] == ("anomalous" if thresholds.is_anomalous(score) else "normal")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "PPM"])
def test_other_pictures_are_seen_in_the_same_colours(program, variant, tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    path = tmp_path / ("part.ppm" if mode == "PPM" else "part.png")
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200 + 13).save(path)
    elif mode == "RGBA":
        Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(path)
    else:
        Image.fromarray(pixels).convert("RGB" if mode == "PPM" else mode).save(path)
    model = variant()
    (line,) = lines(program, model, path)
    assert line["score"] == pytest.approx(float(Runtime.load(model).score_image(read_image(path)).images[0]), rel=1e-4)


@pytest.mark.parametrize("count", [4, 9, 99])
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2])
def test_the_threshold_follows_the_calibration(program, variant, tmp_path, count, rate):
    scores = [float(score) for score in np.random.default_rng(count).normal(3, 1, count).astype(np.float32)]
    about = {"category": "part", "images": count, "false_alarm_rate": rate, "weights_sha256": "", "padim_version": ""}
    model = variant(calibration={"scores": scores, "pixels": None}, about=about)
    Image.new("RGB", (40, 40)).save(tmp_path / "part.png")
    (line,) = lines(program, model, tmp_path / "part.png")
    expected = Thresholds.calibrated(Runtime.load(model).calibration, rate).threshold
    assert np.float32(line["threshold"]) == np.float32(expected)


def test_without_a_calibration_there_is_no_verdict(program, variant, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "part.png")
    (line,) = lines(program, variant(calibration=None), tmp_path / "part.png")
    assert (line["verdict"], line["threshold"], line["score"] > 0) == (None, None, True)


def test_what_it_cannot_score_is_an_error_of_one_line(program, variant, tmp_path):
    picture, text = tmp_path / "part.png", tmp_path / "part.txt"
    Image.new("RGB", (40, 40)).save(picture)
    text.write_text("no picture")
    for arguments, message in (
        ([], "pass a model and pictures"),
        ([variant(), text], "can't read the picture"),
        ([variant(align="shift"), picture], "aligned models"),
        ([variant(decode="reduced"), picture], "decoded in full"),
        ([variant(interpolation="nearest"), picture], "interpolation nearest"),
        ([variant(version=2), picture], "another version"),
        ([text, picture], "part.txt"),
    ):
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr
