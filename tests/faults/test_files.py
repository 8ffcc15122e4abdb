"""Files that are damaged, swapped, oddly named or change while they are read, and disks that take none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from processes import SMALL, train
from safetensors.torch import save_file

from padim import Padim, PadimError, fitting
from padim.data.loader import ImageLoader
from padim.deploy.runtime import Runtime
from padim.detectors.scores import Scores
from padim.pipeline.train import LoaderBatches


@pytest.fixture
def disk(tmp_path):
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"can't mount a small file system here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder):
    (folder / "full").write_bytes(bytes(shutil.disk_usage(folder).free))


def forbid(folder):
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(fill, "No space left on device"), (forbid, "Read-only file system")],
    ids=["full", "read-only"],
)
def test_a_disk_that_takes_nothing_is_one_line_and_keeps_the_old_files(
    disk, spoil, reason, trained, data_root, weights_file, run
):
    for name in ("model.safetensors", "train.json", "eval.json", "model.onnx"):
        (disk / "texture").mkdir(exist_ok=True)
        (disk / "texture" / name).write_text("older")
    shutil.copy(trained, disk / "texture/model.safetensors")
    (disk / "images").mkdir()
    image = shutil.copy(data_root / "texture/test/good/000.png", disk / "images")
    spoil(disk)
    before = {path: path.read_bytes() for path in disk.rglob("*.*")}
    data = ["--data", data_root, "--category", "texture"]
    for command in (
        ["train", *SMALL, *data, "--weights", weights_file, "--output", disk],
        ["train", "--update", trained, *data, "--output", disk],
        ["eval", *data, "--output", disk],
        ["predict", "--model", trained, image, "--out", disk / "texture"],
        ["predict", "--model", trained, "--watch", disk / "images", "--settle", 0],
        ["reproduce", "--ablation", "layer3", "--jobs", 1, *data, "--weights", weights_file, "--output", disk],
        ["synth", disk / "synth", "--size", 64, "--train", 2],
    ):
        result = run(*command)
        assert (result.code, result.err.count("ERROR")) == (2, 1), (command, result.err)
        assert reason in result.err
    after = {path: path.read_bytes() for path in disk.rglob("*.*") if path.name != "watched.jsonl"}
    assert after == before
    assert not list(disk.rglob(".padim-*"))


def shrink(path):
    path.write_bytes(path.read_bytes()[:50])


def swap(path):
    path.unlink()
    path.mkdir()


def leave(path):
    shutil.copy(path, path.with_name("another.png"))


@pytest.mark.parametrize(("change", "lost"), [(os.unlink, 1), (shrink, 1), (swap, 1), (leave, 0)])
def test_a_data_set_that_changes_between_listing_and_reading(
    change, lost, data_root, weights_file, tmp_path, run, monkeypatch
):
    root = tmp_path / "texture"
    shutil.copytree(data_root / "texture", root)
    victims = [root / "train/good/003.png", root / "test/stain/000.png", root / "ground_truth/tint/000_mask.png"]
    start = ImageLoader.start

    def change_first(loader):
        while victims:
            change(victims.pop())
        return start(loader)

    monkeypatch.setattr(ImageLoader, "start", change_first)
    names = [str(victim) for victim in victims]
    result = run(
        *("train", *SMALL, "--data", tmp_path, "--weights", weights_file, "--output", tmp_path / "runs"),
        *("--eval", "--json"),
    )
    assert result.code == 0, result.err
    trained, evaluated = map(json.loads, result.out.splitlines())
    assert (trained["images"], trained["skipped"]) == (8 - lost, lost)
    assert (evaluated["images"], evaluated["skipped"], evaluated["unmasked"]) == (14 - lost, lost, lost)
    assert all((name in result.err) == bool(lost) for name in names)


def test_an_image_that_goes_between_the_two_passes(data_root, weights_file, tmp_path, run, monkeypatch):
    root = tmp_path / "texture"
    shutil.copytree(data_root / "texture", root)
    monkeypatch.setattr(fitting, "KEPT_IMAGES", 0)
    go = LoaderBatches.__iter__

    def lose_one(batches):
        if batches.passes == 1:
            (root / "train/good/003.png").unlink()
        return go(batches)

    monkeypatch.setattr(LoaderBatches, "__iter__", lose_one)
    where = ["--data", tmp_path, "--weights", weights_file, "--output", tmp_path]
    result = run("train", *SMALL, *where, "--json")
    assert (result.code, result.err.count("\n"), "003.png" in result.err) == (0, 1, True)
    summary = json.loads(result.out)
    assert (summary["images"], summary["skipped"]) == (8, 0)  # it is in the model
    line = run("predict", "--model", tmp_path / "texture/model.safetensors", root / "test/good/000.png")
    assert json.loads(line.out)["false_alarm_rate"] == 1 / 8  # that seven images vouch for


@pytest.mark.slow
def test_a_data_set_that_shrinks_under_a_process(data_root, weights_file, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data_root / "texture", root / "texture")
    process = train(tmp_path / "runs", root, weights_file, "--json", "--workers", 1)
    for path in sorted((root / "texture/train/good").iterdir())[4:]:
        path.unlink()  # before or after it is read
    code, out, err = process.finish()
    summary = json.loads(out)
    assert code == 0
    assert summary["images"] + summary["skipped"] in range(4, 9)
    assert summary["skipped"] == err.count("WARNING: skipped:")


def test_features_that_overflow_are_said_and_leave_nothing(data_root, weights_file, tmp_path, run):
    """Weights so large that half precision has no number for the features, and full precision has."""
    weights = torch.load(weights_file)
    weights["layer3.1.bn2.weight"] = weights["layer3.1.bn2.weight"] * 1e6
    torch.save(weights, tmp_path / "large.pth")
    where = ["--data", data_root, "--output", tmp_path, "--category", "texture"]
    fit = ["train", *SMALL, *where, "--weights", tmp_path / "large.pth", "--epsilon", 1e8]
    result = run(*fit, "--precision", "fp16")
    assert (result.code, result.out) == (2, "")
    assert "features that are not finite: check the weights, or use another --precision" in result.err
    assert list((tmp_path / "texture").iterdir()) == []
    assert run(*fit).code == 0
    model, image = tmp_path / "texture/model.safetensors", data_root / "texture/test/good/000.png"
    for command in (["eval", *where], ["predict", "--model", model, image]):
        assert run(*command).code == 0
        result = run(*command, "--precision", "fp16")
        assert (result.code, result.err.count("ERROR")) == (2, 1)
        assert "the scores are not finite: score with --precision fp32 or bf16" in result.err


def test_an_image_whose_scores_overflow_costs_the_others_nothing(trained, data_root, run, monkeypatch):
    images = sorted((data_root / "texture/test").rglob("*.png"))
    expected = [json.loads(line) for line in run("predict", "--model", trained, *images).out.splitlines()]
    victim = Image.open(images[2]).convert("RGB")
    forward = Padim.forward

    def overflowing(model, batch):
        scores, maps, *_ = forward(model, batch)
        maps[(batch.permute(0, 2, 3, 1) == torch.from_numpy(np.array(victim))).flatten(1).all(dim=1)] = torch.inf
        return Scores(scores, maps)

    monkeypatch.setattr(Padim, "forward", overflowing)
    result = run("predict", "--model", trained, *images)
    found = [json.loads(line) for line in result.out.splitlines()]
    assert (result.code, result.err.count("ERROR")) == (2, 1)
    assert found[2]["verdict"] is None
    assert "the scores are not finite" in found[2]["error"]
    for one, other in zip(found[:2] + found[3:], expected[:2] + expected[3:]):
        assert one["verdict"] == other["verdict"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-5)


@pytest.mark.parametrize("name", [b"with space.png", b"two\nlines.png", b"\xff\xfe.png", b"--epsilon.png"])
def test_any_file_name(name, data_root, weights_file, tmp_path, run):
    root = os.fsencode(tmp_path / "data")
    shutil.copytree(data_root / "texture", tmp_path / "data/texture")
    source = data_root / "texture/train/good/000.png"
    for folder in (b"train/good", b"test/good"):
        shutil.copy(source, os.path.join(root, b"texture", folder, name))
    where = ["--data", tmp_path / "data", "--weights", weights_file, "--output", tmp_path / "runs"]
    result = run("train", *SMALL, *where, "--eval", "--report", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out.splitlines()[0])["images"] == 9
    model, images = tmp_path / "runs/texture/model.safetensors", tmp_path / "data/texture/test/good"
    result = run("predict", "--model", model, images, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    names = [os.fsencode(json.loads(line)["path"]) for line in result.out.splitlines()]
    assert os.path.join(os.fsencode(images), name) in names


def test_a_loop_of_links_ends(data_root, weights_file, tmp_path, run):
    folder = tmp_path / "photos"
    shutil.copytree(data_root / "texture/train/good", folder / "ok")
    (folder / "ok/again").symlink_to(folder)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    protocol = [*SMALL[2:], "--weights", weights_file, "--output", tmp_path / "runs", "--json"]
    result = run("train", "--normal", folder, "--category", "texture", *protocol)
    assert result.code == 0, result.err
    assert json.loads(result.out)["images"] == 8


def test_images_that_never_vary_have_a_model(weights_file, tmp_path, run):
    folder = tmp_path / "grey"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (64, 64), (90, 90, 90)).save(folder / f"{number}.png")
    options = [*SMALL[2:], "--weights", weights_file, "--output", tmp_path, "--json"]
    result = run("train", "--normal", folder, "--category", "grey", *options)
    assert result.code == 0, result.err
    Image.new("RGB", (64, 64), (200, 90, 90)).save(tmp_path / "red.png")
    model = tmp_path / "grey/model.safetensors"
    result = run("predict", "--model", model, folder / "0.png", tmp_path / "red.png", "--out", tmp_path / "out")
    grey, red = map(json.loads, result.out.splitlines())
    assert (grey["verdict"], red["verdict"]) == ("normal", "anomalous")
    assert grey["score"] < 1e-2 < red["score"]


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [(30_000, 30_000), (13_500, 13_500)])
def test_bombs_are_refused(weights_file, tmp_path, run, pixels):
    """An image of 900 million pixels, and one a little above the limit: a few kilobytes each."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    Image.new("1", pixels).save(folder / "bomb.png")
    Image.MAX_IMAGE_PIXELS = before
    options = [*SMALL[2:], "--weights", weights_file, "--output", tmp_path]
    result = run("train", "--normal", folder, "--category", "bomb", *options)
    assert (result.code, result.out) == (2, "")
    assert "decompression bomb" in result.err


