"""Where to compute, and in float32 that is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from padim.errors import PadimError
from padim.system.machine import cores


def find_device(name: str) -> torch.device:
    """The device of a name in torch's terms: `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        PadimError: torch finds no such device.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise PadimError(f"torch finds no device {name!r} here: take cpu") from error


@contextmanager
def all_cores(device: torch.device) -> Iterator[None]:
    """Every core for torch where it computes on the CPU, whatever it had before."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Within, networks compute in a precision: `fp32` as it is, `bf16` or `fp16` as torch's autocast does."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Products of float32 tensors in float32, whatever the process allows elsewhere.

    TensorFloat-32 keeps 10 bits of a factor, which the cancellations of a Schur complement don't
    survive; nor is an `autocast` around the caller meant for them.
    """
    before = _set_arithmetic(_EXACT)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _set_arithmetic(before)


# torch 2.9 has a setting for each library, and refuses to read the older ones where they disagree.
_BACKENDS: Any = torch.backends
_BY_LIBRARY = hasattr(_BACKENDS, "fp32_precision")
_EXACT: tuple[Any, ...] = ("ieee",) * 4 if _BY_LIBRARY else ("highest", False)


def _set_arithmetic(wanted: tuple[Any, ...]) -> tuple[Any, ...]:
    """Set what float32 products may be rounded to; returns what they could before."""
    if not _BY_LIBRARY:
        before = torch.get_float32_matmul_precision(), _BACKENDS.cudnn.allow_tf32
        torch.set_float32_matmul_precision(wanted[0])
        _BACKENDS.cudnn.allow_tf32 = wanted[1]
        return before
    libraries = (_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv)
    before_each = tuple(library.fp32_precision for library in libraries)
    for library, precision in zip(libraries, wanted, strict=True):
        library.fp32_precision = precision
    return before_each
