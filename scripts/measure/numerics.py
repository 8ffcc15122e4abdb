"""Rounding errors of distances and image scores, against NumPy and SciPy in float64.

    python scripts/measure/numerics.py [--data ROOT --weights FILE]

The script prints Markdown. The first table is of made-up features. The second one, which needs MVTec AD's bottle and
ResNet18, shows what the arithmetic of the network changes. TensorFloat-32 is emulated, so no GPU is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from padim import Config, FitOptions, Padim, PadimError, evaluate_category, train_category
from padim.data.layouts import find_category
from padim.gaussian.moments import Moments
from padim.gaussian.shared import Gaussian
from padim.pyramid import Pyramid
from padim.scoring import AnomalyMap, image_scores
from padim.tiles import Tiling

EPSILON = Config().epsilon
PYRAMID = Pyramid(((1, 1), (2, 2), (4, 4)))

# Unit roundoff: the largest relative error of rounding one number.
ROUNDOFF = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}

Features = list[Tensor]  # `[cells_i, d_i, n]` per level, coarse to fine


class Condition(NamedTuple):
    """Features to fit to, features to score, and the type that both are rounded to before."""

    train: Features
    test: Features
    dtype: torch.dtype = torch.float32


class Measured(NamedTuple):
    """Relative errors of distances, their bounds and condition numbers, `[cells, n]`; errors of image scores, `[n]`."""

    distances: NDArray[np.float64]
    bounds: NDArray[np.float64]
    condition: NDArray[np.float64]
    scores: NDArray[np.float64]


class Truth(NamedTuple):
    """Distances in float64, and how much they magnify relative errors, all `[cells, n]`."""

    distances: NDArray[np.float64]
    of_covariance: NDArray[np.float64]
    of_features: NDArray[np.float64]


def features(n: int, drawn: Sequence[int] = (40, 40, 20), seed: int = 0) -> Features:
    """Correlated features of n images, with a standard deviation of about 1."""
    generator = torch.Generator().manual_seed(seed)
    levels = []
    for (height, width), d in zip(PYRAMID.grids, drawn, strict=True):
        mix = torch.randn(d, d, generator=torch.Generator().manual_seed(d)) / d**0.5
        levels.append(mix @ torch.randn(height * width, d, n, generator=generator))
    return levels


def of_images(n: int, drawn: Sequence[int] = (40, 40, 20)) -> Condition:
    return Condition(features(n, drawn), features(3, drawn, seed=1))


def repeated(images: Sequence[int]) -> Condition:
    """Training images by their numbers, some of which are the same."""
    condition = of_images(max(images) + 1)
    return condition._replace(train=[level[:, :, list(images)] for level in condition.train])


def changed(change: Callable[[Tensor], Tensor], n: int = 60) -> Condition:
    """The same change in the features of all images."""
    train, test, _ = of_images(n)
    return Condition([change(level) for level in train], [change(level) for level in test])


def half_constant(level: Tensor) -> Tensor:
    return level.index_fill(1, torch.arange(0, level.shape[1], 2), 3.7)


def scaled(level: Tensor) -> Tensor:
    """Channels with standard deviations from 0.001 to 1000."""
    return level * torch.logspace(-3, 3, level.shape[1])[:, None]


CONDITIONS: dict[str, Callable[[], Condition]] = {
    "2 images": lambda: of_images(2),
    "3 images": lambda: of_images(3),
    "10 images": lambda: of_images(10),
    "60 images": lambda: of_images(60),
    "1000 images": lambda: of_images(1000),
    "550 channels, 2 images": lambda: of_images(2, (250, 200, 100)),
    "550 channels, 60 images": lambda: of_images(60, (250, 200, 100)),
    "20 times one image": lambda: repeated([0] * 20),
    "19 of 20 images the same": lambda: repeated([0] * 19 + [1]),
    "half of the channels constant": lambda: changed(half_constant),
    "all features + 1000": lambda: changed(lambda level: level + 1000),
    "all features + 100000": lambda: changed(lambda level: level + 100_000),
    "all features x 10": lambda: changed(lambda level: level * 10),
    "channels x 0.001 to 1000": lambda: changed(scaled),
    "features in fp16": lambda: of_images(60)._replace(dtype=torch.float16),
    "features in bf16": lambda: of_images(60)._replace(dtype=torch.bfloat16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="root of MVTec AD, for the second table")
    parser.add_argument("--weights", type=Path, help="weights of ResNet18, for the second table")
    options = parser.parse_args()
    print("| features | condition number | error of distances | bound | share of it | error of image scores |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, condition in CONDITIONS.items():
        found = measured(condition())
        share = (found.distances / found.bounds).max()
        largest = (part.max() for part in (found.condition, found.distances, found.bounds))
        figures = " | ".join(f"{figure:.1e}" for figure in largest)
        print(f"| {name} | {figures} | {share:.2f} | {found.scores.max():.1e} |")
    if options.data and options.weights:
        print("\n| network in | error of image scores, mean | largest | image AUROC | pixel AUROC |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for row in networks(options.data, options.weights):
            print(row)


def measured(condition: Condition, epsilon: float = EPSILON) -> Measured:
    """The distances that `Gaussian` gives for the features, against the truth."""
    train, test = ([level.to(condition.dtype).float() for level in part] for part in condition[:2])
    found = gaussian_of([train], epsilon).squared_distances(test).sqrt()
    exact = truth(condition, epsilon)
    anomaly_map = AnomalyMap(Tiling.of((16, 16), (16, 16), PYRAMID.grids[-1]), "bilinear", 4.0)
    score = image_scores(anomaly_map(PYRAMID.to_map(found)))
    exact_score = image_scores(anomaly_map.double()(PYRAMID.to_map(torch.from_numpy(exact.distances))))
    return Measured(
        relative_error(found.numpy(), exact.distances),
        bounds(exact, train, condition.dtype),
        exact.of_covariance,
        relative_error(score.numpy(), exact_score.numpy()),
    )


def gaussian_of(groups: Iterable[Features], epsilon: float = EPSILON) -> Gaussian:
    """The Gaussian of the images in groups of features; its moments are taken about the mean of the first group."""
    moments = None
    for group in groups:
        moments = moments or Moments.about([level.mean(dim=2, keepdim=True) for level in group])
        moments.add(group)
    assert moments is not None
    return Gaussian.fit(moments, epsilon)


def bounds(exact: Truth, train: Features, dtype: torch.dtype) -> NDArray[np.float64]:
    """Bounds of the relative errors of distances; `docs/numerics.md` gives the reasons."""
    d = sum(level.shape[1] for level in train)
    different = train[-1].unique(dim=2).shape[2]  # equal images have equal rounding errors
    single, of_features = ROUNDOFF[torch.float32], 0 if dtype == torch.float32 else ROUNDOFF[dtype]
    of_covariance = 4 * (1 + d / different) ** 0.5 * exact.of_covariance
    return single * (of_covariance + 4) + (single + of_features) * 4 * exact.of_features


def truth(condition: Condition, epsilon: float) -> Truth:
    """Distances as the paper writes them, one position at a time."""
    positions = []
    for train, test in zip(joined(condition.train), joined(condition.test), strict=True):
        covariance = np.cov(train) + epsilon * np.eye(len(train))
        centred = test - train.mean(axis=1, keepdims=True)
        solved = scipy.linalg.cho_solve(scipy.linalg.cho_factor(covariance), centred)
        squared = (centred * solved).sum(axis=0)
        of_covariance = covariance.diagonal() @ solved**2 / squared
        of_features = np.linalg.norm(test * solved, axis=0) / squared
        positions.append((np.sqrt(squared), of_covariance, of_features))
    return Truth(*np.array(positions).swapaxes(0, 1))


def joined(levels: Features) -> NDArray[np.float64]:
    """The embedding of every position, `[cells, d, n]`."""
    cells = len(levels[-1])
    return torch.cat([level.repeat_interleave(cells // len(level), dim=0) for level in levels], dim=1).double().numpy()


def relative_error(found: NDArray[np.floating], expected: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.abs(found - expected) / expected


_ATEN: Any = torch.ops.aten

# Operations that a GPU may compute in TensorFloat-32, and where their two factors are among the arguments.
MATRIX_PRODUCTS = {_ATEN.bmm: (0, 1), _ATEN.mm: (0, 1), _ATEN.baddbmm: (1, 2), _ATEN.baddbmm_: (1, 2)}
CONVOLUTIONS = {_ATEN.convolution: (0, 1)}


def tf32(values: Tensor) -> Tensor:
    """Float32 rounded to the 10 bits of TensorFloat-32, ties away from zero."""
    return ((values.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


class TensorFloat32(TorchDispatchMode):
    """Rounds the factors of some products as a GPU's tensor cores do; sums stay in float32."""

    def __init__(self, products: Mapping[Any, tuple[int, int]]) -> None:
        super().__init__()
        self.products = products

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = self.products.get(function.overloadpacket, ())
        rounded = [
            tf32(value) if number in factors and value.dtype == torch.float32 else value
            for number, value in enumerate(args)
        ]
        return function(*rounded, **(kwargs or {}))


