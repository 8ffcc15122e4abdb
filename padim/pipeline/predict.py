"""Predict: score images one after the other, whatever happens to one of them. It needs no torch of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from padim.calibration import Thresholds, shortest
from padim.data.items import Item, collect_images
from padim.data.loader import ImageLoader, Sample, batched
from padim.data.transform import Box, Transform
from padim.detectors.scores import Scorer
from padim.errors import PadimError
from padim.evaluation.regions import Region, anomalous_regions
from padim.pipeline.timing import Stopwatch
from padim.system.progress import OnProgress, silent, tracked

if TYPE_CHECKING:
    from padim.poses.alignment import PartPose

Image = Item | Path | str


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        path: the image.
        thresholds: what is anomalous.
        score: its image score; None if there is a `problem` with the image.
        p_value: the probability of a fresh normal image to score as high; None without a calibration.
        regions: where it is anomalous, if it is; None from a detector without maps.
        part: how the part lies in what the network sees of the image, from a model that aligns them.
        seen: what the network sees of the image, in pixels.
        anomaly_map: distances `[h, w]` of that; NaN where the model has not seen enough, or ignores; None without maps.
        sample: the image as it was read, with its mask.
        milliseconds: what reading and scoring took, by stage, see `Stopwatch`; empty where that was not asked for.
        problem: why there is no score.
    """

    path: Path
    thresholds: Thresholds
    score: float | None = None
    p_value: float | None = None
    regions: Sequence[Region] | None = None
    part: PartPose | None = None
    seen: Box | None = None
    anomaly_map: NDArray[np.float32] | None = None
    sample: Sample | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    problem: PadimError | None = None

    @property
    def verdict(self) -> str | None:
        """`anomalous` or `normal`; None without a score or a threshold."""
        if self.score is None:
            return None
        anomalous = self.thresholds.is_anomalous(self.score, found=self.part is None or self.part.found)
        return None if anomalous is None else "anomalous" if anomalous else "normal"

    def summary(self) -> dict[str, Any]:
        """The prediction as plain values, for JSON."""
        line: dict[str, Any] = {"path": str(self.path), "verdict": self.verdict}
        if self.problem:
            return line | {"error": str(self.problem)}
        line |= {"score": self.score, "p_value": self.p_value and round(self.p_value, 6)}
        line |= {name: getattr(self.thresholds, name) for name in ("threshold", "false_alarm_rate")}
        if self.part and self.sample and self.seen:
            height, width = self.sample.image.shape[:2]
            left, top, right, bottom = self.seen
            line["pose"] = self.part.summary((right - left) / width, (bottom - top) / height)
        if self.regions is None:
            return line
        return line | {"regions": [region._asdict() for region in self.regions], "seen": self.seen}


def predict(
    scorer: Scorer,
    images: Image | Iterable[Image],
    *,
    thresholds: Thresholds | None = None,
    batch_size: int | None = None,
    workers: int = 1,
    strict: bool = False,
    keep_originals: bool = False,
    timing: bool = False,
    progress: OnProgress = silent,
) -> Generator[Prediction]:
    """Score images, in their order; those that can't be read come last, with their `problem`.

    Args:
        scorer: a fitted detector, or an exported model.
        images: a file, a folder or an item with its mask, or several of them.
        thresholds: what is anomalous, by default for the model's own false-positive rate.
        batch_size: images that are scored at a time, by default as trained.
        workers: threads that read images.
        strict: whether the first unreadable image is an error.
        keep_originals: whether the predictions carry the images before the transform, to draw on.
        timing: whether they carry what each stage took.
        progress: is told how far it has come.

    Raises:
        PadimError: an input isn't there.
    """
    rate = scorer.provenance.false_alarm_rate
    thresholds = thresholds or Thresholds.calibrated(scorer.calibration, rate)
    transform = Transform.of(dataclasses.replace(scorer.config, rotation=0.0))
    loader = ImageLoader(
        _items(images), transform, workers=workers, strict=strict, keep_originals=keep_originals, skip_faults=True
    )
    with Stopwatch(scorer) if timing else nullcontext() as stopwatch:
        for batch in batched(tracked(loader, "predict", progress), batch_size or scorer.config.batch_size):
            yield from _predicted(scorer, batch, transform, thresholds, stopwatch)
    for path, error in loader.failures.items():
        yield Prediction(path, thresholds, problem=error)


def _items(images: Image | Iterable[Image]) -> list[Item]:
    items: list[Item] = []
    for image in [images] if isinstance(images, Item | Path | str) else images:
        items += [image] if isinstance(image, Item) else [Item(path) for path in collect_images([Path(image)])]
    return items


def _predicted(
    scorer: Scorer,
    batch: Sequence[Sample],
    transform: Transform,
    thresholds: Thresholds,
    stopwatch: Stopwatch | None = None,
) -> Iterator[Prediction]:
    """The predictions of a batch; an image that can't be scored costs the others nothing."""
    try:
        scores, maps, _, parts = (stopwatch or scorer).score_pixels(np.stack([sample.image for sample in batch]))
    except PadimError as error:
        if len(batch) == 1:
            yield Prediction(batch[0].item.path, thresholds, problem=error)
        else:  # which of them is to blame is seen one by one
            for sample in batch:
                yield from _predicted(scorer, [sample], transform, thresholds, stopwatch)
        return
    for index, sample in enumerate(batch):
        seen, part = transform.seen(*sample.size), None if parts is None else parts[index]
        score, calibration = shortest(scores[index]), scorer.calibration
        milliseconds = {"read": 1e3 * sample.seconds} | stopwatch.milliseconds if stopwatch else {}
        plain = Prediction(
            sample.item.path,
            thresholds,
            score,
            calibration.p_value(score) if calibration else None,
            part=part,
            seen=seen,
            sample=sample,
            milliseconds=milliseconds,
        )
        yield plain if maps is None else _with_map(plain, maps[index], seen)


def _with_map(plain: Prediction, anomaly_map: NDArray[np.float32], seen: Box) -> Prediction:
    """The prediction with its map, and the regions of an anomalous image."""
    pixel, peak = plain.thresholds.pixel_threshold, plain.thresholds.threshold
    regions: Sequence[Region] = []
    if plain.verdict == "anomalous" and pixel is not None and peak is not None:
        regions = anomalous_regions(anomaly_map, pixel, seen, peak)
    return dataclasses.replace(plain, regions=regions, anomaly_map=anomaly_map)
