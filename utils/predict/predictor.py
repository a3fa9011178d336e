"""From uint8 images to logits at the size of the image.

Validation, test.py and inference.py all predict with this class, so a score and a picture come
from the same computation.

Three ways of predicting are common in the field, and all are here: the whole image at once;
overlapping windows (yassouali/pytorch-segmentation, HRNet, mmsegmentation; their positions come
from utils.predict.windows); several scales with or without a mirrored copy (PSPNet, Zhao et al.,
CVPR 2017). Every source averages logits; `average="probs"` averages probabilities.

A network that gives scores in place of logits (utils.losses.scores) is predicted in the same ways:
"logits" below are then its scores, and so is what the predictor returns.
"""
import copy
import inspect
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import ConfigError, NumericalError
from utils.images.base_size import BaseSize, WholeView, whole_view
from utils.images.headers import max_pixels
from utils.images.input_size import InputSize, InputView
from utils.images.types import Image
from utils.losses.scores import shares
from utils.machine.precision import autocast_dtype
from utils.machine.tensors import ImageBatch, LabelBatch, Logits, Masks
from utils.predict.largest_class import largest_class, upsampled_labels
from utils.predict.last_resize import LastResize, SmallLogits
from utils.predict.resizing import (
    add_resized,
    at_base_size,
    at_own_size,
    labels_at_own_size,
    resize,
    strips_at_own_size,
    unmirrored,
)
from utils.predict.view_sum import ViewSum
from utils.predict.windows import (
    BLOCK_BYTES,
    TILINGS,
    Place,
    Tiling,
    View,
    Windows,
    batched_windows,
    checked_stride,
    filled,
    mean_in_blocks,
    mean_of_windows,
    overlapping_windows,
)

NOT_FINITE = "the network's logits are not finite (NaN or Inf)"
NOT_FINITE_FIX = ("the weights are damaged or too large, or reduced precision overflows: try "
                  "--amp off, or an earlier checkpoint")
AVERAGES = ("logits", "probs", "view_probs", "exp")
# The scales of yassouali/pytorch-segmentation for every dataset except Cityscapes.
MULTISCALE = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


class Rule(Protocol):
    """What a predictor uses of a decision rule (utils.decision.rules.Decision)."""

    masks: bool
    largest_logit: bool

    def __call__(self, logits: Logits) -> LabelBatch | Masks: ...

    def labels(self, logits: Logits) -> LabelBatch: ...


def build_predictor(model: nn.Module, normalize: Callable[[ImageBatch], ImageBatch], options: dict,
                    activation: str = "softmax") -> "Predictor":
    """The predictor for the `predict` section of a config; every key is optional."""
    known = set(inspect.signature(Predictor).parameters) - set(Predictor.provided)
    settings: dict[str, Any] = {key: value for key, value in options.items() if key in known}
    settings["activation"] = activation
    return Predictor(model, normalize, **settings, seen_at=input_size_of(options))


def input_size_of(options: dict) -> InputSize | None:
    """The input size of a `predict` section; None if images are not resized to one."""
    keys = inspect.signature(InputSize).parameters
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                for key, value in options.items() if key in keys}
    size = InputSize(**settings)
    return size if size.active else None


