"""For two classes, a head with one output channel gives the same numbers as a head with two."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.run_program import program
from utils.config.build import build
from utils.decision.rules import build_decision
from utils.errors import ConfigError
from utils.losses import build_loss


def pair():
    """A network with one channel z, and one with the two channels (-z/2, z/2)."""
    torch.manual_seed(0)
    one = build("models", {"type": "UNet", "args": {"one_logit": True}}, num_classes=2)
    two = build("models", "UNet", num_classes=2)
    state = one.state_dict()
    for name, value in two.state_dict().items():
        if value.shape != state[name].shape:
            state[name] = torch.cat((state[name] / -2, state[name] / 2))
    two.load_state_dict(state)
    return one.eval(), two.eval()


@pytest.fixture(scope="module")
def outputs():
    image = torch.randn(2, 3, 33, 40)
    return [model(image) for model in pair()]


def test_a_head_of_one_logit_equals_a_head_of_two(outputs):
    torch.testing.assert_close(*outputs)
    assert outputs[0].shape == (2, 2, 33, 40)


def test_cross_entropy_of_one_logit_is_the_binary_cross_entropy(outputs):
    target = (torch.rand(2, 33, 40) > 0.7).long()
    logits = outputs[0]
    loss = build_loss("CrossEntropyLoss2d")(logits, target)
    z = logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(z, target.float()))


@pytest.mark.parametrize("rule", ["max", "T", "rankdice"])
def test_every_decision_rule_gives_the_same_classes(outputs, rule):
    decision = build_decision(rule, "softmax")
    one, two = map(decision, outputs)
    assert (one == two).float().mean() > 0.999


def test_auxiliary_heads_have_two_classes_too():
    model = build("models", {"type": "PSPNet", "args": {"backbone": "resnet18",
                                                        "one_logit": True}}, num_classes=2)
    for logits in model.train()(torch.randn(2, 3, 64, 64)).values():
        assert logits.shape[1] == 2
        torch.testing.assert_close(logits[:, 0], -logits[:, 1])


def test_more_classes_than_two_are_refused():
    with pytest.raises(ConfigError, match="one_logit is for two classes; .* has 3"):
        build("models", {"type": "UNet", "args": {"one_logit": True}}, num_classes=3)


@pytest.mark.slow
# Three complete programs: over two seconds of wall time.
@pytest.mark.timeout(900)
def test_one_logit_learns_masks_of_0_and_255_from_a_json_config(tmp_path):
    """About 15 seconds: three programs with a user's commands, one of them trains for 20 epochs."""
    from PIL import Image
    rng = np.random.default_rng(1)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(10):
        mask = np.zeros((48, 48), np.uint8)
        mask[8 + 2 * i:40, 10:30 + i] = 255
        image = rng.integers(0, 90, (48, 48, 3), np.uint8) + mask[..., None] // 2
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    config = tmp_path / "my.json"
    done = program("train.py", "--init", config, "--images", tmp_path / "images",
                   "--labels", tmp_path / "masks")
    assert done.returncode == 0, done.stderr
    done = program("train.py", "-c", config, "arch.args.one_logit=true", "trainer.epochs=20",
                   "trainer.val_per_epochs=20", "trainer.tensorboard=false",
                   f"trainer.save_dir={tmp_path}/saved", "train_loader.args.crop_size=48",
                   "train_loader.args.base_size=48",
                   "train_loader.args.num_workers=0", "val_loader.args.num_workers=0",
                   "train_loader.args.batch_size=2", "optimizer.args.lr=0.005", timeout=280)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = (tmp_path / "saved").rglob("model_best.pth")
    done = program("test.py", "-r", checkpoint, "-p", "all")
    assert done.returncode == 0, done.stderr
    results = json.loads((checkpoint.parent / "results.json").read_text())
    assert results["classes"][1]["IoU"] > 0.5
    assert {run["procedure"] for run in results["runs"]} >= {"max", "T", "rankdice"}
