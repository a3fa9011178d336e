"""Prediction at an input size, windows and averages of other programs, against plain torch."""
import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.predict.test_predictor import Net, close, logits_of, normalize, picture
from utils.decision.rules import build_decision
from utils.errors import ConfigError
from utils.evaluation.evaluate import evaluate
from utils.images.input_size import InputSize
from utils.predict.predictor import Predictor, build_predictor
from utils.predict.windows import overlapping_windows


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def predictor(net, **options):
    return build_predictor(net, normalize, options)


def seen(images, height, width, interpolation=cv2.INTER_LINEAR):
    return torch.stack([torch.from_numpy(cv2.resize(
        one.permute(1, 2, 0).numpy(), (width, height),
        interpolation=interpolation)).permute(2, 0, 1) for one in images])


def enlarged(logits, size, mode="bilinear"):
    return F.interpolate(logits, size, mode=mode, align_corners=False)


def test_logits_of_the_resized_image_have_the_size_of_the_label(net):
    images = picture(2, 36, 54)
    out = predictor(net, input_size=24, interpolation="cubic", logits_interpolation="cubic")(images)
    small = logits_of(net, normalize(seen(images, 24, 36, cv2.INTER_CUBIC)))
    assert torch.equal(out, enlarged(small, (36, 54), "bicubic"))


def test_a_padded_image_is_scored_without_its_padding(net):
    images = picture(1, 36, 54)
    out = predictor(net, input_size=24, multiple=16, fill="pad")(images)
    x = F.pad(normalize(seen(images, 24, 36)), (0, 12, 0, 8))
    assert torch.equal(out, enlarged(logits_of(net, x)[..., :24, :36], (36, 54)))


@pytest.mark.parametrize("rule", ["max", "T"])
@pytest.mark.parametrize("options", [
    {"input_size": 24}, {"input_size": (30, 30), "flip": True}, {"multiple": 8},
    {"input_size": 24, "mode": "multiscale", "scales": [0.5, 1], "scale_from": "image"}])
def test_labels_are_those_of_the_logits(net, rule, options):
    one, decision = predictor(net, **options), build_decision(rule)
    assert torch.equal(one.labels(picture(2), decision), decision.labels(one(picture(2))))
    assert one.finite.tolist() == [True, True] and one(picture(2)).shape == (2, 5, 37, 53)


def test_scales_from_the_image_are_resized_once_and_averaged_as_probabilities(net):
    images, total = picture(1, 36, 54), 0
    for short, (height, width) in ((12, (12, 18)), (24, (24, 36)), (42, (42, 63))):
        x = normalize(seen(images, height, width))
        for flip in (False, True):
            logits = logits_of(net, x.flip(-1) if flip else x)
            logits = logits.flip(-1) if flip else logits
            total = total + enlarged(logits, (36, 54)).softmax(1)
        assert short == height
    out = predictor(net, input_size=24, scale_from="image", mode="multiscale", flip=True,
                    scales=[0.5, 1, 1.75], average="probs")(images)
    close(out.softmax(1), total / 6)


def test_scales_of_the_input_resize_the_padded_input(net):
    images = picture(1, 36, 54)
    x = F.pad(normalize(seen(images, 24, 36)), (0, 4))
    total = 0
    for scale in (0.5, 1, 1.5):
        size = int(24 * scale), int(40 * scale)
        scaled = F.interpolate(x, size, mode="bilinear", align_corners=True)
        for flip in (False, True):
            logits = logits_of(net, scaled.flip(-1) if flip else scaled)
            logits = logits.flip(-1) if flip else logits
            total = total + F.interpolate(logits, (24, 40), mode="bilinear", align_corners=True)
    out = predictor(net, input_size=24, multiple=8, fill="pad", mode="multiscale", flip=True,
                    scales=[0.5, 1, 1.5], align_corners=True)(images)
    close(out, enlarged(total[..., :36] / 6, (36, 54)))


def test_the_center_and_its_label_are_scored_alone(net):
    images = picture(1, 36, 54)
    label = torch.randint(0, 5, (1, 36, 54), generator=torch.Generator().manual_seed(3))
    one = predictor(net, input_size=24, input_crop=20, score_at="input")
    middle = normalize(seen(images, 24, 36))[..., 2:22, 8:28]
    assert torch.equal(one(images), logits_of(net, middle))
    rows, columns = ((np.arange(n) + 0.5) * 1.5 for n in (24, 36))
    small = label[0, rows.astype(int)][:, columns.astype(int)][2:22, 8:28]
    assert torch.equal(one.as_scored(label)[0], small)
    whole = one.labels(images, build_decision("max"))
    assert torch.equal(whole, predictor(net, input_size=24).labels(images, build_decision("max")))

    class Loader(list):
        batch_size = 1
    loader = Loader([{"image": images, "label": label, "id": ["a"]}])
    scores = evaluate(one, loader, [build_decision("max")], num_classes=5, ignore_index=255,
                      device="cpu")["max"]
    right = logits_of(net, middle).argmax(1)[0] == small
    assert scores.dataset["Pixel_Accuracy"] == pytest.approx(float(right.float().mean()))


