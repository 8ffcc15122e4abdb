"""Experiments: presets, configurations of one's own, and the paper's comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padim.config import BaseConfig, Config, preset_path
from padim.detectors.contract import Detector
from padim.detectors.registry import new_detector, read_config
from padim.errors import PadimError
from padim.estimate import estimate
from padim.extractor import Backbone
from padim.reproduction import published
from padim.reproduction.ablations import PcaPadim, SumOfMaps


@dataclass(frozen=True)
class Experiment:
    """A detector under one configuration.

    Attributes:
        name: that of its preset, ablation or file, and of the fields in which it differs from that.
        config: its protocol.
        make: gives the unfitted detector of the configuration.
        repeated: the field of the configuration that a repetition changes.
    """

    name: str
    config: BaseConfig
    make: Callable[..., Detector] = new_detector
    repeated: str = "seed"

    def with_seed(self, number: int) -> Experiment:
        """The experiment with the seed of its repetition `number`; the first one has its own."""
        first = getattr(self.config, self.repeated)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **{self.repeated: first + number}))

    def having(self, field: str, value: Any) -> Experiment:
        """The experiment with another value of a field, which its name then tells; itself if nothing differs."""
        if getattr(self.config, field, value) == value:
            return self
        config = dataclasses.replace(self.config, **{field: value})
        return dataclasses.replace(self, name=f"{self.name}-{field}-{value}", config=config)

    @property
    def seeded(self) -> bool:
        """Whether anything in it is drawn at random; the variants that take all channels draw none of them."""
        return self.config.rotation > 0 or (self.make is new_detector and self.config.seeded)

    def memory_bytes(self) -> int:
        """About what a process takes that fits it to some hundred images on the CPU."""
        if self.make is new_detector or not isinstance(self.config, Config):
            return estimate(self.config, 400).memory
        memory = estimate(dataclasses.replace(self.config, channels=0), 400).memory
        _, height, width = Backbone(self.config.backbone, self.config.layers[:1], self.config.image_size).shapes[0]
        projected = 2 * 4 * height * width * self.config.channels**2  # moments, and what is made of them
        return memory + 2 * projected


# The comparisons of Defard et al. 2020, and aligning: preset, what differs from it, and what makes the detector.
_ABLATIONS: dict[str, tuple[str, dict[str, Any], Callable[..., Detector]]] = {
    "layer1": ("paper-r18", {"layers": ("layer1",), "channels": 0}, new_detector),
    "layer2": ("paper-r18", {"layers": ("layer2",), "channels": 0}, new_detector),
    "layer3": ("paper-r18", {"layers": ("layer3",), "channels": 0}, new_detector),
    "sum": ("paper-r18", {"channels": 0}, SumOfMaps),
    "joined": ("paper-r18", {"channels": 0}, new_detector),
    "random100": ("paper-r18", {"channels": 100}, new_detector),
    "random200": ("paper-r18", {"channels": 200}, new_detector),
    "pca100": ("paper-r18", {"channels": 100}, PcaPadim),
    "pca200": ("paper-r18", {"channels": 200}, PcaPadim),
    "non-aligned": ("paper-wr50", {"rotation": 10.0}, new_detector),
    "non-aligned-r18": ("paper-r18", {"rotation": 10.0}, new_detector),
    "align-none": ("pytorch-r18", {"rotation": 10.0}, new_detector),
    "align-rotate": ("pytorch-r18", {"rotation": 10.0, "align": "rotate"}, new_detector),
}

# Names of comparisons that are of use together. Those of `align` are repeated on other poses, with the same channels.
PAIRS = {"align": ("align-none", "align-rotate")}


def preset(name: str) -> Experiment:
    """The experiment of a preset.

    Raises:
        PadimError: there is no such preset.
    """
    return Experiment(name, read_config(preset_path(name)))


def ablation(name: str) -> Experiment:
    """One of the comparisons.

    Raises:
        PadimError: there is no such one; the message lists them.
    """
    if name not in _ABLATIONS:
        raise PadimError(f"there is no ablation {name!r}; there are {', '.join([*_ABLATIONS, *PAIRS])}")
    base, changes, make = _ABLATIONS[name]
    repeated = "rotation_seed" if name in PAIRS["align"] else "seed"
    return Experiment(name, dataclasses.replace(preset(base).config, **changes), make, repeated)


def ablations() -> list[str]:
    """The names of all of them."""
    return list(_ABLATIONS)


def own(path: Path) -> Experiment:
    """The experiment of a configuration of one's own, named after its file.

    Raises:
        PadimError: the file is no configuration, or has a name that no folder of results can have.
    """
    if path.stem.startswith(".") or path.stem.partition(".")[0] in ("table", "references"):
        raise PadimError(f"{path}: the folder of its results can't be called {path.stem!r}: rename the file")
    return Experiment(path.stem, read_config(path))


def with_options(experiments: Sequence[Experiment], options: Mapping[str, Any]) -> list[Experiment]:
    """The experiments with fields of their configurations replaced, in those that have them.

    Raises:
        PadimError: none of them has a field, a value is not valid, or two experiments have the same name.
    """
    found: dict[str, Experiment] = {}
    for field in options:
        if not any(hasattr(experiment.config, field) for experiment in experiments):
            names = ", ".join(experiment.name for experiment in experiments)
            raise PadimError(f"--{field} fits no experiment of these: {names}")
    for experiment in experiments:
        for field, value in options.items():
            experiment = experiment.having(field, value)
        if found.setdefault(experiment.name, experiment) != experiment:
            raise PadimError(f"two experiments are called {experiment.name}: rename the file of one of them")
    return [*found.values()]


def published_name(experiment: Experiment) -> str | None:
    """What `padim.reproduction.published` knows the protocol of an experiment by, whatever its own name is."""
    # Some have the same protocol; options add to a name.
    names = sorted(published.experiments(), key=lambda name: not f"{experiment.name}-".startswith(f"{name}-"))
    return next((name for name in names if _protocol(_published(name)) == _protocol(experiment)), None)


def _published(name: str) -> Experiment:
    entry = published.experiments()[name]
    base = entry.get("preset", name)
    experiment = ablation(base) if base in _ABLATIONS else preset(base)
    return dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, **entry.get("changes", {})))


def _protocol(experiment: Experiment) -> tuple[BaseConfig, Callable[..., Detector]]:
    """What published figures are of: neither one draw, nor one precision, nor how many images are scored at a time."""
    config = dataclasses.replace(experiment.config, seed=0, rotation_seed=0, precision="fp32", batch_size=1)
    return config, experiment.make
