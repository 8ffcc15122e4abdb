"""The protocol of a CutPaste detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from padim.config import INTERPOLATIONS, MAX_SIDE, BaseConfig, option

VARIANTS = ("normal", "scar", "union", "3way")
PLACES = ("none", "before-layer4", "last-block")
INITIAL_WEIGHTS = ("imagenet", "random")
DENSITIES = ("gaussian", "kernel")
SELECTIONS = ("last", "best-on-test")
OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True, kw_only=True)
class CutPasteConfig(BaseConfig):
    """Augmentation, network, training and density. The defaults are those of the preset `cutpaste-3way`."""

    method = "cutpaste"
    refused = {  # noqa: RUF012 (a ClassVar there)
        "update": "cutpaste can't take in more images: train it again with all of them",
        "ignore": "cutpaste scores whole images, and has no pixels to ignore",
        "keep_moments": "cutpaste has no moments: train it again with all images",
        "embed_backbone": "the network is trained, so its weights are nowhere else",
    }
    backbone: ClassVar[str] = "resnet18"

    resize: tuple[int, ...] = option((256, 256), f"shorter side, or height and width, in pixels, at most {MAX_SIDE}")
    crop: tuple[int, ...] = option((), "centre crop: a side, or height and width; nothing for none")
    interpolation: str = option("bicubic", "how images are resized", INTERPOLATIONS)

    variant: str = option(
        "3way", "defects that are made: patches, scars, either as one class, or each as its own", VARIANTS
    )
    jitter: float = option(0.1, "change of brightness, contrast, saturation and hue, of images and of what is pasted")
    patch_area: tuple[float, ...] = option((0.02, 0.15), "smallest and largest patch, in shares of the image")
    patch_aspect: float = option(1 / 0.3, "how many times as long as wide a patch is at most")
    scar_width: tuple[float, ...] = option((2.0, 16.0), "smallest and largest width of a scar, in pixels")
    scar_height: tuple[float, ...] = option((10.0, 25.0), "smallest and largest height of a scar, in pixels")
    scar_rotation: float = option(45.0, "degrees by which a scar is turned at most")

    initial: str = option("imagenet", "weights of the backbone before the training", INITIAL_WEIGHTS)
    head_layers: int = option(1, "layers of 512 in the projection head")
    sspcab: str = option("none", "where the predictive block stands", PLACES)
    sspcab_weight: float = option(0.01, "weight of the predictive block's error in the loss")

    steps: int = option(500, "updates of the weights; 0 takes them as they are")
    training_batch: int = option(96, "images per step, each of them once for every class")
    learning_rate: float = option(0.03, "largest learning rate")
    cosine_steps: int = option(
        10, "steps in which the learning rate falls to 0, to rise again in as many; 0: it falls once, over all steps"
    )
    optimizer: str = option("sgd", "what updates the weights", OPTIMIZERS)
    momentum: float = option(0.9, "momentum of sgd, and the first beta of adam")
    weight_decay: float = option(3e-5, "weight decay")
    frozen_steps: int = option(20, "steps in which the weights that were not random at first stay as they are")

    density: str = option("gaussian", "what is fitted to the embeddings of the training images", DENSITIES)
    bandwidth: float = option(1.0, "bandwidth of the kernel density")
    select: str = option("last", "step whose weights are taken; best-on-test has seen the test images", SELECTIONS)
    test_steps: int = option(10, "steps from one look at the test images to the next, for best-on-test")

    @property
    def pretrained(self) -> str | None:
        return self.backbone if self.initial == "imagenet" else None

    @property
    def seeded(self) -> bool:
        return super().seeded or self.steps > 0 or self.initial == "random"

    @property
    def remark(self) -> str | None:
        if self.select == "last":
            return None
        return "the step was chosen by the AUROC on the test images: figures on them have seen the answers"

    def _ranges(self) -> dict[str, bool]:
        return super()._ranges() | {
            "jitter": 0 <= self.jitter <= 0.5,
            "patch_area": _is_range(self.patch_area) and self.patch_area[1] <= 1,
            "patch_aspect": self.patch_aspect >= 1,
            "scar_width": _is_range(self.scar_width),
            "scar_height": _is_range(self.scar_height),
            "scar_rotation": 0 <= self.scar_rotation <= 180,
            "head_layers": 0 <= self.head_layers <= 16,
            "sspcab_weight": self.sspcab_weight >= 0,
            "steps": self.steps >= 0,
            "training_batch": self.training_batch > 1,
            "learning_rate": self.learning_rate > 0,
            "cosine_steps": self.cosine_steps >= 0,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "frozen_steps": self.frozen_steps >= 0,
            "bandwidth": self.bandwidth > 0,
            "test_steps": self.test_steps > 0,
        }


def _is_range(values: tuple[float, ...]) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1]