class Predictor:
    """Logits of a batch of images, in one of three modes.

    image: uint8 (N, 3, H, W), RGB, on the model's device; any H and W. With a base_size it may
        be on any device, and is best on the CPU, which resizes it.
    returns: float32 (N, C, H, W) logits; with average="probs" the values whose
        softmax (or sigmoid) is the mean probability.

    model: its `forward` returns (N, C, h, w) for float (N, 3, h, w) in eval mode.
    normalize: uint8 (N, 3, H, W) -> float (N, 3, H, W).
    mode: "whole" predicts the image as it is; "sliding" predicts overlapping windows;
        "multiscale" predicts whole images at several sizes.
    scales: factors the image is resized by; None means 0.75 to 2 in steps of
        0.25 for "multiscale" and 1 otherwise. "sliding" cuts its windows out of
        every scaled image. A "view" below is the image at one scale, mirrored or not.
    scale_rounding: of the rows and columns of a scaled image; "nearest" is that of scipy's zoom.
    flip: adds a mirrored copy of every view (of every window when sliding).
    crop_size: height and width of a window; None means the size of the image divided by 2.5.
    overlap: the share of a window that its neighbor also covers; the stride is rounded up.
    tiling: "even" takes the stride of each axis from the window's size on it and moves
        the last window back inside the image; "source" takes the stride of both axes from
        the height of the window and pads the last ones, as yassouali/pytorch-segmentation
        does (about 1.5 times the windows on a 1:2 image). There the stride is never more
        than the width of the window, so that a tall image has no gaps. "fit" is "even", but in
        an image that is smaller than a window the window is made smaller, where "even" pads the
        image (mmsegmentation). "spread" takes the fewest windows that cover the image, at equal
        distances (EoMT).
    stride: pixels from one window to the next, one number or [down, across], in place of overlap.
    average: over views and windows: "logits"; "probs", where whole views are resized before the
        softmax; "view_probs", where windows average logits and views probabilities
        (mmsegmentation); or "exp", the exponentials of the logits of views and windows, where a
        mirror image is averaged as logits (HRNet).
    activation: "softmax" or "sigmoid", the one that the loss of the model uses; "scores" if the
        model gives scores in place of logits: these are then averaged, and with "probs" their
        shares, which are scores again.
    window_batch: windows in one forward; None means 1 on a CPU, where batches
        cost more than they save, and 8 elsewhere.
    amp: autocast around the model only: "bf16", "fp16", False, or "auto" (bf16 where
        the hardware computes in it).
    channels_last: memory layout of the images; None follows the weights, so that a
        model uses the same arithmetic wherever it runs.
    align_corners: of torch's interpolate, for images and logits. The sources
        use True; False agrees with torch's default and with this project's networks.
    base_size: the size at which the network sees a whole image; the logits have the image's own
        size again. A number is the length of the long side; [height, width] is the size that the
        image must cover; null leaves images as they are. "val": as validation sees them. In
        training these images come from the loader, so that nothing is left to do; test.py,
        inference.py and the tools take the base_size or crop of the val_loader. The scales, and
        the windows of "sliding", are those of the resized image.
    seen_at: the input size of the section (utils.images.input_size), which takes the place of
        base_size.
    label_pairs: class ids that are exchanged in a mirror image (LIP: left and right arm). If a
        config has none, it gets those of its training data when it is resolved.

    Padding is 0 after normalization, that is the mean color. Memory does not grow with the number
    of views: they are summed one by one into one map of the full size. If the network ends in a
    resize, a CPU adds the small logits of the scales first and resizes them once.

    finite: bool (N,) on the device, after a call: whether all logits of each image are finite.
        Labels and masks of the others mean nothing; `require_finite` refuses them.
    """

    # The program passes these; the other arguments are keys of the config's `predict` section.
    provided = ("model", "normalize", "activation", "channels_last", "seen_at")

    def __init__(self, model: nn.Module, normalize: Callable[[ImageBatch], ImageBatch],
                 mode: Literal["whole", "sliding", "multiscale"] = "whole",
                 scales: tuple[float, ...] | None = None,
                 scale_rounding: Literal["floor", "nearest"] = "floor", flip: bool = False,
                 crop_size: int | tuple[int, int] | None = None, overlap: float = 1 / 3,
                 tiling: Tiling = "even",
                 stride: int | tuple[int, int] | None = None,
                 average: Literal["logits", "probs", "view_probs", "exp"] = "logits",
                 activation: Literal["softmax", "sigmoid", "scores"] = "softmax",
                 window_batch: int | None = None,
                 amp: Literal["auto", "bf16", "fp16", False] = False,
                 channels_last: bool | None = None, align_corners: bool = False,
                 label_pairs: tuple[tuple[int, int], ...] = (),
                 base_size: int | tuple[int, int] | Literal["val"] | None = "val",
                 seen_at: InputSize | None = None):
        _one_of("mode", mode, ("whole", "sliding", "multiscale"))
        _one_of("scale_rounding", scale_rounding, ("floor", "nearest"))
        _one_of("tiling", tiling, TILINGS)
        _one_of("average", average, AVERAGES)
        _one_of("activation", activation, ("softmax", "sigmoid", "scores"))
        if activation == "scores" and average == "exp":
            raise ConfigError("the network gives scores, which have no exponentials to average",
                              "predict.average", "set it to \"logits\", the mean of the scores")
        _one_of("amp", amp, ("auto", "bf16", "fp16", False))
        scales = tuple(scales or (MULTISCALE if mode == "multiscale" else (1.0,)))
        if not all(math.isfinite(scale) and scale > 0 for scale in scales):
            raise ConfigError(f"scales must be positive numbers, found {list(scales)}")
        if mode == "whole" and scales != (1.0,):
            raise ConfigError(f"scales {list(scales)} have no effect in mode 'whole'",
                              fix="use mode 'multiscale' or 'sliding'")
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap must be in [0, 1), found {overlap}")
        crop = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        if crop is not None and (len(crop) != 2 or min(crop) < 1):
            raise ConfigError(f"crop_size must be one or two positive numbers, found {crop_size}")
        if window_batch is not None and window_batch < 1:
            raise ConfigError(f"window_batch must be at least 1, found {window_batch}")
        if seen_at is not None and base_size not in (None, "val"):
            raise ConfigError(f"base_size {base_size} and an input size ({seen_at.describe()}) "
                              "both say how images are resized", "predict.base_size",
                              "leave one of them out")

        self.model, self.normalize = model, normalize
        self.mode, self.scales, self.flip = mode, scales, flip
        self.scale_rounding = scale_rounding
        self.crop_size = (crop[0], crop[1]) if crop else None
        self.overlap = overlap
        self.tiling: Tiling = tiling
        self.stride = checked_stride(stride, tiling, self.crop_size)
        self.average, self.activation, self.window_batch = average, activation, window_batch
        self.amp, self.channels_last, self.align_corners = amp, channels_last, align_corners
        self.label_pairs = label_pairs
        self.base_size, self.seen_at = _checked_base_size(base_size), seen_at
        self.finite = torch.ones(0, dtype=torch.bool)
        self._without_last_resize = LastResize(model)

    def __call__(self, image: ImageBatch) -> Logits:
        """uint8 (N, 3, H, W) RGB -> float32 logits (N, C, H, W).

        With an input size whose score_at is "input" they have the size of the input instead.
        """
        if self.seen_at is not None:
            return self._at_input_size(image, self.seen_at)
        view = self.view(*_size(image))
        with self._evaluating():
            logits = self._predict(self._normalized(self._as_seen(image, view)))
            self.finite = finite_images(logits)
            return logits if view is None else at_own_size(logits, view, _size(image))

    def decide(self, image: ImageBatch, rule: Rule) -> LabelBatch | Masks:
        """rule(self(image)): labels (N, H, W) or masks (N, C, H, W) of uint8 images (N, 3, H, W).

        For a rule `largest_logit` it is cheaper: if the network ends in a resize, the class of
        the largest logit is found without logits at the image's size (utils.predict.largest_class).
        """
        if not rule.largest_logit:
            # Contiguous, because a softmax over strided channels takes twice as long.
            return rule(self(image).contiguous())
        if self.seen_at is not None:
            return largest_class(self(image))
        view = self.view(*_size(image))
        with self._evaluating():
            x = self._normalized(self._as_seen(image, view))
            if view is None:
                return self._largest(x)
            logits = self._predict(x)
            self.finite = finite_images(logits)
            return labels_at_own_size(logits, view, _size(image))

    def view(self, height: int, width: int) -> WholeView | None:
        """How an image of height x width pixels is resized for the network; None: not at all."""
        return whole_view(height, width, self.base_size)

    @property
    def resizes(self) -> bool:
        """Whether images are resized on a CPU before the network sees them."""
        return self.base_size is not None or self.seen_at is not None

    def takes(self, device: torch.device | str) -> torch.device | str:
        """The device on which images are best: the CPU if it resizes them, else the network's."""
        return "cpu" if self.resizes else device

    def as_scored(self, labels: LabelBatch) -> LabelBatch:
        """Labels (N, H, W) at the size of the logits of their images."""
        if self.seen_at is None:
            return labels
        return self.seen_at.view(*_size(labels)).labels(labels)

    def for_files(self) -> "Predictor":
        """A predictor whose logits always have the size of the image; often itself."""
        if self.seen_at is None:
            return self
        whole = self.seen_at.whole()
        if whole.describe() == self.seen_at.describe():
            return self
        other = copy.copy(self)
        other.seen_at = whole if whole.active else None
        return other

    def require_finite(self, names: Sequence[str]):
        """Raise NumericalError for the first image of the last call whose logits are not finite.

        names: of its images. On a GPU this waits for the network.
        """
        for name, finite in zip(names, self.finite.tolist(), strict=True):
            if not finite:
                raise not_finite(name)

    def each(self, batches: Iterable[dict[str, Any]], device: torch.device | str) \
            -> Iterator[tuple[torch.Tensor, torch.Tensor, str, Logits]]:
        """(image, label, id, logits (1, C, H, W)) of every image of a loader, one at a time.

        device: that of the network. Raises NumericalError for logits that are not finite.
        """
        for batch in batches:
            for image, label, name in zip(batch["image"], batch["label"], batch["id"],
                                          strict=True):
                logits = self(image[None].to(self.takes(device)))
                self.require_finite([name])
                yield image, self.as_scored(label[None])[0], name, logits

    def labels(self, image: ImageBatch, rule: Rule) -> LabelBatch:
        """rule.labels(self(image)): one class (N, H, W) for every pixel; as cheap as `decide`.

        They have the size of the image, whatever is scored.
        """
        other = self.for_files()
        if other is not self:
            labels = other.labels(image, rule)
            self.finite = other.finite
            return labels
        return rule.labels(self(image)) if rule.masks else self.decide(image, rule)

    def in_blocks(self, image: Image, device: torch.device | str,
                  on_block: Callable[[slice, slice, Logits], None],
                  most_bytes: int = BLOCK_BYTES):
        """Predict an image of any size, one block of it after the other.

        image: uint8 (H, W, 3), for example mapped from a file. most_bytes: the most memory for
            logits; a block is at least two windows wide.
        on_block: called with (rows, columns, logits (1, C, rows, columns)). Together the blocks
            equal the prediction of the whole image, to the last bit if windows are not batched
            (window_batch); with a base_size, up to rounding.
        Raises ConfigError unless the mode is "sliding" at scale 1, or a base_size resizes the
        image.
        """
        # Closed at once also if on_block raises: it keeps inference mode on.
        with closing(self.blocks(image, device, most_bytes)) as blocks:
            for rows, columns, logits in blocks:
                on_block(rows, columns, logits)
                del logits              # before the next block is made

    def blocks(self, image: Image, device: torch.device | str, most_bytes: int = BLOCK_BYTES) \
            -> Generator[tuple[slice, slice, Logits], None, None]:
        """Yields what `in_blocks` calls on_block with. Inference mode is on until it is closed."""
        if self.seen_at is not None:
            raise ConfigError("an image that is resized to an input size is not predicted in "
                              "blocks", "predict.input_size", "use predict.base_size")
        view = self.view(*image.shape[:2])
        if view is not None:
            yield from self._in_strips(image, view, device, most_bytes)
            return
        if self.mode != "sliding" or self.scales != (1.0,) or self.mirrors_views:
            raise ConfigError("blocks of an image are predicted by sliding windows at scale 1, "
                              "and not with mirrored views", "predict.mode",
                              "leave out --flip, or --average view_probs")
        windows = self.windows(*image.shape[:2])

        def read(top, left):
            window = np.ascontiguousarray(image[windows.area(top, left)])
            return self._normalized(torch.from_numpy(window).to(device).permute(2, 0, 1)[None])

        def views_at(places):
            return self._window_views(read, places, windows.tile, 1, device, self._mirrors)

        with self._evaluating():
            classes = self._forward(filled(read(0, 0), windows.tile)).shape[1]
            for rows, columns, mean in mean_in_blocks(windows, views_at, classes, device,
                                                      self._repeats(self._mirrors), most_bytes):
                logits = mean if self.average == "view_probs" else self._as_logits(mean)
                finite = finite_images(logits)
                self.finite = self.finite & finite if rows.start or columns.start else finite
                yield rows, columns, logits
                del mean, logits    # before the next block is made

    def _in_strips(self, image, view, device, most_bytes):
        """`blocks` of an image that is predicted at another size: its rows, from the top."""
        height, width = image.shape[:2]
        x = torch.from_numpy(view.cut(image)).permute(2, 0, 1)[None].to(device)
        with self._evaluating():
            logits = self._predict(self._normalized(x))
            self.finite = finite_images(logits)
            for rows, strip in strips_at_own_size(logits, view, (height, width), most_bytes):
                yield rows, slice(0, width), strip

    def describe(self) -> dict:
        """The settings, for reports: mode, scales, flip, average, amp; windows if sliding.

        Also "base_size" or the keys of the input size, if there is one.
        """
        settings = {"mode": self.mode, "scales": list(self.scales), "flip": self.flip,
                    "average": self.average, "amp": self.amp}
        if self.base_size is not None:
            settings["base_size"] = self.base_size
        if self.seen_at is not None:
            settings |= self.seen_at.describe()
        if self.mode == "sliding":
            settings |= {"crop_size": list(self.crop_size) if self.crop_size else None,
                         "overlap": self.overlap, "tiling": self.tiling}
            settings |= {"stride": list(self.stride)} if self.stride else {}
        if self.align_corners:
            settings["align_corners"] = True
        if self.scale_rounding != "floor" and self.scales != (1.0,):
            settings["scale_rounding"] = self.scale_rounding
        if self.flip and self.label_pairs:
            settings["label_pairs"] = [list(pair) for pair in self.label_pairs]
        return settings

    def views_text(self) -> str:
        """How an image is seen, in words: "whole images", "scales 0.5, 1, mirrored too"."""
        text = {"whole": "whole images", "sliding": "overlapping windows"}.get(
            self.mode, f"scales {', '.join(f'{scale:g}' for scale in self.scales)}")
        return text + (", mirrored too" if self.flip else "")

    def windows(self, height: int, width: int) -> Windows:
        """The windows that mode "sliding" cuts out of an image of height x width pixels."""
        return overlapping_windows((height, width), self.crop_size, self.overlap, self.tiling,
                                   self.stride)

    @contextmanager
    def _evaluating(self):
        """Run the block with the network in eval mode and without gradients."""
        if self.channels_last is None:
            self.channels_last = _is_channels_last(self.model)
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            if training:
                self.model.train()

    def _as_seen(self, image, view):
        """The images as the network sees them, on its device: uint8 (N, 3, h, w)."""
        if view is None:
            return image
        weights = next(self.model.parameters(), None)
        return at_base_size(image, view).to(image.device if weights is None else weights.device)

    def _normalized(self, image):
        # The memory layout is changed while the image is uint8, because that moves fewer bytes.
        return self.normalize(self._laid_out(image))

    def _at_input_size(self, image: ImageBatch, size: InputSize) -> Logits:
        """`__call__` with an input size."""
        with self._evaluating():
            if size.scale_from == "image" and (self.scales != (1.0,) or self.flip):
                logits = self._as_logits(self._sum_from_image(image, size))
            else:
                view = size.view(*_size(image))
                logits = view.logits(self._predict(filled(self._seen(image, view), view.padded)))
            self.finite = finite_images(logits)
            return logits

    def _seen(self, image, view: InputView):
        """Normalized images (N, 3, h, w) of an InputView, not padded, on the network's device."""
        return self._normalized(self._as_seen(image, view))

    def _sum_from_image(self, image: ImageBatch, size: InputSize) -> Logits:
        """The mean over scales and mirrors, each made from the image and resized on its own.

        returns: logits, probabilities or exponentials, float32 (N, C, *scored).
        """
        scored = size.view(*_size(image)).scored
        probs = self._probs_of_views()
        total, weight = None, 1 / len(self.scales)
        for scale in self.scales:
            view = size.view(*_size(image), scale)
            x = self._seen(image, view)
            maps = [self._map_of(filled(x.flip(-1) if mirrored else x, view.padded), mirrored)
                    for mirrored in self._mirrors]
            if self.average == "exp" and self.mode != "sliding":
                maps = [torch.stack(maps).mean(0).exp_()]
            for one in maps:
                one = view.at_scored(one, scored)
                one = probs(one) if probs else one
                total = (one.mul(weight / len(maps)) if total is None
                         else total.add_(one, alpha=weight / len(maps)))
        assert total is not None, "there is at least one scale"
        return total

    def _map_of(self, x, mirrored):
        """The map of one view (N, C, H, W) of x, mirrored back: logits, or means of windows."""
        view = self._slide(x, (False,)) if self.mode == "sliding" else self._forward(x).float()
        return unmirrored(view, self._mirrored_classes(view)) if mirrored else view

    def _predict(self, x):
        """Normalized images (N, 3, H, W) -> float32 (N, C, H, W)."""
        if self.scales == (1.0,) and self.mode == "sliding" and not self.mirrors_views:
            mean = self._slide(x)
            return mean if self.average == "view_probs" else self._as_logits(mean)
        if self.scales == (1.0,) and not self.flip:
            return self._forward(x).float()
        total = self._sum_of_views(x)
        return self._as_logits(total.total() if isinstance(total, ViewSum) else total)

    def _largest(self, x):
        """Normalized images (N, 3, H, W) -> labels (N, H, W)."""
        if self.mode == "sliding" or self.average != "logits":
            logits = self._predict(x)
            self.finite = finite_images(logits)
            return largest_class(logits)
        if self.scales == (1.0,) and not self.flip:
            result, size = self._forward_short(x), _size(x)
            small = isinstance(result, SmallLogits)
            self.finite = finite_images(result.logits if small else result)
            if not isinstance(result, SmallLogits):
                return largest_class(result.float())
            if result.logits.dtype == torch.float32:
                return upsampled_labels(result.logits, size, result.align_corners)
            return largest_class(_resized(result, size).float())
        total = self._sum_of_views(x)
        if not isinstance(total, ViewSum):
            self.finite = finite_images(total)
            return largest_class(total)
        labels, self.finite = [], torch.ones(len(x), dtype=torch.bool)
        for _, strip in total.strips():
            self.finite &= finite_images(strip)
            labels.append(largest_class(strip))
        return torch.cat(labels, 1)

    def _sum_of_views(self, x: ImageBatch) -> Logits | ViewSum:
        """The mean over scales and mirrors of logits, probabilities or exponentials.

        returns: float32 (N, C, H, W), or a ViewSum of it if all views are SmallLogits.
        """
        sliding, size = self.mode == "sliding", _size(x)
        mirrors = (False,) if sliding and not self.mirrors_views else self._mirrors
        weight, total = 1 / (len(self.scales) * len(mirrors)), None
        # A ViewSum multiplies matrices, which a GPU may do in reduced precision.
        short = self.average == "logits" and x.device.type == "cpu"
        forward = self._forward_short if short else self._forward
        probs = self._probs_of_views()
        # Scale 1 comes first: its map becomes the sum, to which the other views are added.
        for scale in sorted(self.scales, key=lambda scale: scale != 1):
            scaled = self._rescale(x, scale)
            if self.average == "exp" and not sliding:
                maps = [self._map_of(scaled.flip(-1) if mirrored else scaled, mirrored)
                        for mirrored in mirrors]
                assert not isinstance(total, ViewSum)       # which is of logits only
                total = add_resized(total, torch.stack(maps).mean(0).exp_(),
                                    weight * len(mirrors), size, self.align_corners)
                continue
            for mirrored in mirrors:
                if sliding:
                    view = self._slide(scaled.flip(-1) if mirrored else scaled,
                                       (False,) if self.mirrors_views else self._mirrors)
                else:
                    view = forward(scaled.flip(-1) if mirrored else scaled)
                if isinstance(view, SmallLogits) and not isinstance(total, torch.Tensor):
                    total = total or ViewSum(size)
                    logits = view.logits
                    if mirrored:
                        logits = unmirrored(logits, self._mirrored_classes(logits))
                    total.add(logits, weight, (_size(scaled), view.align_corners),
                              (size, self.align_corners))
                    continue
                if isinstance(view, SmallLogits):
                    view = _resized(view, _size(scaled))
                if isinstance(total, ViewSum):
                    total = total.total()
                if total is None and not mirrored and not probs and _is_new_map(view, x):
                    total = view.mul_(weight)
                else:
                    mirror = self._mirrored_classes(view) if mirrored else None
                    total = add_resized(total, view, weight, size, self.align_corners, mirror,
                                        probs)
                del view    # before the next forward: one view at a time
        assert total is not None, "there is at least one scale"
        return total

    def _rescale(self, x, scale):
        if scale == 1:
            return x
        whole = int if self.scale_rounding == "floor" else round
        height, width = (max(1, whole(length * scale)) for length in x.shape[-2:])
        return resize(x, (height, width), self.align_corners)

    def _slide(self, x, mirrors: tuple[bool, ...] | None = None):
        """Mean over the windows that cover each pixel: logits, probabilities or exponentials.

        mirrors: the copies of each window; None: those of `_mirrors`.
        """
        windows = self.windows(*x.shape[-2:])
        mirrors = self._mirrors if mirrors is None else mirrors

        def read(top, left):
            return x[(..., *windows.area(top, left))]

        views = self._window_views(read, windows.places, windows.tile, len(x), x.device, mirrors)
        return mean_of_windows(windows, views, self._repeats(mirrors))

    def _window_views(self, read: Callable[[int, int], ImageBatch], places: list[Place],
                      tile: tuple[int, int], n: int, device: torch.device | str,
                      mirrors: tuple[bool, ...]) -> Iterator[View]:
        """What is averaged of the windows at `places` and of their mirrors, each (n, C, *tile).

        read: (top, left) -> the part of the n normalized images that the window covers. Each
        window is there `_repeats(mirrors)` times.
        """
        batch = self.window_batch or (1 if torch.device(device).type == "cpu" else 8)
        pair = []
        for group, crops in batched_windows(read, places, tile, max(1, batch // n), mirrors):
            views = self._forward(crops).split(n)
            for (top, left, mirrored), view in zip(group, views, strict=True):
                view = unmirrored(view, self._mirrored_classes(view)) if mirrored else view
                if self.average == "exp":
                    pair.append(view.float())
                    if len(pair) == len(mirrors):
                        yield top, left, torch.stack(pair).mean(0).exp_()
                        pair = []
                    continue
                yield top, left, (self._probs(view.float()) if self.average == "probs" else view)

    def _repeats(self, mirrors):
        """How many maps `_window_views` gives of each window."""
        return 1 if self.average == "exp" else len(mirrors)

    @property
    def mirrors_views(self) -> bool:
        """Whether whole views are mirrored in mode "sliding", and not their windows."""
        return self.flip and self.average == "view_probs"

    def _probs_of_views(self):
        """The function that turns a resized view into what is averaged; None: nothing is to do."""
        of_views = self.average == "view_probs" or (self.average == "probs"
                                                    and self.mode != "sliding")
        return self._probs if of_views else None

    @property
    def _mirrors(self):
        """For each copy of a view, whether it is mirrored: (False,), with flip (False, True)."""
        return (False, True) if self.flip else (False,)

    def _mirrored_classes(self, view):
        """`classes` of utils.predict.resizing.unmirrored, for a view (N, C, h, w)."""
        order = list(range(view.shape[1]))
        for a, b in self.label_pairs:
            order[a], order[b] = b, a
        return order

    def _forward(self, x: ImageBatch) -> Logits:
        """The network's logits (N, C, H, W) for normalized images (N, 3, H, W)."""
        with self._autocast(x.device):
            return self.model(self._laid_out(x))

    def _forward_short(self, x: ImageBatch) -> Logits | SmallLogits:
        """SmallLogits if the network ends in a resize, else its logits (N, C, H, W)."""
        with self._autocast(x.device):
            return self._without_last_resize(self._laid_out(x))

    def _autocast(self, device):
        # A CPU computes half precision slowly but correctly; only training in it is an error.
        dtype = torch.float16 if self.amp == "fp16" else autocast_dtype(self.amp, device)
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def _laid_out(self, x):
        return x.contiguous(memory_format=torch.channels_last if self.channels_last
                            else torch.contiguous_format)

    def _probs(self, logits):
        if self.activation == "scores":
            return shares(logits)
        return logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()

    def _as_logits(self, mean):
        """Turn a mean of other values into logits, in place; one of logits or scores stays."""
        if self.average == "logits" or self.activation == "scores":
            return mean
        tiny = torch.finfo(mean.dtype).tiny
        if self.activation == "softmax" or self.average == "exp":
            return mean.clamp_(min=tiny).log_()
        return mean.logit_(eps=torch.finfo(mean.dtype).eps)


def finite_images(logits: Logits) -> torch.Tensor:
    """Bool (N,) on the device of logits (N, C, H, W): whether all values of an image are finite."""
    # The smallest and the largest value pass on a nan, and take one reading of the memory. Channels
    # come last where they lie last, because aminmax is slow across strides.
    if not logits.is_contiguous():
        logits = logits.permute(0, 2, 3, 1)
    ends = [torch.stack(one.float().aminmax()) for one in logits]
    return torch.isfinite(torch.stack(ends)).all(1)


def zeroed(logits: Logits, finite: torch.Tensor) -> Logits:
    """Logits (N, C, H, W) with zeros for the images that are not `finite`, bool (N,)."""
    return logits.where(finite.view(-1, 1, 1, 1), 0)


def not_finite(name: str | None = None) -> NumericalError:
    """The error of logits that are not finite. name: the image, as messages show it."""
    return NumericalError(NOT_FINITE, name, NOT_FINITE_FIX)


def _checked_base_size(base_size: Any) -> BaseSize:
    """base_size as a number or (height, width); None if no image is resized."""
    if base_size is None or base_size == "val":
        return None
    sides = [base_size] if isinstance(base_size, int) else list(base_size)
    limit = max_pixels()
    if len(sides) not in (1, 2) or min(sides) < 1 or sides[0] * sides[-1] > limit:
        raise ConfigError("base_size must be a positive number, [height, width], \"val\" or null, "
                          f"and give at most {limit:,} pixels; found {base_size}",
                          "predict.base_size")
    return sides[0] if isinstance(base_size, int) else (sides[0], sides[1])


def _size(x: torch.Tensor) -> tuple[int, int]:
    """Height and width of (..., H, W)."""
    return x.shape[-2], x.shape[-1]


def _resized(small, size):
    """The logits that the network returns if its last resize is not left out."""
    return F.interpolate(small.logits, size, mode="bilinear", align_corners=small.align_corners)


def _is_new_map(view, image):
    """Whether the network's result may be changed in place.

    It may if it is a new map as large as the image (N, 3, H, W), not one that the network keeps.
    """
    return (view.shape[-2:] == image.shape[-2:] and view.dtype == torch.float32
            and view.is_inference() and view.is_contiguous()
            and view.data_ptr() != image.data_ptr())


def _is_channels_last(model):
    kernels = (p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous())
    return any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def _one_of(name, value, choices):
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}; found {value!r}",
                          f"predict.{name}")
