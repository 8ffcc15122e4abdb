"""One contender of the benchmark of inference, in this process: its models, its verdicts, its speed.

    python scripts/measure/predictors.py prepare {ours,anomalib,anomavision} --data ROOT --weights FILE --work DIR
    python scripts/measure/predictors.py {maps,speed} CONTENDER --data ROOT --work DIR [--images N]

`prepare` fits PaDiM to bottle and exports it into the working folder. `maps` writes the scores and maps of the test
images there. `speed` prints its first verdict as a line of JSON, whose time of arrival is the start's, then its times
as another one. Peers are fed as their documentation has it: anomalib takes one file at a time, AnomaVision's datasets
and PyTorch's loader take several. Each resizes photos itself, anomalib within its graph. Only `ours` needs padim.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

BATCHES = (1, 8, 32)
THREADS = 2
LAYERS = ("layer1", "layer2", "layer3")
CHANNELS = 100
PACKAGES = ("anomalib", "anomavision", "torch", "onnxruntime", "openvino", "numpy", "pillow")


class Verdict(NamedTuple):
    """The image score, the anomaly map `[h, w]`, and the decision on one image."""

    score: float
    map: np.ndarray
    anomalous: bool


class Predictor(NamedTuple):
    """What gives verdicts.

    Attributes:
        files: on files, so many at a time.
        photos: on one batch of RGB photos `[h, w, 3]`, uint8, in their own size.
        batches: whether `files` can take more than one at a time.
    """

    files: Callable[[Sequence[Path], int], list[Verdict]]
    photos: Callable[[Sequence[np.ndarray]], list[Verdict]]
    batches: bool


def prepare_ours(options: argparse.Namespace, folder: Path) -> None:
    from padim.cli.export import main as export
    from padim.cli.train import main as train

    fit = ["--category", "bottle", "--data", str(options.data), "--weights", str(options.weights)]
    train([*fit, "--output", str(folder)])
    model = folder / "bottle/model.safetensors"
    for storage, images in {
        "fp32": [],
        "fp16": [],
        "int8": ["--images", str(options.data / "bottle/train/good")],
    }.items():
        export(["--model", str(model), "--storage", storage, *images, "--out", str(model.with_name(f"{storage}.onnx"))])


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

    return Predictor(files, photos, batches=True)


def prepare_anomalib(options: argparse.Namespace, folder: Path) -> None:
    import torch
    from anomalib.data import MVTecAD
    from anomalib.deploy import ExportType
    from anomalib.engine import Engine
    from anomalib.models import Padim

    model = Padim(backbone="resnet18", layers=[*LAYERS], pre_trained=False, n_features=CHANNELS)
    weights = torch.load(options.weights, weights_only=True)
    model.model.feature_extractor.feature_extractor.load_state_dict(weights, strict=False)
    engine = Engine(accelerator="cpu", default_root_dir=folder, logger=False)
    engine.fit(model=model, datamodule=MVTecAD(root=options.data, category="bottle", num_workers=THREADS))
    for kind in (ExportType.TORCH, ExportType.OPENVINO):
        engine.export(model, kind, export_root=folder)


def anomalib(path: Path, **settings: str) -> Predictor:
    os.environ["TRUST_REMOTE_CODE"] = "1"  # what `prepare` has written is a pickle
    import torch
    from anomalib.deploy import OpenVINOInferencer, TorchInferencer

    exported = path.suffix == ".xml"
    threads = {"INFERENCE_NUM_THREADS": THREADS}
    model = OpenVINOInferencer(path, "CPU", threads | settings) if exported else TorchInferencer(path, device="cpu")

    def verdicts(found: Any) -> list[Verdict]:
        scores, maps, labels = (np.asarray(value) for value in (found.pred_score, found.anomaly_map, found.pred_label))
        maps = maps.reshape(-1, *maps.shape[-2:])
        return [Verdict(*one) for one in zip(scores.ravel(), maps, labels.ravel(), strict=True)]

    def files(paths: Sequence[Path], count: int) -> list[Verdict]:
        assert count == 1
        return [verdict for path in paths for verdict in verdicts(model.predict(path))]

    def photos(images: Sequence[np.ndarray]) -> list[Verdict]:
        batch = np.stack(images)
        return verdicts(model.predict(batch if exported else torch.from_numpy(batch).permute(0, 3, 1, 2) / 255))

    return Predictor(files, photos, batches=False)


def prepare_anomavision(options: argparse.Namespace, folder: Path) -> None:
    import anomavision
    import torch
    import torchvision
    from anomavision.algorithm.common import feature_extraction
    from anomavision.export import ModelExporter

    network = torchvision.models.resnet18()
    network.load_state_dict(torch.load(options.weights, weights_only=True), strict=False)
    feature_extraction.BACKBONES["resnet18"] = lambda **_: network, None  # instead of a download
    model = anomavision.Padim("resnet18", layer_indices=[0, 1, 2], feat_dim=CHANNELS)
    images = anomavision.AnodetDataset(str(options.data / "bottle/train/good"), resize=256, crop_size=224)
    model.fit(torch.utils.data.DataLoader(images, batch_size=32))
    torch.save(model, folder / "fitted.pt")
    exporter = ModelExporter(folder / "fitted.pt", folder, logging.getLogger(), "cpu")
    exporter.export_onnx((2, 3, 224, 224))  # from its default, a batch of 1, recent versions of torch fix that size


def anomavision(path: Path) -> Predictor:
    import anomavision
    from anomavision.inference.model.wrapper import ModelWrapper
    from anomavision.utils import adaptive_gaussian_blur, create_image_transform
    from torch.utils.data import DataLoader

    model, size = ModelWrapper(str(path), "cpu"), {"resize": 256, "crop_size": 224}
    transform = create_image_transform(**size)

    def verdicts(batch: Any) -> list[Verdict]:
        scores, maps = model.predict(batch)
        maps = adaptive_gaussian_blur(maps)  # as its command `detect` does, with its threshold
        return [Verdict(score, one, bool((one >= 13).any())) for score, one in zip(scores, maps, strict=True)]

    def files(paths: Sequence[Path], count: int) -> list[Verdict]:
        images = anomavision.AnodetDataset(str(paths[0].parent), **size)
        images.image_paths = paths
        loader = DataLoader(images, count, num_workers=int(len(paths) > count))  # its default is 1
        return [verdict for batch, *_ in loader for verdict in verdicts(batch)]

    def photos(images: Sequence[np.ndarray]) -> list[Verdict]:
        return verdicts(anomavision.to_batch(images, transform))

    return Predictor(files, photos, batches=True)


class Contender(NamedTuple):
    """Whose it is, its file in the working folder, what opens that, and with which settings."""

    family: str
    file: str
    opened: Callable[..., Predictor]
    settings: dict[str, str] = {}  # noqa: RUF012


PREPARATIONS = {"ours": prepare_ours, "anomalib": prepare_anomalib, "anomavision": prepare_anomavision}
TORCH, OPENVINO = "weights/torch/model.pt", "weights/openvino/model.xml"
CONTENDERS = {
    "ours, torch, fp32": Contender("ours", "bottle/model.safetensors", ours, {"precision": "fp32"}),
    "ours, torch, bf16": Contender("ours", "bottle/model.safetensors", ours, {"precision": "bf16"}),
    "ours, ONNX Runtime, fp32": Contender("ours", "bottle/fp32.onnx", ours),
    "ours, ONNX Runtime, fp16 file": Contender("ours", "bottle/fp16.onnx", ours),
    "ours, ONNX Runtime, int8": Contender("ours", "bottle/int8.onnx", ours),
    "ours, OpenVINO, fp32": Contender("ours", "bottle/fp32.onnx", ours, {"engine": "openvino"}),
    "ours, OpenVINO, bf16": Contender("ours", "bottle/fp32.onnx", ours, {"engine": "openvino", "precision": "bf16"}),
    "ours, OpenVINO, int8": Contender("ours", "bottle/int8.onnx", ours, {"engine": "openvino"}),
    "anomalib, torch, fp32": Contender("anomalib", TORCH, anomalib),
    "anomalib, OpenVINO, fp32": Contender("anomalib", OPENVINO, anomalib, {"INFERENCE_PRECISION_HINT": "f32"}),
    "anomalib, OpenVINO, bf16": Contender("anomalib", OPENVINO, anomalib, {"INFERENCE_PRECISION_HINT": "bf16"}),
    "AnomaVision, ONNX Runtime, fp32": Contender("anomavision", "model.onnx", anomavision),
}


def test_images(data: Path) -> list[Path]:
    return sorted(data.glob("bottle/test/*/*.png"))


def speed(predictor: Predictor, paths: list[Path]) -> dict[str, Any]:
    """Milliseconds per batch and images per second, of files and of photos, and the memory of one file at a time."""
    found: dict[str, Any] = {"files": {}, "photos": {}}
    for count in BATCHES if predictor.batches else (1,):
        ahead = len(paths) / seconds(lambda count=count: predictor.files(paths, count))
        found["files"][count] = {**times(lambda batch: predictor.files(batch, len(batch)), paths, count)}
        found["files"][count]["images_per_second"] = ahead
        found.setdefault("peak_memory_bytes", peak_memory_bytes())
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    for count in BATCHES:
        found["photos"][count] = times(predictor.photos, photos, count)
    return found


def times(work: Callable[[Sequence[Any]], object], items: Sequence[Any], count: int) -> dict[str, Any]:
    batches = [items[start : start + count] for start in range(0, len(items) - count + 1, count)]
    work(batches[0])
    taken = [seconds(lambda batch=batch: work(batch)) for batch in batches]
    return {
        "milliseconds": [round(1e3 * each, 3) for each in taken],
        "images_per_second": count * len(taken) / sum(taken),
    }


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory_bytes() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("prepare", "maps", "speed"))
    parser.add_argument("name", choices=(*PREPARATIONS, *CONTENDERS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, help="so many of the test images, evenly spread")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if options.stage == "prepare":
        return PREPARATIONS[options.name](options, options.work / options.name)
    family, file, opened, settings = CONTENDERS[options.name]
    predictor, paths = opened(options.work / family / file, **settings), test_images(options.data)
    if options.stage == "maps":
        scores, maps, _ = zip(*predictor.files(paths, 1), strict=True)
        return np.savez(options.work / f"{options.name}.npz", scores=np.array(scores), maps=np.array(maps))
    paths = paths[:: len(paths) // options.images] if options.images else paths
    (first,) = predictor.files(paths[:1], 1)
    print(json.dumps({"score": float(first.score), "anomalous": bool(first.anomalous)}), flush=True)
    installed = {of.metadata["Name"].lower(): of.version for of in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in PACKAGES if name in installed}
    print(json.dumps({"first_memory_bytes": peak_memory_bytes(), **speed(predictor, paths), "versions": versions}))
    return None


if __name__ == "__main__":
    main()