@pytest.fixture(scope="module")
def trained(data_root, weights_file, tmp_path_factory):
    """A model that can be updated."""
    from padim.cli.train import main

    output = tmp_path_factory.mktemp("trained")
    arguments = [*SMALL, "--data", data_root, "--weights", weights_file, "--output", output, "--keep-moments"]
    assert main([*map(str, arguments)]) == 0
    return output / "texture/model.safetensors"


@pytest.fixture
def strange(trained, weights_file, data_root, tmp_path):
    """A file of every kind, whole and cut in two, and what is no file: by their kinds."""
    (tmp_path / "config.toml").write_text("channels = 20\nseed = 5\n")
    onnx.save(identity(), tmp_path / "identity.onnx")
    whole = {
        "model": trained,
        "weights": weights_file,
        "image": data_root / "texture/test/good/000.png",
        "toml": tmp_path / "config.toml",
        "onnx": tmp_path / "identity.onnx",
    }
    files = dict(whole)
    for kind, path in whole.items():
        content = path.read_bytes()
        files[f"half {kind}"] = tmp_path / f"half-{path.name}"
        files[f"half {kind}"].write_bytes(content[: len(content) // 2])
    files |= {name: tmp_path / name for name in ("empty", "folder", "loop", "nothing")}
    files["empty"].touch()
    files["folder"].mkdir()
    files["loop"].symlink_to(files["loop"])
    return files


def identity():
    """The smallest ONNX model, which is none of ours."""
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "identity", ports[:1], ports[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


READERS = {
    "model": lambda path, at: ["predict", "--model", path, at["image"]],
    "update": lambda path, at: ["train", "--update", path, *at["where"]],
    "export": lambda path, at: ["export", "--model", path, "--out", at["out"] / "model.onnx"],
    "weights": lambda path, at: ["train", *SMALL, *at["where"], "--weights", path],
    "reproduce": lambda path, at: ["reproduce", *at["where"], "--weights", path],
    "image": lambda path, at: ["predict", "--model", at["model"], path],
    "toml": lambda path, at: ["train", "--category", "texture", "--config", path, "--print-config"],
    "data": lambda path, at: ["train", *SMALL, "--data", path, "--weights", at["weights"]],
    "normal": lambda path, at: ["train", "--normal", path, *SMALL[2:], "--weights", at["weights"]],
    "check": lambda path, at: ["data", "check", path],
}
TAKEN = {("image", "image"), ("weights", "weights"), ("toml", "toml"), ("toml", "half toml"), ("toml", "empty")}


@pytest.mark.parametrize("reader", READERS)
def test_every_kind_of_file_in_the_place_of_every_other(reader, strange, data_root, tmp_path, run):
    at = strange | {"where": ["--category", "texture", "--data", data_root, "--output", tmp_path], "out": tmp_path}
    for kind, path in strange.items():
        taken = (reader, kind) in TAKEN or (kind == "model" and reader in ("model", "update", "export"))
        if taken or (reader, kind) == ("reproduce", "weights"):
            continue
        result = run(*READERS[reader](path, at))
        assert result.code == 2, (kind, result)
        assert 1 <= result.err.count("\n") <= 2, (kind, result.err)
        assert result.err.startswith(("ERROR", "WARNING: skipped")), (kind, result.err)
    assert not list(tmp_path.glob("**/model.*"))


def test_whatever_is_called_onnx(strange, tmp_path, run):
    for kind in ("model", "weights", "image", "toml", "onnx", "half onnx", "empty"):
        path = shutil.copy(strange[kind], tmp_path / "model.onnx")
        result = run("predict", "--model", path, strange["image"])
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), (kind, result)


def test_links_that_lead_nowhere_as_an_output(strange, data_root, run):
    model, images = strange["model"], data_root / "texture/test/good"
    for command in (["predict", "--model", model, images], ["predict", "--model", model, "--watch", images]):
        result = run(*command, "--out", strange["loop"])
        assert (result.code, result.err.count("\n")) == (2, 1), result
        assert "can't write to the folder" in result.err


@pytest.mark.parametrize("name", [b"with space", b"two\nlines", b"\xff\xfe", b"--seed"])
def test_any_name_of_categories_weights_and_models(name, data_root, weights_file, tmp_path, run):
    root = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    name = os.fsdecode(name)
    shutil.copytree(data_root / "texture", os.path.join(root, name))
    save_file(torch.load(weights_file), tmp_path / "plain")
    weights, output = os.path.join(root, f"{name}.safetensors"), os.path.join(root, f"{name}.runs")
    shutil.move(tmp_path / "plain", weights)
    where = [f"--category={name}", "--data", root, "--output", output]
    assert run("train", *SMALL[2:], *where, "--weights", weights, "--keep-moments").code == 0
    model = os.path.join(output, name, "model.safetensors")
    assert run("eval", *where).code == 0
    assert run("train", "--update", model, *where).code == 0
    image = os.path.join(root, name, "test/good/000.png")
    result = run("predict", "--model", model, image, "--out", os.path.join(output, "pictures"))
    assert os.path.exists(json.loads(result.out)["heatmap"])
    assert run("data", "check", root).code == 0
    exported = os.path.join(output, f"{name}.onnx")
    with open(exported, "wb") as file:
        file.write(identity().SerializeToString())
    with pytest.raises(PadimError, match="is not a padim model: export one"):  # so it was opened
        Runtime.load(exported)


# Masks of any kind


def stored(name, mask):
    """A mask, 255 in defects and 0 elsewhere, as a picture of some kind."""
    whole, palette = Image.fromarray(mask), Image.fromarray((mask == 0).astype(np.uint8))
    palette.putpalette([255, 255, 255, 0, 0, 0])  # the first colour is white
    transparent = whole.convert("RGBA")
    transparent.putalpha(Image.fromarray(255 - mask))
    return {
        "16 bit": Image.fromarray(mask.astype(np.uint16) * 257),
        "palette": palette,
        "transparent": transparent,
        "half as large": Image.fromarray(mask[::2, ::2]),
        "all white": Image.new("L", whole.size, 255),
        "inverted": Image.fromarray(255 - mask),
        "another shape": Image.new("L", (64, 48), 255),
    }[name]


@pytest.mark.parametrize(
    ("name", "used", "same"),
    [
        ("16 bit", 10, True),
        ("palette", 10, True),
        ("transparent", 10, True),
        ("half as large", 10, False),
        ("all white", 10, False),
        ("inverted", 10, False),
        ("another shape", 0, False),
        ("empty", 0, False),
    ],
)
def test_evaluations_take_masks_of_any_kind_or_say_why_not(name, used, same, trained, data_root, tmp_path, run):
    shutil.copytree(data_root / "texture", tmp_path / "texture")
    evaluate = ("eval", "--model", trained, "--output", tmp_path, "--json")
    expected = json.loads(run(*evaluate, "--data", data_root).out)
    for path in (tmp_path / "texture/ground_truth").rglob("*.png"):
        path.write_bytes(b"") if name == "empty" else stored(name, np.asarray(Image.open(path).convert("L"))).save(path)
    found = run(*evaluate, "--data", tmp_path)
    figures = json.loads(found.out)
    assert (found.code, figures["unmasked"], found.err.count("WARNING: mask not used")) == (0, 10 - used, 10 - used)
    assert figures["image_auroc"] == expected["image_auroc"]
    keys = ("pixel_auroc", "aupro", "pixel_ap", "pixel_f1_max")
    assert ([figures[key] for key in keys] == [expected[key] for key in keys]) == same


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("16 bit", None),
        ("palette", None),
        ("transparent", None),
        ("half as large", "is 32 x 32 pixels, the training images are 64 x 64"),
        ("all white", "marks everything of what the model sees"),
        ("another shape", "is 64 x 48 pixels, the training images are 64 x 64"),
        ("empty", "can't read the image"),
    ],
)
def test_pixels_to_ignore_are_marked_by_masks_of_any_kind(name, problem, weights_file, data_root, tmp_path, run):
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:16, 8:40] = 255
    Image.fromarray(mask).save(tmp_path / "plain.png")
    (tmp_path / "mask.png").write_bytes(b"") if name == "empty" else stored(name, mask).save(tmp_path / "mask.png")
    fit = ["train", *SMALL, "--data", data_root, "--weights", weights_file, "--output"]
    found = run(*fit, tmp_path / "masked", "--ignore", tmp_path / "mask.png")
    if problem:
        assert (found.code, found.out, found.err.count("\n"), problem in found.err) == (2, "", 1, True), found.err
        return
    assert run(*fit, tmp_path / "plain", "--ignore", tmp_path / "plain.png").code == found.code == 0
    files = [tmp_path / folder / "texture/model.safetensors" for folder in ("masked", "plain")]
    assert files[0].read_bytes() == files[1].read_bytes()


