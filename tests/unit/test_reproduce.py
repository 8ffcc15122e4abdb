from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace

import pytest
from conftest import SMALL

from padim import PadimError
from padim.data.layouts import find_category
from padim.detectors.registry import new_detector
from padim.reproduction import published
from padim.reproduction.ablations import PcaPadim, SumOfMaps
from padim.reproduction.experiments import PAIRS, Experiment, Run, ablation, ablations, preset
from padim.reproduction.tables import as_csv, as_html, as_markdown, table


def figures(image, pixel=0.9, aupro=0.8):
    counts = {"images": 20, "skipped": 0, "unmasked": 0}
    return {"image_auroc": image, "pixel_auroc": pixel, "aupro": aupro, **counts}


def test_published_figures_and_their_groups():
    assert published.category_figure("pytorch-r18", "pixel", "bottle") == 0.981
    assert published.category_figure("pytorch-r18", "aupro", "bottle") is None
    assert published.group_figure("pytorch-wr50", "image", "textures") == pytest.approx(0.9836)
    assert published.group_figure("paper-wr50", "aupro", "all") == 0.921
    assert published.group_figure("paper-r18", "image", "all") is None
    assert published.source("nothing") is None


def test_every_published_experiment_can_be_run():
    for name in published.experiments():
        assert name in ablations() or preset(name).name == name
    for name in set(ablations()) - {"pca200", *PAIRS["align"]}:
        assert published.source(name.removesuffix("-r18"))


def test_ablations_are_those_of_the_paper():
    assert [ablation(name).make for name in ("layer1", "sum", "pca100")] == [new_detector, SumOfMaps, PcaPadim]
    assert ablation("layer2").config == replace(preset("paper-r18").config, layers=("layer2",), channels=0)
    assert ablation("non-aligned").config.rotation == 10
    seeded = {name for name in ablations() if ablation(name).seeded}
    assert seeded == {"random100", "random200", "non-aligned", "non-aligned-r18", *PAIRS["align"]}
    with pytest.raises(PadimError, match="there are layer1, layer2"):
        ablation("nothing")


def test_aligned_and_not_are_compared_on_the_same_poses_and_channels():
    unaligned, aligned = (ablation(name).with_seed(3).config for name in PAIRS["align"])
    assert replace(aligned, align="none") == unaligned
    assert (unaligned.seed, unaligned.rotation_seed, aligned.align) == (1024, 3, "rotate")


def test_a_table_has_the_papers_order_groups_and_differences():
    results = {"zipper": [figures(0.7)], "bottle": [figures(0.9)], "carpet": [figures(1.0)]}
    rows = {row.name: row.cells for row in table("pytorch-r18", results)}
    groups = ["textures (1 of 5)", "objects (2 of 10)", "all (3 of 15)"]
    assert list(rows) == ["carpet", "bottle", "zipper", *groups]
    assert rows["bottle"]["image"].difference == pytest.approx(0.9 - 0.996)
    objects = rows["objects (2 of 10)"]["image"]
    assert (objects.mean, objects.published) == (pytest.approx(0.8), pytest.approx((0.996 + 0.741) / 2))
    assert objects.difference == pytest.approx(0.8 - (0.996 + 0.741) / 2)
    assert rows["bottle"]["aupro"].published is None


def test_a_whole_group_is_compared_with_the_groups_own_figure():
    results = {name: [figures(0.9)] for name in published.TEXTURES}
    rows = {row.name: row.cells["pixel"] for row in table("paper-r18", results)}
    assert rows["textures"].difference == pytest.approx(0.9 - 0.956)
    assert (rows["all (5 of 15)"].published, rows["all (5 of 15)"].difference) == (0.967, None)


def test_seeds_give_mean_and_deviation():
    results = {"bottle": [figures(0.8), figures(0.9)], "cable": [figures(0.6), figures(0.5)]}
    rows = {row.name: row.cells["image"] for row in table("paper-r18", results)}
    assert (rows["bottle"].mean, rows["bottle"].deviation) == (pytest.approx(0.85), pytest.approx(0.0707, abs=1e-4))
    assert (rows["objects (2 of 10)"].mean, rows["objects (2 of 10)"].deviation) == (
        pytest.approx(0.7),
        pytest.approx(0),
    )


def test_tables_are_written_in_every_form():
    broken = {**figures(None), "skipped": 2, "unmasked": 1}
    tables = {"pytorch-r18": table("pytorch-r18", {"bottle": [figures(0.99)], "<b>": [broken]})}
    rows = list(csv.DictReader(io.StringIO(as_csv(tables))))
    assert len(rows) == 5 * 3
    assert rows[0] == {
        "experiment": "pytorch-r18",
        "category": "bottle",
        "images": "20",
        "metric": "image",
        "mean": "0.990000",
        "deviation": "",
        "published": "0.996000",
        "difference": "-0.006000",
    }
    assert "| bottle | 20 | 0.9900 | 0.996 | -0.0060 | 0.9000 | 0.981 | -0.0810 | 0.8000 | - | - |" in as_markdown(
        tables
    )
    assert "| <b> | 20 (2 skipped, 1 without mask) | - | - | - | 0.9000 |" in as_markdown(tables)
    assert "| mean of these 2 | 40 (2 skipped, 1 without mask) | - | - | - | 0.9000 |" in as_markdown(tables)
    assert "<td>bottle</td><td>20</td><td>0.9900</td><td>0.996</td>" in as_html(tables)
    assert "&lt;b&gt;" in as_html(tables)
    assert "<b>" not in as_html(tables)


def test_a_group_with_a_category_that_has_no_figure_has_none_either():
    rows = table("pytorch-r18", {"bottle": [figures(0.9)], "cable": [figures(0.9, pixel=None)]})
    cells = {row.name: row.cells for row in rows}["objects (2 of 10)"]
    assert (cells["pixel"].mean, cells["pixel"].difference) == (None, None)
    assert cells["image"].mean == pytest.approx(0.9)


def test_memory_is_estimated_by_what_an_experiment_holds():
    sizes = {name: ablation(name).memory_bytes() / 1e9 for name in ("random100", "joined", "pca200", "non-aligned")}
    assert 1.0 < sizes["random100"] < 1.2
    assert 1.6 < sizes["joined"] < 2.5
    assert sizes["joined"] < sizes["pca200"] < 5
    assert 2.0 < sizes["non-aligned"] < 4


def test_a_run_is_done_until_anything_it_depends_on_changes(data_root, random_weights, tmp_path):
    shutil.copytree(data_root / "texture", tmp_path / "texture")
    category = find_category(tmp_path, "texture")
    run = Run(Experiment("small", SMALL), category, "digest", tmp_path / "texture-0.json")
    assert run.result() is None
    first = run.execute(random_weights, "cpu", 1)
    assert run.result() == first
    assert replace(run, experiment=Experiment("small", SMALL).with_seed(1)).result() is None
    assert replace(run, category=replace(category, train=category.train[1:])).result() is None
    assert replace(run, weights_sha256="another").result() is None
    mask = tmp_path / "texture/ground_truth/stain/000_mask.png"
    mask.write_bytes(mask.read_bytes() + b" ")
    assert run.result() is None
    for text in ("", "{}", "[]", json.dumps({"key": 1})):
        run.path.write_text(text)
        assert run.result() is None
    with pytest.raises(PadimError, match="needs training images and test images"):
        replace(run, category=replace(category, test=[])).execute(random_weights, "cpu", 1)
