"""The weights in docs/weights work right after cloning, and score as docs/results.md says."""
import json

import pytest

import inference
import test as test_program
from tests.support.places import ROOT, SHARED
from utils.checkpoint.format import can_resume
from utils.checkpoint.read import read_checkpoint
from utils.cli import console

WEIGHTS = ROOT / "docs/weights/camvid_enet.pth"
CAMVID = SHARED / "data/camvid"


def test_the_weights_are_a_small_checkpoint_without_a_training():
    checkpoint = read_checkpoint(WEIGHTS)
    assert WEIGHTS.stat().st_size < 2 ** 21
    assert not can_resume(checkpoint) and len(checkpoint["class_names"]) == 11


def test_the_weights_segment_a_folder(tmp_path):
    assert console.run(inference.main, ["-r", str(WEIGHTS), "-d", "cpu", "-o", str(tmp_path),
                                        "-i", str(ROOT / "docs/examples")]) == 0
    assert len(list(tmp_path.rglob("street_*.png"))) == 4


@pytest.mark.slow      # scores 101 images
@pytest.mark.skipif(not CAMVID.is_dir(), reason="needs the images of CamVid")
def test_the_weights_score_as_documented(tmp_path):
    assert console.run(test_program.main, ["-r", str(WEIGHTS), "-d", "cpu", "-o", str(tmp_path),
                                           f"val_loader.args.data_dir={CAMVID}"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["Mean_IoU"] == pytest.approx(0.6341, abs=1e-4)
    assert "**63.41**" in (ROOT / "docs/results.md").read_text(encoding="utf-8")
