"""Bilinear resizing of images and logits, in pieces where a whole result would take memory."""
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from utils.images.base_size import WholeView
from utils.images.input_size import InputView
from utils.machine.tensors import ImageBatch, LabelBatch, Logits
from utils.predict.largest_class import upsampled_labels
from utils.predict.windows import empty_map

# Bytes of resized logits that exist at a time; on a CPU they should stay in its cache.
CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}


def resize(x: torch.Tensor, size: tuple[int, int], align_corners: bool = False) -> torch.Tensor:
    """(N, C, h, w), any float, to float32 (N, C, *size); x itself if it has this size already.

    On a CPU by OpenCV, which takes a third of torch's time but has no align_corners=True.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x.float()
    if x.device.type != "cpu" or align_corners:
        return F.interpolate(x.float(), size, mode="bilinear", align_corners=align_corners)
    import cv2
    out = x.new_empty((*x.shape[:2], *size), dtype=torch.float32)
    for target, planes in zip(out.numpy(), x, strict=True):
        for c, plane in enumerate(planes):
            cv2.resize(plane.float().contiguous().numpy(), (size[1], size[0]), dst=target[c],
                       interpolation=cv2.INTER_LINEAR)
    return out


def resize_rows(x: torch.Tensor, size: tuple[int, int], rows: range,
                align_corners: bool = False) -> torch.Tensor:
    """Some rows of a bilinear resize, without computing the others.

    x: (N, C, h, w), any float; size: (H, W) of the whole result
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


def at_base_size(images: ImageBatch, view: WholeView | InputView) -> ImageBatch:
    """The view of uint8 images (N, 3, H, W) on any device: uint8 (N, 3, h, w) on the CPU.

    A WholeView resizes as a dataset does: a network sees the pixels of validation.
    """
    pixels = images.cpu().permute(0, 2, 3, 1).numpy()
    return torch.stack([torch.from_numpy(view.cut(image)) for image in pixels]).permute(0, 3, 1, 2)


def at_own_size(logits: Logits, view: WholeView, size: tuple[int, int]) -> Logits:
    """Logits (N, C, *view.size) of a view at the size (H, W) of its images, float32."""
    part = F.interpolate(logits.float(), (view.rows.length, view.columns.length), mode="bilinear",
                         align_corners=False)
    return _with_edges(part, view, size)


def labels_at_own_size(logits: Logits, view: WholeView, size: tuple[int, int]) -> LabelBatch:
    """largest_class(at_own_size(...)), exactly, (N, H, W); cheaper where the view is smaller."""
    labels = upsampled_labels(logits.float().contiguous(),
                              (view.rows.length, view.columns.length))
    return _with_edges(labels, view, size)


def strips_at_own_size(logits: Logits, view: WholeView, size: tuple[int, int],
                       most_bytes: int) -> Iterator[tuple[slice, Logits]]:
    """at_own_size(...) up to rounding, a few rows at a time: (rows, float32 (N, C, rows, W)).

    most_bytes: the most memory for the logits of a strip; a strip has at least one row.
    """
    height, width = size
    part = view.rows.length, view.columns.length
    step = max(1, most_bytes // (4 * logits.shape[0] * logits.shape[1] * width))
    down, across = view.rows.inside(height), torch.from_numpy(view.columns.inside(width))
    for top in range(0, height, step):
        places = down[top:top + step]
        strip = resize_rows(logits, part, range(places[0], places[-1] + 1))
        rows = torch.from_numpy(places - places[0]).to(logits.device)
        yield slice(top, top + len(places)), strip[:, :, rows][..., across.to(logits.device)]


def _with_edges(part, view, size):
    """(..., h, w) of the pixels that a view shows, with its edges repeated to `size` (H, W)."""
    if tuple(part.shape[-2:]) == tuple(size):
        return part
    rows, columns = (torch.from_numpy(span.inside(length)).to(part.device)
                     for span, length in zip(view, size, strict=True))
    return part.index_select(-2, rows).index_select(-1, columns)


def unmirrored(view: Logits, classes: list[int]) -> Logits:
    """The prediction (N, C, h, w) of a mirror image, mirrored back.

    classes: for each class the one that takes its place in a mirror image.
    """
    view = view.flip(-1)
    return view if classes == sorted(classes) else view[:, classes]


def add_resized(total: Logits | None, view: Logits, weight: float, size: tuple[int, int],
                align_corners: bool = False, mirror: list[int] | None = None,
                probs: Callable[[Logits], torch.Tensor] | None = None) -> Logits:
    """total + weight * view, resized to `size` in pieces, so that no second map exists.

    total: float32 (N, C, *size), changed in place and returned; None for the first view.
    view: (N, C, h, w). mirror: for the view of a mirror image, `classes` of `unmirrored`.
    probs: turns resized logits into the probabilities that are summed.
    """
    first = total is None
    if total is None:
        total = empty_map(view, (*view.shape[:2], *size))
    n, classes, height, width = total.shape
    pixels = CHUNK_BYTES.get(total.device.type, CHUNK_BYTES["cuda"]) // (4 * n)
    if probs is None and view.is_contiguous():
        step = max(1, pixels // (height * width))
        for c in range(0, classes, step):
            piece = _some_classes(view, c, c + step, mirror)
            _accumulate(total[:, c:c + step], resize(piece, size, align_corners), weight, first)
        return total
    # Strips of rows: a softmax needs all classes of a pixel, and channels-last memory keeps them
    # together.
    step = max(1, pixels // (classes * width))
    for top in range(0, height, step):
        rows = range(top, min(top + step, height))
        piece = resize_rows(view, size, rows, align_corners)
        piece = piece if mirror is None else unmirrored(piece, mirror)
        _accumulate(total[:, :, rows.start:rows.stop], piece if probs is None else probs(piece),
                    weight, first)
    return total


def _some_classes(view, start, stop, mirror):
    if mirror is None:
        return view[:, start:stop]
    if mirror == sorted(mirror):
        return view[:, start:stop].flip(-1)
    return view[:, mirror[start:stop]].flip(-1)


def _accumulate(area, piece, weight, first):
    if first:
        torch.mul(piece, weight, out=area)
    else:
        area.add_(piece, alpha=weight)
