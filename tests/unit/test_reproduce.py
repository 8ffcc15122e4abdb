from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL

from padim import CutPasteConfig, PadimError
from padim.cutpaste.steps import Training
from padim.data import check
from padim.data.items import Category
from padim.data.layouts import find_category
from padim.detectors.registry import new_detector
from padim.reproduction import published
from padim.reproduction.ablations import PcaPadim, SumOfMaps
from padim.reproduction.experiments import (
    PAIRS,
    Experiment,
    ablation,
    ablations,
    own,
    preset,
    published_name,
    with_options,
)
from padim.reproduction.figures import table_figures
from padim.reproduction.formats import as_csv, as_html, as_latex, as_markdown
from padim.reproduction.output import write_tables
from padim.reproduction.rows import COSTS, table_rows
from padim.reproduction.runs import Run
from padim.reproduction.tables import ExperimentTable, compact_table, comparison, full_table
from padim.system import machine

FEW_STEPS = CutPasteConfig(
    initial="random", resize=(32, 32), scar_width=(2, 3), scar_height=(4, 8), training_batch=2, steps=3, frozen_steps=1
)


def figures(category, image, pixel=0.9, **changes):
    """What a run on a whole category of MVTec AD, or on another one, gives."""
    truth = check.published().get(category, {"train": 8, "good": 4, "defects": {"stain": 16}})
    return {
        "image_auroc": image,
        "pixel_auroc": pixel,
        "aupro": 0.8,
        "pixel_ap": 0.5,
        "pixel_f1_max": 0.6,
        "train": truth["train"],
        "images": truth["good"] + sum(truth["defects"].values()),
        "skipped": 0,
        "unmasked": 0,
        "seconds": 2.5,
        "images_per_second": 8.0,
        "peak_memory_gb": 1.25,
        "curves": {"images": [[0, 0, 1], [0, image or 0, 1]], "pixels": [[0, 0, 1], [0, pixel or 0, 1]]},
        "environment": {"padim": "0.1.0", "torch": "2.6.0", "CPU": "some & other", "date": "2026-01-02"},
    } | changes


def few_of_grid(image=0.8, pixel=0.9):
    return figures("grid", image, pixel, train=25, images=14)


def table_of(experiment, results):
    return ExperimentTable(experiment, "5c106cde", results)


def by_name(rows):
    return {row.name: row for row in rows}


# Published figures and protocols


def test_published_figures_and_their_groups():
    textures, every = published.TEXTURES, published.GROUPS["all"]
    assert published.category_figure("pytorch-r18", "pixel", "bottle") == 0.981
    assert published.category_figure("pytorch-r18", "aupro", "bottle") is None
    assert published.group_figure("pytorch-wr50", "image", "textures", textures) == pytest.approx(0.9836)
    assert published.group_figure("paper-wr50", "aupro", "all", every) == 0.921
    assert published.group_figure("paper-wr50", "aupro", "all", every[:3]) is None
    assert published.group_figure("paper-r18", "image", "all", every) is None
    assert published.source("nothing") is published.source(None) is None


def test_every_published_protocol_can_be_run_and_is_recognised():
    best = "cutpaste-3way-sspcab-select-best-on-test"
    for name in published.experiments():
        if name == best:
            (experiment,) = with_options([preset("cutpaste-3way-sspcab")], {"select": "best-on-test"})
        else:
            experiment = ablation(name) if name in ablations() else preset(name)
        assert (experiment.name, published_name(experiment)) == (name, name)
    for name in set(ablations()) - {"pca200", *PAIRS["align"]}:
        assert published.source(name.removesuffix("-r18"))
    assert published_name(ablation("pca200")) is None


def test_best_on_test_stands_beside_best_on_test_and_the_last_step_beside_the_last():
    last = preset("cutpaste-3way-sspcab")
    (best,) = with_options([last], {"select": "best-on-test"})
    for experiment, figure in ((last, 0.684189), (best, 0.901)):
        row = table_of(experiment, {"carpet": [figures("carpet", 0.9, None)]}).rows[0]
        assert row.cells["image"].published == figure
    assert "have seen the answers" in full_table(table_of(best, {"carpet": [figures("carpet", 0.9)]})).notes[1]
    # Li et al. published figures of CutPaste without SSPCAB, none of which were chosen on the test images.
    (chosen,) = with_options([preset("cutpaste-3way")], {"select": "best-on-test"})
    assert published_name(chosen) is None


