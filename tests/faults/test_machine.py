"""What a machine can be like: its clock jumps, its user has few rights, it has no shared memory."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import time

import pytest
from processes import SMALL, Command

from padim import PadimError
from padim.deploy.stream import Record, Watch
from padim.storage.files import atomic_write

linux = pytest.mark.skipif(sys.platform != "linux", reason="rights and mounts are those of Linux")


@pytest.fixture
def jumping(monkeypatch):
    """A clock that goes days forth and back, each time it is looked at."""
    hours = itertools.cycle([0, 50, -100, 1000, -30])
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + 3600 * next(hours))


@pytest.fixture(scope="module")
def trained(data_root, weights_file, tmp_path_factory):
    """A folder with a model of the category texture."""
    from padim.cli.train import main

    output = tmp_path_factory.mktemp("trained")
    assert main([*map(str, [*SMALL, "--data", data_root, "--weights", weights_file, "--output", output])]) == 0
    return output


# Clocks


def test_no_command_minds_a_clock_that_jumps(jumping, data_root, weights_file, tmp_path, run):
    where = ["--data", data_root, "--weights", weights_file, "--output", tmp_path, "--json"]
    assert run("train", *SMALL, *where, "--dry-run").code == 0
    found = run("train", *SMALL, *where, "--eval")
    assert found.code == 0
    trained, evaluated = map(json.loads, found.out.splitlines())
    assert all(0 < line["seconds"] < 600 < 3600 for line in (trained, evaluated))
    assert 0 < trained["images_per_second"] < 1e5


def test_a_stream_minds_neither_jumps_of_the_clock_nor_dates_of_files(jumping, data_root, tmp_path, monkeypatch):
    folder = shutil.copytree(data_root / "texture/test/good", tmp_path / "in")
    for number, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (0, [0, 1, 4e9, 2e10][number]))  # from 1970 to 2603
    seconds = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    watch = Watch(folder, 1.0)
    with Record(tmp_path / "watched.jsonl") as record:
        assert watch.finished(record) == watch.finished(record) == {}
        seconds[0] += 1
        finished = watch.finished(record)
        assert [path.name for path in finished] == ["000.png", "001.png", "002.png", "003.png"]
        for path, stamp in finished.items():
            record.add({"name": watch.name(path)} | stamp._asdict())
        os.utime(folder / "002.png", (0, 0))  # the clock of its camera was set
        assert watch.finished(record) == {}
        seconds[0] += 1
        assert [path.name for path in watch.finished(record)] == ["002.png"]


def test_a_file_whose_folder_is_taken_for_abandoned_stays_the_old_one(tmp_path):
    """Another process does that if its clock is an hour ahead of the one that dates the folder."""
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(PadimError, match=r"can't write .*figures.json: No such file"), atomic_write(path) as temporary:
        shutil.rmtree(temporary.parent)
    assert path.read_text() == "old"


# Rights


def drop_rights():
    """Take from root what it may do beyond others."""
    header = struct.pack("Ii", 0x20080522, 0)  # of version 3, for this process
    assert ctypes.CDLL(None).capset(header, bytes(24)) == 0


@linux
@pytest.mark.slow
def test_what_this_user_may_not_read_is_named(trained, data_root, weights_file, tmp_path):
    root, runs = shutil.copytree(data_root, tmp_path / "data"), shutil.copytree(trained, tmp_path / "runs")
    weights = shutil.copy(weights_file, tmp_path)
    model, test = runs / "texture/model.safetensors", root / "texture/test"
    train = ["train", *SMALL, "--data", root, "--weights", weights, "--output", tmp_path / "new"]
    predict, evaluate = ["predict", "--model", model, test], ["eval", "--data", root, "--output", runs]
    for path, command, code, said in (
        (root / "texture/train/good/003.png", train, 0, "skipped: can't read the image {path}: [Errno 13]"),
        (root / "texture/train/good", train, 2, "Permission denied: '{path}"),
        (
            root / "texture/train/good",
            ["train", "--normal", root / "texture/train"],
            2,
            "can't list {path}: Permission",
        ),
        (test / "stain/000.png", evaluate, 0, "skipped: can't read the image {path}: [Errno 13]"),
        (test / "stain/000.png", predict, 0, "skipped: can't read the image {path}: [Errno 13]"),
        (test / "stain", predict, 2, "can't list {path}: Permission denied"),
        (root / "texture/ground_truth/stain/000_mask.png", evaluate, 0, "mask not used: can't read the image {path}"),
        (weights, train, 2, "can't read the weights {path}: Permission denied"),
        (model, predict, 2, "can't read the model {path}: Permission denied"),
        (model, evaluate, 2, "can't read the model {path}: Permission denied"),
        (runs, predict, 2, "can't read the model {path}/texture/model.safetensors: Permission denied"),
    ):
        mode = os.stat(path).st_mode
        os.chmod(path, 0)
        found, _, err = Command(*command, prepare=drop_rights).finish()
        os.chmod(path, mode)
        assert (found, err.count(said.format(path=path))) == (code, 1), (command, err)
        assert err.count("ERROR") == code // 2, err
        assert "Traceback" not in err


def test_a_stream_says_once_what_it_may_not_list(data_root, tmp_path, monkeypatch, caplog):
    scandir = os.scandir
    shutil.copytree(data_root / "texture/test", tmp_path / "in")

    def refused(path):
        if os.path.basename(path) == "stain":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    watch = Watch(tmp_path / "in", 0.0)
    with Record(tmp_path / "watched.jsonl") as record:
        assert len(watch.finished(record)) == len(watch.finished(record)) == 12
    assert [message.split(",")[0] for message in caplog.messages] == [f"can't list {tmp_path / 'in/stain'}"]


# Shared memory


def hide_shared_memory():
    """Put a folder that takes no files in the place of /dev/shm, for this process alone."""
    if ctypes.CDLL(None).unshare(0x20000) == 0:  # of the mounts
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/dev/shm"], check=True)


@pytest.fixture
def mounts():
    if sys.platform != "linux" or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("can't mount anything here")


def test_without_shared_memory_several_processes_are_refused_in_one_line(mounts, data_root, weights_file, tmp_path):
    where = ["--data", data_root, "--weights", weights_file, "--output", tmp_path, "--device", "cpu"]
    reproduce = ["reproduce", "--ablation", "layer3", "--category", "texture", "object", *where, "--jobs"]
    code, _, err = Command(*reproduce, 2, prepare=hide_shared_memory).finish()
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("ERROR: several processes can't be run here (")
    assert err.endswith("Linux needs a folder /dev/shm that can be written to): pass --jobs 1\n")
    assert Command(*reproduce, 1, prepare=hide_shared_memory).finish()[0] == 0


@pytest.mark.slow
def test_torchrun_needs_no_shared_memory(mounts, data_root, weights_file, tmp_path):
    where = ["--data", data_root, "--weights", weights_file, "--output", tmp_path, "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    train = [*map(str, [*launcher, "-m", "padim.cli.train", *SMALL, *where])]
    hidden = 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"'
    found = subprocess.run(["unshare", "-m", "sh", "-c", hidden, "sh", *train], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "texture/model.safetensors").exists()
    assert "joblib" not in found.stderr
