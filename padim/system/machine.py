"""What this machine offers, and what the process has taken of it."""

from __future__ import annotations

import os
import platform
import sys
import threading
from contextlib import suppress
from pathlib import Path


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_bytes() -> int:
    """How much memory is free for this process, by what the system says."""
    free = _linux_bytes("meminfo", "MemAvailable")
    if free is not None:
        return free
    import psutil

    return int(psutil.virtual_memory().available)


def writable_memory_bytes() -> int:
    """How much memory this process has asked for, used or not, without shared memory; 0 where only Linux knows."""
    return _linux_bytes("self/status", "VmData") or 0


def _linux_bytes(file: str, name: str) -> int | None:
    """A number of bytes that Linux gives in a file of `/proc`; None elsewhere."""
    with suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None


def cpu_model() -> str:
    """What kind of processor this is, by its maker's name on Linux."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16, by what Linux says of it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(line.split())
    return False


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
