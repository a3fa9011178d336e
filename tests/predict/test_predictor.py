"""The predictor against simple computations of the same results."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from base.base_model import BaseModel
from models.layers.resize import resize_to
from models.weights.published import load_published
from tests.predict.test_resizing import resized
from tests.support.made_up import PARITY, needs_goldens, published_weights
from utils.decision.rules import RULES, build_decision
from utils.errors import ConfigError
from utils.predict.predictor import Predictor
from utils.predict.windows import Windows


class Net(BaseModel):
    """Two convolutions at stride 4, so that each pixel depends on its neighbors."""

    def __init__(self, num_classes=5):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 7, stride=4, padding=3)
        self.head = nn.Conv2d(8, num_classes, 3, padding=1)

    def forward(self, x):
        out = self.head(self.down(x).relu())
        out = F.interpolate(out, x.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": out} if self.training else out


def normalize(image):
    return image.float() / 127.5 - 1


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def picture(n=1, height=37, width=53):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(1))


def logits_of(net, x):
    with torch.no_grad():
        return net(x)


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_mode_whole_equals_the_model_on_the_normalized_image(net):
    assert torch.equal(Predictor(net, normalize)(picture(2)), logits_of(net, normalize(picture(2))))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (37, 53), (64, 96)])
@pytest.mark.parametrize("options", [
    {}, {"flip": True}, {"mode": "multiscale", "scales": (0.5, 1.3), "flip": True},
    {"mode": "sliding", "crop_size": 32}, {"mode": "sliding"},
    {"mode": "sliding", "tiling": "source", "flip": True},
    {"mode": "sliding", "crop_size": 16, "scales": (0.5, 1.0)}])
def test_output_has_the_size_of_the_image(net, size, options):
    out = Predictor(net, normalize, **options)(picture(2, *size))
    assert out.shape == (2, 5, *size)
    assert out.dtype == torch.float32 and out.isfinite().all()


def test_flip_is_the_mean_with_the_mirrored_prediction(net):
    x = normalize(picture(2))
    expected = (logits_of(net, x) + logits_of(net, x.flip(-1)).flip(-1)) / 2
    close(Predictor(net, normalize, flip=True)(picture(2)), expected)


def test_flip_exchanges_left_and_right_classes(net):
    x = normalize(picture())
    mirrored = logits_of(net, x.flip(-1)).flip(-1)[:, [0, 2, 1, 3, 4]]
    expected = (logits_of(net, x) + mirrored) / 2
    close(Predictor(net, normalize, flip=True, label_pairs=((1, 2),))(picture()), expected)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_multiscale_is_the_mean_of_the_logits_of_all_scales(net, align_corners, flip):
    x, scales = normalize(picture(2)), (0.5, 1.0, 1.75)
    views = []
    for scale in scales:
        scaled = x if scale == 1 else resized(x, (int(37 * scale), int(53 * scale)), align_corners)
        for mirrored in (False, True)[:2 if flip else 1]:
            view = logits_of(net, scaled.flip(-1)).flip(-1) if mirrored else logits_of(net, scaled)
            views.append(resized(view, (37, 53), align_corners))
    predictor = Predictor(net, normalize, mode="multiscale", scales=scales, flip=flip,
                          align_corners=align_corners)
    close(predictor(picture(2)), torch.stack(views).mean(0))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_activation_of_the_result_is_the_mean_probability(net, activation):
    def probs(logits):
        return logits.softmax(1) if activation == "softmax" else logits.sigmoid()
    x = normalize(picture())
    half = logits_of(net, resized(x, (18, 26)))
    views = [probs(logits_of(net, x)), probs(resized(half, (37, 53)))]
    out = Predictor(net, normalize, mode="multiscale", scales=(1, 0.5), average="probs",
                    activation=activation)(picture())
    close(probs(out), (views[0] + views[1]) / 2)


def test_sliding_is_the_mean_over_the_windows_of_each_pixel(net):
    x = normalize(picture())
    total, count = torch.zeros(1, 5, 37, 53), torch.zeros(37, 53)
    for top in (0, 13, 17):      # 20 high, a third shared, the last one moved back
        for left in (0, 13, 26, 33):
            area = (..., slice(top, top + 20), slice(left, left + 20))
            total[area] += logits_of(net, x[area])
            count[area[1:]] += 1
    sliding = Predictor(net, normalize, mode="sliding", crop_size=20, overlap=0.35)
    assert sliding.windows(37, 53) == Windows((37, 53), (20, 20), [0, 13, 17], [0, 13, 26, 33])
    close(sliding(picture()), total / count)


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"tiling": "source"},
                                     {"average": "probs"}, {"scales": (0.5, 1.5)}])
def test_batched_windows_equal_one_window_at_a_time(net, options):
    one, five = (Predictor(net, normalize, mode="sliding", crop_size=(24, 16), window_batch=batch,
                           **options)(picture(2)) for batch in (1, 10))
    close(five, one)


def test_an_image_smaller_than_the_window_is_padded_with_the_mean_color(net):
    padded = F.pad(normalize(picture()), (0, 64 - 53, 0, 64 - 37))
    expected = logits_of(net, padded)[..., :37, :53]
    assert torch.equal(Predictor(net, normalize, mode="sliding", crop_size=64)(picture()), expected)


def test_source_tiling_covers_a_tall_image(net):
    out = Predictor(net, normalize, mode="sliding", tiling="source")(picture(1, 90, 20))
    assert out.isfinite().all()


@pytest.mark.parametrize("average", ["logits", "probs"])
def test_channels_last_gives_the_same_logits(net, average):
    options = dict(mode="multiscale", scales=(0.5, 1.0), flip=True, average=average)
    plain = Predictor(net, normalize, **options)(picture(2))
    close(Predictor(net, normalize, channels_last=True, **options)(picture(2)), plain)


def test_autocast_returns_float32_close_to_full_precision(net):
    out = Predictor(net, normalize, amp="bf16", mode="multiscale", scales=(0.5, 1))(picture())
    plain = Predictor(net, normalize, mode="multiscale", scales=(0.5, 1))(picture())
    assert out.dtype == torch.float32
    close(out, plain, 0.05)


def test_a_model_in_training_mode_predicts_in_eval_mode_and_returns_to_training(net):
    net.train()
    assert Predictor(net, normalize)(picture()).shape == (1, 5, 37, 53)
    assert net.training


class EndsInResize(Net):
    """The same network, ending like the networks of this project in a resize to its input."""

    def __init__(self, align_corners):
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x):
        return resize_to(self.head(self.down(x).relu()), x, self.align_corners)


class Whole(nn.Module):
    """A network whose last resize cannot be left out, because it computes on."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 0


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("options", [
    {}, {"flip": True}, {"mode": "multiscale", "scales": (0.5, 1.0, 1.6), "flip": True},
    {"mode": "multiscale", "scales": (0.5, 1.3), "flip": True, "label_pairs": ((0, 3),)},
    {"mode": "multiscale", "scales": (1.0, 0.7), "average": "probs"},
    {"mode": "sliding", "crop_size": 32, "scales": (0.5, 1.0), "flip": True}])
