"""Frozen configurations: everything that a model's figures depend on, beside its images and weights.

TOML files and the command line fill them, and the model file carries its own. Importing this module
is cheap, so that a command can print its help without loading torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from padim.backbones import ARCHITECTURES, LIBRARIES
from padim.errors import PadimError

BACKBONES = (*ARCHITECTURES, *(f"{library}:NAME" for library in LIBRARIES))
LAYERS = ("layer1", "layer2", "layer3", "layer4")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
UPSAMPLINGS = ("bilinear", "bicubic")
TILE_MODELS = ("shared", "position")
ALIGNMENTS = ("none", "shift", "rotate")
DECODINGS = ("full", "reduced")
MAX_SIDE = 8192  # pixels
FALSE_ALARM_RATE = 0.01  # what a verdict may flag of fresh normal images, unless another share is asked for
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_LONGEST = 10_000  # characters of a TOML file; a key of many parts takes the square of its length


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A field of a configuration, which is also an option of the command line."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """What the protocols of all methods have: how images are prepared and computed on.

    Attributes:
        method: the detector that a subclass configures.
        refused: options of a fit, as `padim.FitOptions` has them, that the method does not have, and why.

    Raises:
        PadimError: a value has the wrong type or is out of range; the message names the field.
    """

    method: ClassVar[str]
    refused: ClassVar[Mapping[str, str]] = {}

    seed: int = option(1024, "seed of all that is drawn at random")
    resize: tuple[int, ...] = option((256,), f"shorter side, or height and width, in pixels, at most {MAX_SIDE}")
    crop: tuple[int, ...] = option((224,), "centre crop: a side, or height and width; nothing for none")
    interpolation: str = option("lanczos", "how images are resized", INTERPOLATIONS)
    mask_interpolation: str = option("nearest", "how masks are resized", INTERPOLATIONS)
    mask_threshold: int = option(1, "of 255, from where on a pixel of a resized mask is defective")
    decode: str = option(
        "full", "size at which JPEG files are decoded: reduced for 1/2, 1/4 or 1/8, never below --resize", DECODINGS
    )
    rotation: float = option(0.0, "turn every image by up to so many degrees and crop it anywhere; 0 for neither")
    rotation_seed: int = option(0, "added to the seed of --rotation, for other poses and the same channels")
    align: str = option("none", "move parts that lie shifted, or shifted and turned, into one frame", ALIGNMENTS)
    precision: str = option("fp32", "arithmetic of the network", PRECISIONS)
    batch_size: int = option(8, "images that are scored at a time")

    def __post_init__(self) -> None:
        types = kinds(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field, *types[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            allowed = self._choices(field.name)
            for entry in value if isinstance(value, tuple) else (value,):
                if allowed and entry not in allowed:
                    raise PadimError(f"{field.name}: {entry!r} is not one of {', '.join(allowed)}")
        for name, holds in self._ranges().items():
            if not holds:
                raise PadimError(f"{name}: {getattr(self, name)} is out of range ({self._help(name)})")
        self._check_sizes()

    def _choices(self, name: str) -> tuple[str, ...]:
        """The values that a field may have; nothing for a field that may have any."""
        choices: tuple[str, ...] = self.__dataclass_fields__[name].metadata["choices"]
        return choices

    def _ranges(self) -> dict[str, bool]:
        """Name of a field -> whether its value is in range."""
        return {
            "resize": len(self.resize) in (1, 2) and min(self.resize) > 0 and max(self.resize) <= MAX_SIDE,
            "crop": len(self.crop) in (0, 1, 2) and min(self.crop, default=1) > 0,
            "mask_threshold": 1 <= self.mask_threshold <= 255,
            "seed": self.seed >= 0,
            "rotation": 0 <= self.rotation <= 180,
            "rotation_seed": self.rotation_seed >= 0,
            "batch_size": self.batch_size > 0,
        }

    def _check_sizes(self) -> None:
        if not self.crop and len(self.resize) == 1:
            raise PadimError("resize: without a crop give height and width, so that all images get one size")
        height, width = self.image_size
        if height > self.resize[0] or width > self.resize[-1]:
            raise PadimError(f"crop: {height} x {width} is larger than the resized image, resize: {self.resize}")

    def _help(self, name: str) -> str:
        return str(self.__dataclass_fields__[name].metadata["help"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the network sees, in pixels."""
        size = self.crop or self.resize
        return size[0], size[-1]

    @property
    def stride(self) -> int:
        """The sides of what the network sees, in pixels, have to be multiples of it."""
        return 32

    @property
    def pretrained(self) -> str | None:
        """The backbone with whose published weights, or others in their place, a fit starts; None for random ones."""
        return None

    @property
    def seeded(self) -> bool:
        """Whether the figures depend on the seed."""
        return self.rotation > 0

    @property
    def remark(self) -> str | None:
        """What has to be said beside the figures, if anything."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """The method and the fields as plain values, for JSON."""
        return {"method": self.method, **dataclasses.asdict(self)}

    def to_toml(self) -> str:
        """The same as a TOML document, which `padim.detectors.registry.read_config` reads back."""
        # TOML writes these values as JSON does.
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in self.to_dict().items())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A configuration from named values; those left out have their defaults.

        Raises:
            PadimError: a name is unknown or a value is not valid.
        """
        given = dict(values)
        method = given.pop("method", cls.method)
        if method != cls.method:
            raise PadimError(f"method: {method!r} where {cls.method!r} was expected")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise PadimError(f"{name!r} is not a field of the configuration; known: {', '.join(known)}")
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The protocol of a PaDiM model. The defaults are those of the preset `pytorch-r18`."""

    method = "padim"
    refused = {  # noqa: RUF012 (a ClassVar there)
        "resume": "padim fits in one pass: there is nothing to resume",
        "checkpoint_steps": "padim fits in one pass: there are no checkpoints",
    }

    backbone: str = option("resnet18", f"network that gives the features: {', '.join(BACKBONES)}")
    layers: tuple[str, ...] = option(
        LAYERS[:3], f"levels that are joined, finest first: of {', '.join(LAYERS)}, or modules of a library's network"
    )
    channels: int = option(100, "channels drawn from the joined levels; 0 keeps all")
    tile: tuple[int, ...] = option((), "cut images into tiles: a side, or height and width; nothing for none")
    tile_overlap: int = option(64, "pixels that neighbouring tiles have in common, at least")
    tile_model: str = option("shared", "one model of all tiles, or one for every position of a tile", TILE_MODELS)
    trim: float = option(0.0, "share of the training images, those that score highest, that the fit leaves out")
    epsilon: float = option(0.01, "added to the diagonal of every covariance")
    upsampling: str = option("bilinear", "how maps grow to the image size", UPSAMPLINGS)
    sigma: float = option(4.0, "Gaussian smoothing of the maps, in pixels; 0 for none")

    def _choices(self, name: str) -> tuple[str, ...]:
        named = {"backbone": BACKBONES, "layers": LAYERS}
        if name in named:  # of the others the extractor knows the names
            return () if self._of_library else named[name]
        return super()._choices(name)

    @property
    def _of_library(self) -> bool:
        """Whether the backbone is a network of torchvision or timm, with layers of its own."""
        return self.backbone.partition(":")[0] in LIBRARIES

    def _ranges(self) -> dict[str, bool]:
        known = self.layers if self._of_library else LAYERS
        order = [known.index(layer) for layer in self.layers]
        return super()._ranges() | {
            "layers": bool(order) and order == sorted(set(order)),
            "channels": self.channels >= 0,
            "tile": len(self.tile) in (0, 1, 2) and min(self.tile, default=1) > 0,
            "tile_overlap": self.tile_overlap >= 0,
            "trim": 0 <= self.trim <= 0.5,
            "epsilon": self.epsilon >= 0,
            "sigma": self.sigma >= 0,
        }

    @property
    def stride(self) -> int:
        if not self._of_library:
            return 32 if "layer4" in self.layers else 16
        patch = re.search(r"patch([1-9]\d?)(?!\d)", self.backbone)  # which vision transformers have in their names
        return int(patch[1]) if patch and 32 % int(patch[1]) else 32

    @property
    def pretrained(self) -> str | None:
        return self.backbone

    @property
    def seeded(self) -> bool:
        return super().seeded or self.channels > 0

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width of what the network sees at a time, in pixels."""
        size = self.tile or self.image_size
        return size[0], size[-1]

    def _check_sizes(self) -> None:
        super()._check_sizes()
        if any(tile > side for tile, side in zip(self.tile_size, self.image_size, strict=True)):
            height, width = self.image_size
            tile = " x ".join(map(str, self.tile))
            raise PadimError(f"tile: {tile} is larger than the image of {height} x {width} pixels")
        if self.sigma > max(self.image_size):
            height, width = self.image_size
            raise PadimError(f"sigma: {self.sigma} pixels smooth a map of {height} x {width} to nothing: take less")


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        PadimError: the file can't be read or is not TOML.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError(f"more than {_LONGEST} characters are no configuration")
        values = tomllib.loads(text)
        repr(values)  # messages have them; whole numbers of thousands of digits can't be printed
        return values
    except OSError as error:
        raise PadimError(f"can't read the configuration {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PadimError(f"{path} is not a TOML file: {error}") from error


def presets() -> list[str]:
    """The names of the configurations that come along, sorted."""
    return sorted(path.stem for path in _preset_folder().glob("*.toml"))


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        PadimError: there is no preset of that name; the message lists those there are.
    """
    if name not in presets():
        raise PadimError(f"there is no preset {name!r}; there are {', '.join(presets())}")
    return _preset_folder() / f"{name}.toml"


def _preset_folder() -> Path:
    """`configs/` of the checkout, which a wheel carries inside the package."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "configs"


def kinds(config: type[BaseConfig]) -> dict[str, tuple[type, bool]]:
    """Name of a field -> its type, or that of its entries, and whether it is a tuple."""
    hints = {name: hint for name, hint in get_type_hints(config).items() if name in config.__dataclass_fields__}
    return {name: ((get_args(hint) or (hint,))[0], get_origin(hint) is tuple) for name, hint in hints.items()}


def _checked(field: dataclasses.Field[Any], kind: type, several: bool, value: Any) -> Any:
    """`value` in the type of a field: lists become tuples, whole numbers may stand for floats."""
    entries: tuple[Any, ...] = tuple(value) if several and isinstance(value, list | tuple) else (value,)
    if kind is float:
        entries = tuple(_as_float(entry) for entry in entries)
    large = kind is int and any(type(entry) is int and abs(entry) >= 2**63 for entry in entries)
    if large or not all(type(entry) is kind for entry in entries):
        raise PadimError(f"{field.name}: {value!r} is not valid ({field.metadata['help']})")
    return entries if several else entries[0]


def _as_float(entry: Any) -> float | None:
    """A finite number as such, None for anything else."""
    try:
        return float(entry) if type(entry) in (int, float) and math.isfinite(entry) else None
    except OverflowError:
        return None
