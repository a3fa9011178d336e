"""From uint8 images to logits at the size of the image.

Validation, test.py and inference.py all predict through this class, so a score
and a picture come from the same computation.

Three ways are common in the field and all are here: the whole image at once,
windows that overlap (yassouali/pytorch-segmentation, HRNet, mmsegmentation),
and several scales with or without a mirrored copy (PSPNet, Zhao et al., CVPR
2017). Every source averages logits; `average="probs"` averages probabilities.
"""
import inspect
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import ConfigError
from utils.largest_class import largest_class, upsampled_labels
from utils.last_resize import LastResize, Small
from utils.precision import autocast_dtype
from utils.view_sum import ViewSum

# What yassouali/pytorch-segmentation uses for every dataset but Cityscapes.
MULTISCALE = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
# Bytes of resized logits that exist at a time; a CPU wants them in its cache.
CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}
# Bytes of logits that one block of a very large image sums up.
BLOCK_BYTES = 256 << 20


def build_predictor(model: nn.Module, normalize: Callable, options: dict,
                    activation: str = "softmax") -> "Predictor":
    """The predictor that the `predict` section of a config describes; every key is optional."""
    known = set(inspect.signature(Predictor).parameters) - set(Predictor.provided)
    settings = {key: value for key, value in options.items() if key in known}
    if settings.get("mode") == "multiscale" and settings.get("scales") in ([1.0], (1.0,)):
        del settings["scales"]      # a resolved config states the default of the other modes
    return Predictor(model, normalize, activation=activation, **settings)


