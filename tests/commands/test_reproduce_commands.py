"""padim-reproduce: presets, configurations of one's own, ablations, options, and what is left of interrupted calls."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from oracles import LIMIT, until

from padim.cutpaste.steps import Training

SMALL = "channels = 20\nresize = [64]\ncrop = [64]\nbatch_size = 4\n"
FEW_STEPS = """method = "cutpaste"
resize = [32, 32]
scar_width = [2, 3]
scar_height = [4, 8]
training_batch = 2
steps = 3
"""


@pytest.fixture
def where(data_root, weights_file, tmp_path):
    """Where data, weights and results are, and a configuration of each method."""
    (tmp_path / "small.toml").write_text(SMALL)
    (tmp_path / "few.toml").write_text(FEW_STEPS)
    places = ("--data", data_root, "--weights", weights_file, "--output", tmp_path / "results")
    return (*places, "--category", "texture", "--device", "cpu", "--jobs", "1")


@pytest.mark.slow
def test_configurations_of_ones_own_and_options_that_change_them(where, run, tmp_path):
    configs = ("--config", tmp_path / "small.toml", tmp_path / "few.toml")
    result = run("reproduce", *configs, "--select", "best-on-test", "--steps", "1", "--json", *where)
    assert result.code == 0, result.err
    small, few = map(json.loads, result.out.splitlines())
    assert (small["experiment"], small["published"], small["config"]["channels"]) == ("small", None, 20)
    assert few["experiment"] == "few-steps-1-select-best-on-test"
    assert (few["config"]["steps"], few["config"]["select"]) == (1, "best-on-test")
    assert "have seen the answers" in few["remark"]
    assert [small["rows"][0]["cells"][metric]["published"] for metric in ("image", "pixel")] == [None, None]
    assert few["rows"][0]["cells"]["image"]["mean"] is not None
    assert few["rows"][0]["cells"]["pixel"]["mean"] is None
    printed = run("reproduce", *configs, "--select", "best-on-test", "--steps", "1", *where)
    assert (printed.code, "have seen the answers" in printed.out) == (0, True)
    names = {path.name for path in (tmp_path / "results").iterdir() if path.is_dir()}
    assert names == {"small", few["experiment"]}
    assert not list(tmp_path.rglob("checkpoint*"))


@pytest.mark.slow
def test_ctrl_c_during_a_training_costs_none_of_its_steps(where, run, tmp_path, monkeypatch):
    made, rate = [], Training.learning_rate

    def noted(self):
        made.append(self.step + 1)
        if made == [1, 2]:
            signal.raise_signal(signal.SIGINT)
        return rate(self)

    monkeypatch.setattr(Training, "learning_rate", noted)
    stopped = run("reproduce", "--config", tmp_path / "few.toml", *where)
    assert (stopped.code, stopped.out, stopped.err.splitlines()[-1]) == (130, "", "interrupted")
    assert (tmp_path / "results/few/texture-0/checkpoint.safetensors").is_file()
    finished = run("reproduce", "--config", tmp_path / "few.toml", *where)
    assert (finished.code, "ERROR" in finished.err, made) == (0, False, [1, 2, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "pytorch-r18", "--steps", "3"), "--steps fits no experiment of these: pytorch-r18"),
        (("--ablation", "layer3", "--select", "last"), "--select fits no experiment of these: layer3"),
        (("--config", "few.toml", "--steps", "-1"), "steps: -1 is out of range"),
        (("--config", "small.toml", "other/small.toml"), "two experiments are called small"),
        (("--config", "none.toml"), "can't read the configuration none.toml"),
        (("--precision", "fp8"), "invalid choice: 'fp8'"),
    ],
)
def test_options_that_fit_nothing_are_one_line(where, run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/small.toml").write_text("channels = 10\n")
    result = run("reproduce", *options, *where)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_reproduce_prints_and_writes_tables_and_does_nothing_twice(run, data_root, weights_file, tmp_path, monkeypatch):
    root = tmp_path / "data"
    root.mkdir()
    (root / "carpet").symlink_to(data_root / "texture")
    (root / "bottle").symlink_to(data_root / "object")
    monkeypatch.setenv("PADIM_DATA", str(root))
    arguments = ("--data", root, "--weights", weights_file, "--output", tmp_path / "results", "--device", "cpu")
    first = run("reproduce", "--ablation", "layer3", "random100", "--seeds", "2", "--jobs", "2", *arguments)
    assert first.code == 0
    assert "not there: grid, leather," in first.err
    lines = [line.split("  ")[0] for line in first.out.splitlines()]
    rows = ["category", "carpet†", "bottle†", "mean of these 2"]  # the synthetic ones have fewer images than MVTec AD
    truth = {"bottle": (209, 83), "carpet": (280, 117)}
    few = [f"{name} (8 of {train} training images, 14 of {test} test images)" for name, (train, test) in truth.items()]
    note = f"† Incomplete, so in no mean beside a published one: {', '.join(few)}."
    assert lines == ["layer3", *rows, note, "", "random100", *rows, note, ""]
    assert first.out.count("±") == 8 * 3
    for name in ("csv", "md", "html", "tex", "json"):
        assert "random100" in (tmp_path / f"results/random100/table.{name}").read_text()
    comparison = (tmp_path / "results/table.md").read_text()
    assert comparison.count("| category | layer3 | random100 |") == 5
    assert (tmp_path / "results/references.bib").is_file()

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*/*-*.json")}
    assert len(times) == 2 * (1 + 2)
    again = run("reproduce", "--ablation", "layer3", "random100", "--seeds", "2", *arguments)
    assert (again.code, again.out) == (0, first.out)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*/*-*.json")}


def test_reproduce_goes_on_after_a_failure(run, data_root, weights_file, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data_root / "texture", root / "wood")
    shutil.copytree(data_root / "object/test", root / "pill/test")
    (root / "pill/train/good").mkdir(parents=True)
    arguments = ("--data", root, "--weights", weights_file, "--output", tmp_path / "results", "--device", "cpu")
    result = run("reproduce", "--ablation", "layer3", "--json", *arguments)
    assert result.code == 2
    assert "ERROR: layer3, pill: a run needs training images and test images" in result.err
    assert json.loads(result.out)["rows"][0]["name"] == "wood"
    assert run("reproduce", "--preset", "nothing", *arguments).code == 2
    named = run("reproduce", "--ablation", "layer3", "--category", "wood", "tile", *arguments)
    assert (named.code, named.err) == (2, "WARNING: not there: tile\n")
    assert "wood" in named.out
    for weights in (("a.pth", "b.pth"), ("resnet=a.pth",)):
        refused = run("reproduce", "--preset", "pytorch-r18", "pytorch-wr50", "--data", root, "--weights", *weights)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "say for which backbone, as in resnet18=FILE" in refused.err


@pytest.mark.slow
def test_ctrl_c_stops_every_process(data_root, weights_file, tmp_path):
    arguments = ("--ablation", "random100", "--category", "texture", "--data", data_root, "--weights", weights_file)
    command = [sys.executable, "-m", "padim.cli.reproduce", *arguments, "--seeds", "40", "--jobs", "2"]
    where = ("--output", tmp_path / "results", "--device", "cpu")
    process = subprocess.Popen(
        [*map(str, command), *map(str, where)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob("results/*/*.json")):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert len(list(tmp_path.glob("results/*/*.json"))) < 20
    assert not list(tmp_path.glob("results/**/*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["with the first process", "with a result"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_process_outlives_its_parent_by_long(number, code, stage, data_root, weights_file, tmp_path):
    """One that is killed can't end the others: they notice, and those that are just starting once they have."""
    arguments = ("--ablation", "random100", "--category", "texture", "--data", data_root, "--weights", weights_file)
    command = [sys.executable, "-m", "padim.cli.reproduce", *arguments, "--seeds", "40", "--jobs", "2"]
    where = ("--output", tmp_path / "results", "--device", "cpu")
    process = subprocess.Popen([*map(str, command), *map(str, where)], stderr=subprocess.PIPE)
    parent = psutil.Process(process.pid)
    until(lambda: parent.children() if "process" in stage else list(tmp_path.glob("results/*/*.json")), process)
    others = parent.children(recursive=True)
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == code
    assert err.decode() == ("interrupted\n" if code == 143 else "")
    _, alive = psutil.wait_procs(others, timeout=LIMIT)
    assert not alive
    assert not list(tmp_path.glob("results/**/*.tmp"))
