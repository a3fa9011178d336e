"""Exports of annotation tools, written from one set of scenes.

Each writer takes a folder and the scenes, and returns what is given to --labels. The images are
written by `write_images`.
"""
import base64
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np

from dataloader.shapes import Shapes
from utils.annotations.annotation_set import Cutout, Region
from utils.annotations.rasterize import draw, region_masks
from utils.images.image_io import write_image
from utils.images.run_lengths import compressed_runs, run_lengths

NAMES = ["cat", "dog", "tree"]
COLORS = [[200, 30, 40], [20, 160, 60], [10, 70, 220]]


class Scene(NamedTuple):
    """name: of the image, without extension. outlines: (class, points (K, 2)) in painting order."""

    name: str
    size: tuple[int, int]
    outlines: list[tuple[int, np.ndarray]]


def scenes(count=4, size=(40, 64), seed=3):
    """Scenes of three to six triangles and quadrilaterals that overlap.

    Coordinates are odd sixteenths of pixels, which no format rounds to another pixel.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        height, width = size[0] + 4 * (number % 2), size[1]
        outlines = []
        for place in range(int(rng.integers(3, 7))):
            angles = np.sort(rng.uniform(0, 2 * np.pi, 3 + place % 2))
            center = rng.uniform(0.2, 0.8, 2) * (width, height)
            points = center + np.stack((np.cos(angles), np.sin(angles)), 1) * rng.uniform(6, 18)
            points = np.clip(points, 0, (width - 0.1, height - 0.1))
            outlines.append(((number + place) % len(NAMES), (np.floor(points * 8) * 2 + 1) / 16))
        found.append(Scene(f"im_{number}", (height, width), outlines))
    return found


def truth(scene, overlap="order"):
    """The label map of a scene: 0, or 1 + the class."""
    regions = [Region(number, [points], None, "") for number, points in scene.outlines]
    return draw(regions, range(1, len(NAMES) + 1), scene.size, 0, overlap)


def class_maps(scene):
    """{class: bool (H, W)}: all pixels of its outlines, also those below others."""
    masks = region_masks([Region(number, [points], None, "") for number, points in scene.outlines],
                         scene.size)
    found = {}
    for (number, _), mask in zip(scene.outlines, masks, strict=True):
        found[number] = found.get(number, False) | mask
    return found


def truth_of_masks(scene):
    """The label map if the smallest of the masks of the classes lies on top."""
    regions = [Region(number, [], Cutout(mask), "")
               for number, mask in sorted(class_maps(scene).items())]
    return draw(regions, range(1, len(NAMES) + 1), scene.size, 0, "area")


def write_images(folder, some):
    """A photo for each scene, folder/NAME.jpg, in which each class has its color."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(some):
        picture, _ = Shapes(size=scene.size, length=len(some)).load(number)
        label = truth(scene)
        for index, color in enumerate(COLORS, 1):
            picture[label == index] = color
        write_image(folder / f"{scene.name}.jpg", picture)
    return folder


