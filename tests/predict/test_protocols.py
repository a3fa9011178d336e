"""Evaluation protocols: whole paths against the sources' own preprocessing, restated plainly.

Each test starts from files and ends in counts of pixels: our loader, protocol, network and counts
on one side; on the other the steps of the source, written down here with cv2, Pillow and torch. The
network has the made-up weights of the goldens, and the images are small.
"""
import inspect

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dataloader.loader import make_loader
from models.weights.published import load_published
from tests.support.made_up import needs_goldens, published_weights
from utils.config.load import apply_overrides
from utils.config.schema import PREDICT
from utils.decision.rules import MaxDecision
from utils.errors import ConfigError
from utils.evaluation.evaluate import evaluate
from utils.images.input_size import InputSize
from utils.images.normalize import Normalize
from utils.predict.predictor import Predictor, build_predictor
from utils.predict.protocols import (
    DETERMINED,
    PROTOCOLS,
    changes,
    expanded,
    names_for,
    protocols_text,
    settings_of,
)

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


class Recorded(MaxDecision):
    """The rule "max" that keeps what it decided."""

    def __init__(self):
        super().__init__(name="recorded")
        self.largest_logit = False      # asked for its answer, and not replaced by a shortcut
        self.labels_of_images = []

    def __call__(self, logits):
        self.labels_of_images += list(super().__call__(logits))
        return self.labels_of_images[-1][None]


class Balanced(nn.Module):
    """A network whose logits of each class have mean 0 and deviation 1 on one image.

    With made-up weights one class would win nearly everywhere, and a wrong pixel would not show.
    """

    def __init__(self, net, image):
        super().__init__()
        self.net = net
        with torch.no_grad():
            logits = net(image)
        self.mean, self.std = logits.mean((0, 2, 3)), logits.std((0, 2, 3))

    def forward(self, x):
        return (self.net(x) - self.mean[:, None, None]) / self.std[:, None, None]


class Case:
    """A network of the goldens, and a folder with two images and labels of one size."""

    def __init__(self, folder, name, size, seen, order="RGB"):
        self.folder, self.order = folder, order
        net = load_published(name, published_weights(name)[0])
        self.classes = net(torch.zeros(1, 3, 64, 64)).shape[1]
        rng = np.random.default_rng(5)
        for kind in ("images", "labels"):
            (folder / kind).mkdir()
        for number in range(2):
            rough = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
            image = cv2.resize(rough, size[::-1], interpolation=cv2.INTER_CUBIC)
            label = rng.integers(0, self.classes, size, dtype=np.uint8)
            label[rng.random(size) < 0.1] = 255
            Image.fromarray(image).save(folder / "images" / f"{number}.png")
            Image.fromarray(label).save(folder / "labels" / f"{number}.png")
        self.net = Balanced(net, normalized(cv2.resize(image, seen[::-1]))).eval()

    def ours(self, protocol, **options):
        """(confusion matrix over all images, labels (h, w) of each at the scored size)."""
        normalize, rule = Normalize(MEAN.tolist(), STD.tolist(), self.order), Recorded()
        options = expanded({"protocol": protocol, **options})
        predictor = build_predictor(self.net, normalize, options)
        loader = make_loader({"type": "Folder", "args": {
            "data_dir": str(self.folder), "num_classes": self.classes, "batch_size": 1,
            "num_workers": 0}}, ignore_index=255)
        scores = evaluate(predictor, loader, [rule], num_classes=self.classes, ignore_index=255,
                          device="cpu")["recorded"]
        return np.array(scores.dataset["confusion"]), rule.labels_of_images

    def images(self):
        for number in range(2):
            yield (np.array(Image.open(self.folder / "images" / f"{number}.png")),
                   np.array(Image.open(self.folder / "labels" / f"{number}.png")))

    def __call__(self, x):
        with torch.inference_mode():
            return self.net(x)


def normalized(image):
    """uint8 (H, W, 3) in the network's channel order -> (1, 3, H, W)."""
    return torch.from_numpy((image / np.float32(255) - MEAN) / STD).permute(2, 0, 1)[None]


