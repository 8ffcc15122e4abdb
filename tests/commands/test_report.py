"""The HTML report: what it says, and what its script does in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import xml.etree.ElementTree as ET
from datetime import date
from html.parser import HTMLParser

import pytest
from conftest import SMALL
from PIL import Image

from padim import FitOptions, evaluate_category, find_category, train_category
from padim.calibration import Thresholds
from padim.data.synth import write_category
from padim.poses.alignment import PartPose
from padim.poses.pose import Pose
from padim.report.page import write_report

PROTOCOL = ("--resize", "64", "--crop", "64", "--channels", "20", "--batch-size", "4")
LONG_NAME = "a_tint_of_which_" + "ever_" * 12 + "more_is_said"
ODD_NAME = "<b>&'\".png"


class FixedDate(date):
    """A day on which the clock stands still."""

    @classmethod
    def today(cls):
        return cls(2026, 1, 31)


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, wanted):
        return [attributes for tag, attributes in self.tags if tag == wanted]

    def ids(self):
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}


@pytest.fixture(scope="module")
def fitted(random_weights, tmp_path_factory):
    """A model of oblong images that the network sees as squares, and how its test images score."""
    root = tmp_path_factory.mktemp("oblong")
    for _ in write_category(root / "texture", "texture", 32, 64, train=20, good=4, defective=2, seed=3):
        pass
    good = root / "texture/test/good"
    (good / "000.png").rename(good / ODD_NAME)
    for folder in ("test", "ground_truth"):
        (root / "texture" / folder / "tint").rename(root / "texture" / folder / LONG_NAME)
    category = find_category(root, "texture")
    config = dataclasses.replace(SMALL, resize=(64, 64), crop=())
    options = FitOptions(category="texture", false_alarm_rate=0.1)
    scorer = train_category(category, config, options=options, weights=random_weights).detector
    return scorer, evaluate_category(scorer, category, report=True)


@pytest.fixture
def write(fitted, tmp_path):
    """Write a report of the evaluation, with other values in place of its own; gives the page."""
    scorer, evaluation = fitted

    def call(unusual=(), **changes):
        write_report(tmp_path, dataclasses.replace(evaluation, **changes), scorer, unusual)
        return Page((tmp_path / "report.html").read_text())

    return call


def test_the_report_needs_nothing_else_and_shows_the_worst_first(run, data_root, weights_file, tmp_path, monkeypatch):
    monkeypatch.setattr("padim.report.page.date", FixedDate)
    common = ("--category", "texture", "--data", data_root, "--output", tmp_path)
    result = run("train", *common, "--weights", weights_file, *PROTOCOL, "--eval", "--report")
    assert result.code == 0
    text = (tmp_path / "texture/report.html").read_text()
    page = Page(text)
    cards = [card for card in page.all("article") if card["class"] != "card"]
    assert len(cards) == 14
    assert {card["data-defect"] for card in cards} == {"good", "blur", "faint", "scratch", "stain", "tint"}
    pictures = [image["src"] for image in page.all("img")]
    assert all(picture.startswith("data:image/webp;base64,") for picture in pictures)
    assert len({*pictures}) == len(pictures)
    assert all(image["loading"] == "lazy" for image in page.all("img"))
    assert not re.search(r"(src|href)=.?(https?:|//)", text.replace("http://www.w3.org", "").replace("xlink:href", ""))
    wrong = [card["class"] in ("card missed", "card false-alarm") for card in cards]
    assert wrong == sorted(wrong, reverse=True)
    evaluation = json.loads((tmp_path / "texture/eval.json").read_text())
    assert f"{evaluation['image_auroc']:.4f}" in text
    assert "<dd>2026-01-31</dd>" in text
    for name in ("ROC-curves", "per-region-overlap", "image-scores"):
        ET.parse(tmp_path / f"texture/report/{name}.svg")
        with Image.open(tmp_path / f"texture/report/{name}.png") as picture:
            assert picture.width > 300
    assert run("eval", *common, "--report").code == 0
    assert (tmp_path / "texture/report.html").read_text() == text  # the same evaluation, the same page


def test_first_comes_what_an_engineer_asks(fitted, write):
    scorer, evaluation = fitted
    page = write(advice=["take more & larger images"], skipped=3)
    found = evaluation.flagged(anomalous=True)
    wanted = (
        "At a false-alarm rate of 10%",
        f"<dt>calibrated threshold</dt><dd>{evaluation.thresholds.threshold:.3f}</dd>",
        f"<dt>of 4 good parts rejected</dt><dd>{evaluation.flagged(anomalous=False):.1%}</dd>",
        f"<dt>of 10 defects found</dt><dd>{found:.1%}</dd>",
        "takes 999 training images",
        "takes 99 training images",
        f"<td>{evaluation.points[-1].threshold:.3f}</td>",
        "<td>blur</td><td>2</td>",
        "<li>Take more &amp; larger images.</li>",
        f"<td>image AUROC</td><td>{evaluation.metrics.image_auroc:.4f}</td>",
        "About this report",
        "texture, fitted to 20 training images",
        "4 good and 10 defective; 3 skipped",
        "resized to 64 x 64 pixels",
        scorer.provenance.weights_sha256,
        "channels = 20",
    )
    places = [page.text.find(text) for text in wanted]
    assert -1 not in places
    assert places[:11] == sorted(places[:11])
    assert "<b>&" not in page.text
    assert "&lt;b&gt;&amp;&#x27;&quot;.png" in page.text


def test_without_a_calibration_the_threshold_has_seen_the_answers(fitted, write):
    best = fitted[1].metrics.image_f1_threshold
    page = write(thresholds=Thresholds(), points=[])
    assert "This threshold was chosen on the test images: it has seen the answers." in page.text
    assert [button["data-threshold"] for button in page.all("button") if "data-threshold" in button] == [repr(best)]
    assert "false-alarm rate</th>" not in page.text


def test_without_any_threshold_there_is_nothing_to_move(fitted, write):
    metrics = dataclasses.replace(fitted[1].metrics, image_f1_threshold=None, image_youden_threshold=None)
    page = write(thresholds=Thresholds(), points=[], metrics=metrics)
    assert page.ids().isdisjoint({"slider", "training"})
    assert {card["class"] for card in page.all("article")} == {"card undecided oblong"}
    scores = [float(card["data-score"]) for card in page.all("article")]
    assert scores == sorted(scores, reverse=True)


def test_training_images_that_stand_out_have_no_verdict(fitted, write):
    results = [result for result in fitted[1].images if not result.item.anomalous][:2]
    page = write(unusual=[dataclasses.replace(results[0], score=98.5), results[1]])
    assert "Training images that score higher than the rest" in page.text
    cards = page.all("article")[-2:]
    assert [card["class"].split() for card in cards] == [["card", "oblong"]] * 2
    assert cards[0]["data-score"] == "98.5"
    assert "<p>score 98.500</p>" in page.text


def test_without_test_images_only_the_training_images_are_left(fitted, write, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report/ROC-curves.png").touch()  # as an earlier evaluation leaves it
    nothing = dict.fromkeys(dataclasses.asdict(fitted[1].metrics))
    metrics = dataclasses.replace(fitted[1].metrics, **nothing)
    page = write(unusual=fitted[1].images[:1], images=[], metrics=metrics, points=[], defects=[])
    assert page.ids().isdisjoint({"results", "slider", "metrics", "images"})
    assert page.ids() > {"training", "about"}
    assert len(page.all("article")) == 1
    assert list((tmp_path / "report").iterdir()) == []


def test_a_card_says_what_is_out_of_the_ordinary(fitted, write):
    lost = PartPose(Pose(30.0), 0.1, found=False)
    images = [dataclasses.replace(result, part=lost, outside=True) for result in fitted[1].images[:1]]
    page = write(images=[*images, *fitted[1].images[1:]])
    assert "no part found: 30.0 degrees, correlation 0.10" in page.text
    assert page.text.count("the defect lies outside what the model sees") == 1
    (card,) = [card for card in page.all("article") if "data-lost" in card]
    assert card["class"].split()[1] == "found"


def test_without_maps_there_are_the_images_alone(fitted, write):
    images = [dataclasses.replace(result, anomaly_map=None, mask=None) for result in fitted[1].images]
    metrics = dataclasses.replace(fitted[1].metrics, pixel_auroc=None, aupro=None)
    page = write(images=images, metrics=metrics)
    assert {image["class"] for image in page.all("img")} == {"image"}
    assert "Heatmaps" not in page.text


# In a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Chromium, for all tests of this module."""
    if not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver")
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    for option in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{option}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(shutil.which("chromedriver")))
    yield browser
    browser.quit()


