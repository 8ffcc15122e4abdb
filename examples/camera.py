"""Score the frames of a camera or of a video, and print a line of JSON per anomalous frame.

    python examples/camera.py runs/bottle/model.onnx 0 --live        # the first camera
    python examples/camera.py runs/bottle/model.onnx recording.mp4   # every frame of a video

With --live, only the newest of the frames that came while another was scored is taken. OpenCV is a package of its own:
pip install opencv-python-headless.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
from cv2.typing import MatLike
from PIL import Image

from padim import PadimError, Runtime
from padim.calibration import Thresholds, shortest


def frames(
    capture: cv2.VideoCapture, live: bool, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[int, MatLike]]:
    """The frames `[h, w, 3]`, BGR, with their numbers, until the stream ends; those that can't be read are left out."""
    period, came = 1 / (capture.get(cv2.CAP_PROP_FPS) or 30), clock()
    for number in itertools.count():
        asked = clock()
        if not capture.grab():  # which takes the next frame, and does not decode it
            return
        now = clock()
        came = now if now - asked > period / 2 else min(came + period, now)  # was it waited for, or waiting?
        if live and now - came > period:
            continue  # a newer one is there
        read, frame = capture.retrieve()
        if read:
            yield number, frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what padim-export wrote")
    parser.add_argument("source", help="number of a camera, file of a video, or address of a stream")
    parser.add_argument("--live", action="store_true", help="pass over frames that come while another is scored")
    options = parser.parse_args()
    try:
        model = Runtime.load(options.model)
        thresholds = Thresholds.calibrated(model.calibration, model.provenance.false_alarm_rate)
        if thresholds.threshold is None:
            raise PadimError(f"{options.model} has no calibration, and so no threshold")
        capture = cv2.VideoCapture(int(options.source) if options.source.isdigit() else options.source)
        if not capture.isOpened():
            raise PadimError(f"can't open the camera or video {options.source}")
        for number, frame in frames(capture, options.live):
            scores = model.score_image(Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)))
            score = shortest(scores.images[0])
            if thresholds.is_anomalous(score, found=scores.parts is None or scores.parts[0].found):
                print(json.dumps({"frame": number, "score": score, "threshold": thresholds.threshold}), flush=True)
    except PadimError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
