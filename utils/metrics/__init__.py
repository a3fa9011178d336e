"""Segmentation scores, streaming and exact over batches, devices and processes.

There are two conventions, which are never mixed: `DatasetMetrics` (one confusion matrix for all
images) and `ImageMetrics` (each image is scored separately). To compute both, count a batch once
with `count_pixels` and pass the counts to `add` of each. `BoundaryMetrics` scores outlines.
"""
from utils.metrics.boundary_metrics import BoundaryMetrics
from utils.metrics.counts import PixelCounts, count_pixels
from utils.metrics.dataset_metrics import DatasetMetrics
from utils.metrics.image_metrics import ImageMetrics
from utils.metrics.scores import Scores

__all__ = ["BoundaryMetrics", "DatasetMetrics", "ImageMetrics", "PixelCounts", "Scores",
           "count_pixels"]