def test_a_network_that_ends_in_a_resize_gives_the_same_logits_and_labels(options, align_corners):
    torch.manual_seed(0)
    net = EndsInResize(align_corners).eval()
    short, whole = (Predictor(m, normalize, align_corners=align_corners, **options)
                    for m in (net, Whole(net).eval()))
    expected, rule = whole(picture(2, 75, 97)), build_decision("max")
    for _ in range(2):                      # the first prediction inspects the network
        logits = short(picture(2, 75, 97))
        close(logits, expected)
        labels = short.labels(picture(2, 75, 97), rule)
        assert torch.equal(labels, rule.labels(logits))
    assert (whole.labels(picture(2, 75, 97), rule) == labels).float().mean() > 0.999


@pytest.mark.parametrize("name", RULES)
def test_decide_and_labels_equal_the_rule_on_the_logits(net, name):
    rule, predictor = build_decision(name), Predictor(net, normalize)
    assert torch.equal(predictor.decide(picture(), rule), rule(predictor(picture())))
    assert torch.equal(predictor.labels(picture(), rule), rule.labels(predictor(picture())))


@pytest.mark.parametrize("size", [(97, 203), (20, 203), (203, 20), (5, 5)])
@pytest.mark.parametrize("most_bytes", [1, 1 << 30])        # many blocks across, and one
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"tiling": "source"},
                                     {"average": "probs"}])
def test_blocks_of_an_image_equal_the_whole_image_to_the_last_bit(net, size, most_bytes, options):
    predictor = Predictor(net, normalize, mode="sliding", crop_size=(24, 32), **options)
    image = picture(1, *size)
    expected = predictor(image)
    blocks = torch.full_like(expected, float("nan"))

    def keep(rows, columns, logits):
        blocks[:, :, rows, columns] = logits
    predictor.in_blocks(image[0].permute(1, 2, 0).numpy(), "cpu", keep, most_bytes)
    assert torch.equal(blocks, expected)


def test_the_result_of_the_model_is_unchanged():
    fixed = torch.randn(1, 5, 37, 53)
    kept = fixed.clone()

    class Constant(BaseModel):
        def forward(self, x):
            return fixed
    Predictor(Constant(), normalize, flip=True, average="probs")(picture())
    Predictor(Constant(), normalize, flip=True)(picture())
    assert torch.equal(fixed, kept)


@pytest.mark.parametrize("options", [
    {"mode": "tiled"}, {"scales": (0.5, 1)}, {"mode": "multiscale", "scales": (0,)},
    {"overlap": 1.0}, {"crop_size": 0}, {"amp": "int8"}, {"average": "votes"},
    {"window_batch": 0}, {"activation": "relu"}, {"tiling": "odd"}])
def test_the_message_about_a_wrong_option_names_it(net, options):
    with pytest.raises(ConfigError, match=list(options)[-1]):
        Predictor(net, normalize, **options)


@pytest.mark.slow      # a network of full size, sixteen times
@needs_goldens
def test_eight_scales_and_flips_equal_the_published_evaluation():
    name = "hoya012_deeplabv3_resnet50_batch"
    weights, image = published_weights(name)
    scales = tuple(json.loads((PARITY / name / "golden_multiscale.json").read_text())["scales"])
    predictor = Predictor(load_published(name, weights), lambda x: x, mode="multiscale",
                          scales=scales, flip=True, align_corners=True)
    golden = np.load(PARITY / name / "golden_multiscale.npz")
    logits = predictor(image)
    close(logits[..., ::2, ::2], torch.from_numpy(golden["score"]))
    assert np.array_equal(logits.argmax(1).numpy(), golden["argmax"])
