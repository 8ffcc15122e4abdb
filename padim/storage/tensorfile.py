"""Tensors in one file, in the format of safetensors, which holds no code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from padim.storage.files import atomic_write, utf8_path


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
