"""What no user means to ask for: numbers out of any range, devices that are none, closed streams, names with codes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import LIMIT

from padim import PadimError
from padim.cli import data, export, predict, reproduce, synth, train
from padim.cli import eval as evaluation
from padim.cli.protocol import config_from
from padim.data.items import collect_images
from padim.deploy.stream import Record
from padim.extractor import Backbone
from padim.system.device import find_device

SMALL = ["--category", "texture", "--resize", 64, "--crop", 64, "--channels", 20]

# What no option with a number can take without harm, but for 0, 1e400 and the like, which some can.
VALUES = ["9" * 20, "-" + "9" * 20, "-1", "0", "x", "", "nan", "inf", "1e400", "0x10", "9" * 5000]


def command(name, *arguments, redirected="", start="", **environment):
    """A command in a process of its own, by a shell that redirects its streams."""
    words = " ".join(f"'{argument}'" for argument in arguments)
    line = f"{start} '{sys.executable}' -m padim.cli.{name} {words} {redirected}"
    return subprocess.run(
        line, shell=True, capture_output=True, text=True, timeout=LIMIT, env={**os.environ, **environment}
    )


def numeric(parser):
    return [action for action in parser._actions if action.type not in (None, str, Path) and action.option_strings]


PARSERS = {
    "train": train.parser(method="padim"),
    "train cutpaste": train.parser(method="cutpaste"),
    **{
        module.__name__.rpartition(".")[2]: module.parser() for module in (data, evaluation, export, predict, reproduce)
    },
    "synth": synth.parser(),
}


@pytest.mark.parametrize("name", PARSERS)
def test_every_number_is_taken_or_refused_in_one_line(name, capsys):
    """By the parser, or else by the configuration that the value goes into."""
    parser, tried = PARSERS[name], 0
    for action in numeric(parser):
        for value in VALUES:
            needed = [word for other in parser._actions if other.required for word in (*other.option_strings[:1], "m")]
            tried += 1
            try:
                options = parser.parse_args([*needed, f"{action.option_strings[0]}={value}"])
                if name.startswith("train"):
                    options.method = name.partition(" ")[2] or None
                    config_from(options)
            except SystemExit as stop:
                assert stop.code == 2
                assert capsys.readouterr().err.count("\n") == 1
            except PadimError as error:
                assert "\n" not in str(error)
            else:
                found = getattr(options, action.dest)
                numbers = found if isinstance(found, list) else [found]
                large = [number for number in numbers if isinstance(number, int) and abs(number) >= 2**63]
                assert not large, (action.dest, value)
                assert all(map(math.isfinite, numbers)), (action.dest, value)
    assert tried == len(VALUES) * len(numeric(parser))


@pytest.mark.parametrize("name", ["meta", "hpu", "privateuseone", "xla", "cuda:-1", "cuda:" + "9" * 30, "", "no such"])
def test_what_is_no_device_is_named(name):
    with pytest.raises(PadimError, match="take cpu"):
        find_device(name)


def test_enormous_batches_and_no_threads(run, data_root, weights_file, tmp_path):
    where = ["--data", data_root, "--weights", weights_file, "--device", "cpu", "--output", tmp_path]
    assert run("train", *SMALL, *where, "--batch-size", 2**31 - 1).code == 0
    for option, value in (("--workers", 257), ("--workers", 0), ("--batch-size", 2**63)):
        found = run("train", *SMALL, *where, option, value)
        assert (found.code, found.err.count("\n")) == (2, 1)


# GPUs


@pytest.fixture
def gpu(monkeypatch):
    """Lets torch fail on GPUs, in one way or the other, and see none."""

    def fail(error):
        zeros = torch.zeros

        def made(*shape, device="cpu", **named):
            if str(device).startswith("cuda"):
                raise error
            return zeros(*shape, device=device, **named)

        def seen():
            warnings.warn(f"CUDA initialization: {error}", stacklevel=1)
            return False

        monkeypatch.setattr(torch, "zeros", made)
        monkeypatch.setattr(torch.cuda, "is_available", seen)

    return fail


TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading"
    " and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Found no NVIDIA driver on your system. Please check"), "Found no NVIDIA driver on your system"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
        (RuntimeError(TOO_OLD), "is too old (found version 11040). Please update your GPU driver"),
        (RuntimeError("CUDA error: no kernel image is available\nCUDA kernel errors"), "no kernel image is available"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), "CUDA error: out of memory"),
    ],
    ids=["none", "torch without", "old driver", "old GPU", "full"],
)
def test_a_gpu_that_can_not_be_used_is_one_line(error, reason, gpu, run, model, data_root, weights_file, tmp_path):
    gpu(error)
    where = ["--data", data_root, "--output", tmp_path]
    for name, *arguments in (
        ("train", *SMALL, *where),
        ("eval", "--model", model, *where),
        ("predict", "--model", model, data_root / "texture/test"),
        ("reproduce", *SMALL[:2], *where, "--weights", weights_file),
    ):
        found = run(name, *arguments, "--device", "cuda")
        assert (found.code, found.out, found.err.count("\n")) == (2, "", 1), found.err
        assert "torch finds no device 'cuda' here: take cpu" in found.err
        assert reason in found.err


def test_a_driver_that_is_too_old_is_spoken_of_where_no_device_is_named(gpu, run, model, data_root):
    gpu(RuntimeError(TOO_OLD))
    found = run("predict", "--model", model, data_root / "texture/test/good/000.png")
    assert (found.code, found.err.count("\n")) == (0, 2)  # and how many images there were
    assert "WARNING: torch computes on cpu: CUDA initialization: The NVIDIA driver on your" in found.err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
    ids=["torch", "a library", "mps"],
)
def test_a_gpu_of_too_little_memory_is_one_line(error, run, model, data_root, weights_file, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(Backbone, "forward", fail)
    where = ["--data", data_root, "--output", tmp_path]
    for name, *arguments in (
        ("train", *SMALL, *where, "--weights", weights_file),
        ("eval", "--model", model, *where),
        ("predict", "--model", model, data_root / "texture/test"),
    ):
        found = run(name, *arguments)
        assert (found.code, found.out, found.err.count("\n")) == (2, "", 1), found.err
        assert "the GPU is out of memory: take a smaller --batch-size, or --device cpu" in found.err
    assert not list(tmp_path.rglob("*.*"))


# Streams


@pytest.fixture(scope="module")
def model(data_root, weights_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("models")
    where = ["--data", data_root, "--output", output, "--weights", weights_file, "--device", "cpu"]
    assert train.main([*map(str, [*SMALL, *where])]) == 0
    return output / "texture/model.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_cost_no_results(closed, model, data_root, weights_file, tmp_path):
    where = ["--data", data_root, "--output", tmp_path, "--weights", weights_file, "--device", "cpu", "--json"]
    found = command("train", *SMALL, *where, redirected=closed)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["model"] == str(tmp_path / "texture/model.safetensors")
    assert (tmp_path / "texture/model.safetensors").stat().st_size > 0
    images = data_root / "texture/test"
    found = command("predict", "--model", model, images, "--out", tmp_path / "out", redirected=closed)
    assert found.returncode == 0, found.stderr
    assert [json.loads(line)["verdict"] for line in found.stdout.splitlines()]
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("name", ["train", "eval", "predict", "export", "data", "synth", "reproduce"])
def test_without_stdout_nothing_is_begun(name):
    found = command(name, "--help", redirected=">&-")
    assert found.returncode == 1
    assert found.stderr == "stdout is closed: send it to a file, or to /dev/null\n"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root may drop its rights")
@pytest.mark.parametrize("niceness", [0, 15, 19])
def test_any_niceness_without_the_right_to_be_less_nice(niceness, model, data_root):
    image = next((data_root / "texture/test").rglob("*.png"))
    dropped = f"setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all nice -n {niceness}"
    found = command("predict", "--model", model, image, start=dropped)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["verdict"]


def test_codes_in_names_do_not_reach_the_terminal(run, data_root, weights_file, tmp_path):
    name = "tex\033[31mture\u202e"
    (tmp_path / name).symlink_to(data_root / "texture")
    (tmp_path / f"{name}.png").write_bytes(b"")
    where = ["--data", tmp_path, "--category", name, "--weights", weights_file, "--output", tmp_path / "runs"]
    trained = run("train", *SMALL[2:], *where, "--device", "cpu", "--eval")
    assert trained.code == 0
    seen = run("predict", "--model", tmp_path / "runs" / name / "model.safetensors", tmp_path / f"{name}.png")
    assert "tex\\x1b[31mture\\u202e" in trained.out
    assert "tex\\x1b[31mture\\u202e.png" in seen.err
    assert all(text.replace("\n", "").isprintable() for text in (trained.out, trained.err, seen.out, seen.err))


@pytest.fixture
def pictures(model, data_root, tmp_path):
    """The arguments of a prediction that draws all that there is to draw."""
    image = next((data_root / "texture/test").rglob("*.png"))
    return ["--model", model, image, "--out", tmp_path / "out", "--panel", "--mask"]


@pytest.mark.parametrize("threshold", ["1e30", "1e-320", "0", "-5"])
def test_extreme_thresholds(threshold, pictures, run):
    found = run("predict", *pictures, f"--threshold={threshold}")
    assert found.code == 0
    assert found.err.count("\n") == 1, found.err  # how many images there were


@pytest.mark.slow
def test_a_home_that_can_not_be_written_to(pictures):
    found = command("predict", *pictures, HOME="/dev/null", XDG_CONFIG_HOME="", XDG_CACHE_HOME="")
    assert found.returncode == 0
    assert found.stderr.count("\n") == 1, found.stderr


# Paths


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_results_lie_below_their_folder(tmp_path_factory, data):
    """Whatever mix of relative, absolute, linked and climbing paths the images are given by."""
    root = tmp_path_factory.mktemp("paths")
    (root / "a/b/c").mkdir(parents=True)
    (root / "elsewhere").mkdir()
    (root / "a/link").symlink_to(root / "elsewhere")
    (root / "a/b/up").symlink_to(root)
    for place in ("", "a", "a/b", "a/b/c", "elsewhere"):
        (root / place / "x.png").touch()
    steps = st.lists(st.sampled_from(["a", "b", "c", "..", ".", "link", "up", "elsewhere"]), max_size=5)
    inputs = st.lists(st.tuples(st.booleans(), steps, st.sampled_from(["x.png", ""])), min_size=1, max_size=4)
    here = Path.cwd()
    os.chdir(root / "a/b")
    try:
        paths = [Path(root / "a/b" if whole else "", *parts, name) for whole, parts, name in data.draw(inputs)]
        names = collect_images([path for path in paths if path.exists()] or [Path("x.png")])
        images = {path: path.resolve() for path in names}
    finally:
        os.chdir(here)
    of_a_name = {}
    for path, name in names.items():
        assert not name.is_absolute()
        assert ".." not in name.parts
        assert of_a_name.setdefault(name, images[path]) == images[path], "two images have one name"


# The record of a stream


def test_a_record_is_written_by_one_process_alone(tmp_path):
    path = tmp_path / "watched.jsonl"
    with Record(path) as record:
        record.add({"name": "a.png", "bytes": 1, "modified_ns": 2})
        with pytest.raises(PadimError, match=r"watched.jsonl: another padim-predict --watch writes to it"):
            Record(path)
    with Record(path) as record:
        assert len(record) == 1


def test_a_record_is_no_link_pipe_or_device(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("{}\n")
    for name, make in {
        "link": lambda path: path.symlink_to(victim),
        "dangling": lambda path: path.symlink_to(tmp_path / "nowhere"),
        "zero": lambda path: path.symlink_to("/dev/zero"),
        "pipe": os.mkfifo,
    }.items():
        make(tmp_path / name)
        with pytest.raises(PadimError, match="choose another file with --record"):
            Record(tmp_path / name)
    with pytest.raises(PadimError, match="choose another file with --record"):
        Record(Path("/dev/zero"))
    assert victim.read_text() == "{}\n"
    assert not (tmp_path / "nowhere").exists()


def test_a_line_of_any_length_is_not_read(tmp_path):
    path = tmp_path / "watched.jsonl"
    with path.open("wb") as long:
        long.write(b"{")
        long.truncate(2**32)  # a sparse file
    with pytest.raises(PadimError, match="is no record of images"):
        Record(path)
