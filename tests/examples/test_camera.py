"""The camera loop names the anomalous frames of a video, and keeps up with a camera that is faster than it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from golden.recipe import images
from golden.variants import write_variant

from padim.deploy.runtime import Runtime

cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")

import camera  # noqa: E402 (which takes OpenCV)

PERIOD = 0.04  # seconds, of 25 frames per second


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the example; its exit code, or None, and what it printed."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["camera.py", *map(str, arguments)])
        code = None
        try:
            camera.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return main


def write_video(path, pixels):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 1 / PERIOD, pixels.shape[2:0:-1])
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no lossless video")
    for frame in pixels:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()


@pytest.mark.parametrize("options", [(), ("--live",)], ids=["all", "live"])
def test_the_anomalous_frames_of_a_video_are_named(call, tmp_path, options):
    pixels, model = images(6, seed=2), write_variant(tmp_path / "model.onnx")
    pixels[2] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    pixels[4, :, :, 0] = 255  # red; blue, it would score otherwise
    write_video(tmp_path / "video.avi", pixels)
    code, out, err = call(model, tmp_path / "video.avi", *options)
    assert (code, err) == (None, "")
    found = [json.loads(line) for line in out.splitlines()]
    runtime = Runtime.load(model)
    expected = runtime.score_pixels(pixels).images
    threshold = runtime.calibration.threshold(0.2)
    if not options:
        assert [line["frame"] for line in found] == [2, 4] == np.flatnonzero(expected >= threshold).tolist()
    for line in found:
        assert line["score"] == pytest.approx(float(expected[line["frame"]]), rel=1e-5)
        assert line["threshold"] == threshold


def test_what_is_wrong_is_said_in_a_line(call, tmp_path):
    model = write_variant(tmp_path / "model.onnx")
    uncalibrated = write_variant(tmp_path / "uncalibrated.onnx", calibration=None)
    for arguments, message in (
        ((tmp_path / "none.onnx", "0"), "none.onnx: No such file"),
        ((uncalibrated, "0"), "has no calibration"),
        ((model, tmp_path / "none.avi"), "can't open the camera or video"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]


class Camera:
    """A camera of 25 frames per second under a clock of its own, whose driver holds a few frames and drops others."""

    def __init__(self, held, ends=40, broken=()):
        self.now, self.held, self.ends, self.broken = 0.0, held, ends, broken
        self.next, self.queue, self.taken = 0, [], None

    def clock(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        while self.next * PERIOD <= self.now:
            if len(self.queue) < self.held:
                self.queue.append(self.next)
            self.next += 1

    def get(self, _):
        return 1 / PERIOD

    def grab(self):
        if not self.queue:
            self.wait(self.next * PERIOD - self.now)
        self.taken = self.queue.pop(0)
        return self.taken < self.ends

    def retrieve(self):
        return (False, None) if self.taken in self.broken else (True, self.taken)


def scored(source, live, scoring):
    """What frames the camera took that are scored, and how old each is by then, where scoring takes so many periods."""
    found = []
    for _, frame in camera.frames(source, live, source.clock):
        found.append((frame, source.now - frame * PERIOD))
        source.wait(scoring * PERIOD)
    return [frame for frame, _ in found], [age / PERIOD for _, age in found]


def test_every_frame_of_a_video_is_scored_but_those_that_cannot_be_read():
    assert scored(Camera(held=10**6, broken=(3, 7)), False, 3.5)[0] == [*range(3), *range(4, 7), *range(8, 40)]


@pytest.mark.parametrize("scoring", [0.5, 1.5, 3.5, 8.25])
@pytest.mark.parametrize("held", [2, 4, 100])
def test_a_live_camera_is_never_far_behind(held, scoring):
    kept, ages = scored(Camera(held, ends=200), True, scoring)
    assert max(ages) <= 1.5
    assert len(kept) >= 200 / (scoring + 2)


def test_a_live_camera_that_is_slower_loses_no_frame():
    assert scored(Camera(held=4), True, 0.5)[0] == [*range(40)]
