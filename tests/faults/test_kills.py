"""Processes that are killed: what they leave behind is the old, the new or nothing, and a rerun completes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from csv import DictReader

import pytest
from processes import SMALL, Command, train

from padim.storage import tensorfile


@pytest.fixture
def timed():
    """Run a command to its end; gives how many seconds it took."""

    def run(command):
        begin = time.monotonic()
        code, _, err = command.finish()
        assert (code, "Traceback" in err) == (0, False)
        return time.monotonic() - begin

    return run


def test_a_training_leaves_a_whole_model_or_none(data_root, weights_file, tmp_path, timed):
    path = tmp_path / "texture/model.safetensors"
    whole = timed(train(tmp_path, data_root, weights_file))
    new = path.read_bytes()
    path.unlink()
    moments = random.Random(0)
    for kill in range(4):
        if kill == 2:  # from here on there is an older model, of another seed
            timed(train(tmp_path, data_root, weights_file, "--seed", 5))
            older = path.read_bytes()
        train(tmp_path, data_root, weights_file).kill(whole * moments.uniform(0, 1.05))
        content = path.read_bytes() if path.exists() else None
        assert content in (None, new) if kill < 2 else content in (older, new)
    timed(train(tmp_path, data_root, weights_file))
    assert path.read_bytes() == new


def figures(path):
    """What an evaluation found, but for times and memory."""
    changing = ("seconds", "images_per_second", "peak_memory_bytes")
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in changing}


def test_an_evaluation_leaves_whole_figures_or_none(data_root, weights_file, tmp_path, timed):
    timed(train(tmp_path, data_root, weights_file))
    path, model = tmp_path / "texture/eval.json", (tmp_path / "texture/model.safetensors").read_bytes()
    evaluate = ("eval", "--data", data_root, "--output", tmp_path)
    whole = timed(Command(*evaluate))
    expected = figures(path)
    path.unlink()
    moments = random.Random(1)
    for _ in range(3):
        Command(*evaluate).kill(whole * moments.uniform(0, 1.05))
        assert not path.exists() or figures(path) == expected
        assert (tmp_path / "texture/model.safetensors").read_bytes() == model
    timed(Command(*evaluate))
    assert figures(path) == expected


def result(path):
    """A result of padim-reproduce, but for times, memory and date."""
    found = json.loads(path.read_text())
    for cost in ("seconds", "images_per_second", "peak_memory_gb", "environment"):
        del found["figures"][cost]
    return found


@pytest.mark.slow
def test_reproducing_leaves_whole_results_and_goes_on(data_root, weights_file, tmp_path, timed):
    where = ["--data", data_root, "--weights", weights_file, "--device", "cpu", "--jobs", 1, "--json"]
    reproduce = ["reproduce", "--ablation", "layer3", *where, "--output"]
    whole = timed(Command(*reproduce, tmp_path / "unharmed"))
    expected = {path.name: result(path) for path in tmp_path.glob("unharmed/layer3/*-0.json")}
    assert len(expected) == 2
    moments = random.Random(2)
    done = {}
    for _ in range(3):
        Command(*reproduce, tmp_path / "killed").kill(whole * moments.uniform(0.3, 0.8))
        found = {path.name: path for path in tmp_path.glob("killed/layer3/*-0.json")}
        assert all(result(path) == expected[name] for name, path in found.items())
        written = {name: path.stat().st_mtime_ns for name, path in found.items()}
        assert written.items() >= done.items()  # what was done is not done again
        done = written
    timed(Command(*reproduce, tmp_path / "killed"))
    tables = [(tmp_path / f"{name}/layer3/table.csv").read_text() for name in ("unharmed", "killed")]
    costs = re.compile(r"^.*,(seconds|speed|memory),.*$", flags=re.MULTILINE)
    assert costs.sub("", tables[0]) == costs.sub("", tables[1])


def test_what_the_killed_leave_behind_goes_with_a_later_run(data_root, weights_file, tmp_path, run):
    folder = tmp_path / "texture"
    for name in (".padim-long-ago.tmp", ".padim-just-now.tmp"):
        (folder / name).mkdir(parents=True)
        (folder / name / "new").write_text("half a model")
    os.utime(folder / ".padim-long-ago.tmp", (0, 0))
    where = ["--data", data_root, "--weights", weights_file, "--output", tmp_path]
    assert run("train", *SMALL, *where).code == 0
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "train.json", ".padim-just-now.tmp"}


def logged(path):
    """The steps of a log, but for times."""
    with path.open() as file:
        return [{name: row[name] for name in row if "second" not in name} for row in DictReader(file)]


@pytest.mark.slow
def test_cutpaste_killed_again_and_again_ends_like_an_uninterrupted_training(data_root, weights_file, tmp_path, timed):
    few = ["--method", "cutpaste", "--resize", 32, 32, "--training-batch", 4, "--steps", 4, "--frozen-steps", 1]
    scars = ["--scar-width", 2, 3, "--scar-height", 4, 8, "--checkpoint-steps", 2]
    fit = ["train", *few, *scars, "--category", "texture", "--data", data_root, "--weights", weights_file, "--output"]
    whole = timed(Command(*fit, tmp_path / "whole"))
    moments, folder = random.Random(3), tmp_path / "killed/texture"
    for kill in range(2):
        Command(*fit, tmp_path / "killed", *(["--resume"] if kill else [])).kill(whole * moments.uniform(0.3, 0.9))
        if (folder / "checkpoint.safetensors").exists():
            tensorfile.read(folder / "checkpoint.safetensors")  # it is whole
    timed(Command(*fit, tmp_path / "killed", "--resume"))
    logs = [logged(tmp_path / name / "texture/training.csv") for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0]] == ["1", "2", "3", "4"]
    files = [tmp_path / name / "texture/model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def two_at_once(*commands):
    """The exit codes of commands that run at the same time, and what they complained of."""
    return [command.finish()[::2] for command in [Command(*command) for command in commands]]


def test_two_trainings_of_one_model_leave_a_whole_one(data_root, weights_file, tmp_path, run):
    where = ["--data", data_root, "--weights", weights_file, "--output", tmp_path]
    found = two_at_once(*(("train", *SMALL, *where, "--seed", seed) for seed in (1, 2)))
    assert [code for code, _ in found] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "texture").iterdir()) == ["model.safetensors", "train.json"]
    together = (tmp_path / "texture/model.safetensors").read_bytes()
    for seed in (1, 2):
        assert run("train", *SMALL, *where[:-1], tmp_path / str(seed), "--seed", seed).code == 0
    assert together in [(tmp_path / f"{seed}/texture/model.safetensors").read_bytes() for seed in (1, 2)]


@pytest.mark.slow
def test_two_runs_of_every_other_kind_into_one_folder(data_root, weights_file, tmp_path, run):
    where = ["--data", data_root, "--output", tmp_path]
    assert run("train", *SMALL, *where, "--weights", weights_file).code == 0
    predict = ["predict", "--model", tmp_path / "texture/model.safetensors", data_root / "texture/test/good"]
    reproduce = ["reproduce", "--ablation", "layer3", "--category", "texture", "--weights", weights_file, "--jobs", 1]
    commands = [["eval", *where], [*predict, "--out", tmp_path / "out"], [*reproduce, *where]]
    for command in commands:
        assert run(*command).code == 0
    alone = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.png")}
    for name in ("out", "layer3"):
        shutil.rmtree(tmp_path / name)
    found = two_at_once(*commands, *commands)
    assert {code for code, _ in found} == {0}
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.png")} == alone
    assert not list(tmp_path.rglob(".padim-*"))


@pytest.mark.slow
def test_a_model_that_is_trained_anew_while_it_is_read(data_root, weights_file, tmp_path, run):
    """Each of those who read it has the old one or the new one."""
    where = ["--data", data_root, "--output", tmp_path]
    fit, evaluate = ["train", *SMALL, *where, "--weights", weights_file, "--seed"], ["eval", *where, "--json"]
    predict = ["predict", "--model", tmp_path / "texture/model.safetensors", data_root / "texture/test"]

    def figures(out):
        return [{key: line.get(key) for key in ("image_auroc", "threshold", "score")} for line in map(json.loads, out)]

    allowed = []
    for seed in (2, 1):
        assert run(*fit, seed).code == 0
        allowed.append([figures(run(*command).out.splitlines()) for command in (evaluate, predict)])
    writers = [Command(*fit, seed) for seed in (2, 1, 2)]
    readers = [Command(*command) for command in (evaluate, predict) * 2]
    assert [writer.finish()[0] for writer in writers] == [0] * 3
    for number, reader in enumerate(readers):
        code, out, err = reader.finish()
        assert code == 0, err
        assert figures(out.splitlines()) in [found[number % 2] for found in allowed]
