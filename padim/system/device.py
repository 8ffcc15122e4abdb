"""Where to compute, and in float32 that is float32."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from padim.errors import PadimError, first_line
from padim.system.machine import cores

log = logging.getLogger(__name__)


def best_device() -> str:
    """The name of a GPU where there is one, else `cpu`; what keeps torch from using a GPU is logged in one line."""
    with warnings.catch_warnings(record=True) as problems:
        warnings.simplefilter("always")
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    for problem in problems:  # an old driver, say
        log.warning("torch computes on %s: %s", name, first_line(Exception(problem.message)))
    return name


def find_device(name: str) -> torch.device:
    """The device of a name in torch's terms: `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        PadimError: torch finds no such device, or can't compute on it.
    """
    try:
        device = torch.zeros(1, device=name).device  # of a GPU that is too old, torch says so when it computes
    except Exception as error:  # of as many kinds as there are devices that torch was not built for
        raise PadimError(f"torch finds no device {name!r} here: take cpu ({first_line(error)})") from error
    if device.type == "meta":
        raise PadimError("the device 'meta' computes nothing: take cpu")
    return device


@contextmanager
def all_cores(device: torch.device) -> Iterator[None]:
    """Every core of this process for torch where it computes on the CPU, whatever it had before."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Within, products of float32 tensors are products in float32, whatever the process allows elsewhere.

    With `tf32`, GPUs that have TensorFloat-32 keep 10 bits of a factor. Networks bear that, the cancellations of a
    Schur complement don't. The setting is that of the process: while a thread wants exact products, every thread has
    them.
    """
    key = object()
    with _changing():
        _wanted[key] = threading.get_ident(), _ROUNDED if precision == "tf32" else _EXACT
    try:
        yield
    finally:
        with _changing():
            del _wanted[key]


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Within, networks compute in a precision: `fp32`, `tf32` as `products`, `bf16`, `fp16` as torch's autocast."""
    dtype = DTYPES[precision]
    with products(precision), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def full_float32(device: torch.device) -> AbstractContextManager[None]:
    """Within, float32 is float32; an `autocast` around the caller isn't meant for it, either."""
    return autocast(device, "fp32")


# torch 2.9 has a setting for each library, and refuses to read the older ones where they disagree.
_BACKENDS: Any = torch.backends
_BY_LIBRARY = hasattr(_BACKENDS, "fp32_precision")
_EXACT: tuple[Any, ...] = ("ieee",) * 4 if _BY_LIBRARY else ("highest", False)
_ROUNDED: tuple[Any, ...] = ("tf32", "tf32", "ieee", "ieee") if _BY_LIBRARY else ("high", True)


_lock = threading.RLock()
_wanted: dict[object, tuple[int, tuple[Any, ...]]] = {}  # by threads that are within `products`, the latest last
_elsewhere: tuple[Any, ...] = ()  # what the process allows outside of it


@contextmanager
def _changing() -> Iterator[None]:
    """Within, what is wanted changes; then it is set."""
    global _elsewhere
    with _lock:
        if not _wanted:
            _elsewhere = _rounding()
        yield
        latest = dict(_wanted.values()).values()  # of each thread
        _set_rounding(_EXACT if _EXACT in latest else _ROUNDED if latest else _elsewhere)


def _rounding() -> tuple[Any, ...]:
    """What float32 products may be rounded to."""
    if not _BY_LIBRARY:
        return torch.get_float32_matmul_precision(), _BACKENDS.cudnn.allow_tf32
    return tuple(library.fp32_precision for library in _libraries())


def _set_rounding(allowed: tuple[Any, ...]) -> None:
    if not _BY_LIBRARY:
        torch.set_float32_matmul_precision(allowed[0])
        _BACKENDS.cudnn.allow_tf32 = allowed[1]
        return
    for library, precision in zip(_libraries(), allowed, strict=True):
        library.fp32_precision = precision


def _libraries() -> tuple[Any, ...]:
    return _BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv
