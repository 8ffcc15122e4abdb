"""The cores and the memory of this process: with what a container is granted, as Linux documents control groups."""

from __future__ import annotations

import psutil
import pytest
import torch

from padim.system import machine
from padim.system.device import whole_share


@pytest.fixture
def granted(tmp_path, monkeypatch):
    """Writes the files of a control group."""
    monkeypatch.setattr(machine, "_CONTAINER", tmp_path)
    return lambda **files: [(tmp_path / name.replace("_", ".", 1)).write_text(text) for name, text in files.items()]


@pytest.mark.parametrize(
    ("limit", "count"),
    [("max 100000", 0), ("100000 100000", 1), ("150000 100000", 2), ("50000 100000", 1), ("100000000 100000", 1000)],
)
def test_a_container_has_the_cores_that_its_time_fills(granted, limit, count):
    before = machine.cores()
    granted(cpu_max=limit + "\n")
    assert machine.container_cores() == count
    assert machine.cores() == min(before, count or before)


@pytest.mark.parametrize(("half", "cores", "whole"), [(1, 8, 2), (4, 8, 8), (2, 3, 3), (1, 1, 1)])
def test_torch_has_the_whole_share_for_a_while(half, cores, whole, monkeypatch):
    monkeypatch.setattr("padim.system.device.cores", lambda: cores)
    before = torch.get_num_threads()
    torch.set_num_threads(half)
    try:
        with whole_share(torch.device("cpu")):
            assert torch.get_num_threads() == whole
        assert torch.get_num_threads() == half
    finally:
        torch.set_num_threads(before)


def test_a_container_has_the_memory_below_its_limit(granted):
    granted(
        memory_max=f"{2**29}\n", memory_current=f"{2**28}\n", memory_stat=f"anon 5\ninactive_file {2**27}\nfile 1\n"
    )
    assert machine.available_memory_bytes() == 2**29 - 2**28 + 2**27
    granted(memory_current=f"{2**30}\n")
    assert machine.available_memory_bytes() == 0


def test_without_a_limit_the_whole_machine_is_there(granted):
    for files in ({}, {"memory_max": "max\n", "memory_current": f"{2**40}\n"}, {"memory_max": f"{2**60}\n"}):
        granted(**files)
        assert machine.available_memory_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
        assert machine.container_cores() == 0
