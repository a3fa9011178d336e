"""Reads pages of utils.evaluation.html_page, and makes the entry of a result for one."""
import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np

from utils.metrics.image_scores import ImageScores

EVIL = "</script><img src=x onerror=alert(1)>\"'><b>&amp;"
TAGS = {"a", "abbr", "body", "br", "code", "dd", "details", "div", "dl", "dt", "figcaption",
        "figure", "h1", "h2", "h3", "h4", "head", "html", "img", "input", "label", "line", "meta",
        "option", "p", "path", "polyline", "rect", "script", "section", "select", "small", "span",
        "style", "summary", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr"}


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attrs: list):
        self.elements.append((tag, dict(attrs)))


def require_safe(page: str):
    """Fail if a page has elements or attributes that run or load something."""
    reader = _Reader()
    reader.feed(page)
    assert {tag for tag, _ in reader.elements} <= TAGS
    for tag, attributes in reader.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), attributes
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith("#")
        assert tag != "script" or attributes.get("type", "") in ("", "application/json")
    policy = next(one["content"] for _, one in reader.elements if "http-equiv" in one)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        content, = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def result_entry(names: list[str], rule: str = "max", **more: Any) -> dict:
    """An entry of results.json with every part that a page shows."""
    classes = len(names)
    confusion = np.full((classes, classes), 3) + 90 * np.eye(classes, dtype=int)
    return {
        "schema": 2, "procedure": rule, "dataset": "Made", "split": "val", "loader": "val_loader",
        "data": {"type": "Made", "args": {"data_dir": "data/made"}}, "n_images": 70,
        "mode": "whole", "scales": [1.0], "flip": False,
        "checkpoint": {"path": "saved/run/model_best.pth", "sha256": "ab" * 32, "epoch": 7},
        "Mean_IoU": 0.5123, "Mean_Dice": 0.61, "Pixel_Accuracy": 0.9, "mIoU_I": 0.48,
        "Classes_Averaged": classes, "loss": 0.7, "image_level": {"Mean_Class_IoU": 0.45},
        "intervals": {"Mean_IoU": {"low": 0.49, "high": 0.53}},
        "classes": [{"id": k, "name": name, "IoU": None if k == 1 else (k + 1) / (classes + 1),
                     "Dice": 0.5, "Acc": 0.5, "Precision": 0.5, "IoU_I": 0.5, "Dice_I": 0.5,
                     "pixels": 1000 * k} for k, name in enumerate(names)],
        "confusion": confusion.tolist(),
        "calibration": [{"of": of, "ECE": 0.1, "pixels": [0, 10], "confidence": [None, 0.8],
                         "accuracy": [None, 0.7]} for of in ("raw", "class weights undone")],
        "risk_coverage": {"AURC": 0.05, "E_AURC": 0.03, "risk": 0.2, "coverage": [0, 0.5, 1],
                          "curve": [0, 0.1, 0.2]},
        "regret": {"Dice": 0.6, "promised": 0.01, "classes": [
            {"Dice": 0.6, "solver": {"value": 0.01, "low": None, "high": None}}] * classes, **{
                name: {"value": 0.1, "low": 0.09, "high": 0.11} for name in (
                    "solver", "independence", "calibration", "network")}},
        "official": {"averageScoreClasses": 0.5}, "versions": {"torch": "2"}, **more}


def scores_of_images(ids: list[str], names: list[str]) -> ImageScores:
    """Scores that rise from the first image to the last."""
    image = np.repeat(np.linspace(0.1, 0.9, len(ids))[:, None], 4, 1)
    return ImageScores(ids, image, None, list(range(len(names))), names)