def test_a_configuration_is_published_if_its_protocol_is(tmp_path):
    same, other = tmp_path / "mine.toml", tmp_path / "other.toml"
    same.write_text('interpolation = "lanczos"\nseed = 3\nprecision = "bf16"\nbatch_size = 2\n')
    other.write_text('interpolation = "bilinear"\n')
    assert (own(same).name, published_name(own(same))) == ("mine", "pytorch-r18")
    assert (own(other).name, published_name(own(other))) == ("other", None)
    assert full_table(table_of(own(other), {"bottle": [figures("bottle", 1.0)]})).header.count("published") == 0
    with pytest.raises(PadimError, match=r"none\.toml"):
        own(tmp_path / "none.toml")


def test_options_change_the_experiments_that_have_them():
    padim, cutpaste = preset("pytorch-r18"), preset("cutpaste-3way")
    found = with_options([padim, cutpaste], {"precision": "bf16", "steps": 20})
    assert [one.name for one in found] == ["pytorch-r18-precision-bf16", "cutpaste-3way-precision-bf16-steps-20"]
    assert found[0].config == replace(padim.config, precision="bf16")
    assert found[1].config == replace(cutpaste.config, precision="bf16", steps=20)
    assert with_options([padim, padim], {"precision": "fp32"}) == [padim]
    with pytest.raises(PadimError, match="--steps fits no experiment of these: pytorch-r18"):
        with_options([padim], {"steps": 20})
    with pytest.raises(PadimError, match="steps: -1 is out of range"):
        with_options([cutpaste], {"steps": -1})
    with pytest.raises(PadimError, match="two experiments are called pytorch-r18"):
        with_options([padim, replace(padim, config=SMALL)], {})


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


# Rows


def test_rows_have_the_papers_order_groups_and_differences():
    results = {name: [figures(name, image)] for name, image in (("zipper", 0.7), ("bottle", 0.9), ("carpet", 1.0))}
    rows = by_name(table_rows("pytorch-r18", results))
    groups = ["textures (mean of 1 of 5)", "objects (mean of 2 of 10)", "all (mean of 3 of 15)"]
    assert list(rows) == ["carpet", "bottle", "zipper", *groups]
    assert [row.is_mean for row in rows.values()] == [False] * 3 + [True] * 3
    assert rows["bottle"].cells["image"].difference == pytest.approx(0.9 - 0.996)
    objects = rows["objects (mean of 2 of 10)"].cells["image"]
    assert (objects.mean, objects.published) == (pytest.approx(0.8), pytest.approx((0.996 + 0.741) / 2))
    assert objects.difference == pytest.approx(0.8 - (0.996 + 0.741) / 2)
    assert rows["bottle"].cells["aupro"].published is None
    assert rows["bottle"].cells["seconds"].mean == 2.5


def test_the_mean_of_a_whole_group_stands_beside_the_groups_own_figure():
    rows = by_name(table_rows("paper-r18", {name: [figures(name, 0.9)] for name in published.TEXTURES}))
    assert rows["textures"].cells["pixel"].difference == pytest.approx(0.9 - 0.956)
    partial = rows["all (mean of 5 of 15)"].cells["pixel"]
    assert (partial.published, partial.difference) == (None, None)


def test_categories_that_lack_images_are_in_no_mean_beside_a_published_one():
    results = {"bottle": [figures("bottle", 0.9)], "grid": [few_of_grid()], "mine": [figures("mine", 0.4)]}
    rows = by_name(table_rows("pytorch-r18", results))
    assert list(rows) == [
        "grid",
        "bottle",
        "mine",
        "objects (mean of 1 of 10)",
        "all (mean of 1 of 15)",
        "mean of these 3",
    ]
    assert rows["grid"].missing == "25 of 264 training images, 14 of 78 test images"
    assert [rows[name].missing for name in ("bottle", "mine")] == ["", ""]
    grid = rows["grid"].cells["image"]
    assert (grid.mean, grid.published, grid.difference) == (0.8, 0.898, None)
    every = rows["all (mean of 1 of 15)"].cells["image"]
    assert (every.mean, every.published) == (0.9, 0.996)
    these = rows["mean of these 3"].cells["image"]
    assert (these.mean, these.published) == (pytest.approx(0.7), None)
    unmasked = table_rows("pytorch-r18", {"bottle": [figures("bottle", 0.9, unmasked=3)]})
    assert [(row.name, row.missing) for row in unmasked] == [("bottle", "60 of 63 masks")]