def bilinear(x, size, align_corners=False):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def check(case, protocol, source, **options):
    """Our counts equal those of `source(case, image, label) -> (logits (1, C, h, w), label)`.

    Two logits that are equal up to the rounding of a float32 are a draw: there our class counts.
    """
    confusion, labels = case.ours(protocol, **options)
    expected, draws, pixels = np.zeros((case.classes, case.classes), np.int64), 0, 0
    for ours, (image, label) in zip(labels, case.images(), strict=True):
        logits, truth = source(case, image, label)
        assert ours.shape == logits.shape[2:] == truth.shape
        first, second = logits[0].topk(2, 0).values
        theirs = logits[0].argmax(0).to(ours.dtype)
        differs = ours != theirs
        assert not (differs & (first - second > 1e-4)).any()      # of a standard deviation of 1
        draws, pixels = draws + int(differs.sum()), pixels + ours.numel()
        theirs, counted = np.where(differs, ours, theirs), truth != 255
        np.add.at(expected, (truth[counted].astype(int), theirs[counted]), 1)
    assert np.array_equal(confusion[:, :case.classes], expected)
    assert draws <= 1e-4 * pixels
    assert (expected.sum(0) > 0).sum() > 5, "nearly constant predictions prove nothing"


def mic(case, image, label):
    return case(normalized(image)), label


def paddle(case, image, label):
    x = normalized(image)
    return (case(x) + case(x.flip(3)).flip(3)) / 2, label


def hoya012_scales(case, image, label):
    x, total = normalized(image), 0
    size = x.shape[2:]
    for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.2):
        scaled = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=True)
        for one, back in ((scaled, lambda y: y), (scaled.flip(3), lambda y: y.flip(3))):
            total = total + bilinear(back(case(one)), size, align_corners=True)
    return total / 16, label


def hoya012_small(case, image, label):
    small = np.array(Image.fromarray(image).resize((1024, 512), Image.Resampling.LANCZOS))
    planes = [np.array(Image.fromarray(plane).resize(image.shape[1::-1], Image.Resampling.NEAREST))
              for plane in case(normalized(small))[0].numpy()]
    return torch.from_numpy(np.stack(planes))[None], label


def yassouali_scales(case, image, label):
    x, total = normalized(image), 0
    for scale in (0.75, 1.0, 1.25, 1.5, 1.75, 2.0):
        size = tuple(int(round(n * scale)) for n in x.shape[2:])      # as scipy.ndimage.zoom
        total = total + bilinear(case(bilinear(x, size, True)), x.shape[2:], True)
    return total / 6, label


def rankdice_crop(image, label, crop):
    """Image and label as RankDice validates: the short side is resized, the middle is cut out."""
    height, width = label.shape
    size = ((crop, int(crop * width / height)) if height < width
            else (int(crop * height / width), crop))
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    label = np.array(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))
    top, left = (size[0] - crop) // 2, (size[1] - crop) // 2
    area = slice(top, top + crop), slice(left, left + crop)
    return image[area], label[area]


def rankdice(crop):
    def source(case, image, label):
        image, label = rankdice_crop(image, label, crop)
        return case(normalized(image)), label
    return source


def openseg(stride, flip=False):
    def source(case, image, label):
        height, width = label.shape
        ratio = 520 / min(height, width)
        small = cv2.resize(image[..., ::-1], (round(width * ratio), round(height * ratio)),
                           interpolation=cv2.INTER_CUBIC)
        rows, columns = small.shape[:2]
        x = F.pad(normalized(small), (0, -columns % stride, 0, -rows % stride))
        logits = case(x)[0, :, :rows, :columns].permute(1, 2, 0).contiguous().numpy()
        large = cv2.resize(logits, (width, height), interpolation=cv2.INTER_CUBIC)
        return torch.from_numpy(large).permute(2, 0, 1)[None], label
    return source


