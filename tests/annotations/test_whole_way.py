"""From what each annotation tool exports to a picture: --init, training, test, inference."""
import pytest

import inference
import test
import train
from tests.support import exports
from utils.config.first_config import make_config
from utils.files.jsonc import read_jsonc

SCENES = exports.scenes(12, (64, 96))


@pytest.mark.slow       # the three programs for each format
@pytest.mark.parametrize("name", exports.WRITERS)
def test_an_export_goes_the_whole_way(name, tmp_path, monkeypatch, capsys):
    exports.write_images(tmp_path / "photos", SCENES)
    labels = exports.WRITERS[name](tmp_path / "export", SCENES)
    monkeypatch.chdir(tmp_path)
    make_config("photos", str(labels.relative_to(tmp_path)), "my.json")
    assert "12 annotated images" in capsys.readouterr().out
    assert read_jsonc(tmp_path / "my.classes.json")["names"] == ["background", *exports.NAMES]
    train.main(["-c", "my.json", "-d", "cpu", "trainer.iterations=30",
                "trainer.val_per_epochs=30", "trainer.tensorboard=false",
                "train_loader.args.num_workers=0",
                "val_loader.args.num_workers=0"])
    checkpoint = str(next((tmp_path / "saved").rglob("model_best.pth")))
    test.main(["-r", checkpoint, "-d", "cpu"])
    assert "mIoU_I" in capsys.readouterr().out
    inference.main(["-r", checkpoint, "-i", "photos", "-o", "out", "-d", "cpu", "--overlay"])
    assert len(list((tmp_path / "out").rglob("*overlay*"))) == len(SCENES)
