"""utils/study/html_report.py and chart.py: the report in a browser, narrow and wide, dark too."""
import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.support.browser import Browser, find_browser
from tests.support.made_up_study import image_scores, run, summary_of
from utils.images.sheet import png_bytes
from utils.study.chart import draw
from utils.study.html_report import html_report
from utils.study.study_file import Cell, Published

ODD = 'a very long name of a row with <b>marks</b> & "quotes", WithoutAnySpaceInIt' + "x" * 60
NO_SPACE = "long_name_of_a_class_" * 4


def picture(color):
    data = io.BytesIO()
    Image.new("RGB", (288, 160), color).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def made_up_report(classes=3):
    """The page of a study with every part: two rows of three runs on two data sets, one failed."""
    names = [f"class {k}" if k else NO_SPACE for k in range(classes)]
    cells = [Cell(label, data, seeds=(0, 1, 2), published={"Mean_IoU": Published(55.0)})
             for data in ("x", "y") for label in ("base", ODD)]
    runs = []
    for k, cell in enumerate(cells):
        for seed in range(3):
            one = run(cell, 0.5 + 0.03 * k + 0.004 * seed * (k + 1), seed,
                      image_scores(0.02 * k, seed=seed),
                      {name: i / classes for i, name in enumerate(names)})
            one.costs = {"parameters": 1e6, "flops": 2e9, "size": [64, 96]}
            one.curves = {"loss": [(s, 3 / (s + 1)) for s in range(40)],
                          "score": [(s, s / 100 + 0.1 * k) for s in range(0, 40, 10)]}
            one.seconds = 100.0
            runs.append(one)
    summary = summary_of(*runs, baseline="base", failed=[("z_s0", "no memory\nfix: buy some")],
                         note="A note.")
    image, label = picture((90, 120, 90)), picture((0, 0, 142))
    shown = {"differing": [{"data": "x", "id": "i1<i>", "image": image, "label": label, "runs": [
        {"name": f"{cell.title}, seed {seed}", "score": 0.5, "picture": label}
        for cell in cells[:2] for seed in range(3)]}],
        "worst": [{"name": "base on x", "images": [
            {"id": "i2", "score": 0.1, "image": image, "label": label, "picture": None}]}],
        "classes": {"x": [[name, [k % 256, 64, 128]] for k, name in enumerate(names)]}}
    return html_report(summary, png_bytes(draw(summary)), shown)


def test_the_chart_leaves_no_value_outside():
    cells = [Cell("a", seeds=(0, 1), published={"Mean_IoU": Published(80.0)}), Cell("b" * 40)]
    summary = summary_of(run(cells[0], 0.1), run(cells[0], 0.9, 1), run(cells[1], 0.5))
    pixels = np.asarray(draw(summary))
    assert (pixels[:, -2:] == 255).all() and (pixels[:, :2] == 255).all()
    assert (pixels == (86, 180, 233)).all(-1).sum() > 2000


def test_names_are_text_in_the_page_and_nothing_is_fetched():
    page = made_up_report()
    assert "<b>marks" not in page and "<i>" not in page and "style=" not in page
    assert "http:" not in page and "https:" not in page and "@BODY@" not in page


@pytest.mark.slow       # starts a browser
@pytest.mark.skipif(find_browser() is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("classes", [2, 150])
def test_the_report_in_a_browser(tmp_path, classes):
    path = tmp_path / "report.html"
    path.write_text(made_up_report(classes), encoding="utf-8")
    browser = Browser(tmp_path / "profile")
    try:
        for width, scheme, paper in ((375, "light", "rgb(255, 255, 255)"), (1400, "dark", None)):
            browser.open_page(path, width, scheme)
            assert browser.run("document.documentElement.scrollWidth") <= width
            color = browser.run("getComputedStyle(document.body).backgroundColor")
            assert (color == paper) == (scheme == "light")
        table = "document.querySelector('table').tBodies[0].rows"
        head = "document.querySelector('table').tHead.rows[0].cells[2]"
        browser.run(f"{head}.click()")
        means = browser.run(f"[...{table}].map(row => +row.cells[2].dataset.value)")
        assert means == sorted(means, reverse=True) and len(means) == 4
        browser.press("table th:nth-child(3)", "Enter", 13)
        assert browser.run(f"[...{table}].map(row => +row.cells[2].dataset.value)") == means[::-1]
        browser.run("document.querySelector('.legend input').click()")
        assert browser.run("getComputedStyle(document.querySelector("
                           "'polyline[data-row=\"0\"]')).display") == "none"
        assert browser.errors == []
    finally:
        browser.close()