def test_seeds_give_mean_and_deviation():
    results = {
        name: [figures(name, image) for image in images]
        for name, images in (("bottle", (0.8, 0.9)), ("cable", (0.6, 0.5)))
    }
    rows = by_name(table_rows("paper-r18", results))
    for name, images in (("bottle", [0.8, 0.9]), ("objects (mean of 2 of 10)", [0.7, 0.7])):
        cell = rows[name].cells["image"]
        assert (cell.mean, cell.deviation) == (pytest.approx(np.mean(images)), pytest.approx(np.std(images, ddof=1)))


def test_a_group_with_a_category_that_has_no_figure_has_none_either():
    rows = table_rows("pytorch-r18", {"bottle": [figures("bottle", 0.9)], "cable": [figures("cable", 0.9, None)]})
    cells = by_name(rows)["objects (mean of 2 of 10)"].cells
    assert (cells["pixel"].mean, cells["pixel"].difference) == (None, None)
    assert cells["image"].mean == pytest.approx(0.9)


# Tables


@pytest.fixture
def compared():
    """Three experiments with a tie in what is printed, an incomplete category, seeds, and a detector without maps."""
    odd = replace(preset("anomalib-r18"), name="50%_of&$#{x}~^|<\\")
    of_each = {
        preset("pytorch-r18"): ((0.8, 0.9961, 0.5), 0.9, 1),
        odd: ((0.85, 0.9964, 0.5), 0.95, 1),
        preset("cutpaste-3way"): ((0.7, 0.91, 0.6), None, 2),
    }
    return [
        table_of(
            experiment,
            {
                "grid": seeds * [few_of_grid(images[0], pixel)],
                "bottle": seeds * [figures("bottle", images[1], pixel)],
                "a_b": seeds * [figures("a_b", images[2], pixel)],
            },
        )
        for experiment, (images, pixel, seeds) in of_each.items()
    ]


def latex_tables(text):
    """The entries of every tabular of a document, header first, once its structure has been checked."""
    code = re.sub(r"^%.*\n", "", text, flags=re.MULTILINE)
    begun, ended = (Counter(re.findall(rf"\\{word}{{(\w+)}}", code)) for word in ("begin", "end"))
    assert begun == ended
    depth = 0
    for mark in re.findall(r"\\.|[{}]", code):  # an escaped brace is none
        depth += {"{": 1, "}": -1}.get(mark, 0)
        assert depth >= 0
    assert depth == 0
    assert not re.findall(r"(?<!\\)[#%~^|<>_]", re.sub(r"\\(label|begin){[^}]*}", "", code))
    found = []
    for columns, body in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", code, flags=re.DOTALL):
        assert [body.count(rf"\{rule}rule") for rule in ("top", "bottom")] == [1, 1]
        lines = [line.strip() for line in body.strip().splitlines() if "rule" not in line]
        assert all(line.endswith(r" \\") for line in lines)
        entries = [re.split(r"(?<!\\)&", line.removesuffix(r" \\")) for line in lines]
        assert {len(line) for line in entries} == {len(columns)}
        found.append([[entry.strip() for entry in line] for line in entries])
    return found


ODD = r"50\%\_of\&\$\#\{x\}\textasciitilde{}\textasciicircum{}\textbar{}\textless{}\textbackslash{}"


def test_latex_is_whole_and_sets_the_best_of_a_row_in_bold(compared):
    tables = latex_tables(as_latex(comparison(compared), compared))
    assert len(tables) == 5
    ties = 0
    for (_, *names), *rows in tables:
        assert names == [rf"\shortstack[r]{{\strut {name}}}" for name in ("pytorch-r18", ODD, "cutpaste-3way")]
        for _, *entries in rows:
            values = [-1 if entry == "--" else float(re.search(r"\d\.\d+", entry)[0]) for entry in entries]
            best = [number for number, value in enumerate(values) if value == max(values)]
            assert [number for number, entry in enumerate(entries) if r"\textbf{" in entry] == best
            ties += len(best) > 1
    assert ties >= 2  # 0.9961 and 0.9964 are both printed as 0.996
    (_, grid, bottle, other, *_), pixel = tables[:2]
    assert grid[:3] == [r"grid\textsuperscript{\dag}", "0.800 (0.898)", r"\textbf{0.850} (0.857)"]
    assert bottle[3] == r"0.910 $\pm$ 0.000 (0.983)"
    assert (other[0], pixel[2][3]) == (r"a\_b", "--")


