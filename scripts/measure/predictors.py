"""One contender of the benchmark of inference, in this process.

    python scripts/measure/predictors.py {ours,anomalib,anomavision} --data ROOT --weights FILE
    python scripts/measure/predictors.py CONTENDER --data ROOT

The first fits PaDiM to bottle and exports it into the working folder, where the second takes a model from. That prints
its first verdict, whose arrival ends the start, and then its times, as lines of JSON, and writes scores and maps of the
test images to `maps.npz`. Each contender is fed as its documentation has it and resizes photos by itself, anomalib
within its graph. Only `ours` needs padim.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

BATCHES = {1: 83, 8: 8, 32: 2}  # images of a batch, and how many batches are timed
THREADS = 2
CHANNELS = random.Random(1024).sample(range(448), 100)  # those of the preset, for all
PACKAGES = ("anomalib", "anomavision", "torch", "onnxruntime", "openvino", "numpy", "pillow")


class Verdict(NamedTuple):
    """The image score, the anomaly map `[h, w]`, and the decision on one image."""

    score: float
    map: np.ndarray
    anomalous: bool


class Predictor(NamedTuple):
    """Gives verdicts on files, so many at a time, and on one batch of photos in their own size, `[h, w, 3]`, uint8."""

    files: Callable[[Sequence[Path], int], list[Verdict]]
    photos: Callable[[Sequence[np.ndarray]], list[Verdict]]
    several_files: bool = True


def prepare_ours(data: Path, weights: Path) -> None:
    from padim.cli.export import main as export
    from padim.cli.train import main as train

    train(["--category", "bottle", "--data", str(data), "--weights", str(weights), "--output", "."])
    for storage in ("fp32", "fp16", "int8"):
        images = ["--images", str(data / "bottle/train/good")] if storage == "int8" else []
        out = ["--storage", storage, "--out", f"bottle/{storage}.onnx"]
        export(["--model", "bottle/model.safetensors", *out, *images])


def ours(path: Path, **settings: str) -> Predictor:
    from padim import predict
    from padim.calibration import Thresholds
    from padim.data.transform import Transform
    from padim.deploy.runtime import load_scorer

    scorer = load_scorer(path, **settings)
    transform = Transform.of(scorer.config)
    thresholds = Thresholds.calibrated(scorer.calibration, scorer.provenance.false_alarm_rate)

    def files(paths: Sequence[Path], count: int) -> list[Verdict]:
        found = predict(scorer, paths, batch_size=count, workers=THREADS)
        return [Verdict(one.score, one.anomaly_map, one.verdict == "anomalous") for one in found]

    def photos(images: Sequence[np.ndarray]) -> list[Verdict]:
        pixels = np.stack([np.asarray(transform.image(Image.fromarray(image))) for image in images])
        scores, maps, *_ = scorer.score_pixels(pixels)
        return [Verdict(score, one, thresholds.is_anomalous(score)) for score, one in zip(scores, maps, strict=True)]

    return Predictor(files, photos)


def prepare_anomalib(data: Path, weights: Path) -> None:
    import torch
    from anomalib.data import MVTecAD
    from anomalib.deploy import ExportType
    from anomalib.engine import Engine
    from anomalib.models import Padim

    model = Padim(pre_trained=False, n_features=len(CHANNELS))  # resnet18, layer1 to layer3
    model.model.idx.copy_(torch.tensor(CHANNELS))
    network = model.model.feature_extractor.feature_extractor
    network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    engine = Engine(accelerator="cpu", default_root_dir=".", logger=False)
    engine.fit(model=model, datamodule=MVTecAD(root=data, category="bottle", num_workers=THREADS))
    for kind in (ExportType.TORCH, ExportType.OPENVINO):
        engine.export(model, kind, export_root=".")


def anomalib(path: Path, precision: str = "") -> Predictor:
    os.environ["TRUST_REMOTE_CODE"] = "1"  # what `prepare` has written is a pickle
    import torch
    from anomalib.deploy import OpenVINOInferencer, TorchInferencer

    exported = path.suffix == ".xml"
    settings = {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": precision}
    model = OpenVINOInferencer(path, "CPU", settings) if exported else TorchInferencer(path, device="cpu")

    def verdicts(found: Any) -> list[Verdict]:
        scores, maps, labels = (np.asarray(value) for value in (found.pred_score, found.anomaly_map, found.pred_label))
        maps = maps.reshape(-1, *maps.shape[-2:])
        return [Verdict(*one) for one in zip(scores.ravel(), maps, labels.ravel(), strict=True)]

    def files(paths: Sequence[Path], count: int) -> list[Verdict]:  # noqa: ARG001
        return [verdict for path in paths for verdict in verdicts(model.predict(path))]

    def photos(images: Sequence[np.ndarray]) -> list[Verdict]:
        batch = np.stack(images)
        return verdicts(model.predict(batch if exported else torch.from_numpy(batch).permute(0, 3, 1, 2) / 255))

    return Predictor(files, photos, several_files=False)


def prepare_anomavision(data: Path, weights: Path) -> None:
    import anomavision
    import torch
    import torchvision
    from anomavision.algorithm.common import feature_extraction
    from anomavision.export import ModelExporter

    network = torchvision.models.resnet18()
    network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    feature_extraction.BACKBONES["resnet18"] = (lambda **_: network, None)  # instead of a download
    model = anomavision.Padim("resnet18", layer_indices=[0, 1, 2], channel_indices=torch.tensor(CHANNELS))
    images = anomavision.AnodetDataset(str(data / "bottle/train/good"), resize=256, crop_size=224)
    model.fit(torch.utils.data.DataLoader(images, batch_size=32))
    torch.save(model, "fitted.pt")
    exporter = ModelExporter(Path("fitted.pt"), Path(), logging.getLogger(), "cpu")
    exporter.export_onnx((2, 3, 224, 224))  # with its default, a batch of 1, recent versions of torch fix that size


def anomavision(path: Path) -> Predictor:
    import anomavision
    from anomavision.inference.model.wrapper import ModelWrapper
    from anomavision.utils import adaptive_gaussian_blur, create_image_transform
    from torch.utils.data import DataLoader

    model, size = ModelWrapper(str(path), "cpu"), {"resize": 256, "crop_size": 224}
    transform = create_image_transform(**size)

    def verdicts(batch: Any) -> list[Verdict]:
        scores, maps = model.predict(batch)
        maps = adaptive_gaussian_blur(maps)  # as its command `detect`, with the threshold of its configuration
        return [Verdict(score, one, bool((one >= 13).any())) for score, one in zip(scores, maps, strict=True)]

    def files(paths: Sequence[Path], count: int) -> list[Verdict]:
        images = anomavision.AnodetDataset(str(paths[0].parent), **size)
        images.image_paths = paths
        loader = DataLoader(images, count, num_workers=int(len(paths) > count))  # for more than a batch, as `detect`
        return [verdict for batch, *_ in loader for verdict in verdicts(batch)]

    def photos(images: Sequence[np.ndarray]) -> list[Verdict]:
        return verdicts(anomavision.to_batch(images, transform))

    return Predictor(files, photos)


class Contender(NamedTuple):
    """One of `FAMILIES`, its model in their working folder, and how that is opened."""

    family: str
    model: str
    settings: dict[str, str]


FAMILIES = {
    "ours": (prepare_ours, ours),
    "anomalib": (prepare_anomalib, anomalib),
    "anomavision": (prepare_anomavision, anomavision),
}
CONTENDERS = {
    "ours, torch fp32": Contender("ours", "bottle/model.safetensors", {"precision": "fp32"}),
    "ours, torch bf16": Contender("ours", "bottle/model.safetensors", {"precision": "bf16"}),
    "ours, ONNX Runtime fp32": Contender("ours", "bottle/fp32.onnx", {}),
    "ours, ONNX Runtime fp16 file": Contender("ours", "bottle/fp16.onnx", {}),
    "ours, ONNX Runtime int8": Contender("ours", "bottle/int8.onnx", {}),
    "ours, OpenVINO fp32": Contender("ours", "bottle/fp32.onnx", {"engine": "openvino"}),
    "ours, OpenVINO bf16": Contender("ours", "bottle/fp32.onnx", {"engine": "openvino", "precision": "bf16"}),
    "ours, OpenVINO int8": Contender("ours", "bottle/int8.onnx", {"engine": "openvino"}),
    "anomalib, torch fp32": Contender("anomalib", "weights/torch/model.pt", {}),
    "anomalib, OpenVINO fp32": Contender("anomalib", "weights/openvino/model.xml", {"precision": "f32"}),
    "anomalib, OpenVINO bf16": Contender("anomalib", "weights/openvino/model.xml", {"precision": "bf16"}),
    "AnomaVision, ONNX Runtime fp32": Contender("anomavision", "model.onnx", {}),
}


def test_images(data: Path) -> list[Path]:
    return sorted(data.glob("bottle/test/*/*.png"))


def speed(predictor: Predictor, paths: list[Path]) -> dict[str, Any]:
    """Milliseconds of each batch and images per second, and the memory after the first file and after all of them.

    Images per second from files are those of a single call for all files, in which the next ones can be read ahead.
    """
    found: dict[str, Any] = {"first_memory_bytes": peak_memory_bytes()}
    verdicts: list[Verdict] = []
    rate = len(paths) / seconds(lambda: verdicts.extend(predictor.files(paths, 1)))
    one_by_one = times(lambda batch: predictor.files(batch, 1), paths, 1) | {"rate": rate}
    found |= {"files_memory_bytes": peak_memory_bytes(), "files": {1: one_by_one, 8: None, 32: None}}
    scores, maps, _ = zip(*verdicts, strict=True)
    np.savez("maps.npz", scores=np.array(scores), maps=np.array(maps))
    for count in (8, 32) if predictor.several_files else ():
        some = paths[: BATCHES[count] * count]
        rate = len(some) / seconds(lambda some=some, count=count: predictor.files(some, count))
        found["files"][count] = times(lambda batch: predictor.files(batch, len(batch)), some, count) | {"rate": rate}
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return found | {"photos": {count: times(predictor.photos, photos, count) for count in BATCHES}}


def times(work: Callable[[Sequence[Any]], object], items: Sequence[Any], count: int) -> dict[str, Any]:
    """Milliseconds of each batch, after one to warm up, and images per second."""
    batches = [items[number * count : (number + 1) * count] for number in range(BATCHES[count])]
    work(batches[0])
    taken = [seconds(lambda batch=batch: work(batch)) for batch in batches]
    return {"milliseconds": [1e3 * each for each in taken], "rate": count * len(taken) / sum(taken)}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory_bytes() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*FAMILIES, *CONTENDERS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if options.name in FAMILIES:
        return FAMILIES[options.name][0](options.data, options.weights)
    family, model, settings = CONTENDERS[options.name]
    predictor, paths = (FAMILIES[family][1](Path(model), **settings), test_images(options.data))
    (first,) = predictor.files(paths[:1], 1)
    print(json.dumps({"score": float(first.score), "anomalous": bool(first.anomalous)}), flush=True)
    installed = {of.metadata["Name"].lower(): of.version for of in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in PACKAGES if name in installed}
    return print(json.dumps(speed(predictor, paths) | {"versions": versions}))


if __name__ == "__main__":
    main()
