"""utils/evaluation/result_page.py, html_page.py: what a page says, and that it stays a page."""
import copy
import json
import re

import numpy as np
import pytest

from tests.support.browser import Browser, find_browser
from tests.support.pages import EVIL, require_safe, result_entry, scores_of_images
from tests.support.places import ROOT
from utils.evaluation.html_page import data_url, page, small_picture
from utils.evaluation.page_charts import confusion, image_strip
from utils.evaluation.result_page import RuleResult, ShownImage, ShownImages, result_page
from utils.metrics.meanings import MEANINGS

NAMES = ["road", "car", "a pole"]
IDS = [f"scene {k:02}" for k in range(70)]


def picture(color):
    return data_url(small_picture(np.full((20, 30, 3), color, np.uint8), 480, photo=False), "png")


def shown_images(ids, names=tuple(NAMES), rules=("max", "T")):
    images = [ShownImage(name, 0.1, picture((90, 90, 90)), picture((0, 0, 200)),
                         {rule: picture((0, 150, 0)) for rule in rules}, [0]) for name in ids]
    return ShownImages(images[:1], images[1:], [(name, (9, 8, 7)) for name in names], "About them.")


def made_up_page(names=tuple(NAMES), ids=tuple(IDS), rules=("max", "T"), pictures=True):
    names, ids = [*names], [*ids]
    results = [RuleResult(result_entry(names, rule, temperature=k + 1.0),
                          scores_of_images(ids, names)) for k, rule in enumerate(rules)]
    return result_page(results, "python test.py -r model_best.pth -p max,T --report",
                       shown_images([ids[0], ids[-1]], names, rules) if pictures else
                       "nobody asked")


def text_of(page):
    """What a reader sees."""
    page = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_page_has_every_part_of_the_result():
    words = text_of(made_up_page())
    for part in ("model_best.pth on Made val", "epoch 7", "51.23", "49.00 .. 53.00", "a pole",
                 "python test.py -r model_best.pth -p max,T --report",
                 "class weights undone: ECE 10.00 %", "AURC 5.00 %", "averageScoreClasses",
                 "About them.",
                 "more than the rule 10.00 9.00 .. 11.00", "T: mIoU_I 90.00 %", "temperature"):
        assert part in words, part


def test_each_network_of_an_ensemble_is_named():
    entry = result_entry(NAMES, ensemble=[{"path": f"saved/{k}/best.pth", "sha256": "cd" * 32}
                                          for k in range(2)])
    del entry["checkpoint"]
    words = text_of(result_page([RuleResult(entry)]))
    assert "Ensemble of 2 on Made val" in words and "checkpoint 2 saved/1/best.pth" in words


def test_what_is_missing_is_said():
    entry = {"procedure": "max", "Mean_IoU": 0.5}
    words = text_of(result_page([RuleResult(entry, None, "x.csv is gone")]))
    for part in ("not known: results.json does not hold it", "The file holds no scores of classes",
                 "No confusion matrix: max", "test.py --report measures it",
                 "test.py --risk-coverage measures it", "max: x.csv is gone",
                 "No pictures: they were not asked for"):
        assert part in words, part


def test_every_number_is_explained_by_the_words_of_the_docs():
    docs = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    docs = re.sub(r"\s+", " ", docs.replace("\\|", "|").replace("**", ""))
    page = made_up_page()
    for name, one in MEANINGS.items():
        assert one.words.removesuffix(" (all images together)") in docs, name
        assert f'id="means-{name}"' in page
    assert {mark[1:] for mark in re.findall(r'href="(#[^"]+)"', page)} <= set(
        re.findall(r'id="([^"]+)"', page))


def test_names_of_strangers_stay_text():
    entry = result_entry([EVIL, EVIL + "2"], EVIL, split=EVIL, dataset="@BODY@", loader=EVIL,
                         official={EVIL: 0.5}, protocol=EVIL, temperature=EVIL)
    entry["checkpoint"]["path"], entry["calibration"][0]["of"] = EVIL, EVIL
    ids = [EVIL, f"{EVIL}\u2028\n2"]
    made = result_page([RuleResult(entry, scores_of_images(ids, [EVIL]))], EVIL,
                       shown_images(ids, [EVIL], [EVIL]))
    require_safe(made)
    require_safe(made_up_page())
    data = json.loads(re.search(r'id="strip-data">(.*?)</script>', made)[1])
    assert data["ids"] == ids
    require_safe(page("@BODY@ @POLICY@", ["@TITLE@"]))


ODD = (None, 3, -1.5, 1e999, "x", True, [], {}, [[1, "a"], 2], {"a": "<b>"}, [None], [{}] * 3)


