"""The model file: what it holds, under which names, and what is checked when one is read.

A safetensors file, format version 2. Numbers are float32, factors and trained weights float16 where asked for.
Of PaDiM, whose levels are counted from the coarsest, 0:

| key                | shape                  | what                                                  |
| ------------------ | ---------------------- | ----------------------------------------------------- |
| `channels`         | [d], int64             | channels drawn from the joined levels, in drawn order |
| `mean.I`           | [cells_I, d_I, 1]      | mean of level I, cells in the order of the pyramid    |
| `factor.I.J`       | [cells_I, d_I, d_J]    | block of the Cholesky factor, inverted where J = I    |
| `moments.shift.I`  | [cells_I, d_I, 1]      | with --keep-moments: see `padim.gaussian.moments`     |
| `moments.total.I`  | [cells_I, d_I, 1]      | the same                                              |
| `moments.second.I.J` | [cells_I, d_I, d_J]  | the same                                              |
| `backbone.KEY`     | as in the architecture | weights up to the last used layer, unless left out    |

Of CutPaste:

| key                | shape                  | what                                                  |
| ------------------ | ---------------------- | ----------------------------------------------------- |
| `network.KEY`      | as in the network      | the trained weights                                   |
| `density.KEY`      | as in the density      | see `padim.cutpaste.density`                          |
| `embeddings`       | [images, 512]          | those of the training images                          |

Of both, where the model was calibrated:

| key                | shape                  | what                                                  |
| ------------------ | ---------------------- | ----------------------------------------------------- |
| `normal.scores`    | [scored]               | scores of the training images, each left out of the fit |
| `normal.pixels`    | [601]                  | quantiles of their maps, see `padim.calibration`      |

Of both, where the configuration aligns parts (`padim.poses.alignment.Alignment`):

| key                | shape                  | what                                                  |
| ------------------ | ---------------------- | ----------------------------------------------------- |
| `pose.reference`   | as `poses.grid.grid_of` | the mean part                                        |
| `pose.turns`       | [], uint8              | 1 where parts are looked for at every angle           |
| `pose.field`       | [h, w], uint8          | 1 where enough training images cover the frame        |
| `pose.angles`      | [scored]               | of the training images, in degrees                    |
| `pose.shifts`      | [scored, 2]            | of the training images, in pixels                     |
| `pose.correlations` | [scored]              | of the training images, each with the mean of the others |

Where pixels are ignored:

| key                | shape                  | what                                                  |
| ------------------ | ---------------------- | ----------------------------------------------------- |
| `ignored`          | [h, w], uint8          | 1 where fit and scores do not depend on the pixel     |

The metadata has one entry, `padim`: a JSON object of `version` (2), `config` (`method` and the fields of its
configuration), `about` (those of `Provenance`) and `sha256`, the digest of all tensors, which older files lack. The
same model makes the same bytes. No file is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from torch import Tensor

from padim.config import BaseConfig
from padim.errors import PadimError, not_understood
from padim.storage import tensorfile
from padim.storage.provenance import Provenance

# The version of the file's layout.
FORMAT_VERSION = 2

AnyConfig = TypeVar("AnyConfig", bound=BaseConfig)


def write(path: Path, tensors: Mapping[str, Tensor], config: BaseConfig, provenance: Provenance) -> None:
    """Write a model file, whole or not at all.

    Raises:
        PadimError: it can't be written.
    """
    header = {"version": FORMAT_VERSION, "config": config.to_dict(), "about": dataclasses.asdict(provenance)}
    tensorfile.write(path, tensors, "padim", header)


def read(path: Path, configuration: type[AnyConfig]) -> tuple[dict[str, Tensor], AnyConfig, Provenance]:
    """Tensors, configuration and origin of a model file, on the CPU.

    Raises:
        PadimError: the file can't be read, is damaged, is not a model, or of another version or method.
    """
    with _explained(path):
        tensors, metadata = tensorfile.read(path)
        header = _header(path, metadata)
        tensorfile.verify(tensors, header)
        method = header["config"].get("method", "padim")
        if method != configuration.method:
            raise PadimError(f"{path} is a model of the method {method}: padim.detectors.registry.load reads any")
        try:
            config, provenance = configuration.from_dict(header["config"]), Provenance(**header["about"])
        except PadimError as error:
            raise not_understood(path, error) from error
        if not provenance.images:
            raise ValueError("images")
        return tensors, config, provenance


def config_values(path: Path) -> dict[str, Any]:
    """The fields of the configuration in a model file, unchecked.

    Raises:
        PadimError: as `read`.
    """
    with _opened(path) as (_, header):
        return dict(header["config"])


def has_moments(path: Path) -> bool:
    """Whether a model file carries what an update takes.

    Raises:
        PadimError: as `read`.
    """
    with _opened(path) as (file, _):
        return "moments.shift.0" in file.keys()  # noqa: SIM118 (not a mapping)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A model file and its header, of which little is read."""
    with _explained(path):
        path.open("rb").close()  # safetensors names no path and no reason in its errors
        with tensorfile.opened(path) as file:
            yield file, _header(path, file.metadata() or {})


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if "padim" not in metadata:
        raise PadimError(f"{path} is not a padim model: train one with padim-train")
    header: dict[str, Any] = json.loads(metadata["padim"])
    if header["version"] != FORMAT_VERSION:
        raise PadimError(
            f"{path} has format version {header['version']}, this program reads version {FORMAT_VERSION}:"
            " train it again, or use the padim that wrote it"
        )
    return header


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What goes wrong within with a model file becomes an error."""
    try:
        yield
    except FileNotFoundError as error:
        raise PadimError(f"there is no model {path}: padim-train writes one") from error
    except OSError as error:
        raise PadimError(f"can't read the model {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        if path.suffix.lower() == ".onnx":
            raise PadimError(f"{path} is an exported model: pass the file that padim-train wrote") from error
        raise PadimError(f"{path} is damaged or not a padim model: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise not_understood(path, "its metadata can't be understood") from error