def test_one_experiment_has_no_best(compared):
    (alone,) = compared[:1]
    first, *_, full = latex_tables(as_latex([*comparison([alone]), compact_table(alone)], [alone]))
    assert "textbf" not in str([first, full])
    assert len(full[0]) == 1 + 5 + 3


def test_latex_carries_how_it_was_made_as_comments(compared):
    text = as_latex([compact_table(compared[0])], compared[:1])
    comments = [line.removeprefix("% ") for line in text.splitlines() if line.startswith("%")]
    assert (
        "pytorch-r18: padim 0.1.0, torch 2.6.0, CPU some & other, date 2026-01-02, weights SHA-256 5c106cde" in comments
    )
    assert set(compared[0].experiment.config.to_toml().splitlines()) <= set(comments)
    assert r"\caption{pytorch-r18. Published, in parentheses: xiahaifeng1995" in text
    assert "grid (25 of 264 training images, 14 of 78 test images)." in text


def test_a_comparison_has_the_sources_of_what_it_shows(compared):
    image, pixel, *others = comparison(compared)
    assert [table.title for table in (image, pixel, *others)] == [
        *("Image AUROC", "Pixel AUROC", "AUPRO 0.3", "Pixel AP", "Pixel F1")
    ]
    assert "pytorch-r18: xiahaifeng1995" in image.notes[0]
    assert "cutpaste-3way: Li et al. 2021" in image.notes[0]
    assert "Li et al." not in pixel.notes[0]
    assert all(len(table.notes) == 1 and table.notes[0].startswith("† Incomplete") for table in others)


