from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from conftest import SMALL

from padim import Padim, PadimError
from padim.data.layouts import find_category
from padim.reproduction.experiments import Experiment
from padim.reproduction.jobs import execute
from padim.reproduction.runs import Run

PATIENCE = 60  # seconds; nothing takes them unless something is wrong

if "TEST_GPUS" in os.environ:  # a process of one of these tests
    torch.cuda.device_count = lambda: int(os.environ["TEST_GPUS"])


@pytest.fixture
def runs(data_root, tmp_path):
    category = find_category(data_root, "texture")
    return [Run(Experiment("small", SMALL).with_seed(n), category, "", tmp_path / f"{n}.json") for n in range(4)]


@pytest.fixture
def perform(weights_file):
    """Execute runs in two processes on the CPU; gives what went wrong in each."""

    def call(runs, device="cpu", jobs=2, **how):
        outcomes = execute(runs, {"resnet18": weights_file}, device, 2, jobs, **how)
        found = {run.path.name: problem for run, problem in outcomes}
        assert not workers()
        return found

    return call


def with_detector(run, make):
    return replace(run, experiment=replace(run.experiment, make=make))


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers(process=None):
    """The processes of loky under this one or another."""
    return [
        child for child in (process or psutil.Process()).children(True) if "LokyProcess" in " ".join(command(child))
    ]


def command(process):
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


# Detectors: the processes import them from here.


class DiesOnce(Padim):
    """Kills its process the first time."""

    def __init__(self, config, **options):
        marker = Path(os.environ["TEST_FOLDER"]) / "died"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(config, **options)


def kills_its_process(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def divides_by_zero(*_, **__):
    return 1 / 0


def exits(*_, **__):
    sys.exit("enough")


def waits(*_, **__):
    (Path(os.environ["TEST_FOLDER"]) / f"{os.getpid()}.waits").touch()
    time.sleep(PATIENCE)


def notes_its_device(*_, device, **__):
    """Does nothing until another process does the same, so that both get a run."""
    folder = Path(os.environ["TEST_FOLDER"])
    (folder / f"{os.getpid()}.process").touch()
    wait_until(lambda: len(list(folder.glob("*.process"))) == 2)
    with open(folder / f"{os.getpid()}.devices", "a") as file:
        print(device, file=file)
    raise PadimError("noted")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where detectors leave their marks; processes that are started later know it."""
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


# loky


@pytest.mark.slow
def test_a_process_that_dies_costs_no_run(runs, perform, folder):
    assert perform([with_detector(runs[0], DiesOnce), *runs[1:]]) == {run.path.name: None for run in runs}
    assert (folder / "died").exists()
    assert all(run.path.exists() for run in runs)


@pytest.mark.slow
def test_a_run_that_kills_its_process_is_given_up_and_the_others_go_on(runs, perform):
    found = perform([with_detector(runs[0], kills_its_process), *runs[1:]])
    assert "its process died twice" in found.pop("0.json")
    assert found == {"1.json": None, "2.json": None, "3.json": None}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_any_kind_is_that_runs_alone(runs, perform, jobs):
    broken = [with_detector(runs[0], divides_by_zero), with_detector(runs[1], exits)]
    expected = {"0.json": "ZeroDivisionError: division by zero", "1.json": "SystemExit: enough", "2.json": None}
    assert perform([*broken, runs[2]], jobs=jobs) == expected


@pytest.mark.slow
def test_each_process_keeps_to_a_gpu(runs, perform, folder, monkeypatch):
    monkeypatch.setenv("TEST_GPUS", "2")
    found = perform([with_detector(run, notes_its_device) for run in runs], device="cuda")
    assert set(found.values()) == {"noted"}
    devices = [set(path.read_text().split()) for path in folder.glob("*.devices")]
    assert sorted(map(sorted, devices)) == [["cuda:0"], ["cuda:1"]]


@pytest.mark.slow
def test_no_process_is_left_when_nobody_asks_any_more(runs, weights_file, folder, capfd):
    with closing(execute(runs, {"resnet18": weights_file}, "cpu", 2, 2)) as outcomes:
        assert next(outcomes)[1] is None
        assert len(workers()) == 2
    assert not workers()
    assert capfd.readouterr().err == ""


SCRIPT = """
import pickle, sys
from padim.reproduction.jobs import execute

list(execute(pickle.load(open(sys.argv[1], "rb")), {"resnet18": sys.argv[2]}, "cpu", 2, 2))
"""


@pytest.mark.slow
def test_processes_end_with_their_parent(runs, weights_file, folder):
    tasks = folder / "runs.pickle"
    tasks.write_bytes(pickle.dumps([with_detector(run, waits) for run in runs]))
    arguments = [sys.executable, "-c", SCRIPT, str(tasks), str(weights_file)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as parent:
        wait_until(lambda: len(list(folder.glob("*.waits"))) == 2)
        started = workers(psutil.Process(parent.pid))
        assert len(started) == 2
        parent.kill()
        _, alive = psutil.wait_procs(started, timeout=PATIENCE / 2)
        assert not alive
        assert (parent.communicate()[1], parent.returncode) == ("", -signal.SIGKILL)


# Clusters


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "module"), [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_does_all_runs(runs, perform, folder, backend, module):
    pytest.importorskip(module)
    broken = [with_detector(runs[0], kills_its_process), with_detector(runs[1], divides_by_zero)]
    found = perform([*broken, *runs[2:]], backend=backend)
    assert "its process died twice" in found.pop("0.json")
    assert found == {"1.json": "ZeroDivisionError: division by zero", "2.json": None, "3.json": None}
    assert all(run.path.exists() for run in runs[2:])


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_missing_package_is_one_line(runs, perform, monkeypatch, backend):
    for module in ("dask", "distributed", "ray"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PadimError, match=rf"--backend {backend} needs more packages: pip install .*\[{backend}\]"):
        perform(runs, backend=backend)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", ":", "127.0.0.1:99999"])
def test_an_address_where_no_scheduler_is(runs, perform, address):
    with pytest.raises(PadimError, match="no scheduler answers there"):
        perform(runs, backend="dask", address=address)
