from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import pytest

from padim import Config, CutPasteConfig, PadimError
from padim.config import preset_path
from padim.detectors.registry import read_config

CHECKOUT = Path(__file__).parents[2]
PRESETS = sorted((CHECKOUT / "configs").glob("*.toml"))


def test_the_default_is_the_preset_pytorch_r18():
    assert read_config(preset_path("pytorch-r18")) == Config()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid_and_has_only_known_fields(path):
    config = read_config(path)
    assert set(tomllib.loads(path.read_text())) <= {"method", *(option.name for option in fields(config))}
    assert preset_path(path.stem) == path
    whole = path.stem.startswith(("aligned", "anomalib", "cutpaste", "stc"))
    assert config.image_size == ((256, 256) if whole else (224, 224))
    assert config.method == ("cutpaste" if path.stem.startswith("cutpaste") else "padim")


def test_a_configuration_knows_its_method(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CutPasteConfig(steps=7, patch_area=(0.1, 0.2)).to_toml())
    assert read_config(path) == CutPasteConfig(steps=7, patch_area=(0.1, 0.2))
    with pytest.raises(PadimError, match="method: 'cutpaste' where 'padim' was expected"):
        Config.from_dict(CutPasteConfig().to_dict())
    for method in ("sedan", 3, ["padim"]):
        path.write_text(f"method = {method!r}")
        with pytest.raises(PadimError, match=r"config.toml: there is no method .*; there are padim, cutpaste"):
            read_config(path)


@pytest.mark.parametrize("name", ["jitter", "patch_area", "scar_height", "steps", "bandwidth", "training_batch"])
def test_wrong_values_of_cutpaste_are_refused_by_name(name):
    for value in (-1, "x", [3, 2, 1], float("inf"), *([10**400] if name == "bandwidth" else [])):
        with pytest.raises(PadimError, match=name):
            CutPasteConfig.from_dict({name: value})


@pytest.mark.parametrize(
    ("preset", "expected"),
    {
        "pytorch-wr50": {"backbone": "wide_resnet50_2", "channels": 550},
        "paddle-r18": {"seed": 7, "interpolation": "bilinear", "mask_interpolation": "bilinear", "mask_threshold": 255},
        "mindspore-wr50": {"backbone": "wide_resnet50_2", "channels": 550, "resize": (256, 256)},
        "anomalib-r18": {"resize": (256, 256), "crop": (), "interpolation": "bilinear"},
        "paper-r18": {"interpolation": "bicubic", "upsampling": "bicubic"},
        "paper-enb5": {
            "backbone": "efficientnet_b5",
            "channels": 0,
            "interpolation": "bicubic",
            "upsampling": "bicubic",
        },
    }.items(),
)
def test_presets_differ_from_the_default_as_published(preset, expected):
    assert read_config(preset_path(preset)) == replace(Config(), **expected)


def test_toml_round_trip(tmp_path):
    config = Config(layers=("layer2",), resize=(300, 200), crop=(), sigma=2, epsilon=0.5)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert read_config(path) == config
    assert config.sigma == 2.0
    assert isinstance(config.sigma, float)


@pytest.mark.parametrize(
    ("backbone", "stride"),
    {
        "torchvision:resnet50": 32,
        "timm:vit_small_patch14_dinov2": 14,
        "timm:vit_base_patch16_224": 32,
        "timm:swin_tiny_patch4_window7_224": 32,
    }.items(),
)
def test_layers_of_libraries_have_any_names(backbone, stride, tmp_path):
    config = Config(backbone=backbone, layers=("norm", "layer1.0"))
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert read_config(tmp_path / "config.toml") == config
    assert config.stride == stride


def test_one_number_stands_for_a_list_of_one():
    assert Config.from_dict({"resize": 128, "crop": 96}) == Config(resize=(128,), crop=(96,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 3}, "'sed' is not a field.*known: seed"),
        ({"seed": "3"}, "seed: '3' is not valid"),
        ({"seed": True}, "seed: True is not valid"),
        ({"seed": 1.5}, "seed: 1.5 is not valid"),
        ({"sigma": float("nan")}, "sigma: nan is not valid"),
        ({"sigma": -1.0}, "sigma: -1.0 is out of range"),
        ({"layers": [1]}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": ["layer3", "layer1"]}, "layers"),
        ({"layers": ["layer5"]}, "'layer5' is not one of layer1"),
        ({"backbone": "vgg"}, "'vgg' is not one of resnet18, wide_resnet50_2"),
        ({"backbone": "keras:vgg"}, "'keras:vgg' is not one of .*, torchvision:NAME, timm:NAME"),
        ({"backbone": "torchvision:vgg11", "layers": []}, "layers"),
        ({"backbone": "torchvision:vgg11", "layers": ["features.3", "features.3"]}, "layers"),
        ({"resize": [1, 2, 3]}, "resize"),
        ({"resize": 100_000}, "resize"),
        ({"crop": 300}, "crop: 300 x 300 is larger than the resized image"),
        ({"crop": []}, "resize: without a crop give height and width"),
        ({"channels": -1}, "channels"),
        ({"batch_size": 0}, "batch_size"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(values, message):
    with pytest.raises(PadimError, match=message):
        Config.from_dict(values)


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"[" * 5000, b"seed = 1\nseed = 2"])
def test_what_is_not_toml_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(PadimError, match=r"config\.toml is not a TOML file"):
        read_config(path)


def test_a_missing_file_and_an_unknown_preset():
    with pytest.raises(PadimError, match=r"nowhere\.toml: No such file"):
        read_config(Path("nowhere.toml"))
    with pytest.raises(PadimError, match="there is no preset 'best'; there are aligned-r18, aligned-wr50, "):
        preset_path("best")


def test_a_wheel_carries_the_presets_and_the_type_marker(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([*command, CHECKOUT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("padim_toolkit-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"padim/configs/{path.name}" for path in PRESETS} <= set(names)
    assert "padim/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "configs", "scripts"))]