class Predictor:
    """Logits of a batch of images, by one of three modes.

    image: uint8 (N, 3, H, W), RGB, on the model's device; any H and W
    returns: float32 (N, C, H, W) logits; with average="probs" the values whose
        softmax (or sigmoid) is the mean probability.

    model: its `forward` gives (N, C, h, w) for float (N, 3, h, w) in eval mode.
    normalize: uint8 (N, 3, H, W) -> float (N, 3, H, W).
    mode: "whole" as it is; "sliding" overlapping windows; "multiscale" whole
        images at several sizes.
    scales: factors the image is resized by; None means 0.75 to 2 in steps of
        0.25 for "multiscale" and 1 otherwise. "sliding" cuts its windows out of
        every scaled image.
    flip: adds a mirrored copy of every view (of every window when sliding).
    crop_size: height and width of a window; None takes a 2.5th of the image.
    overlap: share of a window that its neighbour covers too, at least.
    tiling: "even" strides each axis by its own window size and moves the last
        window back inside the image; "source" strides both axes by the height
        of the window and pads the last ones, as yassouali/pytorch-segmentation
        does (about 1.5 times the windows on a 1:2 image). Where that stride
        would leave gaps in a tall image it is cut to the width of the window.
    average: "logits" or "probs"; whole views are resized before the softmax.
    activation: "softmax" or "sigmoid", as the loss of the model has it.
    window_batch: windows in one forward; None means 1 on a CPU, where batches
        cost more than they save, and 8 elsewhere.
    amp: autocast around the model alone: "bf16", "fp16", False, or "auto" (bf16 where
        the hardware computes in it).
    channels_last: memory layout of the images; None follows the weights, so that a
        model gets the same arithmetic wherever it is used.
    align_corners: of the bilinear resizing of images and logits. The sources
        use True; False agrees with torch's and this project's networks.
    label_pairs: class ids that trade places in a mirror (LIP: left and right arm); a
        config without any takes those of its training data.

    Padding is 0 after normalisation, that is the mean colour. A scaled image
    has floor(H * scale) rows. Memory does not grow with the number of views:
    one map of the full size is summed into, view by view. Where a network ends in
    a resize, scales are summed on a CPU without making its large views at all.
    """

    # What the program gives; the other arguments are keys of the config's `predict` section.
    provided = ("model", "normalize", "activation", "channels_last")

    def __init__(self, model: nn.Module, normalize: Callable,
                 mode: Literal["whole", "sliding", "multiscale"] = "whole",
                 scales: tuple[float, ...] | None = None, flip: bool = False,
                 crop_size: int | tuple[int, int] | None = None, overlap: float = 1 / 3,
                 tiling: Literal["even", "source"] = "even",
                 average: Literal["logits", "probs"] = "logits",
                 activation: Literal["softmax", "sigmoid"] = "softmax",
                 window_batch: int | None = None,
                 amp: Literal["auto", "bf16", "fp16", False] = False,
                 channels_last: bool | None = None, align_corners: bool = False,
                 label_pairs: tuple[tuple[int, int], ...] = ()):
        _one_of("mode", mode, ("whole", "sliding", "multiscale"))
        _one_of("tiling", tiling, ("even", "source"))
        _one_of("average", average, ("logits", "probs"))
        _one_of("activation", activation, ("softmax", "sigmoid"))
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

        self.model, self.normalize = model, normalize
        self.mode, self.scales, self.flip = mode, scales, flip
        self.crop_size, self.overlap, self.tiling = crop and tuple(crop), overlap, tiling
        self.average, self.activation, self.window_batch = average, activation, window_batch
        self.amp, self.channels_last, self.align_corners = amp, channels_last, align_corners
        self.label_pairs = label_pairs
        self._short = LastResize(model)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return self._evaluating(image, self._predict)

    def labels(self, image: torch.Tensor, decision) -> torch.Tensor:
        """decision.labels(self(image)), (N, H, W), for less where the rule is "max".

        The class of the largest logit is found without a map of logits at the
        image's size where the network ends in a resize (utils.largest_class).
        """
        if decision.name == "max":
            return self._evaluating(image, self._largest)
        return decision.labels(self(image))

    def in_blocks(self, image: np.ndarray, device: torch.device | str,
                  on_block: Callable[[slice, slice, torch.Tensor], None],
                  most_bytes: int = BLOCK_BYTES):
        """The prediction of mode "sliding", block by block, for an image of any size.

        image: uint8 (H, W, 3), may be mapped from a file. most_bytes: of logits
            that are summed up at a time, though never less than two windows.
        on_block: is given (rows, columns, logits (1, C, rows, columns)); together
            the blocks are what the whole image gives, to the last bit where
            windows are not batched (window_batch). A window over the edge of two
            blocks is computed for both.
        """
        if self.mode != "sliding" or self.scales != (1.0,):
            raise ConfigError("blocks of an image are predicted by sliding windows at scale 1 only")

        def read(top, left):
            window = np.ascontiguousarray(image[top:top + tile[0], left:left + tile[1]])
            return torch.from_numpy(window).to(device).permute(2, 0, 1)[None]

        height, width = image.shape[:2]
        tile, rows, columns = self.windows(height, width)
        first = self._evaluating(read(0, 0), lambda x: self._forward(_filled(x, tile, False)))
        columns_at_a_time = max(2 * tile[1], most_bytes // (4 * first.shape[1] * tile[0]))
        for left in range(0, width, columns_at_a_time):
            part = slice(left, min(width, left + columns_at_a_time))
            touching = [c for c in columns if c < part.stop and c + tile[1] > left]
            self._block_column(read, part, touching, rows, columns, tile, (height, width), device,
                               on_block)

    def _block_column(self, read, part, touching, rows, columns, tile, size, device, on_block):
        """All blocks of the image columns `part`, from the top."""
        down = _cover(rows, tile[0], size[0], device)
        across = _cover(columns, tile[1], size[1], device)[part] * (2 if self.flip else 1)
        total = None
        for top, below in zip(rows, [*rows[1:], size[0]], strict=True):
            def add(_, top=top):
                nonlocal total
                for _, left, view in self._views_of_windows(
                        lambda *place: self.normalize(self._laid_out(read(*place))),
                        [(top, left) for left in touching], tile, 1, device):
                    if total is None:
                        shape = 1, view.shape[1], tile[0], part.stop - part.start
                        total = torch.zeros(shape, device=device)
                    if left < part.start:
                        view, left = view[..., part.start - left:], part.start
                    area = total[..., left - part.start:left - part.start + view.shape[3]]
                    area.add_(view[..., :area.shape[3]])
            self._evaluating(None, add)
            done = total[:, :, :below - top]
            on_block(slice(top, below), part,
                     self._as_logits(done / (down[top:below, None] * across)))
            # What is left belongs to the next row of windows too.
            total = torch.cat((total[:, :, below - top:], torch.zeros_like(done)), 2)

    def describe(self) -> dict:
        """How predictions are made, for reports: mode, scales, flip, average, windows."""
        settings = {"mode": self.mode, "scales": list(self.scales), "flip": self.flip,
                    "average": self.average, "amp": self.amp}
        if self.mode == "sliding":
            settings |= {"crop_size": list(self.crop_size) if self.crop_size else None,
                         "overlap": self.overlap, "tiling": self.tiling}
        return settings

    def windows(self, height: int, width: int) -> tuple[tuple[int, int], list[int], list[int]]:
        """The window size (h, w) for an image, and the first rows and columns of its windows."""
        source = self.tiling == "source"
        tile = self.crop_size or tuple(max(1, int(size // 2.5)) for size in (height, width))
        # A whole number of pixels must not round up to one more, though the source's does.
        slack = 0 if source else 1e-9
        stride = [max(1, math.ceil(size * (1 - self.overlap) - slack)) for size in tile]
        if source:
            stride[1] = min(stride[0], tile[1])
        starts = []
        for size, window, step in zip((height, width), tile, stride, strict=True):
            room = max(size - window, 0)
            first = [i * step for i in range(math.ceil(room / step) + 1)]
            starts.append(first if source else [min(start, room) for start in first])
        return tile, *starts

    def _evaluating(self, image, predict):
        """predict(normalised image or None), in eval mode and without gradients."""
        if self.channels_last is None:
            self.channels_last = _is_channels_last(self.model)
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.inference_mode():
                # While it is one byte per value; later calls of the kind change nothing.
                return predict(None if image is None
                               else self.normalize(self._laid_out(image)))
        finally:
            if training:
                self.model.train()

    def _predict(self, x):
        """Normalised images (N, 3, H, W) -> float32 (N, C, H, W)."""
        if self.scales == (1.0,) and self.mode == "sliding":
            return self._as_logits(self._slide(x))
        if self.scales == (1.0,) and not self.flip:
            return self._forward(x).float()
        total = self._sum_of_views(x)
        return self._as_logits(total.total() if isinstance(total, ViewSum) else total)

    def _largest(self, x):
        """Normalised images (N, 3, H, W) -> labels (N, H, W)."""
        if self.mode == "sliding" or self.average == "probs":
            return largest_class(self._predict(x))
        if self.scales == (1.0,) and not self.flip:
            result, size = self._forward(x, short=True), x.shape[-2:]
            if not isinstance(result, Small):
                return largest_class(result.float())
            if result.logits.dtype == torch.float32:
                return upsampled_labels(result.logits, size, result.align_corners)
            return largest_class(_resized(result, size).float())
        total = self._sum_of_views(x)
        if not isinstance(total, ViewSum):
            return largest_class(total)
        return torch.cat([largest_class(strip) for _, strip in total.strips()], 1)

    def _sum_of_views(self, x):
        """The mean over scales and mirrors of logits or probabilities: (N, C, H, W), or a ViewSum
        of it where every view is small."""
        sliding, size = self.mode == "sliding", x.shape[-2:]
        mirrors = (False, True) if self.flip and not sliding else (False,)
        weight, total = 1 / (len(self.scales) * len(mirrors)), None
        # Small views are multiplied by matrices, which a GPU may do in reduced precision.
        short = not sliding and self.average == "logits" and x.device.type == "cpu"
        # A view of the image's own size is what the others are summed into.
        for scale in sorted(self.scales, key=lambda scale: scale != 1):
            scaled = self._rescale(x, scale)
            for mirrored in mirrors:
                view = (self._slide(scaled) if sliding else
                        self._forward(scaled.flip(-1) if mirrored else scaled, short))
                if isinstance(view, Small) and (total is None or isinstance(total, ViewSum)):
                    total = total or ViewSum(size)
                    logits = self._unmirror(view.logits) if mirrored else view.logits
                    total.add(logits, weight, (scaled.shape[-2:], view.align_corners),
                              (size, self.align_corners))
                    continue
                if isinstance(view, Small):
                    view = _resized(view, scaled.shape[-2:])
                if isinstance(total, ViewSum):
                    total = total.total()
                total = self._add(total, view, weight, size, mirrored, activate=not sliding,
                                  keep=x)
                del view    # before the next forward: one view at a time
        return total

    def _rescale(self, x, scale):
        if scale == 1:
            return x
        return self._resize(x, [max(1, int(length * scale)) for length in x.shape[-2:]])

    def _resize(self, x, size):
        """Bilinear, to float32. OpenCV does on a CPU in a third of torch's time what it can do."""
        if tuple(x.shape[-2:]) == tuple(size):
            return x.float()
        if x.device.type != "cpu" or self.align_corners:
            return F.interpolate(x.float(), size, mode="bilinear",
                                 align_corners=self.align_corners)
        import cv2
        out = x.new_empty((*x.shape[:2], *size), dtype=torch.float32)
        for target, planes in zip(out.numpy(), x, strict=True):
            for c, plane in enumerate(planes):
                cv2.resize(plane.float().contiguous().numpy(), (size[1], size[0]), dst=target[c],
                           interpolation=cv2.INTER_LINEAR)
        return out

    def _slide(self, x):
        """Mean over the windows that cover each pixel: logits, or probabilities."""
        n, _, height, width = x.shape
        tile, rows, columns = self.windows(height, width)
        def read(top, left):
            return x[:, :, top:top + tile[0], left:left + tile[1]]

        total, places = None, [(top, left) for top in rows for left in columns]
        for top, left, view in self._views_of_windows(read, places, tile, n, x.device):
            if total is None:
                total = _empty(view, (n, view.shape[1], height, width)).zero_()
            area = total[:, :, top:top + tile[0], left:left + tile[1]]
            area.add_(view[:, :, :area.shape[2], :area.shape[3]])
        down = _cover(rows, tile[0], height, x.device)
        across = _cover(columns, tile[1], width, x.device)
        return total.div_(down[:, None] * across * (2 if self.flip else 1))

    def _views_of_windows(self, read, places, tile, n, device):
        """(top, left, logits or probabilities (n, C, *tile)) of each window, and of its mirror.

        read: (top, left) -> the normalised part of the images that lies in the window.
        """
        jobs = [(*place, mirrored) for place in places
                for mirrored in ((False, True) if self.flip else (False,))]
        batch = self.window_batch or (1 if torch.device(device).type == "cpu" else 8)
        batch = max(1, batch // n)
        for first in range(0, len(jobs), batch):
            group = jobs[first:first + batch]
            crops = [_filled(read(top, left), tile, mirrored) for top, left, mirrored in group]
            views = self._forward(torch.cat(crops) if len(crops) > 1 else crops[0])
            for (top, left, mirrored), view in zip(group, views.split(n), strict=True):
                view = self._unmirror(view) if mirrored else view
                yield top, left, (self._probs(view.float()) if self.average == "probs" else view)

    def _unmirror(self, view):
        view = view.flip(-1)
        if self.label_pairs:
            view = view[:, self._mirrored_classes(view.shape[1])]
        return view

    def _mirrored_classes(self, classes):
        order = list(range(classes))
        for a, b in self.label_pairs:
            order[a], order[b] = b, a
        return order

    def _forward(self, x, short=False):
        """What the network returns; with `short`, Small logits where it ends in a resize."""
        x = self._laid_out(x)
        # A CPU computes half precision slowly but correctly; only training in it is refused.
        dtype = torch.float16 if self.amp == "fp16" else autocast_dtype(self.amp, x.device)
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            return self._short(x) if short else self.model(x)

    def _laid_out(self, x):
        return x.contiguous(memory_format=torch.channels_last if self.channels_last
                            else torch.contiguous_format)

    def _add(self, total, view, weight, size, mirrored, activate, keep):
        """total + weight * view resized to `size`, piece by piece so that no second map exists.

        total: (N, C, H, W) written over and returned, or None for the first view.
        mirrored: the view is one of the mirror image. keep: a tensor never written to.
        """
        probs = activate and self.average == "probs"
        if total is None and not probs and not mirrored and _may_be_written(view, size, keep):
            return view.mul_(weight)
        first = total is None
        if first:
            total = _empty(view, (*view.shape[:2], *size))
        n, classes, height, width = total.shape
        pixels = CHUNK_BYTES.get(total.device.type, CHUNK_BYTES["cuda"]) // (4 * n)
        if not probs and view.is_contiguous():
            step = max(1, pixels // (height * width))
            order = self._mirrored_classes(classes)
            for c in range(0, classes, step):
                piece = view[:, c:c + step]
                if mirrored:
                    piece = (view[:, order[c:c + step]] if self.label_pairs else piece).flip(-1)
                _accumulate(total[:, c:c + step], self._resize(piece, (height, width)), weight,
                            first)
            return total
        # A softmax needs all classes of a pixel, and channels-last memory has them side by side.
        step = max(1, pixels // (classes * width))
        for top in range(0, height, step):
            rows = range(top, min(top + step, height))
            piece = resize_rows(view, (height, width), rows, self.align_corners)
            piece = self._unmirror(piece) if mirrored else piece
            _accumulate(total[:, :, rows.start:rows.stop], self._probs(piece) if probs else piece,
                        weight, first)
        return total

    def _probs(self, logits):
        return logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()

    def _as_logits(self, mean):
        """Probabilities back to what the activation would turn into them, in place."""
        if self.average == "logits":
            return mean
        tiny = torch.finfo(mean.dtype).tiny
        if self.activation == "softmax":
            return mean.clamp_(min=tiny).log_()
        return mean.logit_(eps=torch.finfo(mean.dtype).eps)


def resize_rows(x: torch.Tensor, size: tuple[int, int], rows: range,
                align_corners: bool = False) -> torch.Tensor:
    """Some rows of a bilinear resize, without making the others.

    x: (N, C, h, w); size: (H, W) of the whole result
    returns: float32 (N, C, len(rows), W), rows.start to rows.stop of
        F.interpolate(x.float(), size, mode="bilinear").
    """
    height, width = size
    if x.shape[-2:] == (height, width):
        return x[:, :, rows.start:rows.stop].float()
    h = x.shape[-2]
    at = torch.arange(rows.start, rows.stop, dtype=torch.float32, device=x.device)
    if align_corners:
        at = at * ((h - 1) / max(height - 1, 1))
    else:
        at = ((at + 0.5) * (h / height) - 0.5).clamp_(min=0)
    above = at.long().clamp_(max=h - 1)
    below = (above + 1).clamp_(max=h - 1)
    share = (at - above).unsqueeze(1)
    mixed = torch.lerp(x[:, :, above].float(), x[:, :, below].float(), share)
    return F.interpolate(mixed, (len(rows), width), mode="bilinear", align_corners=align_corners)


def _resized(small, size):
    """What the network would have returned."""
    return F.interpolate(small.logits, size, mode="bilinear", align_corners=small.align_corners)


def _may_be_written(view, size, keep):
    """Whether a network's result is a map of its own, made in this very prediction."""
    return (view.shape[-2:] == size and view.dtype == torch.float32 and view.is_inference()
            and view.is_contiguous() and view.data_ptr() != keep.data_ptr())


def _filled(crop, tile, mirrored):
    """A window of exactly the tile's size, zeros (the mean colour) beyond the image."""
    missing = tile[0] - crop.shape[2], tile[1] - crop.shape[3]
    if any(missing):
        crop = F.pad(crop, (0, missing[1], 0, missing[0]))
    return crop.flip(-1) if mirrored else crop


def _cover(starts, window, size, device):
    """How many windows cover each position of one axis, float32 (size,)."""
    count = torch.zeros(size, device=device)
    for start in starts:
        count[start:start + window] += 1
    return count


def _is_channels_last(model):
    kernels = (p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous())
    return any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def _accumulate(area, piece, weight, first):
    if first:
        torch.mul(piece, weight, out=area)
    else:
        area.add_(piece, alpha=weight)


def _empty(like, shape):
    layout = (torch.contiguous_format if like.is_contiguous()
              else torch.channels_last if like.is_contiguous(memory_format=torch.channels_last)
              else torch.contiguous_format)
    return torch.empty(shape, dtype=torch.float32, device=like.device, memory_format=layout)


def _one_of(name, value, choices):
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}; found {value!r}",
                          f"predict.{name}")
