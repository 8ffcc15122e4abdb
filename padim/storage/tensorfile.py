"""Tensors in one file, in the format of safetensors, which holds no code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from padim.errors import PadimError
from padim.storage.files import atomic_write, utf8_path

# How the large tensors may be kept in a file.
STORAGES = {"fp32": torch.float32, "fp16": torch.float16}


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors by name, and text by name, whole or not at all.

    Raises:
        PadimError: the file can't be written.
    """
    with atomic_write(path) as temporary:
        try:
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, dict(metadata))
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file to read from, as `safetensors.safe_open` gives it, with its errors."""
    with utf8_path(path) as readable, safe_open(readable, framework="pt") as file:
        yield file


def tensors(file: Any) -> dict[str, Tensor]:
    """All tensors of a file that is `opened`, on the CPU."""
    return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def take(
    tensors: Mapping[str, Tensor], key: str, *shape: int, dtypes: Iterable[torch.dtype] = (torch.float32,)
) -> Tensor:
    """A tensor of a model file.

    Raises:
        PadimError: it isn't there, has another shape or type, or holds values that are not finite.
    """
    value, allowed = tensors.get(key), tuple(dtypes)
    if value is None or value.dtype not in allowed or value.shape != shape or not bool(value.isfinite().all()):
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise PadimError(f"a damaged model: {key!r} is not there as finite {kinds} of shape {list(shape)}")
    return value
