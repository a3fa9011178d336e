"""Shapes: street scenes drawn when they are read; nothing to download.

A camera drives along a street: boxes, ellipses and bars in true perspective,
painted from far to near, so that near objects hide far ones. The scenes are
difficult in the same ways as real streets: poles are one pixel wide and people
a few pixels high, road and pavement have almost the same gray and cars the
colors of houses, with haze, shade, blur and noise, and very unequal class
sizes. The hood of the camera's car has no label.
"""
import math
import random
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from base.base_dataset import BaseDataset, Sample
from utils.errors import ConfigError
from utils.images.headers import max_pixels
from utils.images.types import Image, Labels

ROAD, PAVEMENT, BUILDING, POLE, SIGN, TREE, SKY, PERSON, CAR = range(9)
VOID = 255
MAX_LENGTH = 10 ** 7
DEFAULT_LENGTH = {"train": 400, "val": 100, "test": 100}


class Shapes(BaseDataset):
    """Synthetic street scenes, 9 classes; deterministic by (seed, split, index).

    size: [height, width] of the images. length: number of images in the split
    (null: 400 for train, 100 for val and test). data_dir is not used.
    """

    num_classes = 9
    class_names = ["road", "pavement", "building", "pole", "sign", "tree", "sky", "person", "car"]
    # Colors near those of the things, which color-blind people can tell apart: any two differ by
    # 15 or more (CIEDE2000) under each kind of color blindness (tests/images/test_palette.py).
    palette = [[155, 100, 165], [230, 160, 160], [90, 80, 80], [250, 235, 235], [205, 230, 0],
               [0, 145, 85], [100, 190, 240], [230, 45, 25], [15, 60, 160]]
    # Mean and standard deviation of the train split.
    mean = [0.4508, 0.4584, 0.4557]
    std = [0.1921, 0.1893, 0.2087]
    splits = ("train", "val", "test")

    def __init__(self, data_dir: str = "", split: str = "train", size: tuple[int, int] = (128, 192),
                 length: int | None = None, ignore_index: int = 255, seed: int = 0,
                 augmentation: Callable | None = None):
        self.height, self.width = size
        self.length = DEFAULT_LENGTH.get(split, 0) if length is None else length
        if min(size) < 16 or self.length < 0:
            raise ConfigError(f"size must be at least 16x16 and length positive, got {size}, "
                              f"{length}", "size")
        if math.prod(size) > max_pixels() or self.length > MAX_LENGTH:
            raise ConfigError(f"{self.length:,} images of {size[0]} x {size[1]}; the limits are "
                              f"{MAX_LENGTH:,} and {max_pixels():,} pixels", "size, length")
        super().__init__(data_dir, split, ignore_index, seed, augmentation)
        self._grain = _noise(self.height, self.width)

    def find_samples(self) -> Iterator[Sample]:
        for index in range(self.length):
            yield Sample(f"{self.split}_{index:05d}", None, None)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Labels are drawn as class ids; 255 (void) is ignored."""
        return np.where(raw == VOID, self.ignore_index, raw)

    def load(self, index: int) -> tuple[Image, Labels]:
        """Draw scene `index`: the image, uint8 (H, W, 3), and its label, uint8 (H, W)."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        stream = np.random.SeedSequence((self.seed % 2 ** 64, self.splits.index(self.split), index))
        draw = random.Random(int(stream.generate_state(1, np.uint64)[0]))
        scene = _Scene(self.height, self.width, draw)
        scene.paint()
        return scene.photograph(self._grain), scene.label


