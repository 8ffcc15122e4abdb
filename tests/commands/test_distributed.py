"""One model from the shares of several processes: the same as from one, or none at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from oracles import LIMIT, until
from PIL import Image
from processes import free_port, ranks

from padim import Padim

SMALL = ["--category", "texture", "--resize", 64, "--crop", 64, "--channels", 20, "--batch-size", 2]


def torchrun(processes, *arguments):
    """padim-train under torchrun: exit code, and what all processes printed and complained of."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    module = ["-m", "padim.cli.train", *arguments]
    found = subprocess.run([*map(str, [*command, *module])], capture_output=True, text=True, timeout=2 * LIMIT)
    return found.returncode, found.stdout, found.stderr


@pytest.fixture(scope="module")
def few(data_root, tmp_path_factory):
    """A data set of three training images, of which one can't be read."""
    root = tmp_path_factory.mktemp("few")
    shutil.copytree(data_root / "texture", root / "texture")
    for path in sorted((root / "texture/train/good").iterdir())[3:]:
        path.unlink()
    (root / "texture/train/good/broken.png").write_bytes(b"")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "processes", "which"),
    [(torchrun, 2, "all"), (ranks, 2, "tiles"), (ranks, 2, "trimmed"), (ranks, 4, "all"), (ranks, 4, "few")],
)
def test_the_model_is_that_of_one_process(start, processes, which, data_root, few, weights_file, run, tmp_path):
    """Eight images, or three and a broken one: even and uneven shares, and one without an image."""
    root = few if which == "few" else data_root
    tiles = ["--tile", 32, "--tile-overlap", 16] if which == "tiles" else []
    trim = ["--trim", 0.2] if which == "trimmed" else []
    where = ["--data", root, "--weights", weights_file, "--device", "cpu", "--json", *tiles, *trim]
    alone = run("train", *SMALL, *where, "--output", tmp_path / "alone")
    code, out, err = start(processes, *SMALL, *where, "--output", tmp_path / "together", "--eval")
    assert (alone.code, code) == (0, 0), err
    summary, figures = map(json.loads, out.splitlines())  # of the first process alone
    expected = json.loads(alone.out)
    for key in ("images", "skipped", "false_alarm_rate"):
        assert summary[key] == expected[key]
    assert set(summary["trimmed"]) == set(expected["trimmed"])
    assert len(expected["trimmed"]) == (2 if trim else 0)
    # Left out of three images, a distance is the small difference of large numbers.
    tolerance = 1e-4 if which == "few" else 2e-6
    assert summary["threshold"] == pytest.approx(expected["threshold"], rel=tolerance)
    assert figures["image_auroc"] is not None
    one, several = (Padim.load(tmp_path / name / "texture/model.safetensors") for name in ("alone", "together"))
    images = [np.asarray(Image.open(path)) for path in sorted((root / "texture/test").rglob("*.png"))]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    # Three images leave most directions to epsilon: there a rounding of the sums counts ten times as much.
    np.testing.assert_allclose(several.score(batch).maps, one.score(batch).maps, rtol=1e-5 if which == "few" else 1e-6)
    np.testing.assert_allclose(several.calibration.scores, one.calibration.scores, rtol=tolerance)
    np.testing.assert_allclose(several.calibration.pixels, one.calibration.pixels, rtol=3e-3)  # a bin


# A second process that is there, and takes no part.
BYSTANDER = """
import pathlib, sys, time
import torch.distributed
torch.distributed.init_process_group("gloo")
pathlib.Path(sys.argv[1]).touch()
time.sleep(1000)
"""


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others(data_root, weights_file, tmp_path):
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    model = tmp_path / "texture/model.safetensors"
    model.parent.mkdir()
    model.write_text("an older one")
    where = ["--data", data_root, "--weights", weights_file, "--device", "cpu", "--output", tmp_path]
    train = [sys.executable, "-m", "padim.cli.train", *SMALL, *where]
    start = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen([*map(str, train)], env=os.environ | common | {"RANK": "0"}, **start)
    script = [sys.executable, "-c", BYSTANDER, str(tmp_path / "connected")]
    second = subprocess.Popen(script, env=os.environ | common | {"RANK": "1"}, **start)
    until((tmp_path / "connected").exists, first)
    second.kill()
    second.communicate()
    out, err = first.communicate(timeout=LIMIT)
    assert (first.returncode, out, err.count("\n")) == (2, "", 1), err
    assert "another process of this run has stopped, so this one does, too" in err
    assert [path.name for path in model.parent.iterdir()] == ["model.safetensors"]
    assert model.read_text() == "an older one"


@pytest.mark.slow
def test_a_mistake_stops_all_of_them(data_root, weights_file, tmp_path):
    where = ["--data", data_root, "--weights", weights_file, "--output", tmp_path]
    code, _, err = torchrun(2, *SMALL, *where, "--epsilon", 0, "--json")
    assert code != 0
    assert "epsilon 0 is lost in the rounding errors of large variances: use a larger epsilon" in err
    assert list((tmp_path / "texture").iterdir()) == []
    code, _, err = ranks(2, "--category", "texture", "--method", "cutpaste", "--resize", 32, 32, *where)
    assert code != 0
    assert "cutpaste trains in one process: start it without torchrun" in err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["before their first line", "at their start", "with their libraries"])
def test_processes_whose_launcher_is_killed_end_soon(stage, data_root, weights_file, tmp_path):
    """By themselves they would wait for each other for a minute and more."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    where = ["--data", data_root, "--weights", weights_file, "--device", "cpu", "--output", tmp_path]
    module = ["-m", "padim.cli.train", *SMALL, *where]
    launcher = subprocess.Popen([*map(str, [*command, *module])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parent = psutil.Process(launcher.pid)
    until(lambda: len(parent.children()) == 2)
    workers = parent.children()
    if "first" not in stage:
        until(lambda: all(worker.num_threads() > 1 for worker in workers))  # one of which looks after the launcher
    if "libraries" in stage:
        until(lambda: all("libtorch_cpu" in str(worker.memory_maps()) for worker in workers))
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(workers, timeout=LIMIT / 2)
    for worker in alive:
        worker.kill()
    assert not alive
