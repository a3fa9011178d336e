"""Segmentation scores, streaming and exact over batches, devices and processes.

Two conventions that are never mixed: `DatasetMetrics` (one confusion matrix for
all images) and `ImageMetrics` (every image scored on its own). Where both are
wanted, `count_pixels` counts a batch once and `add` gives the counts to each.
`BoundaryMetrics` scores outlines.
"""
from utils.metrics.boundary_metrics import BoundaryMetrics
from utils.metrics.counts import PixelCounts, count_pixels
from utils.metrics.dataset_metrics import DatasetMetrics
from utils.metrics.image_metrics import ImageMetrics

__all__ = ["BoundaryMetrics", "DatasetMetrics", "ImageMetrics", "PixelCounts", "count_pixels"]
