"""Resizes the position table of a vision transformer to the grid of an image.

The table is interpolated bicubically along each axis, as a product with a matrix of weights. That
is what torch's `interpolate` computes, but a product also has a deterministic gradient on a GPU,
and it can be exported for any size of the image. Two rules are in use:

DINOv2                  scale factor (n + 0.1) / length, without antialiasing. Where the result
                        has n rows, their places still follow from this factor, not from n / length.
                        A grid of the size of the table is left alone.
DINOv2 with registers   to the size n, with antialiasing; timm treats every model so
"""
import torch

from utils.machine.precision import full_precision, no_autocast


def resize_positions(table: torch.Tensor, grid: tuple[int, int], offset: float,
                     antialias: bool) -> torch.Tensor:
    """Positions float (1, length², D) of a square -> (1, h w, D) for the grid (h, w).

    offset: is added to h and w in the scale factors. The computation has at least float32.
    """
    length = round(table.shape[1] ** 0.5)
    if not torch.compiler.is_exporting() and tuple(grid) == (length, length):
        return table
    height, width = grid
    with no_autocast(table):
        square = full_precision(table).view(length, -1)                     # (length, length D)
        if torch.compiler.is_exporting():       # the graph is for any size, also for this one
            other = torch.ones((), device=table.device) * height != length
            other = other | (torch.ones((), device=table.device) * width != length)
            offset = other * offset
        rows, columns = (_weights(n, length, length / (n + offset), antialias, square)
                         for n in grid)
        half = (rows @ square).view(height, length, -1)
        return (columns @ half).view(1, height * width, -1).to(table.dtype)


def resize_patches(kernel: torch.Tensor, side: int) -> torch.Tensor:
    """A patch convolution (D, 3, p, p) for patches of `side` pixels: (D, 3, side, side).

    If a patch is resized to `side` (bicubic, with antialiasing), the new kernel gives the token
    that the old one gave, as nearly as least squares can. A larger patch has exactly the same.
    """
    old = kernel.shape[-1]
    exact = kernel.double()
    values = torch.zeros((), dtype=exact.dtype, device=exact.device)
    resize = torch.linalg.pinv(_weights(side, old, old / side, True, values).T)
    return (resize @ exact @ resize.T).to(kernel.dtype)


def _weights(n: int, length: int, step: float | torch.Tensor, antialias: bool,
             like: torch.Tensor) -> torch.Tensor:
    """The weight of each of `length` values in each of n interpolated ones: (n, length).

    step: the distance of two interpolated values, in steps of the table.
    """
    place = (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5).unsqueeze(1) * step - 0.5
    values = torch.arange(length, device=like.device, dtype=like.dtype)
    if antialias:       # the kernel is as wide as the step; the edge cuts it, so it is normalized
        wide = step.clamp(min=1) if isinstance(step, torch.Tensor) else max(step, 1.0)
        weights = _cubic((values - place).abs() / wide, -0.5)
        return weights / weights.sum(1, keepdim=True)
    first = place.floor()
    weights = torch.zeros_like(values - place)
    for tap in (-1, 0, 1, 2):                               # values outside repeat the edge
        inside = (first + tap).clamp(0, length - 1)
        weights = weights + (values == inside) * _cubic((first + tap - place).abs(), -0.75)
    return weights


def _cubic(distance: torch.Tensor, a: float) -> torch.Tensor:
    """The cubic convolution kernel with slope `a` at 1. Keys, 1981."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
