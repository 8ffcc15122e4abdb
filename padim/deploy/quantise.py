"""A model whose network computes in int8, and whose Gaussians and thresholds belong to that network.

Rounding moves the features of normal images, by up to some of their spread. So ONNX Runtime first quantises what leads
from images to features, with the ranges that the values take on normal images, and the Gaussians are then fitted to the
features that come out. A threshold of the other network would be wrong for them. What follows the features stays in
float32.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from scipy.stats import spearmanr
from torch import Tensor

from padim.calibration import Thresholds
from padim.deploy.engines import Session, open_session
from padim.deploy.graph import graph_of, joined
from padim.detectors.batches import Batches
from padim.detectors.contract import Detector
from padim.detectors.frame import CommonFrame
from padim.detectors.options import FitOptions
from padim.errors import PadimError
from padim.model import Padim
from padim.storage.files import scratch_folder

log = logging.getLogger(__name__)

# How well the scores in int8 have to rank with those in float32; docs/numerics.md says why, and why of so many images.
LEAST_CORRELATION, LEAST_IMAGES = 0.9, 20


class Agreement(NamedTuple):
    """How normal images score in int8 and in float32; both models are fitted to them, and each is left out in turn.

    Attributes:
        images: how many there are.
        correlation: Spearman's, of the image scores.
        largest_change: of an image score, relative to the one in float32.
        same_verdicts: the share of images with the same verdict, each model with its own threshold.
    """

    images: int
    correlation: float
    largest_change: float
    same_verdicts: float


class _WithGraph(Padim):
    """A PaDiM whose features come from a graph."""

    def __init__(self, model: Padim, session: Session) -> None:
        """An unfitted one, otherwise like a model."""
        super().__init__(model.config, weights=model.backbone.weights())
        self.selection, self.ignored, self.provenance = model.selection, model.ignored, model.provenance
        self._session = session

    def embed(self, images: Tensor) -> list[Tensor]:
        """As `Padim.embed`."""
        return [torch.from_numpy(level) for level in self._session.run(images.numpy())]


def quantised(model: Detector, examples: Tensor, batches: Batches) -> tuple[Padim, Any, Agreement]:
    """A model with its network in int8, fitted anew; as a detector and as an ONNX model.

    Args:
        model: what is to be quantised.
        examples: images to trace with, `[n, 3, h, w]`, uint8.
        batches: normal images, such as the training images; gone through several times.

    Raises:
        PadimError: it is no PaDiM, there are too few images, or the scores no longer rank alike.
    """
    if not isinstance(model, Padim):
        raise PadimError("--storage int8 is for PaDiM, which can be fitted anew to the network: take fp16")
    names = [f"features_{level}" for level in range(len(model.config.layers))]
    with scratch_folder() as folder:
        exact, rounded = folder / "exact.onnx", folder / "rounded.onnx"
        graph = graph_of(model, model.embed, {"images": examples}, names)
        graph.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"  # which otherwise warns: shapes are known
        onnx_ir.save(graph, exact, format="protobuf")
        reference = _WithGraph(model, open_session(exact))
        expected = _fitted(reference, batches)
        _quantise(exact, rounded, CommonFrame(model.config, model.alignment).images(batches))
        found = _WithGraph(model, open_session(rounded))
        agreement = _agreement(reference, expected, found, _fitted(found, batches))
        features = dict(zip(names, found.features(examples), strict=True))
        rest = graph_of(found, lambda *levels: found.scores_of(levels)[:2], features, ["scores", "maps"], images=2)
        graph = joined(onnx_ir.load(rounded), rest)
        graph.metadata_props.clear()
    if agreement.images < model.provenance.images:
        log.warning(
            "the Gaussians in int8 are fitted to %d images, those of the model to %d: pass its training images",
            agreement.images,
            model.provenance.images,
        )
    return found, graph, agreement


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Images, as ONNX Runtime asks for them."""

    def __init__(self, images: Iterator[Tensor]) -> None:
        self._images = images

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch, until there is none."""
        batch = next(self._images, None)
        return None if batch is None else {"images": batch.numpy()}


def _quantise(path: Path, target: Path, images: Iterator[Tensor]) -> None:
    """Write a graph with its convolutions in int8, by the ranges that their values have on images."""
    quantize_static(
        path,
        target,
        _Reader(images),
        op_types_to_quantize=["Conv", "Relu"],  # together: their output is rounded once, behind the ReLU
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # to 7 bits: with 8, sums overflow on x86 processors without VNNI
    )


def _fitted(model: Padim, batches: Batches) -> NDArray[np.float32]:
    """What images score in a fit to them, each left out in turn, `[n]`.

    Raises:
        PadimError: there are too few of them.
    """
    name, rate = model.provenance.category, model.provenance.false_alarm_rate
    scores = model.fit(batches, FitOptions(category=name, false_alarm_rate=rate)).scores
    count = 0 if scores is None else len(scores)
    if scores is None or count < LEAST_IMAGES:
        raise PadimError(f"--images: int8 takes at least {LEAST_IMAGES} normal images, there are {count}")
    return scores


def _agreement(reference: Padim, exact: NDArray[np.float32], found: Padim, rounded: NDArray[np.float32]) -> Agreement:
    """How two fitted models agree by what the images of their fit score.

    Raises:
        PadimError: their scores do not rank alike.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of images that are all alike, which have none
        correlation = float(spearmanr(exact, rounded).statistic)
    if not correlation >= LEAST_CORRELATION:
        raise PadimError(
            f"int8 changes the scores too much: their rank correlation with those in float32 is {correlation:.3f},"
            f" below {LEAST_CORRELATION}: not written; take --storage fp16"
        )
    verdicts = [
        [thresholds.is_anomalous(score) for score in scores]
        for thresholds, scores in ((_thresholds(reference), exact), (_thresholds(found), rounded))
    ]
    assert reference.calibration is not None  # as of all fits to more than two images
    floor = reference.calibration.scores[0]  # below that are rounding errors
    changes = np.abs(rounded.clip(min=floor) / exact.clip(min=floor) - 1)
    return Agreement(
        len(exact),
        correlation,
        float(changes.max()),
        float(np.mean([ours == theirs for ours, theirs in zip(*verdicts, strict=True)])),
    )


def _thresholds(model: Padim) -> Thresholds:
    return Thresholds.calibrated(model.calibration, model.provenance.false_alarm_rate)