class Cells(HTMLParser):
    """The text of every cell, and which are bold."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & {*self.open}:
            self.cells[-1] += f"**{data}**" if "b" in self.open else data


def test_markdown_and_html_have_the_same_entries(compared):
    for printed in (comparison(compared), [full_table(compared[0])]):
        text, page = as_markdown(printed, compared), as_html(printed, compared)
        lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
        entries = [entry.strip() for line in lines for entry in re.split(r"(?<!\\)\|", line)[1:-1]]
        escaped = [entry.replace(r"\|", "|").replace("&amp;", "&").replace("&lt;", "<") for entry in entries]
        assert escaped == Cells(page).cells
        for part in (text, page):
            assert "weights SHA-256 5c106cde" in part
            assert "interpolation = " in part
            assert "† Incomplete, so in no mean beside a published one: grid (25 of 264" in part


def test_the_full_table_has_figures_published_figures_and_costs():
    results = {"bottle": [figures("bottle", 0.99)], "<b>": [figures("<b>", None, skipped=2, unmasked=1)]}
    tables = [table_of(preset("pytorch-r18"), results)]
    rows = list(csv.DictReader(io.StringIO(as_csv(tables))))
    assert len(rows) == 5 * 8
    first = {"experiment": "pytorch-r18", "category": "bottle", "images": "83", "missing": "", "metric": "image"}
    assert rows[0] == first | {"mean": "0.990000", "deviation": "", "published": "0.996000", "difference": "-0.006000"}
    text = as_markdown([full_table(tables[0])], tables)
    bottle = "0.9900 | 0.996 | -0.0060 | 0.9000 | 0.981 | -0.0810 | 0.8000 | 0.5000 | 0.6000 | 2.5 | 8.0 | 1.25"
    assert f"| bottle | 83 | {bottle} |" in text
    assert "| &lt;b&gt; | 20 (2 skipped, 1 without mask) | - | - | - | 0.9000 |" in text
    assert "| mean of these 2 | 103 (2 skipped, 1 without mask) | - | - | - | 0.9000 |" in text


def test_two_machines_are_both_named():
    other = {"torch": "2.7.0", "CPU": "another", "padim": "0.1.0", "date": "2026-01-02"}
    results = {"bottle": [figures("bottle", 0.9)], "cable": [figures("cable", 0.9, environment=other)]}
    made = table_of(preset("pytorch-r18"), results).environment
    assert made == {"padim": "0.1.0", "torch": "2.6.0, 2.7.0", "CPU": "another, some & other", "date": "2026-01-02"}


def test_figures_have_a_thin_line_per_category_and_seed(compared):
    found = table_figures(compared[0].rows, compared[0].results)
    image, pixel = found["roc"].axes
    assert len(image.lines) == len(pixel.lines) == 3
    legend = [text.get_text() for text in (image.get_legend().get_title(), *image.get_legend().get_texts())]
    assert legend == [f"mean {np.mean([0.8, 0.9961, 0.5]):.3f}", "grid† 0.800", "bottle 0.996", "a_b 0.500"]
    published_marks = found["auroc"].axes[1].lines[-1]
    assert published_marks.get_ydata() == pytest.approx([0.936, 0.981, np.nan], nan_ok=True)
    without_maps = table_figures(compared[2].rows, compared[2].results)
    assert [len(figure.axes) for figure in without_maps.values()] == [1, 1]
    (axis,) = without_maps["roc"].axes
    assert (len(axis.lines), len(axis.get_legend().get_texts())) == (3 * 2, 3)
    assert table_figures(table_rows(None, {"x": [figures("x", None, None)]}), {}) == {}


def test_everything_is_written_and_only_common_categories_are_compared(compared, tmp_path, caplog):
    more = table_of(compared[1].experiment, compared[1].results | {"tile": [figures("tile", 0.9)]})
    more = replace(more, experiment=replace(more.experiment, name="more"))
    write_tables(tmp_path, [compared[0], more])
    assert "left out of the comparison, since an experiment lacks them: tile" in caplog.text
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    formats = {f"table.{suffix}" for suffix in ("csv", "html", "json", "md", "tex")}
    drawings = {f"{name}.{suffix}" for name in ("roc", "auroc") for suffix in ("png", "svg")}
    folders = {f"{folder}/{name}" for folder in ("pytorch-r18", "more") for name in formats | drawings}
    assert written == folders | formats | {"references.bib"}
    assert "| tile |" not in (tmp_path / "table.md").read_text()
    assert "| tile |" in (tmp_path / "more/table.md").read_text()
    first, second = json.loads((tmp_path / "table.json").read_text())
    assert (first["experiment"], second["config"]["resize"]) == ("pytorch-r18", [256, 256])
    assert (first["weights_sha256"], first["environment"]["torch"]) == ("5c106cde", "2.6.0")


def test_what_an_earlier_call_has_left_is_not_taken_for_this_ones(compared, tmp_path):
    write_tables(tmp_path, compared[:2])
    (tmp_path / "table.xlsx").touch()
    apart = table_of(compared[0].experiment, {"tile": [figures("tile", None, None)]})
    write_tables(tmp_path, [apart, compared[1]])
    assert {path.name for path in tmp_path.glob("table.*")} == {"table.xlsx"}
    assert not [*(tmp_path / "pytorch-r18").glob("*.png")]
    assert [*(tmp_path / compared[1].experiment.name).glob("*.png")]


def test_a_category_may_be_called_like_a_mean():
    results = {name: [figures(name, 0.9)] for name in [*check.published(), "all", "objects"]}
    results["all"], results["objects"] = [figures("all", 0.1)], [figures("objects", 0.2)]
    (image, *_) = comparison([table_of(preset("pytorch-r18"), results), table_of(preset("paper-r18"), results)])
    shown = [(row[0].text, row[1].text) for row in image.rows]
    means = [("textures", "0.900"), ("objects", "0.900"), ("all", "0.900"), ("mean of these 17", "0.812")]
    assert shown[-image.means :] == means
    assert {("all", "0.100"), ("objects", "0.200")} <= {*shown[: -image.means]}


def test_names_that_formats_would_take_for_more():
    results = {name: [figures(name, 0.9)] for name in ("[x]", "*star*", "caf\udcff")}
    table = table_of(preset("pytorch-r18"), results)
    latex = as_latex([compact_table(table)], [table])
    assert "\n    {}[x] & " in latex
    assert "\n    {}*star* & " in latex
    assert r"| \*star\* |" in as_markdown([full_table(table)], [table])
    for figure in table_figures(table.rows, table.results).values():
        figure.canvas.draw()


def test_options_leave_an_experiment_its_published_figures():
    for experiment in (ablation("random100"), preset("paper-r18")):
        assert published_name(experiment.having("precision", "bf16")) == experiment.name


def test_a_configuration_is_not_the_ablation_that_has_it(tmp_path):
    category, path = Category("bottle", [], []), tmp_path / "sum-0.json"
    summed = ablation("sum")
    plain = replace(summed, make=new_detector)
    assert Run(summed, category, "", path)._key() != Run(plain, category, "", path)._key()


def test_references_are_whole_entries():
    text = (Path(published.__file__).with_name("references.bib")).read_text()
    assert re.findall(r"^@\w+{(\w+),$", text, flags=re.MULTILINE) == [
        *("defard2021padim", "li2021cutpaste", "ristea2022sspcab", "bergmann2019mvtec")
    ]
    for entry in text.split("@")[1:]:
        assert entry.count("{") == entry.count("}")
        assert all(f"  {field}" in entry for field in ("title ", "author ", "booktitle ", "year "))


# Runs


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


def test_a_result_has_curves_whose_area_is_the_auroc_and_what_it_took(data_root, random_weights, tmp_path):
    category = find_category(data_root, "texture")
    found = Run(Experiment("small", SMALL), category, "", tmp_path / "0.json").execute(random_weights, "cpu", 1)
    for curve, figure in (("images", "image_auroc"), ("pixels", "pixel_auroc")):
        rate, recall = found["curves"][curve]
        assert len(rate) <= 200
        assert np.trapezoid(recall, rate) == pytest.approx(found[figure], abs=1e-3)
    assert (found["train"], found["images"]) == (len(category.train), len(category.test))
    assert all(found[column.figure] > 0 for column in COSTS.values())
    assert {"padim", "Python", "torch", "torchvision", "numpy", "CPU", "date"} <= set(found["environment"])


def without_costs(found):
    return {key: value for key, value in found.items() if key not in {column.figure for column in COSTS.values()}}


@pytest.fixture
def train(data_root, tmp_path, monkeypatch):
    """Execute a run of CutPaste; gives its figures and the steps that it made. Ctrl-C may come in one of these."""
    rate, made = Training.learning_rate, []

    def call(name, stop_at=None, **changes):
        def noted(self):
            made.append(self.step + 1)
            if made[-1] == stop_at:
                signal.raise_signal(signal.SIGINT)
            return rate(self)

        made.clear()
        monkeypatch.setattr(Training, "learning_rate", noted)
        experiment = Experiment("small", replace(FEW_STEPS, **changes))
        run = Run(experiment, find_category(data_root, "texture"), "", tmp_path / f"{name}.json")
        try:
            return without_costs(run.execute(None, "cpu", 1)), [*made]
        except KeyboardInterrupt:
            assert not run.path.exists()
            return None, [*made]

    return call


@pytest.mark.slow
def test_an_interrupted_training_goes_on_at_its_step_and_another_one_is_started_over(train, tmp_path, caplog):
    whole, steps = train("whole")
    assert steps == [1, 2, 3]
    checkpoint = tmp_path / "parts/checkpoint.safetensors"

    assert train("parts", stop_at=1, learning_rate=0.01) == (None, [1])
    assert train("parts", stop_at=2) == (None, [1, 2])
    assert f"{checkpoint} is of a training with another --learning-rate: starting with the first step\n" in caplog.text
    assert train("parts") == (whole, [3])
    logs = [(tmp_path / name / "training.csv").read_text().splitlines() for name in ("whole", "parts")]
    losses = [[line.split(",")[:6] for line in log] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 1 + 3
    assert not list(tmp_path.rglob("checkpoint*"))

    (tmp_path / "parts.json").unlink()
    checkpoint.write_bytes(b"damaged")
    assert train("parts") == (whole, [1, 2, 3])
    assert f"{checkpoint} is damaged: starting with the first step\n" in caplog.text


def test_the_peak_of_memory_is_of_one_run_alone():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system can't forget a peak")
    large = np.ones(50_000_000)  # 400 MB
    before = machine.peak_memory_bytes()
    del large
    machine.reset_peak_memory()
    assert machine.peak_memory_bytes() < before - 300e6


@pytest.mark.parametrize("name", ["..", ".hidden", "table", "table.json", "references.bib"])
def test_a_configuration_whose_name_no_folder_can_have_is_refused_at_once(name, tmp_path):
    path = tmp_path / f"{name}.toml"
    path.write_text("")
    with pytest.raises(PadimError, match="rename the file"):
        own(path)


def test_names_that_matplotlib_would_read_are_drawn_as_they_are(tmp_path):
    results = {name: [figures(name, 0.9)] for name in (r"$\bad{$", "a$b$c", "_under")}
    drawn = table_figures(table_rows(None, results), results)
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.png")
    labels = [text.get_text() for text in drawn["roc"].axes[0].get_legend().get_texts()]
    assert len(labels) == 3
    assert any("_under" in label for label in labels)
