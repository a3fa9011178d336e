"""Fixtures of the tests of utils/config."""
import json

import pytest

from tests.config.samples import VOC
from utils.config.registry import components


@pytest.fixture(autouse=True)
def voc(monkeypatch):
    """Registers samples.VOC as the dataset of that name."""
    monkeypatch.setitem(components("datasets"), "VOC", VOC)


@pytest.fixture
def write(tmp_path):
    """Writes a text, or a value as JSON, into a file below tmp_path; returns its path."""
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path
    return write
