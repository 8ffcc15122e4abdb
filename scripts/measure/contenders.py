"""One run of one contender of the benchmark: train and evaluate on a category, in this process.

    python scripts/measure/contenders.py NAME --data ROOT --category bottle --weights FILE

The script prints a JSON object: wall and CPU seconds after the imports, peak memory, and the AUROCs, which check that
all contenders do the same work. The preprocessing is that of the preset `pytorch-r18`; anomalib takes its own
(256 x 256, no crop), as its users do.

`ours` trains without the calibration, which no other contender has, writes the model, and evaluates it. `plain` is the
protocol as the published implementations run it: every embedding is kept, a loop over the positions calls numpy.cov,
and another one inverts each covariance and calls SciPy's mahalanobis for every image. `dense` is the same model in
batched torch, with one Cholesky factor per position.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from padim.data.items import Item
from padim.data.layouts import find_category

POSITIONS = 56 * 56
CHANNELS = 100
EPSILON = 0.01


def ours(options: argparse.Namespace) -> dict[str, float]:
    from padim import Config, FitOptions, Padim, evaluate_category, train_category
    from padim.cli.options import pick_device
    from padim.system.machine import cores

    device, workers = pick_device("cpu"), min(8, cores())  # as padim-train has it
    fit = FitOptions(calibrate=False, workers=workers)
    clock = Clock()
    category = find_category(options.data, options.category)
    trained = train_category(
        category, Config(), options.scratch, options=fit, weights=options.weights, device=device, make=Padim
    )
    metrics = evaluate_category(trained.detector, category, options.scratch, workers=workers).metrics
    return clock.read() | {"image_auroc": metrics.image_auroc, "pixel_auroc": metrics.pixel_auroc}


def plain(options: argparse.Namespace) -> dict[str, float]:
    import numpy as np
    import scipy.ndimage
    import torch
    import torch.nn.functional as F
    from scipy.spatial.distance import mahalanobis
    from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

    extract, loaders, channels = torch_protocol(options)
    clock = Clock()

    def concat(fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Join two levels by cutting the fine one into the blocks of the coarse one's cells."""
        n, c, h, _ = fine.shape
        step = h // coarse.shape[2]
        blocks = F.unfold(fine, step, stride=step).view(n, c, -1, *coarse.shape[2:])
        joined = torch.zeros(n, c + coarse.shape[1], blocks.shape[2], *coarse.shape[2:])
        for part in range(blocks.shape[2]):
            joined[:, :, part] = torch.cat([blocks[:, :, part], coarse], dim=1)
        return F.fold(joined.view(n, -1, coarse.shape[2] ** 2), (h, h), step, stride=step)

    def embed(loader: torch.utils.data.DataLoader) -> np.ndarray:
        levels = [torch.cat(level) for level in zip(*(extract(images) for images, *_ in loader), strict=True)]
        joined = concat(concat(levels[0], levels[1]), levels[2])
        return joined.index_select(1, channels).flatten(2).numpy()

    train = embed(loaders[0])
    mean = train.mean(axis=0)
    covariance = np.empty((CHANNELS, CHANNELS, POSITIONS))
    for position in range(POSITIONS):
        covariance[:, :, position] = np.cov(train[:, :, position], rowvar=False) + EPSILON * np.eye(CHANNELS)
    test = embed(loaders[1])
    rows = []
    for position in range(POSITIONS):
        inverse = np.linalg.inv(covariance[:, :, position])
        rows.append([mahalanobis(image[:, position], mean[:, position], inverse) for image in test])
    distances = torch.tensor(np.array(rows)).T.reshape(-1, 1, 56, 56)
    maps = F.interpolate(distances, size=224, mode="bilinear", align_corners=False)[:, 0].numpy()
    for image in range(len(maps)):
        maps[image] = scipy.ndimage.gaussian_filter(maps[image], sigma=4)
    maps = (maps - maps.min()) / (maps.max() - maps.min())
    labels, masks = truth(loaders[1])
    scores = maps.reshape(len(maps), -1).max(axis=1)
    roc_curve(labels, scores)
    precision_recall_curve(masks, maps.ravel())
    roc_curve(masks, maps.ravel())
    image, pixel = roc_auc_score(labels, scores), roc_auc_score(masks, maps.ravel())
    return clock.read() | {"image_auroc": image, "pixel_auroc": pixel}


