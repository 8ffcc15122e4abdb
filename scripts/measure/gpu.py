"""What a GPU takes to fit and to score, for `padim`, its dense form and anomalib's module.

    python scripts/measure/gpu.py {r18,wr50} [--weights FILE] [--device NAME]

The script prints a JSON object: seconds and peak memory of the GPU of a fit to images that lie in the main memory, and
images per second from such images to maps in the main memory, for batches of 1, 8 and 32. The images are random, which
costs as much as real ones, and so are the weights by default. Anomalib is left out where it isn't installed; it leaves
torch's settings alone, which allow TensorFloat-32 in convolutions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from stages import SIZES, median_seconds
from torch import Tensor

from padim import Padim
from padim.config import Config, preset_path
from padim.detectors.batches import as_pixels
from padim.detectors.options import FitOptions
from padim.detectors.registry import read_config
from padim.embedding import embedding_concat
from padim.extractor import Normalisation
from padim.gaussian import dense
from padim.weights import StateDict, read_weights

BATCHES = (1, 8, 32)


class Contender(NamedTuple):
    """Fits to uint8 images `[n, 3, h, w]`, then scores such a batch, waiting for the result."""

    fit: Callable[[Tensor], object]
    score: Callable[[Tensor], object]


def ours(config: Config, weights: StateDict, device: str, precision: str) -> Contender:
    model = Padim(dataclasses.replace(config, precision=precision), weights=weights, device=device)
    options = FitOptions(calibrate=False)
    return Contender(
        lambda images: model.fit(images.split(config.batch_size), options),
        lambda images: model.score_pixels(as_pixels(images)),
    )


def in_dense_form(config: Config, weights: StateDict, device: str, precision: str) -> Contender:
    model = Padim(dataclasses.replace(config, precision=precision), weights=weights, device=device)
    channels = torch.tensor(model.selection.channels, device=device)
    fitted: list[dense.DenseGaussian] = []

    def embed(images: Tensor) -> Tensor:
        return embedding_concat(model.backbone(images.to(device))).index_select(1, channels)

    def fit(images: Tensor) -> None:
        embedding = torch.cat([embed(batch) for batch in images.split(config.batch_size)])
        fitted[:] = [dense.fit(embedding, config.epsilon)]
        torch.cuda.synchronize()

    def score(images: Tensor) -> None:
        model.anomaly_map(dense.squared_distances(fitted[0], embed(images)).sqrt()).cpu()

    return Contender(fit, score)


def anomalibs(config: Config, weights: StateDict, device: str) -> Contender | None:
    try:
        from anomalib.models.image.padim.torch_model import PadimModel
    except ImportError:
        return None
    normalise = Normalisation().to(device)
    model = PadimModel(config.backbone, [*config.layers], pre_trained=False, n_features=config.channels)
    model.feature_extractor.feature_extractor.load_state_dict(weights, strict=False)
    model.to(device)

    def fit(images: Tensor) -> None:
        model.train()
        model.memory_bank = []
        for batch in images.split(config.batch_size):
            model(normalise(batch.to(device)))
        model.fit()
        torch.cuda.synchronize()

    def score(images: Tensor) -> None:
        model.eval()
        found = model(normalise(images.to(device)))
        found.pred_score.cpu()
        found.anomaly_map.cpu()

    return Contender(fit, score)


@torch.no_grad()
def measured(contender: Contender, images: Tensor) -> dict[str, float]:
    contender.fit(images[:32])  # what is loaded and chosen once
    torch.cuda.reset_peak_memory_stats()
    found = {"fit, seconds": median_seconds(lambda: contender.fit(images), 3)}
    found["fit, peak MB"] = torch.cuda.max_memory_allocated() / 1e6
    torch.cuda.reset_peak_memory_stats()
    for count in BATCHES:
        found[f"images per second, {count}"] = count / median_seconds(lambda n=count: contender.score(images[:n]), 20)
    found["score, peak MB"] = torch.cuda.max_memory_allocated() / 1e6
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    preset, count = SIZES[options.size]
    config = read_config(preset_path(preset))
    torch.manual_seed(0)
    network = torchvision.models.get_model(config.backbone)
    weights = read_weights(options.weights) if options.weights else network.state_dict()
    images = torch.randint(0, 256, (count, 3, *config.image_size), dtype=torch.uint8)
    contenders = {
        "ours, fp32": lambda: ours(config, weights, options.device, "fp32"),
        "ours, tf32": lambda: ours(config, weights, options.device, "tf32"),
        "ours, bf16": lambda: ours(config, weights, options.device, "bf16"),
        "dense, fp32": lambda: in_dense_form(config, weights, options.device, "fp32"),
        "dense, tf32": lambda: in_dense_form(config, weights, options.device, "tf32"),
        "anomalib, tf32": lambda: anomalibs(config, weights, options.device),
    }
    found: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "size": options.size}
    for name, make in contenders.items():
        contender = make()
        if contender:
            found[name] = measured(contender, images)
        del contender
        torch.cuda.empty_cache()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
