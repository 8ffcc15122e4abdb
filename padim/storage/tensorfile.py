"""Tensors in one file, in the format of safetensors, which holds no code.

The metadata has one entry, a JSON object. Its `sha256` is the digest of all tensors, by which a file that was damaged,
or is being overwritten, gives itself away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from padim.errors import PadimError
from padim.storage.files import atomic_write, utf8_path

# How the large tensors may be kept in a file.
STORAGES = {"fp32": torch.float32, "fp16": torch.float16}


def write(path: Path, tensors: Mapping[str, Tensor], name: str, header: Mapping[str, Any]) -> None:
    """Write tensors by name, and a header under a name, whole or not at all.

    Raises:
        PadimError: the file can't be written.
    """
    with atomic_write(path) as temporary:
        try:
            whole = {key: value.contiguous().cpu() for key, value in tensors.items()}
            save_file(whole, temporary, {name: json.dumps({**header, "sha256": _digest(whole)})})
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file of which little is read, as `safetensors.safe_open` gives it, with its errors."""
    with utf8_path(path) as readable, safe_open(readable, framework="pt") as file:
        yield file


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its metadata, in memory of their own: whatever becomes of the file, they stay.

    Raises:
        OSError, SafetensorError, ValueError: it can't be read, or is damaged.
    """
    content = path.read_bytes()
    tensors: dict[str, Tensor] = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__", {})


def verify(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Raise a SafetensorError unless the tensors are those that were written with a header; older ones don't say."""
    if header.get("sha256", digest := _digest(tensors)) != digest:
        raise SafetensorError("its tensors are not those that were written")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    sha = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        sha.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        sha.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


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
