"""The methods by name: the one place that knows all of them. It is cheap to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from padim.config import BaseConfig, Config, read_toml
from padim.errors import PadimError, not_understood

if TYPE_CHECKING:
    from padim.detectors.contract import Detector
    from padim.weights import Weights

# Method -> its configuration, which is cheap to import, and its detector, which is imported when it is needed.
_METHODS = {
    "padim": ("padim.config:Config", "padim.model:Padim"),
    "cutpaste": ("padim.cutpaste.config:CutPasteConfig", "padim.cutpaste.model:CutPaste"),
}

CONFIGURATIONS: dict[str, type[BaseConfig]] = {method: resolve_name(config) for method, (config, _) in _METHODS.items()}


def configuration(values: Mapping[str, Any]) -> type[BaseConfig]:
    """The class of a configuration whose values name their method; PaDiM's where they don't.

    Raises:
        PadimError: there is no such method.
    """
    method = values.get("method", Config.method)
    if not isinstance(method, str) or method not in CONFIGURATIONS:
        raise PadimError(f"there is no method {method!r}; there are {', '.join(CONFIGURATIONS)}")
    return CONFIGURATIONS[method]


def read_config(path: Path) -> BaseConfig:
    """The configuration in a TOML file, of whatever method.

    Raises:
        PadimError: the file can't be read, is not TOML, or a field is unknown or not valid.
    """
    values = read_toml(path)
    try:
        return configuration(values).from_dict(values)
    except PadimError as error:
        raise PadimError(f"{path}: {error}") from error


def detector_class(method: str) -> type[Detector]:
    """The class of a method's detector."""
    found: type[Detector] = resolve_name(_METHODS[method][1])
    return found


def model_config(path: Path | str) -> BaseConfig:
    """The configuration in a model file, of whatever method.

    Raises:
        PadimError: the file can't be read, is damaged, or of a method that this program doesn't know.
    """
    from padim.storage import modelfile

    values = modelfile.config_values(Path(path))
    try:
        return configuration(values).from_dict(values)
    except PadimError as error:
        raise not_understood(path, error) from error


def new_detector(config: BaseConfig, *, weights: Weights | None = None, device: str = "cpu") -> Detector:
    """An unfitted detector of a configuration, of whatever method.

    Raises:
        PadimError: the weights can't be read or don't fit, or torch finds no such device.
    """
    return detector_class(config.method)(config, weights=weights, device=device)


def load(
    path: Path | str, *, weights: Weights | None = None, device: str = "cpu", precision: str | None = None
) -> Detector:
    """A fitted detector of whatever method from its file, as `Detector.load`.

    Raises:
        PadimError: as there, or the file is of a method that this program doesn't know.
    """
    return detector_class(model_config(path).method).load(path, weights=weights, device=device, precision=precision)