class _Scene:
    """One street. In meters: x to the right of the camera, y up from the ground, z ahead."""

    def __init__(self, height, width, draw):
        self.draw, self.height, self.width = draw, height, width
        self.image = np.empty((height, width, 3), np.uint8)
        self.label = np.empty((height, width), np.uint8)
        uniform = draw.uniform
        self.horizon = height * uniform(0.36, 0.52)
        self.center = width * uniform(0.3, 0.7)
        self.focal = 0.75 * width * uniform(0.85, 1.2)
        self.eye = uniform(1.3, 2.4)
        self.half_road = uniform(3.5, 6.0)                         # half its width
        self.pavement = (uniform(1.5, 4.0), uniform(1.5, 4.0))     # widths, left and right
        self.haze = uniform(0.0, 0.9) ** 2
        self.overcast = draw.random() < 0.4

    def paint(self) -> None:
        """Draw the whole street into `image` and `label`."""
        self._sky()
        self._ground()
        # (distance, method, arguments) of each object, painted from far to near.
        objects = self._houses() + self._furniture() + self._traffic()
        for _, paint, arguments in sorted(objects, key=lambda one: -one[0]):
            paint(*arguments)
        if self.draw.random() < 0.5:
            self._hood()

    def photograph(self, grain: tuple[np.ndarray, np.ndarray]) -> Image:
        """The image, uint8 (H, W, 3), with texture, shade, blur and sensor noise added.

        grain: the two fields of _noise.
        """
        draw = self.draw
        fine, smooth = grain
        window = self._random_window(fine)
        texture = cv2.multiply(fine[window], cv2.LUT(self.label, _ROUGHNESS))
        shade = cv2.addWeighted(smooth[window], draw.uniform(0.1, 0.35), texture, 1.0,
                                draw.uniform(0.75, 1.15))
        image = cv2.multiply(self.image.astype(np.float32), cv2.merge([shade] * 3))
        sigma = draw.uniform(0.3, 1.0) * self.height / 128
        image = cv2.GaussianBlur(image, (0, 0), sigma)
        noise = fine[self._random_window(fine)] * np.float32(draw.uniform(2, 11))
        cast = np.array([draw.uniform(0.88, 1.1) for _ in range(3)], np.float32)
        image *= cast
        image += noise[..., None]
        return cv2.convertScaleAbs(np.maximum(image, 0, out=image))

    def _random_window(self, field):
        """A slice of the size of the image, at a random place of a larger field."""
        y = self.draw.randrange(field.shape[0] - self.height)
        x = self.draw.randrange(field.shape[1] - self.width)
        return np.s_[y:y + self.height, x:x + self.width]

    # The parts of a street; each is painted into both image and label.

    def _sky(self):
        draw = self.draw
        if self.overcast:
            low = high = self._gray(150, 235)
        else:
            high = (draw.uniform(70, 130), draw.uniform(120, 170), draw.uniform(180, 235))
            low = tuple(0.5 * c + 110 for c in high)
        steps = np.linspace(0, 1, self.height, dtype=np.float32)[:, None]
        column = np.array(high, np.float32) * (1 - steps) + np.array(low, np.float32) * steps
        self.image[:] = column[:, None].astype(np.uint8)
        self.label[:] = SKY
        self.air = tuple(int(c) for c in low)
        for _ in range(draw.randrange(4)):
            place = (draw.randrange(self.width), int(self.horizon * draw.uniform(0, 0.8)))
            axes = (int(self.width * draw.uniform(0.05, 0.25)),
                    int(self.height * draw.uniform(0.01, 0.06)))
            cv2.ellipse(self.image, place, axes, 0, 0, 360, self._gray(190, 245), -1)

    def _ground(self):
        draw = self.draw
        road = self._gray(70, 130)
        # The pavement may have almost the gray of the road.
        lighter = draw.uniform(-8, 50)
        pavement = tuple(c + lighter + draw.uniform(-8, 8) for c in road)
        green = (draw.uniform(60, 110), draw.uniform(90, 140), draw.uniform(40, 80))
        top = int(self.horizon)
        verge_is_grass = draw.random() < 0.5
        self.image[top:] = _bytes(green if verge_is_grass else pavement)
        self.label[top:] = TREE if verge_is_grass else PAVEMENT
        left = -self.half_road - self.pavement[0]
        right = self.half_road + self.pavement[1]
        self._strip(left, right, pavement, PAVEMENT)
        self._strip(-self.half_road, self.half_road, road, ROAD)
        paint = self._gray(170, 235)
        if draw.random() < 0.8:
            z, dash = 3.0, draw.uniform(2, 4)
            while z < 40:
                self._strip(-0.08, 0.08, paint, ROAD, z, z + dash)
                z += 2.5 * dash
        if draw.random() < 0.3:
            z = draw.uniform(7, 20)
            for k in range(int(2 * self.half_road)):
                x = -self.half_road + 0.3 + k
                self._strip(x, x + 0.5, paint, ROAD, z, z + 3)
        for _ in range(draw.randrange(3)):
            x, z = draw.uniform(-self.half_road, self.half_road), draw.uniform(4, 20)
            dark = tuple(c * draw.uniform(0.6, 0.9) for c in road)
            self._strip(x, x + draw.uniform(0.5, 2.5), dark, None, z, z + draw.uniform(1, 6))

    def _houses(self):
        """Rows of houses on both sides, and houses and trees across the end of the street."""
        draw, objects = self.draw, []
        end = draw.uniform(60, 120)
        objects.append((end, self._far_end, (end,)))
        for side in (-1, 1):
            x = side * (self.half_road + self.pavement[side > 0] + draw.uniform(0, 3))
            z = draw.uniform(2.5, 7)
            while z < end:
                length = draw.uniform(6, 18)
                if draw.random() < 0.75:
                    objects.append((z + 0.5, self._house, (x, z, z + length,
                                                         draw.uniform(4, 16))))
                z += length + (draw.uniform(2, 10) if draw.random() < 0.4 else 0)
        return objects

    def _far_end(self, z):
        x = -40.0
        while x < 40:
            width, height = self.draw.uniform(5, 15), self.draw.uniform(3, 14)
            color = self._hazy(self._wall_color(), z)
            if self.draw.random() < 0.3:
                self._blob(x + width / 2, height / 2, z, width / 2, height / 2,
                           self._hazy(self._leaf_color(), z), TREE)
            else:
                self._box(x, x + width, 0, height, z, color, BUILDING)
            x += width

    def _house(self, x, near, far, height):
        wall = self._wall_color()
        corners = [self._at(x, 0, near), self._at(x, 0, far), self._at(x, height, far),
                   self._at(x, height, near)]
        middle = (near + far) / 2
        self._fill([corners], self._hazy(wall, middle), BUILDING)
        # The side that faces the camera is darker or lighter than the one along the street.
        depth = math.copysign(12, x)
        factor = self.draw.uniform(0.7, 1.2)
        self._box(min(x, x + depth), max(x, x + depth), 0, height, near,
                  self._hazy(tuple(min(255, c * factor) for c in wall), near), BUILDING)
        if near > 45:
            return
        light = self.draw.uniform(0.3, 1.3)
        glass = self._hazy((110 * light, 120 * light, 132 * light), middle)
        columns, floors = max(1, int((far - near) / 3)), max(1, int(height / 3.2))
        panes = []
        for k in range(min(columns, 5)):
            z0 = near + (k + 0.3) * (far - near) / columns
            z1 = z0 + 0.45 * (far - near) / columns
            for floor in range(min(floors, 4)):
                low, high = 3.2 * floor + 1.0, 3.2 * floor + 2.4
                panes.append([self._at(x, low, z0), self._at(x, low, z1), self._at(x, high, z1),
                              self._at(x, high, z0)])
        self._fill(panes, glass, None)

    def _furniture(self):
        """Trees, poles and signs along the road."""
        draw, objects = self.draw, []
        for side in (-1, 1):
            edge = self.half_road + 0.3
            z = draw.uniform(4, 14)
            while z < 70:
                x = side * (edge + draw.uniform(0, 0.8 * self.pavement[side > 0]))
                kind = draw.random()
                if kind < 0.35:
                    objects.append((z, self._tree, (x, z)))
                elif kind < 0.65:
                    objects.append((z, self._lamp, (x, z, side)))
                elif kind < 0.9:
                    objects.append((z, self._sign, (x, z)))
                z += draw.uniform(3, 14)
        return objects

    def _tree(self, x, z):
        draw = self.draw
        height, width = draw.uniform(3.5, 9), draw.uniform(1.0, 2.6)
        bark = (draw.uniform(50, 100), draw.uniform(40, 80), draw.uniform(30, 60))
        self._box(x - 0.15, x + 0.15, 0, 0.6 * height, z, self._hazy(bark, z), TREE)
        leaf = self._leaf_color()
        for _ in range(5):
            shade = draw.uniform(0.7, 1.25)
            self._blob(x + draw.uniform(-0.6, 0.6) * width, height * draw.uniform(0.55, 0.95), z,
                       width * draw.uniform(0.4, 0.8), 0.22 * height,
                       self._hazy(tuple(c * shade for c in leaf), z), TREE)

    def _lamp(self, x, z, side):
        height, metal = self.draw.uniform(4, 8), self._hazy(self._gray(50, 170), z)
        self._bar(x, 0, x, height, z, 0.12, metal, POLE)
        if self.draw.random() < 0.7:
            self._bar(x, height, x - side * 1.5, height + 0.2, z, 0.1, metal, POLE)

    def _sign(self, x, z):
        draw = self.draw
        height, size = draw.uniform(2.0, 3.2), draw.uniform(0.25, 0.6)
        self._bar(x, 0, x, height, z, 0.08, self._hazy(self._gray(80, 180), z), POLE)
        color = draw.choice([(190, 40, 40), (40, 70, 170), (220, 180, 40), (225, 225, 225),
                              (50, 120, 80), (120, 120, 125)])
        color = self._hazy(tuple(c * draw.uniform(0.7, 1.1) for c in color), z)
        if draw.random() < 0.5:
            self._blob(x, height, z, size, size, color, SIGN)
        else:
            self._box(x - size, x + size, height - size, height + size, z, color, SIGN)

    def _traffic(self):
        """Cars on the road, people on both sides, and a few people who cross it."""
        draw, objects = self.draw, []
        for _ in range(draw.randrange(7)):
            z = 5 + 45 * draw.random() ** 1.5
            x = draw.choice([-1, 1]) * draw.uniform(0.3, 0.95) * self.half_road
            objects.append((z, self._car, (x, z)))
        for _ in range(draw.randrange(9)):
            z = 4 + 35 * draw.random() ** 1.3
            side = draw.choice([-1, 1])
            crossing = draw.random() < 0.2
            x = draw.uniform(-1, 1) * self.half_road if crossing else \
                side * (self.half_road + draw.uniform(0.2, 1.0) * self.pavement[side > 0])
            objects.append((z, self._person, (x, z)))
        return objects

    def _car(self, x, z):
        draw = self.draw
        half, height = draw.uniform(0.8, 1.0), draw.uniform(1.35, 2.1)
        if draw.random() < 0.25:                                   # a car seen from its side
            half *= 2.3
        paint = draw.choice([self._gray(30, 220), self._wall_color(), self._leaf_color(),
                             (draw.uniform(90, 200), 40, 45), (45, 60, draw.uniform(90, 190))])
        paint = self._hazy(paint, z)
        dark = self._hazy((35, 38, 42), z)
        self._blob(x, 0.02, z, 1.15 * half, 0.12, dark, None)      # shadow
        self._box(x - half, x - 0.6 * half, 0, 0.5, z, dark, CAR)
        self._box(x + 0.6 * half, x + half, 0, 0.5, z, dark, CAR)
        self._box(x - half, x + half, 0.25, 0.6 * height, z, paint, CAR)
        self._fill([self._gable(x, z, 0.9 * half, 0.58 * height, 0.65 * half, height)], paint, CAR)
        self._fill([self._gable(x, z, 0.75 * half, 0.62 * height, 0.58 * half, 0.92 * height)],
                   self._hazy(self._gray(30, 150), z), None)
        for side in (-1, 1):
            self._blob(x + side * 0.8 * half, 0.45 * height, z, 0.12, 0.09,
                       draw.choice([(200, 40, 30), (230, 225, 200)]), None)

    def _person(self, x, z):
        draw = self.draw
        height = draw.uniform(1.1, 1.9)
        coat = self._hazy(tuple(draw.uniform(25, 190) for _ in range(3)), z)
        legs = self._hazy(self._gray(25, 110), z)
        skin = self._hazy((draw.uniform(90, 220), draw.uniform(70, 175), draw.uniform(55, 150)), z)
        stride = draw.uniform(0.02, 0.25)
        for side in (-1, 1):
            self._bar(x + side * stride, 0, x + side * 0.07, 0.5 * height, z, 0.14, legs, PERSON)
        self._blob(x, 0.65 * height, z, 0.14 * height, 0.2 * height, coat, PERSON)
        self._blob(x, 0.93 * height, z, 0.07 * height, 0.085 * height, skin, PERSON)

    def _hood(self):
        place = (int(self.width * self.draw.uniform(0.4, 0.6)), self.height)
        axes = (int(0.55 * self.width), int(self.height * self.draw.uniform(0.03, 0.1)))
        color = self._gray(20, 90)
        cv2.ellipse(self.image, place, axes, 0, 180, 360, color, -1)
        cv2.ellipse(self.label, place, axes, 0, 180, 360, VOID, -1)

    # Projection and painting.

    def _at(self, x, y, z):
        """The pixel (column, row) of a point."""
        scale = self.focal / z
        return (int(self.center + x * scale), int(self.horizon + (self.eye - y) * scale))

    def _gable(self, x, z, half_below, low, half_above, high):
        """The corner pixels of an upright trapezoid around x."""
        return [self._at(x - half_below, low, z), self._at(x - half_above, high, z),
                self._at(x + half_above, high, z), self._at(x + half_below, low, z)]

    def _strip(self, left, right, color, label, near=1.0, far=400.0):
        """Paint a piece of the ground; with label None only its color changes."""
        self._fill([[self._at(left, 0, near), self._at(right, 0, near), self._at(right, 0, far),
                     self._at(left, 0, far)]], color, label)

    def _fill(self, polygons, color, label):
        points = list(np.array(polygons, np.int32))
        cv2.fillPoly(self.image, points, color)
        if label is not None:
            cv2.fillPoly(self.label, points, label)

    def _box(self, left, right, low, high, z, color, label):
        corner, opposite = self._at(left, high, z), self._at(right, low, z)
        cv2.rectangle(self.image, corner, opposite, color, -1)
        cv2.rectangle(self.label, corner, opposite, label, -1)

    def _bar(self, x0, y0, x1, y1, z, thick, color, label):
        width = max(1, round(thick * self.focal / z))
        for canvas, value in ((self.image, color), (self.label, label)):
            cv2.line(canvas, self._at(x0, y0, z), self._at(x1, y1, z), value, width)

    def _blob(self, x, y, z, half_width, half_height, color, label):
        scale = self.focal / z
        axes = (max(1, int(half_width * scale)), max(1, int(half_height * scale)))
        cv2.ellipse(self.image, self._at(x, y, z), axes, 0, 0, 360, color, -1)
        if label is not None:
            cv2.ellipse(self.label, self._at(x, y, z), axes, 0, 0, 360, label, -1)

    # Colors.

    def _gray(self, low, high):
        value = self.draw.uniform(low, high)
        return tuple(value + self.draw.uniform(-6, 6) for _ in range(3))

    def _wall_color(self):
        draw = self.draw
        base = draw.choice([(150, 90, 70), (175, 160, 135), (130, 130, 132), (190, 185, 175),
                            (95, 85, 80), (110, 120, 95), (160, 130, 100)])
        shade = draw.uniform(0.7, 1.2)
        return tuple(min(255, c * shade + draw.uniform(-10, 10)) for c in base)

    def _leaf_color(self):
        draw = self.draw
        return (draw.uniform(40, 115), draw.uniform(65, 130), draw.uniform(30, 80))

    def _hazy(self, color, z):
        """`color` blended with the color of the air, more the farther away it is."""
        share = min(0.85, self.haze * z / 50)
        return tuple((1 - share) * c + share * a for c, a in zip(color, self.air, strict=True))


# How strongly the texture changes each class; void is smooth.
_ROUGHNESS = np.zeros(256, np.float32)
_ROUGHNESS[[ROAD, PAVEMENT, BUILDING, POLE, SIGN, TREE, SKY, PERSON, CAR]] = (
    0.05, 0.07, 0.09, 0.05, 0.04, 0.22, 0.01, 0.10, 0.05)


def _noise(height, width):
    """Two float32 fields to cut windows from: grain, and shade as large as 1/4 of the width."""
    rng = np.random.default_rng(20)
    shape = (height + 97, width + 113)
    fine = rng.standard_normal(shape, dtype=np.float32)
    fine = 0.6 * fine + 1.1 * cv2.GaussianBlur(fine, (0, 0), 1.2)
    coarse = rng.standard_normal((6, 8), dtype=np.float32)
    smooth = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return fine, smooth


def _bytes(color):
    return [int(max(0, min(255, c))) for c in color]
