"""The cores and the memory of this process: with what a container is granted, as Linux documents control groups."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch

from padim.deploy import engines
from padim.reproduction.jobs import _perform
from padim.system import machine
from padim.system.device import all_cores


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


def test_a_process_that_keeps_to_its_share_computes_with_no_more(monkeypatch):
    monkeypatch.setattr(machine, "_most", 1)  # which goes back afterwards
    seen = []

    class Noting:
        """A run that notes how many threads a training would have."""

        experiment = SimpleNamespace(config=SimpleNamespace(pretrained=None))

        def execute(self, *_):
            with all_cores(torch.device("cpu")):
                seen.append((machine.cores(), torch.get_num_threads()))

    before = torch.get_num_threads()
    try:
        assert _perform({}, "cpu", 1, 0, Noting()) is None
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, 1)]


@pytest.mark.parametrize(("granted_cores", "threads", "used"), [(0, 0, 0), (128, 0, 2), (1, 0, 1), (128, 5, 5)])
def test_engines_are_told_what_a_container_is_granted(granted_cores, threads, used, exported, monkeypatch):
    seen = []
    monkeypatch.setattr(engines, "container_cores", lambda: granted_cores)
    monkeypatch.setattr(engines, "cores", lambda: min(2, granted_cores))
    monkeypatch.setitem(engines.ENGINES, "onnxruntime", lambda *asked: seen.append(asked[-1]))
    engines.open_session(exported / "model.onnx", threads=threads)
    engines.open_session(exported / "model.onnx", device="cuda", threads=threads)
    assert seen == [used, threads]


@pytest.mark.parametrize("text", ["", "max", "100000", "x y", "100000 0", "1 2 3", "max max"])
def test_what_can_not_be_understood_is_no_limit(text, granted):
    before = machine.cores()
    granted(cpu_max=text, memory_max=text, memory_current="1", memory_stat=text)
    assert machine.cores() == before
    granted(memory_max="1000")
    assert machine.available_memory_bytes() >= 0


def test_a_container_has_the_memory_below_its_limit(granted):
    kinds = {"anon": 5, "active_file": 2**26, "file": 1, "inactive_file": 2**26}
    stat = "".join(f"{kind} {count}\n" for kind, count in kinds.items())
    granted(memory_max=f"{2**29}\n", memory_current=f"{2**28}\n", memory_stat=stat)
    assert machine.available_memory_bytes() == 2**29 - 2**28 + 2**27
    granted(memory_current=f"{2**30}\n")
    assert machine.available_memory_bytes() == 0


def test_without_a_limit_the_whole_machine_is_there(granted):
    for files in ({}, {"memory_max": "max\n", "memory_current": f"{2**40}\n"}, {"memory_max": f"{2**60}\n"}):
        granted(**files)
        assert machine.available_memory_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
        assert machine.container_cores() == 0