def dense(options: argparse.Namespace) -> dict[str, float]:
    import numpy as np
    import scipy.ndimage
    import torch
    import torch.nn.functional as F
    from sklearn.metrics import precision_recall_curve, roc_auc_score

    import padim.gaussian.dense
    from padim.embedding import embedding_concat

    extract, loaders, channels = torch_protocol(options)
    clock = Clock()

    def embed(images: torch.Tensor) -> torch.Tensor:
        return embedding_concat(extract(images)).index_select(1, channels)

    gaussian = padim.gaussian.dense.fit(torch.cat([embed(images) for images, *_ in loaders[0]]), EPSILON)
    maps = []
    for images, *_ in loaders[1]:
        distances = padim.gaussian.dense.squared_distances(gaussian, embed(images)).sqrt()
        maps.append(F.interpolate(distances[:, None], size=224, mode="bilinear", align_corners=False)[:, 0])
    smooth = scipy.ndimage.gaussian_filter(torch.cat(maps).numpy(), sigma=(0, 4, 4))
    labels, masks = truth(loaders[1])
    image, pixel = roc_auc_score(labels, smooth.max(axis=(1, 2))), roc_auc_score(masks, smooth.ravel())
    precision_recall_curve(masks, np.ravel(smooth))
    return clock.read() | {"image_auroc": image, "pixel_auroc": pixel}


def anomalib(options: argparse.Namespace) -> dict[str, float]:
    import logging
    import warnings

    import torch
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from anomalib.models import Padim

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    data = MVTecAD(root=options.data, category=options.category, num_workers=2)
    model = Padim(backbone="resnet18", layers=["layer1", "layer2", "layer3"], pre_trained=False, n_features=CHANNELS)
    weights = torch.load(options.weights, weights_only=True)
    missing, _ = model.model.feature_extractor.feature_extractor.load_state_dict(weights, strict=False)
    assert not [key for key in missing if not key.startswith(("layer4", "fc"))], missing
    engine = Engine(accelerator="cpu", default_root_dir=options.scratch, logger=False, barebones=False)
    clock = Clock()
    engine.fit(model=model, datamodule=data)
    (figures,) = engine.test(model=model, datamodule=data, verbose=False)
    return clock.read() | {"image_auroc": figures["image_AUROC"], "pixel_auroc": figures["pixel_AUROC"]}


CONTENDERS = {"ours": ours, "plain": plain, "dense": dense, "anomalib": anomalib}


class Clock:
    """Wall and CPU seconds of this process and its children from here on."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), _cpu_seconds()

    def read(self) -> dict[str, float]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        wall, cpu = time.perf_counter() - self.wall, _cpu_seconds() - self.cpu
        return {"seconds": wall, "cpu_seconds": cpu, "peak_memory_bytes": peak}


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def torch_protocol(options: argparse.Namespace):
    """Torchvision's ResNet18 with hooks, DataLoaders over train and test, and the channels that are drawn."""
    import random

    import torch
    import torchvision
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pixels = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    lanczos, nearest = v2.InterpolationMode.LANCZOS, v2.InterpolationMode.NEAREST
    to_input = v2.Compose([v2.Resize(256, interpolation=lanczos), v2.CenterCrop(224), *pixels])
    to_mask = v2.Compose([v2.Resize(256, interpolation=nearest), v2.CenterCrop(224), v2.PILToTensor()])

    class Images(Dataset):
        def __init__(self, items: list[Item]) -> None:
            self.items = items
            self.masks: dict[int, torch.Tensor] = {}

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            item = self.items[index]
            mask = torch.zeros(1, 224, 224, dtype=torch.uint8)
            if item.mask:
                mask = to_mask(Image.open(item.mask))
            self.masks[index] = mask
            return to_input(Image.open(item.path).convert("RGB")), mask

    network = torchvision.models.resnet18().eval()
    network.load_state_dict(torch.load(options.weights, weights_only=True), strict=False)
    outputs: list[torch.Tensor] = []
    for layer in (network.layer1, network.layer2, network.layer3):
        layer[-1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))

    def extract(images: torch.Tensor) -> list[torch.Tensor]:
        outputs.clear()
        with torch.no_grad():
            network(images)
        return list(outputs)

    category = find_category(options.data, options.category)
    sets = [Images(items) for items in (category.train, category.test)]
    loaders = [DataLoader(images, batch_size=32) for images in sets]
    return extract, loaders, torch.tensor(random.Random(1024).sample(range(448), CHANNELS))


def truth(loader):
    """Labels of the images, and of all pixels, that a loader has gone through."""
    import torch

    images = loader.dataset
    masks = torch.cat([images.masks[index] for index in range(len(images))]).numpy().ravel() > 0
    return [item.anomalous for item in images.items], masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--weights", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as options.scratch:
        print(json.dumps(CONTENDERS[options.name](options)))


if __name__ == "__main__":
    main()
