"""How much memory an ONNX file may take, of which a few bytes can ask for any amount.

Its constants are computed while it is loaded; meanwhile the system bounds the memory of the process. Later, ONNX
Runtime takes its memory from an arena, which has a limit of its own.
"""

from __future__ import annotations

import glob
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from padim.system.machine import available_memory_bytes, cores, writable_memory_bytes

# Bytes to load a file with: of any size, for each of its own, and for each thread. An export takes up to six times its
# size.
ANY_SIZE, PER_BYTE, PER_THREAD = 2**30, 8, 2**24

# Both limits are those of the process.
_one_at_a_time = threading.Lock()


def files_beside(path: Path) -> list[Path]:
    """The files that have the tensors which an exported file itself can't hold."""
    return [*path.parent.glob(f"{glob.escape(path.name)}.*.data")]


@contextmanager
def bounded_loading(path: Path) -> Iterator[None]:
    """Within, memory ends where no export of the size of this file needs more; Linux alone can do that."""
    if sys.platform != "linux":
        yield
        return
    import resource

    size = sum(file.stat().st_size for file in (path, *files_beside(path)))
    with _one_at_a_time:
        before = soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = writable_memory_bytes() + ANY_SIZE + PER_BYTE * size + PER_THREAD * cores()
        resource.setrlimit(resource.RLIMIT_DATA, (most if soft < 0 else min(soft, most), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def bounded_arena(onnxruntime: Any, options: Any) -> Iterator[None]:
    """Within, sessions of these options get an arena of their own that takes no more than the memory free now."""
    options.add_session_config_entry("session.use_env_allocators", "1")
    with suppress(ImportError):  # without psutil, only Linux says how much that is
        _offer_arena(onnxruntime, max(1, available_memory_bytes()))  # 0 is no limit
    try:
        yield
    finally:
        _offer_arena(onnxruntime, 0)


def _offer_arena(onnxruntime: Any, most: int) -> None:
    """Let the next sessions that ask for it share an arena of so many bytes; 0 is no limit."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    with suppress(RuntimeError):  # versions before 1.23 keep to the first one
        onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(most, -1, -1, -1))
