"""One frozen configuration: everything that a model's figures depend on, beside its images and weights.

TOML files and the command line fill it, and the model file carries it. Importing this module is
cheap, so that a command can print its help without loading torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from padim.errors import PadimError

BACKBONES = ("resnet18", "wide_resnet50_2", "efficientnet_b5", "efficientnet_lite0")
LAYERS = ("layer1", "layer2", "layer3", "layer4")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
UPSAMPLINGS = ("bilinear", "bicubic")
MAX_SIDE = 8192  # pixels
FALSE_ALARM_RATE = 0.01  # what a verdict may flag of fresh normal images, unless another share is asked for
PRECISIONS = ("fp32", "bf16", "fp16")


def _option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """The protocol of a model. The defaults are those of the preset `pytorch-r18`.

    Raises:
        PadimError: a value has the wrong type or is out of range; the message names the field.
    """

    backbone: str = _option("resnet18", "network that gives the features", BACKBONES)
    layers: tuple[str, ...] = _option(LAYERS[:3], "levels that are joined, finest first", LAYERS)
    channels: int = _option(100, "channels drawn from the joined levels; 0 keeps all")
    seed: int = _option(1024, "seed of that draw")
    resize: tuple[int, ...] = _option((256,), "shorter side, or height and width, in pixels")
    crop: tuple[int, ...] = _option((224,), "centre crop: a side, or height and width; nothing for none")
    interpolation: str = _option("lanczos", "how images are resized", INTERPOLATIONS)
    mask_interpolation: str = _option("nearest", "how masks are resized", INTERPOLATIONS)
    rotation: float = _option(0.0, "turn every image by up to so many degrees and crop it anywhere; 0 for neither")
    epsilon: float = _option(0.01, "added to the diagonal of every covariance")
    upsampling: str = _option("bilinear", "how maps grow to the image size", UPSAMPLINGS)
    sigma: float = _option(4.0, "Gaussian smoothing of the maps, in pixels; 0 for none")
    precision: str = _option("fp32", "arithmetic of the backbone", PRECISIONS)
    batch_size: int = _option(8, "images that go through the backbone at a time")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = _checked_type(option, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
            allowed = option.metadata["choices"]
            for entry in value if isinstance(value, tuple) else (value,):
                if allowed and entry not in allowed:
                    raise PadimError(f"{option.name}: {entry!r} is not one of {', '.join(allowed)}")
        self._check_ranges()

    def _check_ranges(self) -> None:
        order = [LAYERS.index(layer) for layer in self.layers]
        checks = {
            "layers": bool(order) and order == sorted(set(order)),
            "channels": self.channels >= 0,
            "resize": len(self.resize) in (1, 2) and min(self.resize) > 0 and max(self.resize) <= MAX_SIDE,
            "crop": len(self.crop) in (0, 1, 2) and min(self.crop, default=1) > 0,
            "rotation": 0 <= self.rotation <= 180,
            "epsilon": self.epsilon >= 0,
            "sigma": self.sigma >= 0,
            "batch_size": self.batch_size > 0,
        }
        for name, holds in checks.items():
            if not holds:
                raise PadimError(f"{name}: {getattr(self, name)} is out of range ({_help(name)})")
        if not self.crop and len(self.resize) == 1:
            raise PadimError("resize: without a crop give height and width, so that all images get one size")
        height, width = self.image_size
        if height > self.resize[0] or width > self.resize[-1]:
            raise PadimError(f"crop: {height} x {width} is larger than the resized image, resize: {self.resize}")
        if self.sigma > max(height, width):
            raise PadimError(f"sigma: {self.sigma} pixels smooth a map of {height} x {width} to nothing: take less")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the backbone sees, in pixels."""
        size = self.crop or self.resize
        return size[0], size[-1]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The fields as a TOML document, which `from_toml` reads back."""
        lines = []
        for name, value in self.to_dict().items():
            lines.append(f"{name} = {json.dumps(value)}\n")  # TOML writes these values as JSON does
        return "".join(lines)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """A configuration from named values; those left out have their defaults.

        Raises:
            PadimError: a name is unknown or a value is not valid.
        """
        known = [option.name for option in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise PadimError(f"{name!r} is not a field of the configuration; known: {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_toml(cls, path: Path) -> Config:
        """A configuration from a TOML file.

        Raises:
            PadimError: the file can't be read, is not TOML, or a field is unknown or not valid.
        """
        try:
            return cls.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise PadimError(f"can't read the configuration {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PadimError(f"{path} is not a TOML file: {error}") from error
        except PadimError as error:
            raise PadimError(f"{path}: {error}") from error


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        PadimError: there is no preset of that name; the message lists those there are.
    """
    presets = {path.stem: path for path in _preset_folder().glob("*.toml")}
    if name not in presets:
        raise PadimError(f"there is no preset {name!r}; there are {', '.join(sorted(presets))}")
    return presets[name]


def _preset_folder() -> Path:
    """`configs/` of the checkout, which a wheel carries inside the package."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "configs"


def _help(name: str) -> str:
    return str(Config.__dataclass_fields__[name].metadata["help"])


def _checked_type(option: dataclasses.Field[Any], value: Any) -> Any:
    """`value` in the type of the field's default: lists become tuples, whole numbers may stand for floats."""
    default = option.default
    if isinstance(default, tuple):
        entries = value if isinstance(value, list | tuple) else (value,)
        if all(type(entry) is type(default[0]) for entry in entries):
            return tuple(entries)
    elif isinstance(default, float):
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is type(default):
        return value
    raise PadimError(f"{option.name}: {value!r} is not valid ({option.metadata['help']})")