def zipped(folder, path, top=""):
    """The files of a folder as a zip, below the folder `top`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, top + file.relative_to(folder).as_posix())
    return path


def put(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def png_bytes(values):
    """A PNG of gray values, RGB or RGBA."""
    order = {2: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[
        values.ndim if values.ndim == 2 else values.shape[2]]
    done, data = cv2.imencode(".png", values if order is None else cv2.cvtColor(values, order))
    assert done
    return data.tobytes()


def text_of(points, pair=",", between=";"):
    return between.join(pair.join(f"{value:.15g}" for value in point) for point in points)


def cvat_text(images, more=""):
    """annotations.xml. images: (name with extension, size, text of its shapes)."""
    labels = "".join(
        f"<label><name>{name}</name><color>#{bytes(color).hex()}</color><type>any</type>"
        "<attributes><attribute><name>pose</name></attribute></attributes></label>\n"
        for name, color in zip(NAMES, COLORS, strict=True))
    body = "".join(f'<image id="{number}" name={quoteattr(name)} width="{width}" '
                   f'height="{height}">\n{shapes}</image>\n'
                   for number, (name, (height, width), shapes) in enumerate(images))
    return ('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><name>t</name><labels>\n{labels}</labels></task></meta>\n{body}{more}"
            "</annotations>\n")


def cvat(folder, some):
    """The XML, whose shapes are written in the wrong order with their z_order."""
    return put(folder / "annotations.xml", cvat_text([
        (f"{scene.name}.jpg", scene.size, "".join(reversed([
            f'<polygon label="{NAMES[number]}" source="manual" occluded="1" '
            f'points="{text_of(points)}" z_order="{order}"></polygon>\n'
            for order, (number, points) in enumerate(scene.outlines)])))
        for scene in some]))


def cvat_zip(folder, some):
    cvat(folder / "unpacked", some)
    write_images(folder / "unpacked" / "images", some)
    return zipped(folder / "unpacked", folder / "task.zip")


def cvat_masks(folder, some):
    colors = np.array([[0, 0, 0], *COLORS], np.uint8)
    put(folder / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\n" + "".join(
        f"{name}:{','.join(map(str, color))}::\n" for name, color in
        zip(NAMES, COLORS, strict=True)))
    put(folder / "ImageSets" / "Segmentation" / "default.txt",
        "".join(f"{scene.name}\n" for scene in some))
    for scene in some:
        put(folder / "SegmentationClass" / f"{scene.name}.png", png_bytes(colors[truth(scene)]))
        put(folder / "SegmentationObject" / f"{scene.name}.png", png_bytes(colors[truth(scene)]))
    return folder


def cvat_masks_zip(folder, some):
    return zipped(cvat_masks(folder / "unpacked", some), folder / "masks.zip")


def packed(values):
    """The bytes of @thi.ng/rle-pack for uint8 values, in blocks of all kinds."""
    values = np.asarray(values, np.uint8)
    sizes = (3, 4, 8, 16)
    bits = [format(len(values), "032b"), format(7, "05b"),
            *(format(size - 1, "04b") for size in sizes)]
    at = 0
    borders = np.append(np.flatnonzero(np.diff(values)) + 1, len(values))
    while at < len(values):
        end = int(borders[np.searchsorted(borders, at, side="right")])
        if end - at > 1:
            count = min(end - at, 1 << 16)
            repeated, words = 1, values[at:at + 1]
        else:           # single values up to the next repetition
            ahead = borders[np.searchsorted(borders, at, side="right"):]
            runs = np.flatnonzero(np.diff(ahead) > 1)
            last = int(ahead[runs[0]]) if len(runs) else len(values)
            count = min(last - at, 1 << 16)
            repeated, words = 0, values[at:at + count]
        kind = next(i for i, size in enumerate(sizes) if count <= 1 << size)
        bits += [str(repeated), format(kind, "02b"), format(count - 1, f"0{sizes[kind]}b"),
                 *(format(word, "08b") for word in words.tolist())]
        at += count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def brush_value(mask, alpha=255):
    """The value of a brush mask: an RGBA picture whose alpha is the mask."""
    picture = np.zeros((*mask.shape, 4), np.uint8)
    picture[mask] = (12, 200, 7, alpha)
    return {"format": "rle", "rle": packed(picture.ravel())}


def label_studio_result(size, value, label="cat", **more):
    kinds = {"rle": "brushlabels", "points": "polygonlabels", "radiusX": "ellipselabels"}
    kind = next((kinds[key] for key in kinds if key in value), "rectanglelabels")
    return {"original_width": size[1], "original_height": size[0], "image_rotation": 0,
            "value": {**value, kind: [label]}, "id": "a1", "from_name": "label",
            "to_name": "image", "type": kind, "origin": "manual", **more}


def label_studio(folder, some):
    """Outlines and brush masks in turn; uploaded names."""
    tasks = []
    for number, scene in enumerate(some):
        masks = region_masks([Region(0, [points], None, "") for _, points in scene.outlines],
                             scene.size)
        results = [label_studio_result(
            scene.size, brush_value(mask) if place % 2 else
            {"points": (points * 100 / (scene.size[1], scene.size[0])).tolist(), "closed": True},
            NAMES[label]) for place, ((label, points), mask) in
            enumerate(zip(scene.outlines, masks, strict=True))]
        tasks.append({"id": number, "data": {"image": f"/data/upload/1/6a4f1e2b-{scene.name}.jpg"},
                      "annotations": [{"id": 7, "was_cancelled": False, "result": results,
                                       "updated_at": "2026-01-01T00:00:00Z"}], "predictions": []})
    return put(folder / "project.json", json.dumps(tasks))


def label_studio_folder(folder, some):
    """A file for each task, some as annotations that contain their task."""
    tasks = json.loads(label_studio(folder, some).read_text())
    (folder / "project.json").unlink()
    for number, task in enumerate(tasks):
        if number % 2:
            annotation, = task.pop("annotations")
            task = {**annotation, "task": task}
        put(folder / f"{number}.json", json.dumps(task))
    return folder


def yolo(folder, some):
    put(folder / "data.yaml", "path: .\ntrain: images/train\nnames:\n" + "".join(
        f"  {number}: {name}\n" for number, name in enumerate(NAMES)))
    for scene in some:
        put(folder / "labels" / "train" / f"{scene.name}.txt", "".join(
            f"{number} {text_of(points / (scene.size[1], scene.size[0]), ' ', ' ')}\n"
            for number, points in scene.outlines))
    return folder


def supervisely_bitmap(mask):
    """The bitmap of a mask: a palette PNG of one bit with a transparent 0."""
    from PIL import Image
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    part = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    picture = Image.fromarray(part.astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=0, bits=1)
    return {"data": base64.b64encode(zlib.compress(file.getvalue())).decode(),
            "origin": [int(columns[0]), int(rows[0])]}


def supervisely_object(label="cat", **geometry):
    kind = "bitmap" if "bitmap" in geometry else "polygon"
    return {"id": 1, "classId": 5, "geometryType": kind, "classTitle": label, "tags": [],
            "labelerLogin": "a", **geometry}


def supervisely(folder, some):
    """Outlines and bitmaps in turn."""
    put(folder / "meta.json", json.dumps({"classes": [
        {"title": name, "shape": "any", "color": f"#{bytes(color).hex().upper()}", "id": number}
        for number, (name, color) in enumerate(zip(NAMES, COLORS, strict=True))], "tags": []}))
    for scene in some:
        masks = region_masks([Region(0, [points], None, "") for _, points in scene.outlines],
                             scene.size)
        objects = [supervisely_object(NAMES[label], bitmap=supervisely_bitmap(mask))
                   if place % 2 and mask.any() else
                   supervisely_object(NAMES[label],
                                      points={"exterior": points.tolist(), "interior": []})
                   for place, ((label, points), mask) in
                   enumerate(zip(scene.outlines, masks, strict=True))]
        put(folder / "ds0" / "ann" / f"{scene.name}.jpg.json", json.dumps({
            "description": "", "tags": [], "objects": objects,
            "size": {"height": scene.size[0], "width": scene.size[1]}}))
    return folder


def coco(folder, some):
    """Outlines, run lengths as text and as numbers in turn; category ids with gaps."""
    annotations = []
    for number, scene in enumerate(some):
        masks = region_masks([Region(0, [points], None, "") for _, points in scene.outlines],
                             scene.size)
        for place, ((label, points), mask) in enumerate(zip(scene.outlines, masks, strict=True)):
            counts = compressed_runs(mask) if place % 3 == 1 else run_lengths(mask).tolist()
            annotations.append({
                "id": len(annotations) + 1, "image_id": 100 + 7 * number, "iscrowd": place % 3 // 2,
                "category_id": 3 + 5 * label, "segmentation": [points.ravel().tolist()]
                if place % 3 == 0 else {"size": list(scene.size), "counts": counts}})
    put(folder / "instances.json", coco_text(
        annotations, [{"id": 100 + 7 * number, "file_name": f"{scene.name}.jpg",
                       "height": scene.size[0], "width": scene.size[1]}
                      for number, scene in enumerate(some)]))
    return folder / "instances.json"


def coco_text(annotations, images=({"id": 1, "file_name": "a.jpg", "height": 20, "width": 30},),
              categories=None):
    return json.dumps({"info": {}, "images": list(images), "annotations": list(annotations),
                       "categories": categories or [{"id": 3 + 5 * number, "name": name}
                                                    for number, name in enumerate(NAMES)]})


def labelme_text(shapes, image="a.jpg", size=(20, 30), **more):
    return json.dumps({"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image,
                       "imageData": None, "imageHeight": size[0], "imageWidth": size[1], **more})


def labelme_mask(mask, label="cat", left=0, top=0):
    height, width = mask.shape
    return {"label": label, "shape_type": "mask", "points": [
        [left, top], [left + width - 1, top + height - 1]],
        "mask": base64.b64encode(png_bytes(np.uint8(mask))).decode()}


def labelme(folder, some):
    """Outlines and masks in turn."""
    for scene in some:
        masks = region_masks([Region(0, [points], None, "") for _, points in scene.outlines],
                             scene.size)
        shapes = [labelme_mask(mask, NAMES[label]) if place % 2 else
                  {"label": NAMES[label], "shape_type": "polygon", "points": points.tolist()}
                  for place, ((label, points), mask) in
                  enumerate(zip(scene.outlines, masks, strict=True))]
        put(folder / f"{scene.name}.json", labelme_text(
            shapes, f"..\\images\\{scene.name}.jpg", scene.size, imageData="QUJD" * 99))
    return folder


def class_masks(folder, some):
    for scene in some:
        for number, mask in class_maps(scene).items():
            put(folder / "masks" / f"{scene.name}_{NAMES[number]}.png",
                png_bytes(np.uint8(mask) * 255))
    return folder / "masks" / "{stem}_{class}.png"


WRITERS = {"coco": coco, "labelme": labelme, "cvat": cvat, "cvat.zip": cvat_zip,
           "cvat_masks": cvat_masks, "cvat_masks.zip": cvat_masks_zip,
           "label_studio": label_studio, "label_studio.folder": label_studio_folder, "yolo": yolo,
           "supervisely": supervisely, "class_masks": class_masks}