# Faults of the machine, which say nothing of an image


@pytest.fixture
def failing(monkeypatch):
    """Lets the system refuse to open some images, so many times each."""

    def fail(code, names, times):
        left, original = dict.fromkeys(names, times), Image.open

        def opened(path, *arguments, **named):
            name = f"{path.parent.name}/{path.name}"
            if left.get(name, 0) > 0:
                left[name] -= 1
                raise OSError(code, os.strerror(code))
            return original(path, *arguments, **named)

        monkeypatch.setattr("PIL.Image.open", opened)
        monkeypatch.setattr("padim.data.loader._PAUSES", (0, 0, 0))

    return fail


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_what_passes_costs_no_image(code, failing, run, data_root, weights_file, tmp_path):
    failing(code, [f"good/{number:03}.png" for number in range(4)], times=3)
    fit = ["train", *SMALL, "--data", data_root, "--weights", weights_file, "--output", tmp_path, "--device", "cpu"]
    found = run(*fit, "--eval", "--json")
    assert found.code == 0
    assert [json.loads(line)["skipped"] for line in found.out.splitlines()] == [0, 0]


def test_a_fault_that_stays_is_an_error_and_no_smaller_training(failing, run, data_root, weights_file, tmp_path):
    failing(errno.EMFILE, ["good/003.png"], times=1000)
    fit = ["train", *SMALL, "--data", data_root, "--weights", weights_file, "--output", tmp_path, "--device", "cpu"]
    found = run(*fit)
    assert found.code == 2
    assert "003.png: [Errno 24] Too many open files" in found.err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_prediction_goes_on_after_a_fault_and_says_so(failing, run, data_root, weights_file, tmp_path):
    fit = ["train", *SMALL, "--data", data_root, "--weights", weights_file, "--output", tmp_path, "--device", "cpu"]
    assert run(*fit).code == 0
    failing(errno.EMFILE, ["good/003.png"], times=1000)
    found = run("predict", "--model", tmp_path / "texture/model.safetensors", data_root / "texture/test")
    assert found.code == 2
    assert len(found.out.splitlines()) == len(list((data_root / "texture/test").rglob("*.png"))) - 1
    assert "skipped: can't read the image" in found.err


def test_many_skipped_images_are_spoken_of(run, data_root, weights_file, tmp_path):
    shutil.copytree(data_root / "texture", tmp_path / "texture")
    for number in range(2):
        (tmp_path / f"texture/train/good/{number:03}.png").write_bytes(b"")
    where = ["--data", tmp_path, "--weights", weights_file, "--output", tmp_path / "runs", "--device", "cpu"]
    found = run("train", *SMALL, *where)
    assert found.code == 0
    assert "2 of 8 images were skipped, so the model is that of the others; --strict stops" in found.err
    assert Padim.load(tmp_path / "runs/texture/model.safetensors").provenance.skipped == 2
