"""Synthetic categories in MVTec AD's layout: normal images with natural variation, defects with exact masks.

Every image is drawn from its own seed (seed, split, number), so that it is the same whatever else is
made. A pixel outside a mask is equal, bit for bit, to that of the same image without the defect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

from padim.data.items import GOOD
from padim.errors import PadimError
from padim.poses.pose import Pose
from padim.storage.files import atomic_write, write_json

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Random = np.random.Generator


@dataclass(frozen=True)
class Scene:
    """A normal image before sensor noise.

    Attributes:
        image: RGB `[h, w, 3]`, in 0..1.
        body: where a defect may lie, `[h, w]`.
        y: the coordinates of the part, `[h, w]`, see `_coordinates`.
        x: the same, across.
    """

    image: Floats
    body: Bools
    y: Floats
    x: Floats


def texture(height: int, width: int, random: Random, pose: Pose) -> Scene:
    """A woven cloth: threads both ways, in a phase, pitch and light of their own."""
    y, x = _coordinates(height, width, pose)
    pitch = random.normal(14, 0.15)
    bend = 0.006 * _smooth_noise(height, width, 6, random)
    warp = np.sin(2 * np.pi * (pitch * (x + bend) + random.uniform()))
    weft = np.sin(2 * np.pi * (pitch * (y + bend) + random.uniform()))
    over = np.where(warp * weft > 0, warp, weft)
    cloth = 0.5 + 0.16 * over + 0.03 * _smooth_noise(height, width, 10, random)
    light = random.normal(1, 0.03) + 0.05 * random.normal() * (x - 0.5)
    image = (cloth * light)[..., None] * np.array([0.95, 0.9, 0.75])
    return Scene(image, np.ones((height, width), dtype=bool), y, x)


def part(height: int, width: int, random: Random, pose: Pose) -> Scene:
    """A turned metal part on a dark table: rings, a bore and six holes, slightly moved and lit from a side."""
    y, x = _coordinates(height, width, pose)
    cy, cx = 0.5 + random.normal(0, 0.006, 2)
    radius = np.hypot(y - cy, x - cx) / random.normal(1, 0.01)
    angle = np.arctan2(y - cy, x - cx)
    body = (radius < 0.42) & (radius > 0.1)
    metal = 0.62 + 0.04 * np.sin(2 * np.pi * radius * 26) + 0.06 * np.cos(2 * (angle - random.normal(0.6, 0.15)))
    metal = np.where((radius > 0.3) & (radius < 0.33), metal - 0.15, metal)
    for hole in range(6):
        at = 2 * np.pi * hole / 6 + random.normal(0, 0.01)
        metal = np.where(np.hypot(y - cy - 0.22 * np.sin(at), x - cx - 0.22 * np.cos(at)) < 0.035, 0.12, metal)
    table = 0.16 + 0.02 * _smooth_noise(height, width, 12, random)
    grey = np.where(body, metal + 0.015 * _smooth_noise(height, width, 30, random), table)
    image = (grey * random.normal(1, 0.02))[..., None] * np.array([0.97, 0.98, 1.0])
    inside = (radius < 0.40) & (radius > 0.12)
    return Scene(image, inside, y, x)


def plate(height: int, width: int, random: Random, pose: Pose) -> Scene:
    """A long plate on a dark table, wider at one end, with a bore, a slot and milled grooves."""
    y, x = _coordinates(height, width, pose)
    along, across = x - 0.5, np.abs(y - 0.5)
    body = (np.abs(along) < 0.36) & (across < 0.1 - 0.08 * along)
    metal = 0.62 + 0.03 * np.sin(2 * np.pi * 24 * along)
    metal = np.where(np.hypot(along + 0.26, across) < 0.05, 0.14, metal)
    metal = np.where((np.abs(along - 0.1) < 0.1) & (across < 0.018), 0.3, metal)
    table = 0.16 + 0.02 * _smooth_noise(height, width, 12, random)
    grey = np.where(body, metal + 0.015 * _smooth_noise(height, width, 30, random), table)
    image = (grey * random.normal(1, 0.03))[..., None] * np.array([1.0, 0.98, 0.95])
    return Scene(image, (np.abs(along) < 0.34) & (across < 0.08 - 0.08 * along), y, x)


def scratch(scene: Scene, random: Random) -> tuple[Floats, Bools]:
    """A thin, slightly bent bright line."""
    shape = scene.body.shape
    along, across = _local_axes(scene, random)
    bend = random.uniform(-2, 2)
    length, thickness = random.uniform(0.1, 0.2), random.uniform(0.006, 0.01)
    mask = (np.abs(along) < length) & (np.abs(across - bend * along**2) < max(thickness, 1 / min(shape))) & scene.body
    return scene.image + 0.25 * mask[..., None], mask


def stain(scene: Scene, random: Random) -> tuple[Floats, Bools]:
    """A dark spot of irregular outline."""
    mask = _blob(scene, random, random.uniform(0.05, 0.09))
    return np.where(mask[..., None], scene.image * 0.6, scene.image), mask


def faint(scene: Scene, random: Random) -> tuple[Floats, Bools]:
    """A spot that is hardly brighter than its surroundings."""
    mask = _blob(scene, random, random.uniform(0.06, 0.1))
    return scene.image + 0.08 * mask[..., None], mask


def tint(scene: Scene, random: Random) -> tuple[Floats, Bools]:
    """A spot of another hue and the same brightness."""
    mask = _blob(scene, random, random.uniform(0.05, 0.09))
    return np.where(mask[..., None], scene.image * np.array([1.12, 0.98, 0.8]), scene.image), mask


def blur(scene: Scene, random: Random) -> tuple[Floats, Bools]:
    """A spot where the structure is rubbed off."""
    mask = _blob(scene, random, random.uniform(0.07, 0.11))
    sigma = 0.03 * min(mask.shape)
    smooth = scipy.ndimage.gaussian_filter(scene.image, (sigma, sigma, 0))
    return np.where(mask[..., None], smooth, scene.image), mask


SCENES: dict[str, Callable[[int, int, Random, Pose], Scene]] = {"texture": texture, "object": part, "plate": plate}
DEFECTS: dict[str, Callable[[Scene, Random], tuple[Floats, Bools]]] = {
    "blur": blur,
    "faint": faint,
    "scratch": scratch,
    "stain": stain,
    "tint": tint,
}


# How far a posed part lies from the middle at most, in shares of the shorter side: the parts stay inside.
_FARTHEST = 0.08


def draw_pose(kind: str, align: str, height: int, width: int, seed: tuple[int, ...]) -> Pose:
    """Where a part lies that `align` would move back; in pixels of its image.

    For `none` it lies upright in the middle, but for plates, which then lie within about a pixel of it.
    """
    random = np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[3])  # beside those of `synthesize`
    angle, *shift = random.uniform(-1, 1, 3)
    place = np.array(shift) * _FARTHEST * (align != "none") + random.normal(0, 0.003, 2) * (kind == "plate")
    return Pose.of(180 * angle * (align == "rotate"), place * min(height, width))


def synthesize(
    kind: str, height: int, width: int, defect: str, seed: tuple[int, ...], pose: Pose = Pose()
) -> tuple[NDArray[np.uint8], Bools]:
    """One image.

    Args:
        kind: a key of `SCENES`.
        height: in pixels.
        width: in pixels.
        defect: a key of `DEFECTS`, or "good".
        seed: any numbers; the same ones give the same image, with a defect or without.
        pose: how the part lies, in pixels.

    Returns:
        RGB `[h, w, 3]`, and where the defect is, `[h, w]`.
    """
    for_scene, for_noise, for_defect = np.random.SeedSequence(seed).spawn(3)
    scene = SCENES[kind](height, width, np.random.default_rng(for_scene), pose)
    image, mask = scene.image, np.zeros((height, width), dtype=bool)
    if defect != GOOD:
        image, mask = DEFECTS[defect](scene, np.random.default_rng(for_defect))
    noise = np.random.default_rng(for_noise).normal(0, 0.015, (height, width, 1))
    return ((image + noise).clip(0, 1) * 255).round().astype(np.uint8), mask


def write_category(
    folder: Path,
    kind: str,
    height: int,
    width: int,
    train: int,
    good: int,
    defective: int,
    seed: int,
    align: str = "none",
) -> Iterator[Path]:
    """Write a category in MVTec AD's layout; gives each image's path once it is written.

    The poses of parts that lie in any go to `poses.json` in the folder.

    Args:
        folder: the category's folder.
        kind: a key of `SCENES`.
        height: of every image, in pixels.
        width: of every image, in pixels.
        train: number of training images.
        good: number of normal test images.
        defective: number of test images of each defect type.
        seed: of the whole category.
        align: how parts lie: where `rotate` or `shift` can move them from, or for `none` all alike.

    Raises:
        PadimError: a file can't be written, or the folder has images beyond those.
    """
    groups = [("train", GOOD, train), ("test", GOOD, good), *(("test", defect, defective) for defect in DEFECTS)]
    ours = {folder / split / defect / f"{number:03}.png" for split, defect, count in groups for number in range(count)}
    others = sorted(set(folder.glob("t*/*/*.*")) - ours)
    if others:
        raise PadimError(
            f"{folder} has other images, like {others[0]}: remove the folder, or choose another --category"
        )
    poses: dict[str, Any] = {}
    for group, (split, defect, count) in enumerate(groups):
        for number in range(count):
            pose = draw_pose(kind, align, height, width, (seed, group, number))
            poses[f"{split}/{defect}/{number:03}.png"] = pose._asdict()
            image, mask = synthesize(kind, height, width, defect, (seed, group, number), pose)
            path = folder / split / defect / f"{number:03}.png"
            _save(path, image)
            if defect != GOOD:
                _save(folder / "ground_truth" / defect / f"{number:03}_mask.png", mask.astype(np.uint8) * 255)
            yield path
    if align == "none":
        (folder / "poses.json").unlink(missing_ok=True)  # of an earlier call
    else:
        write_json(folder / "poses.json", poses)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)


def _coordinates(height: int, width: int, pose: Pose) -> tuple[Floats, Floats]:
    """Row and column of every pixel's centre on the part; the shorter side is 1 long and the part's middle at 0.5."""
    y, x = np.mgrid[:height, :width]
    y, x = y + 0.5 - height / 2, x + 0.5 - width / 2
    side, back = min(height, width), pose.inverse()
    if pose != Pose():
        (a, b), (c, d) = back.rotation
        y, x = c * x + d * y + back.shift[1], a * x + b * y + back.shift[0]
    return y / side + 0.5, x / side + 0.5


def _smooth_noise(height: int, width: int, cells: int, random: Random) -> Floats:
    """Noise of about unit variance that varies over 1 / cells of the image, `[h, w]`."""
    coarse = random.normal(size=(cells, cells))
    noise: Floats = scipy.ndimage.zoom(coarse, (height / cells, width / cells), order=3, grid_mode=True, mode="reflect")
    return noise


def _local_axes(scene: Scene, random: Random) -> tuple[Floats, Floats]:
    """Coordinates along and across a random direction, around a random place on the body."""
    rows, columns = np.nonzero(scene.body)
    middle = random.integers(len(rows))
    at = rows[middle], columns[middle]
    dy, dx = scene.y - scene.y[at], scene.x - scene.x[at]
    angle = random.uniform(0, 2 * np.pi)
    return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


def _blob(scene: Scene, random: Random, radius: float) -> Bools:
    """A round spot with three random waves in its outline, never empty, cut off at the body's edge."""
    along, across = _local_axes(scene, random)
    angle = np.arctan2(across, along)
    waves = sum(random.normal(0, 0.12) * np.cos(k * angle + random.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    return (np.hypot(along, across) < radius * (1 + waves)) & scene.body