class InFloat64(Padim):
    """PaDiM whose network, Gaussians and maps are in float64; between network and Gaussians, features are float32."""

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)
        self.backbone.double().register_forward_hook(lambda _, __, levels: [level.double() for level in levels])
        self.anomaly_map.double()


# The arithmetic of the network, as `--precision` names it, and the products that are emulated in TensorFloat-32.
NETWORKS: dict[str, tuple[str, Mapping[Any, tuple[int, int]]]] = {
    "fp32": ("fp32", {}),
    "TF32": ("fp32", CONVOLUTIONS),
    "TF32, and the Gaussians too": ("fp32", CONVOLUTIONS | MATRIX_PRODUCTS),
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
}


def networks(data: Path, weights: Path) -> Iterator[str]:
    """Rows of the second table: the errors of image scores against those in float64, and the AUROCs."""
    category = find_category(data, "bottle")

    def figures(config: Config, make: type[Padim] = Padim) -> tuple[NDArray[np.float64], str]:
        options = FitOptions(calibrate=False)
        detector = train_category(category, config, options=options, weights=weights, make=make).detector
        found = evaluate_category(detector, category)
        scores = np.array([image.score for image in found.images])
        return scores, f"{found.metrics.image_auroc:.4f} | {found.metrics.pixel_auroc:.4f}"

    exact, aurocs = figures(Config(), InFloat64)
    yield f"| float64 | | | {aurocs} |"
    for name, (precision, products) in NETWORKS.items():
        with TensorFloat32(products):
            try:
                scores, aurocs = figures(Config(precision=precision))
            except PadimError as error:
                yield f"| {name} | {error} | | | |"
                continue
        errors = relative_error(scores, exact)
        yield f"| {name} | {errors.mean():.1e} | {errors.max():.1e} | {aurocs} |"


if __name__ == "__main__":
    main()