class Report:
    """A report in a browser."""

    def __init__(self, browser, path):
        self.browser = browser
        self.path = path
        browser.get(path.as_uri())

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def script(self, text, *arguments):
        return self.browser.execute_script(f"return {text}", *arguments)

    def names(self):
        """Of the test images that are shown, in their order."""
        names = "#images .card:not([hidden]) p:first-child b"
        return self.script("[...document.querySelectorAll(arguments[0])].map(name => name.textContent)", names)

    def press(self, *keys):
        """Press keys where the focus is."""
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    def set(self, threshold):
        """Type a threshold."""
        number = self.one("#number")
        number.clear()
        number.send_keys(repr(threshold))

    def emulate(self, width, height, **features):
        """A screen of that size, and what a style sheet can ask for."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


@pytest.fixture(scope="module")
def written(fitted, tmp_path_factory):
    """A report of the evaluation, in which no pose was found for the good image that scores least, and its images."""
    scorer, evaluation = fitted
    good = [result for result in evaluation.images if not result.item.anomalous]
    least = min(good, key=lambda result: result.score)
    lost = dataclasses.replace(least, part=PartPose(Pose(), 0.1, found=False))
    images = [lost if result is least else result for result in evaluation.images]
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, dataclasses.replace(evaluation, images=images), scorer, good[:2])
    return folder / "report.html", images


@pytest.fixture
def report(chromium, fitted, written):
    """That report in the browser, as it is at first."""
    path, images = written
    report = Report(chromium, path)
    report.images = images
    report.threshold = fitted[1].thresholds.threshold
    report.emulate(1200, 900)
    yield report
    assert chromium.get_log("browser") == []


def anomalous(result, threshold):
    return result.score >= threshold or not result.found


def counted(results, threshold):
    """What the page says of results."""
    count = sum(anomalous(result, threshold) for result in results)
    return f"{count} of {len(results)} ({100 * count / len(results):.1f}%)"


def expected_order(results, threshold):
    """The names of images, the most wrong ones first."""

    def wrongness(result):
        above = result.score - threshold if result.found else float("inf")
        return -above if result.item.anomalous else above

    return ["/".join(result.item.path.parts[-2:]) for result in sorted(results, key=wrongness, reverse=True)]


SHOWN = """
const text = element => element.textContent;
return {
  counts: [...document.querySelectorAll("[data-share]")].map(cell => [cell.dataset.share, text(cell)]),
  cards: [...document.querySelectorAll("#images .card")].map(card =>
    [text(card.querySelector("b")), card.classList[card.classList.length - 1], text(card.querySelector(".verdict"))]),
};
"""

# Whether an image is defective, and whether it is anomalous -> what its card says.
SAID = {
    (True, True): ["found", "found defect"],
    (True, False): ["missed", "missed defect"],
    (False, True): ["false-alarm", "false alarm"],
    (False, False): ["passed", "passed as normal"],
}


def check(report, threshold):
    """Compare all that depends on the threshold with what Python makes of it."""
    shown = report.browser.execute_script(SHOWN)
    for name, text in shown["counts"]:
        own = [result for result in report.images if result.item.defect == name]
        assert text == counted(own or [result for result in report.images if result.item.anomalous], threshold)
    assert len(shown["counts"]) == 2 + 5
    assert [name for name, *_ in shown["cards"]] == expected_order(report.images, threshold)
    by_name = {"/".join(result.item.path.parts[-2:]): result for result in report.images}
    for name, *said in shown["cards"]:
        result = by_name[name]
        assert said == SAID[result.item.anomalous, anomalous(result, threshold)]


def test_the_slider_sorts_labels_and_counts_anew(report):
    from selenium.webdriver.common.keys import Keys

    check(report, report.threshold)
    scores = sorted(result.score for result in report.images)
    for threshold in (scores[3], scores[8], report.threshold):  # scores are anomalous at the threshold itself
        report.set(threshold)
        assert float(report.one("#slider").get_property("value")) == threshold
        check(report, threshold)
    report.script("arguments[0].focus()", report.one("#slider"))
    for key, lowest in ((Keys.HOME, True), (Keys.END, False)):
        report.press(key)
        threshold = float(report.one("#number").get_property("value"))
        assert (threshold < scores[0]) is lowest
        assert (threshold > scores[-1]) is not lowest
        check(report, threshold)
    report.one(".bar button").click()
    assert float(report.one("#number").get_property("value")) == report.threshold
    check(report, report.threshold)


def test_the_line_of_the_histogram_lies_at_the_threshold(report):
    low, high = (float(report.one("#slider").get_attribute(name)) for name in ("min", "max"))
    plot = report.script("document.querySelector('#plot').getBoundingClientRect()")

    def position(selector):
        line = report.script("document.querySelector(arguments[0]).getBoundingClientRect()", selector)
        return low + (line["x"] + line["width"] / 2 - plot["x"]) / plot["width"] * (high - low)

    near = (high - low) / 200
    assert position("#threshold") == pytest.approx(report.threshold, abs=near)  # which matplotlib has drawn
    for threshold in (report.threshold, report.threshold / 2, high):
        report.set(threshold)
        assert position("#line") == pytest.approx(threshold, abs=near)
        assert position("#threshold") == pytest.approx(report.threshold, abs=near)


def test_a_rate_of_the_table_sets_its_threshold(report, fitted):
    points = [point for point in fitted[1].points if point.threshold is not None]
    buttons = report.all("table button")
    assert [(button.text, button.get_attribute("aria-pressed")) for button in buttons] == [
        ("5%", "false"),
        ("10%", "true"),
    ]
    buttons[0].send_keys("\n")
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["true", "false"]
    check(report, points[0].threshold)


def test_cards_are_filtered_by_defect_type_and_verdict(report):
    from selenium.webdriver.support.ui import Select

    Select(report.one("#defect")).select_by_value("stain")
    assert {name.split("/")[0] for name in report.names()} == {"stain"}
    assert report.one("#count").text == "2 of 14 images"
    Select(report.one("#defect")).select_by_visible_text("all")
    Select(report.one("#verdict")).select_by_visible_text("false alarm")
    report.set(0.0)
    assert {name.split("/")[0] for name in report.names()} == {"good"}
    assert report.one("#count").text == "4 of 14 images"


def test_the_keyboard_opens_a_card_and_goes_through_them(report):
    from selenium.webdriver.common.keys import Keys

    names = report.names()
    dialog = report.one("dialog")
    report.script("arguments[0].focus()", report.one("#images .card button"))
    report.press(Keys.ENTER)
    assert dialog.is_displayed()
    for keys, expected in (
        ((), names[0]),
        ((Keys.ARROW_RIGHT,), names[1]),
        ((Keys.ARROW_LEFT, Keys.ARROW_LEFT), names[-1]),
        ((Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT), names[2]),
    ):
        report.press(*keys)
        assert report.one("dialog b").text == expected

    slider = report.one("#opacity input")
    report.script("arguments[0].focus()", slider)
    for key, opacity in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 0.05), (Keys.END, 1)):
        report.press(key)
        assert float(report.one("dialog .map").value_of_css_property("opacity")) == opacity
    assert report.one("dialog b").text == names[2]
    report.press(Keys.ESCAPE)
    assert not dialog.is_displayed()
    focused = report.script("document.activeElement.closest('.card').querySelector('b').textContent")
    assert focused == names[2]


def test_the_dialog_has_the_pictures_that_there_are(report):
    from selenium.webdriver.common.keys import Keys

    report.set(max(result.score for result in report.images if result.item.anomalous))
    four = ["image", "anomaly map", "ground truth", "contours"]
    for kind, expected in ((".found", four), (".missed", four), (".passed", four[:2]), ("#training .card", four[:2])):
        report.one(f"{kind} button").send_keys("\n")
        assert [caption.text for caption in report.all("dialog figcaption") if caption.is_displayed()] == expected
        report.press(Keys.ESCAPE)
    predicted = report.script(
        "[...document.querySelectorAll('#images .card .predicted')].map(image =>"
        " [getComputedStyle(image).visibility, image.closest('.card').matches('.found, .false-alarm')])"
    )
    assert predicted
    assert all((visibility == "visible") is flagged for visibility, flagged in predicted)


EVERY_IMAGE_DECODES = """
const [done] = arguments;
const loaded = [...document.images].map(image => { image.loading = "eager"; return image.decode(); });
Promise.all(loaded).then(() => done(true), () => done(false));
"""


def test_pictures_keep_the_proportions_of_the_image(report):
    assert report.browser.execute_async_script(EVERY_IMAGE_DECODES)
    image = report.one("#images img.image")
    assert report.script("[arguments[0].naturalWidth, arguments[0].naturalHeight]", image) == [64, 64]
    assert image.rect["width"] == pytest.approx(2 * image.rect["height"], rel=0.01)
    report.one("#images .card button").click()
    for image in report.all("dialog img"):
        assert image.rect["width"] == pytest.approx(2 * image.rect["height"], rel=0.01)


def test_a_narrow_screen_needs_no_scrolling_sideways(report):
    report.emulate(420, 900)
    assert report.script("document.scrollingElement.scrollWidth") <= 420
    report.one("#images .card button").click()
    assert report.one("dialog").rect["width"] <= 420
    assert report.script("document.querySelector('dialog').scrollWidth") <= 420


def luminance(colour):
    """The relative luminance of WCAG 2 of `rgb(...)`."""
    channels = [int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_light_and_on_dark(report, scheme):
    report.emulate(1200, 900, prefers_color_scheme=scheme)
    background = luminance(report.one("body").value_of_css_property("background-color"))
    assert (background < 0.1) is (scheme == "dark")
    texts = {"h1": "color", "table button": "color", ".note": "color", ".about p": "color", "svg text": "fill"}
    for selector, name in texts.items():
        text = luminance(report.one(selector).value_of_css_property(name))
        darker, lighter = sorted([text, background])
        assert (lighter + 0.05) / (darker + 0.05) > 4.5, selector