def openseg_lip(case, image, label):
    small = cv2.resize(image[..., ::-1], (473, 473), interpolation=cv2.INTER_CUBIC)
    x = normalized(small)
    mirrored = case(x.flip(3)).flip(3)
    swapped = mirrored.clone()
    for left, right in ((14, 15), (16, 17)):
        swapped[:, left], swapped[:, right] = mirrored[:, right], mirrored[:, left]
    logits = ((case(x) + swapped) / 2)[0].permute(1, 2, 0).contiguous().numpy()
    large = cv2.resize(logits, label.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return torch.from_numpy(large).permute(2, 0, 1)[None], label


def mmseg(multiple=1):
    def source(case, image, label):
        height, width = label.shape
        ratio = min(2048 / max(height, width), 512 / min(height, width))
        rows, columns = (int(n * ratio + 0.5) for n in (height, width))
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
        rows, columns = (int(np.ceil(n / multiple)) * multiple for n in (rows, columns))
        if multiple > 1:
            image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
        return bilinear(case(normalized(image)), (height, width)), label
    return source


MMSEG_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def slide(case, x, crop, stride):
    """The logits of x (1, 3, H, W) from windows as mmsegmentation cuts them."""
    height, width = x.shape[2:]
    total, count = torch.zeros(1, case.classes, height, width), torch.zeros(1, 1, height, width)
    for row in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom = min(row * stride[0] + crop[0], height)
            right = min(column * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            total[:, :, top:bottom, left:right] += case(x[:, :, top:bottom, left:right])
            count[:, :, top:bottom, left:right] += 1
    return total / count


def mmseg_slide(short, long, crop, stride):
    """Slide inference over the resized image; short None: over the image as it is."""
    def source(case, image, label):
        if short:
            image = mmseg_resized(image, short, long)
        return bilinear(slide(case, normalized(image), (crop,) * 2, (stride,) * 2),
                        label.shape), label
    return source


def mmseg_resized(image, short, long):
    height, width = image.shape[:2]
    ratio = min(long / max(height, width), short / min(height, width))
    rows, columns = (int(n * ratio + 0.5) for n in (height, width))
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)


def mmseg_scales(short, long, multiple=1, windows=None):
    """MultiScaleFlipAug and aug_test: logits at the size of the label, then the mean softmax."""
    def source(case, image, label):
        total = 0
        for ratio in MMSEG_SCALES:
            one = mmseg_resized(image, int(short * ratio), int(long * ratio))
            size = [int(np.ceil(n / multiple)) * multiple for n in one.shape[:2]]
            one = cv2.resize(one, size[::-1], interpolation=cv2.INTER_LINEAR)
            for mirror in (False, True):
                x = normalized(one[:, ::-1] if mirror else one)
                logits = slide(case, x, *windows) if windows else case(x)
                probs = bilinear(logits, label.shape).softmax(1)
                total = total + (probs.flip(3) if mirror else probs)
        return (total / 12).log(), label
    return source


def hrnet_scales(case, image, label):
    """HRNet's multi_scale_inference on Cityscapes, whose crop has the size of the image."""
    height, width = label.shape
    pixels, total = normalized(image)[0].permute(1, 2, 0).numpy(), 0

    def exponentials(x):
        return ((case(x) + case(x.flip(3)).flip(3)) / 2).exp()

    for scale in MMSEG_SCALES:
        long = int(width * scale + 0.5)
        rows, columns = int(height * long / width + 0.5), long
        scaled = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR)
        x = torch.from_numpy(scaled).permute(2, 0, 1)[None]
        if scale <= 1:
            one = exponentials(x)
        else:
            one, count = torch.zeros(1, case.classes, rows, columns), torch.zeros(rows, columns)
            for down in range(-(-(rows - height) // height) + 1):
                for across in range(-(-(columns - width) // width) + 1):
                    bottom = min(down * height + height, rows)
                    right = min(across * width + width, columns)
                    area = slice(bottom - height, bottom), slice(right - width, right)
                    one[(..., *area)] += exponentials(x[(..., *area)])
                    count[area] += 1
            one = one / count
        total = total + bilinear(one, (height, width))
    return (total / len(MMSEG_SCALES)).log(), label


def eomt(crop):
    """EoMT: short side `crop` by Pillow, square windows spread evenly along the long side."""
    def source(case, image, label):
        height, width = label.shape
        factor = max(crop / height, crop / width)
        size = [round(n * factor) for n in (height, width)]
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        x = normalized(np.array(resized))
        number = int(np.ceil(max(size) / min(size)))
        overlap = number * min(size) - max(size)
        each = overlap / (number - 1) if overlap > 0 else 0
        total, count = torch.zeros(1, case.classes, *size), torch.zeros(size)
        for place in range(number):
            start = int(place * (min(size) - each))
            part = slice(start, start + min(size))
            area = (part, slice(None)) if size[0] > size[1] else (slice(None), part)
            total[(..., *area)] += case(x[(..., *area)])
            count[area] += 1
        return bilinear(total / count, (height, width)), label
    return source


# The network, the size of the images, the size at which the network sees them, channel order.
SMALL = {
    "whole": (mic, "mic_hrnet", (64, 128), (64, 128)),
    "whole-flip": (paddle, "paddle_mscale_ocrnet_w48", (64, 96), (64, 96)),
    "hoya012-ms": (hoya012_scales, "hoya012_deeplabv3_resnet50_batch", (32, 48), (40, 60)),
    "yassouali-ms": (yassouali_scales, "yassouali_pspnet_resnet50", (43, 61), (60, 84))}
SMALL_NET = "hrnet_w18_small_v2"
AT_FULL_SIZE = {
    "mmseg-ade20k": (mmseg(), SMALL_NET, (45, 60), (512, 683)),
    "mmseg-ade20k-multiple-32": (mmseg(32), SMALL_NET, (45, 60), (512, 704)),
    "openseg-ade20k": (openseg(8), SMALL_NET, (45, 60), (520, 696), "BGR"),
    "openseg-coco-stuff": (openseg(1), SMALL_NET, (45, 60), (520, 693), "BGR"),
    "hoya012-512x1024": (hoya012_small, SMALL_NET, (1024, 2048), (512, 1024)),
    "rankdice-voc": (rankdice(480), SMALL_NET, (75, 101), (480, 480)),
    "mmseg-ade20k-slide": (mmseg_slide(512, 2048, 512, 341), SMALL_NET, (45, 60),
                           (512, 512)),
    "mmseg-cityscapes-slide": (mmseg_slide(None, None, 1024, 768), SMALL_NET, (1024, 2048),
                               (512, 1024))}
# Protocols of many passes at an eighth or less of their sizes; the arithmetic is the same.
EIGHTH = {"input_size": 64, "long_side": 256}
WINDOWS = {"crop_size": [64, 64], "stride": 48}
REDUCED = {
    "mmseg-ade20k-ms": (mmseg_scales(64, 256, 32), (45, 60), (64, 96), EIGHTH),
    "mmseg-ade20k-slide": (mmseg_slide(64, 256, 64, 43), (45, 170), (64, 64),
                           {**EIGHTH, "crop_size": [64, 64], "stride": 43}),
    "mmseg-ade20k-slide-ms": (mmseg_scales(64, 256, 1, ((64, 64), (43, 43))), (45, 106), (64, 64),
                              {**EIGHTH, "crop_size": [64, 64], "stride": 43}),
    "mmseg-ade20k-slide-640": (mmseg_slide(80, 320, 80, 53), (45, 170), (80, 80), {
        "input_size": 80, "long_side": 320, "crop_size": [80, 80], "stride": 53}),
    "mmseg-cityscapes-slide": (mmseg_slide(None, None, 64, 48), (64, 128), (64, 64), WINDOWS),
    "mmseg-cityscapes-ms": (mmseg_scales(64, 128), (64, 128), (64, 128), {
        "input_size": 64, "long_side": 128}),
    "mmseg-cityscapes-slide-ms": (mmseg_scales(64, 128, 1, ((64, 64), (48, 48))), (64, 128),
                                  (64, 64), {**WINDOWS, "input_size": 64, "long_side": 128}),
    "hrnet-ms": (hrnet_scales, (48, 96), (48, 96), {"crop_size": [48, 96],
                                                    "stride": [48, 96]}),
    "eomt-ade20k": (eomt(64), (45, 106), (64, 64), {"input_size": 64, "crop_size": [64, 64]})}


@pytest.mark.slow       # 5 to 20 s each: the sources' own networks
@needs_goldens
@pytest.mark.parametrize("protocol", SMALL)
def test_our_path_equals_the_source_with_its_own_network(tmp_path, protocol):
    source, *case = SMALL[protocol]
    check(Case(tmp_path, *case), protocol, source)


@pytest.mark.slow       # 3 to 10 s each: half a million to two million pixels
@needs_goldens
@pytest.mark.parametrize("protocol", AT_FULL_SIZE)
def test_our_path_at_the_published_size_equals_the_source(tmp_path, protocol):
    source, *case = AT_FULL_SIZE[protocol]
    check(Case(tmp_path, *case), protocol, source)


@pytest.mark.slow       # 1 to 5 s each: up to 72 passes
@needs_goldens
@pytest.mark.parametrize("protocol", REDUCED)
def test_our_path_of_windows_and_scales_equals_the_source(tmp_path, protocol):
    source, size, seen, options = REDUCED[protocol]
    check(Case(tmp_path, SMALL_NET, size, seen), protocol, source, **options)


@pytest.mark.slow
@needs_goldens
def test_the_path_of_lip_exchanges_left_and_right(tmp_path):
    check(Case(tmp_path, SMALL_NET, (60, 45), (473, 473), "BGR"), "openseg-lip", openseg_lip,
          label_pairs=[[14, 15], [16, 17]])


def test_a_protocol_determines_every_key_that_changes_a_prediction():
    free = {"window_batch", "amp", "label_pairs"}
    keys = {key for one in (Predictor, InputSize) for key in inspect.signature(one).parameters}
    assert set(DETERMINED) == keys - free - set(Predictor.provided) - {"activation"} \
        | {"input_size"}
    # Next to a protocol's own settings, everything is as in a section without settings.
    usual = {key: field.default for key, field in PREDICT.fields().items()}
    assert {key: value for key, value in DETERMINED.items() if usual[key] != value} \
        == {"base_size": None}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_makes_a_predictor_and_explains_itself(name):
    options = settings_of(name)
    assert set(options) <= set(PREDICT.fields())
    predictor = build_predictor(None, None, options)
    assert predictor.mode == options["mode"] and not changes(options)
    assert name in protocols_text(name).splitlines()


def test_a_setting_next_to_a_protocol_goes_before_it_and_is_reported():
    options = expanded({"protocol": "mmseg-ade20k", "flip": True})
    assert options["input_size"] == 512 and options["flip"]
    assert changes(options) == {"flip": True}
    assert not changes({**settings_of("whole"), "scales": None, "overlap": 1 / 3})
    assert changes({"flip": True}) == {}


def test_a_new_protocol_replaces_the_settings_of_the_old_one():
    config = {"predict": {**settings_of("mmseg-ade20k-ms"), "amp": "fp16", "CoI": [1]}}
    after = apply_overrides(config, ["predict.flip=true", "predict.protocol=whole"])
    assert after["predict"] == {"amp": "fp16", "CoI": [1], "protocol": "whole", "flip": True}
    same = apply_overrides(config, ["predict.protocol=mmseg-ade20k-ms"])
    assert same["predict"] == config["predict"]


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'mmseg-ade20k'"):
        settings_of("mmseg-ade20")
    with pytest.raises(ConfigError, match="openseg-lip"):
        protocols_text("nothing")


def test_all_means_the_general_ones_and_those_of_the_data():
    assert names_for("CamVid") == ["whole", "whole-flip"]
    assert "mmseg-ade20k" in names_for("ADE20K")
    assert "mmseg-ade20k" not in names_for("CityScapes")
