"""Made-up images of several bands with labels: a bright field in the last band is class 1."""
import json
from pathlib import Path

import numpy as np

from tests.support.tiff import tiff

KINDS = {"u": 1, "i": 2, "f": 3}


def band_image(bands: int = 4, dtype: str = "uint16", size: tuple[int, int] = (40, 48),
               seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(values (H, W, bands) of the type, label uint8 (H, W)): only the last band shows class 1."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(4, 16, 2)
    label = np.zeros(size, np.uint8)
    label[top:top + 18, left:left + 20] = 1
    scale = {"uint8": 255, "uint16": 60000}.get(dtype, 1.0)
    values = rng.uniform(0.1, 0.4, (*size, bands)) * scale
    values[..., -1] += 0.5 * scale * label
    return values.astype(dtype), label


def write_band_data(folder: Path, count: int = 6, bands: int = 4, dtype: str = "uint16",
                    **args) -> dict:
    """Write `count` TIFF images and labels; returns the arguments of a Folder that reads them."""
    from utils.images.image_io import write_label
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        values, label = band_image(bands, dtype, seed=number)
        (folder / "images" / f"p{number}.tif").write_bytes(
            tiff(values, kind=KINDS[np.dtype(dtype).kind]))
        write_label(folder / "labels" / f"p{number}.png", label, [[0, 0, 0], [255, 0, 0]])
    every = np.stack([band_image(bands, dtype, seed=number)[0] for number in range(count)])
    return {"data_dir": str(folder), "class_names": ["ground", "field"], "bands": bands,
            "mean": every.mean((0, 1, 2), dtype=np.float64).tolist(),
            "std": every.std((0, 1, 2), dtype=np.float64).tolist(), **args}


def band_config(folder: Path, arch: dict | None = None, iterations: int = 4, **data) -> Path:
    """A config that trains on `write_band_data` on the CPU; returns its path."""
    args = write_band_data(folder / "data", **data)
    config = {
        "name": "bands", "arch": arch or {"type": "ENet"},
        "train_loader": {"type": "Folder", "args": {
            **args, "batch_size": 2, "shuffle": True, "num_workers": 0, "augment": True,
            "crop_size": [32, 32], "flip": True, "rotate": True,
            "transforms": ["BandJitter", "GaussianBlur", "Cutout"],
            "batch_transforms": ["CutMix"]}},
        "val_loader": {"type": "Folder", "args": {**args, "batch_size": 1, "num_workers": 0}},
        "optimizer": {"type": "AdamW", "args": {"lr": 5e-3}}, "loss": "CrossEntropyLoss2d",
        "trainer": {"iterations": iterations, "save_dir": str(folder / "saved"),
                    "log_per_iter": 2}}
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path
