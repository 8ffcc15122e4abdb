"""What this machine offers, and what the process has taken of it."""

from __future__ import annotations

import os
import platform
import sys
import threading
from contextlib import suppress
from pathlib import Path

# What the system grants a container, as its control group (version 2) says.
_CONTAINER = Path("/sys/fs/cgroup")

# Memory of a control group that gives way to what a program asks for.
_GIVES_WAY = ("inactive_file", "active_file", "slab_reclaimable")

_most = sys.maxsize  # cores that this process is to keep to


def keep_to(count: int) -> None:
    """Let this process use no more than so many of the processors from now on; others use the rest."""
    global _most
    _most = count


def cores() -> int:
    """How many processors this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, container_cores() or allowed, _most)


def container_cores() -> int:
    """How many processors the time that a container is granted would fill; 0 without such a limit."""
    try:
        time, period = map(int, _granted("cpu.max").split())
        return -(-time // period)
    except (ValueError, ZeroDivisionError):  # "max" for no limit, say
        return 0


def available_memory_bytes() -> int:
    """How much memory is free for this process, by what the system and its container say."""
    free = _linux_bytes("meminfo", "MemAvailable")
    if free is None:
        import psutil

        free = int(psutil.virtual_memory().available)
    try:
        kinds = dict(line.split() for line in _granted("memory.stat").splitlines())
        used = int(_granted("memory.current")) - sum(int(kinds.get(kind, 0)) for kind in _GIVES_WAY)
        return max(0, min(free, int(_granted("memory.max")) - used))
    except ValueError:  # "max" for no limit, say
        return free


def _granted(file: str) -> str:
    with suppress(OSError):
        return (_CONTAINER / file).read_text().strip()
    return ""


def writable_memory_bytes() -> int:
    """How much memory this process has asked for, used or not, without shared memory; 0 where only Linux knows."""
    return _linux_bytes("self/status", "VmData") or 0


def _linux_bytes(file: str, name: str) -> int | None:
    """A number of bytes that Linux gives in a file of `/proc`; None elsewhere."""
    value = _linux_value(file, name)
    return 1024 * int(value.split()[0]) if value else None


def _linux_value(file: str, *names: str) -> str:
    """What the first line with one of these names has in a file of `/proc`; nothing elsewhere."""
    with suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return ""


def cpu_model() -> str:
    """What kind of processor this is, by its maker's name on Linux."""
    return _linux_value("cpuinfo", "model name") or platform.processor() or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16, by what Linux says of it."""
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(_linux_value("cpuinfo", "flags", "Features").split())


def peak_memory() -> dict[str, int]:
    """The most memory in bytes that this process has had so far, and on a GPU if torch computes there."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {"peak_memory_bytes": peak_memory_bytes()}
    device_peak = max(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
    return {"peak_memory_bytes": peak_memory_bytes(), "device_peak_memory_bytes": int(device_peak)}


def peak_memory_bytes() -> int:
    """The most memory that this process has had so far."""
    known = _linux_bytes("self/status", "VmHWM")
    if known is not None:  # `getrusage` counts what the process was started from, too
        return known
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Let `peak_memory` forget what was there before; only Linux and GPUs can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)


def lower_priority() -> None:
    """Let another thread, that of the network, have a whole core; only Linux has priorities per thread."""
    if sys.platform == "linux":
        with suppress(OSError):  # a wish; where the process is nicer already, it would take a right to be less so
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, max(10, os.getpriority(os.PRIO_PROCESS, thread)))