def windows_mean(net, x, starts, tile, of=lambda view: view):
    total, count = torch.zeros(1, 5, *x.shape[-2:]), torch.zeros(x.shape[-2:])
    for top in starts[0]:
        for left in starts[1]:
            area = (..., slice(top, top + tile[0]), slice(left, left + tile[1]))
            total[area] += of(logits_of(net, x[area]))
            count[area] += 1
    return total / count


def test_windows_of_mmsegmentation_are_cut_back_and_never_padded(net):
    x = normalize(picture(1, 37, 90))
    out = Predictor(net, normalize, mode="sliding", crop_size=48, stride=32, tiling="fit")(
        picture(1, 37, 90))
    # One row of 37 pixels, as the image has no more; columns 0, 32, then 42 = 90 - 48.
    close(out, windows_mean(net, x, ([0], [0, 32, 42]), (37, 48)))


def test_windows_that_are_spread_are_as_few_as_possible():
    windows = overlapping_windows((32, 90), (32, 32), 1 / 3, "spread")
    assert (windows.rows, windows.columns) == ([0], [0, 29, 58])     # 3 windows overlap by 3
    assert overlapping_windows((32, 33), (32, 32), 0, "spread").columns == [0, 1]
    for width in range(33, 200):    # the last window always ends at the edge
        last = overlapping_windows((32, width), (32, 32), 0, "spread").columns[-1]
        assert last + 32 == width


def test_view_probs_average_logits_of_windows_and_probabilities_of_mirrors(net):
    x = normalize(picture(1, 37, 90))
    starts, tile = ([0], [0, 32, 42]), (37, 48)
    plain = windows_mean(net, x, starts, tile).softmax(1)
    mirrored = windows_mean(net, x.flip(-1), starts, tile).flip(-1).softmax(1)
    out = Predictor(net, normalize, mode="sliding", crop_size=48, stride=32, tiling="fit",
                    flip=True, average="view_probs")(picture(1, 37, 90))
    close(out.softmax(1), (plain + mirrored) / 2)
    one = Predictor(net, normalize, mode="sliding", crop_size=48, stride=32, tiling="fit",
                    average="view_probs")(picture(1, 37, 90))
    close(one, windows_mean(net, x, starts, tile))


def flipped_mean(net):
    return lambda x: (logits_of(net, x) + logits_of(net, x.flip(-1)).flip(-1)) / 2


def test_exponentials_are_averaged_over_scales_after_the_mirror_image(net):
    x, both = normalize(picture()), flipped_mean(net)
    scaled = F.interpolate(x, (18, 26), mode="bilinear", align_corners=False)
    total = both(x).exp() + enlarged(both(scaled).exp(), (37, 53))
    out = Predictor(net, normalize, mode="multiscale", scales=(0.5, 1), flip=True, average="exp")(
        picture())
    close(out.exp(), total / 2)
    labels = Predictor(net, normalize, mode="multiscale", scales=(0.5, 1), flip=True,
                       average="exp").labels(picture(), build_decision("max"))
    assert torch.equal(labels.long(), out.argmax(1))


def test_exponentials_of_windows_are_averaged_after_the_mirror_image(net):
    x, both = normalize(picture(1, 37, 90)), flipped_mean(net)
    total, count = torch.zeros(1, 5, 37, 90), torch.zeros(37, 90)
    for left in (0, 32, 42):
        total[..., left:left + 48] += both(x[..., left:left + 48]).exp()
        count[..., left:left + 48] += 1
    for batch in (1, 3, 4):
        out = Predictor(net, normalize, mode="sliding", crop_size=48, stride=32, tiling="fit",
                        flip=True, average="exp", window_batch=batch)(picture(1, 37, 90))
        close(out.exp(), total / count)


@pytest.mark.parametrize("wrong,where", [
    ({"stride": 20}, "predict.stride"), ({"stride": 40, "crop_size": 32}, "predict.stride"),
    ({"stride": 8, "crop_size": 32, "tiling": "spread"}, "predict.stride"),
    ({"stride": 0, "crop_size": 32}, "predict.stride"), ({"average": "mean"}, "predict.average"),
    ({"base_size": 64, "seen_at": InputSize(32)}, "predict.base_size")])
def test_a_contradiction_is_a_config_error(net, wrong, where):
    with pytest.raises(ConfigError) as caught:
        Predictor(net, normalize, mode="sliding", **wrong)
    assert caught.value.where == where