@pytest.mark.parametrize("key", sorted(result_entry(NAMES)))
def test_a_damaged_part_of_a_file_is_left_out(key):
    for value in ODD:
        entry = result_entry(NAMES)
        entry[key] = copy.deepcopy(value)
        made = result_page([RuleResult(entry, None)])
        require_safe(made)
        if isinstance(result_entry(NAMES)[key], dict):
            for inner in result_entry(NAMES)[key]:
                entry[key] = {**result_entry(NAMES)[key], inner: copy.deepcopy(value)}
                result_page([RuleResult(entry, None)])


@pytest.mark.parametrize("key", ["classes", "calibration"])
def test_a_damaged_row_is_left_out(key):
    for value in ODD:
        for inner in result_entry(NAMES)[key][0]:
            entry = result_entry(NAMES)
            entry[key][0][inner] = copy.deepcopy(value)
            require_safe(result_page([RuleResult(entry, None)]))


def test_many_classes_and_images_leave_a_page_that_can_be_opened():
    names = [f"class {k}" for k in range(150)]
    made = made_up_page(names, [f"image_{k:06}" for k in range(30_000)])
    assert len(made) < 4_000_000
    words = text_of(made)
    assert "20,000 of 30,000 images are drawn" in words
    assert "The 100 worst and the 100 best of 30,000 images" in words
    assert "Named: 1 of 150 classes" in words
    assert "22,330 pairs with fewer pixels are left out" in words.replace("22330", "22,330")
    too_many = confusion(np.eye(301).tolist(), [str(k) for k in range(301)])
    assert "too large to be drawn (at most 300)" in too_many
    results = [RuleResult(result_entry(NAMES, f"rule {k}"), None) for k in range(20)]
    assert "12 of 20 results; left out: rule 12, rule 13" in text_of(result_page(results))


def test_results_of_one_rule_have_different_names():
    results = [RuleResult(result_entry(NAMES, protocol=name, temperature=k + 1.0), None)
               for k, name in enumerate((None, "cityscapes", "cityscapes"))]
    words = text_of(result_page(results))
    assert "max, own settings" in words and len(set(re.findall(
        r"max, cityscapes \[\w{8}\]", words))) == 2


def test_the_strip_shows_lowest_and_highest_of_each_column():
    table = scores_of_images([str(k) for k in range(2500)], NAMES)
    strip = image_strip(["max"], [table], {"3": 1})
    assert "A column shows 2.5 images" in strip and '"pictures":{"3":1}' in strip
    heights = re.findall(r'class="low" d="M0,100(.*?)V100Z"', strip)[0].count("H")
    assert heights == 1000


def test_pictures_are_reduced_and_keep_the_colors_of_classes():
    import io

    from PIL import Image
    labels = np.zeros((1000, 2000, 3), np.uint8)
    labels[:, 1000:] = (0, 130, 180)
    with Image.open(io.BytesIO(small_picture(labels, 480, photo=False))) as small:
        assert small.size == (480, 240)
        assert {color for _, color in small.convert("RGB").getcolors()} == {(0, 0, 0),
                                                                           (0, 130, 180)}
    with Image.open(io.BytesIO(small_picture(labels.transpose(1, 0, 2).repeat(9, 0), 480,
                                             photo=True))) as tall:
        assert tall.format == "JPEG" and tall.height <= 4 * 480


@pytest.mark.slow       # starts a browser
@pytest.mark.skipif(find_browser() is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("classes", [3, 150])
def test_the_page_in_a_browser(tmp_path, classes):
    path = tmp_path / "report.html"
    path.write_text(made_up_page([f"class {k} {'long' * (k == 1) * 20}" for k in range(classes)]),
                    encoding="utf-8")
    browser = Browser(tmp_path / "profile")
    try:
        for width, scheme in ((375, "light"), (1400, "dark")):
            browser.open_page(path, width, scheme)
            browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert browser.run("document.documentElement.scrollWidth") <= width
        at, slider = "document.querySelector('.strip .at').textContent", ".strip input"
        assert browser.run(at) == "1 of 70: scene 00, 10.00 % its picture"
        browser.press(slider, "ArrowRight", 39)
        assert browser.run(at).startswith("2 of 70: scene 01, 11.1")
        browser.run("(one => { one.value = 'data'; one.dispatchEvent(new Event('change')); })"
                    "(document.querySelectorAll('.strip select')[1])")
        assert "scene 01" in browser.run(at)
        browser.press("#classes + .wide th:nth-child(4)", "Enter", 13)
        values = browser.run("[...document.querySelector('#classes + .wide tbody').rows]"
                             ".map(row => row.cells[3].dataset.value)")
        known = [float(value) for value in values if value]
        assert known == sorted(known, reverse=True) and values[-1] == ""
        assert browser.errors == []
    finally:
        browser.close()
