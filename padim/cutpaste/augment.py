"""The defects that CutPaste makes (Li et al. 2021, section 3): a patch or a thin scar, pasted elsewhere."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional as F

from padim.cutpaste.config import CutPasteConfig

# Variant -> what each class is made of; the first one is always the image as it is.
CLASSES = {
    "normal": ("image", "patch"),
    "scar": ("image", "scar"),
    "union": ("image", "patch or scar"),
    "3way": ("image", "patch", "scar"),
}


# What the generators of the views are told apart by from that of the order of the images.
_VIEWS = 1


def augmented(image: Image.Image, config: CutPasteConfig, number: int) -> dict[str, Image.Image]:
    """The versions of a training image that the network learns to tell apart, by their classes, for a look at them."""
    made = views(image, config, view_generator(config, number))
    return dict(zip(CLASSES[config.variant], made, strict=True))


def view_generator(config: CutPasteConfig, index: int) -> np.random.Generator:
    """What the versions of the image that comes at a place in the order of a run are drawn with."""
    return np.random.default_rng([config.seed, _VIEWS, index])


def views(image: Image.Image, config: CutPasteConfig, random: np.random.Generator) -> list[Image.Image]:
    """One version of an RGB image for each class of the variant, all in the size of the image."""
    image = jittered(image, config.jitter, random)
    made = []
    for kind in CLASSES[config.variant]:
        if kind == "patch or scar":
            kind = "patch" if random.random() < 0.5 else "scar"
        if kind == "patch":
            made.append(with_patch(image, config, random))
        elif kind == "scar":
            made.append(with_scar(image, config, random))
        else:
            made.append(image)
    return made


def with_patch(image: Image.Image, config: CutPasteConfig, random: np.random.Generator) -> Image.Image:
    """A copy with a rectangle of the image pasted anywhere: area in shares of the image, aspect log-uniform."""
    area = _uniform(config.patch_area, random) * image.width * image.height
    limit = math.log(config.patch_aspect)
    aspect = math.exp(random.uniform(-limit, limit))  # width over height
    width = _side(math.sqrt(area * aspect), image.width)
    height = _side(math.sqrt(area / aspect), image.height)
    return _pasted(image, _cut(image, width, height, config.jitter, random), random)


def with_scar(image: Image.Image, config: CutPasteConfig, random: np.random.Generator) -> Image.Image:
    """A copy with a thin rectangle of the image, turned, pasted anywhere; sizes in pixels."""
    width = _side(_uniform(config.scar_width, random), image.width)
    height = _side(_uniform(config.scar_height, random), image.height)
    scar = _cut(image, width, height, config.jitter, random)
    angle = random.uniform(-config.scar_rotation, config.scar_rotation)
    return _pasted(image, scar.convert("RGBA").rotate(angle, expand=True), random)


def jittered(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue changed by up to `strength`, in random order."""
    if strength == 0:  # a hue that doesn't change would be rounded all the same
        return image
    brightness, contrast, saturation = random.uniform(1 - strength, 1 + strength, 3).tolist()
    hue = random.uniform(-strength, strength)
    changes = (
        lambda picture: F.adjust_brightness(picture, brightness),
        lambda picture: F.adjust_contrast(picture, contrast),
        lambda picture: F.adjust_saturation(picture, saturation),
        lambda picture: F.adjust_hue(picture, hue),
    )
    for index in random.permutation(len(changes)):
        image = changes[index](image)
    return image


def _uniform(limits: tuple[float, ...], random: np.random.Generator) -> float:
    low, high = limits
    return random.uniform(low, high)


def _side(wanted: float, available: int) -> int:
    """Whole pixels, one at least and no more than there are."""
    return min(max(1, round(wanted)), available)


def _cut(image: Image.Image, width: int, height: int, strength: float, random: np.random.Generator) -> Image.Image:
    """A rectangle from anywhere in the image, its colours jittered."""
    left = int(random.integers(image.width - width + 1))
    top = int(random.integers(image.height - height + 1))
    return jittered(image.crop((left, top, left + width, top + height)), strength, random)


def _pasted(image: Image.Image, patch: Image.Image, random: np.random.Generator) -> Image.Image:
    """A copy of the image with a patch anywhere in it; what is transparent in an RGBA patch stays as it was."""
    left = int(random.integers(max(0, image.width - patch.width) + 1))
    top = int(random.integers(max(0, image.height - patch.height) + 1))
    copy = image.copy()
    copy.paste(patch.convert("RGB"), (left, top), patch if patch.mode == "RGBA" else None)
    return copy
