"""`shapes`: scenes and single things drawn from a seed, with semantic, panoptic and class labels.

Discs (ball, bubble) and triangles (cone, tent) come in a warm and a cool class each, and sky and wall
are each other's colours with red and blue exchanged: a network that is fed BGR for RGB loses most of
its score. Neighbouring hues overlap, so that colour alone is not enough either.
"""

import colorsys
import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segforge.config.recipe import Dataset
from segforge.config.rules import SPLITS, TASKS
from segforge.datasets.arrival.checks import Samples
from segforge.datasets.core.panoptic import describe_segments, index_segments, write_annotations, write_segment_ids
from segforge.errors import SegforgeError
from segforge.terminal import track

STUFF = ("sky", "ground", "wall")
FORMS = {"ball": "disc", "bubble": "disc", "cone": "triangle", "tent": "triangle", "star": "star"}
HUES = {"ball": (0,), "cone": (38,), "bubble": (212,), "tent": (262,), "star": (80, 130, 310)}
STUFF_RGB = {"sky": (120, 155, 205), "ground": (112, 128, 84), "wall": (205, 155, 120)}
OBJECT_SIDE = 96  # pictures of one thing: height and width in pixels
OVERSAMPLE = 4  # outlines are drawn this much larger and averaged
TURN = 2 * math.pi

Rgb = NDArray[np.int32]  # [height, width, 3], not yet clipped to 0..255
Pixels = NDArray[np.uint8]
Cover = NDArray[np.int32]  # [height, width], how much of each pixel an outline covers, 0..255


@dataclass(frozen=True)
class Options:
    """How many images and how hard: `options` of conf/dataset/shapes.yaml."""

    seed: int
    scenes: dict[str, int]  # split -> images
    objects: dict[str, int]
    things_per_scene: list[int]  # least and most
    radius: list[int]  # least and most, pixels
    object_radius: list[int]  # the same in pictures of one thing
    hue_spread: int  # degrees
    illumination: float  # share
    noise: int  # of 255


def make(config: Dataset, folder: Path) -> Samples:
    """Draw every image and label into `folder`; the same options give the same bytes.

    Writes scenes/<split>/, semantic/<split>/ (uint8 ids, void along outlines), COCO panoptic's
    panoptic_<split>/ with panoptic_<split>.json (`category_id` is the semantic id), and objects/<split>/
    where `config` serves classification; returns the samples of its tasks alone. Raises `SegforgeError` for
    options and classes that it does not have.
    """
    kinds = {*config.things, *config.classes.get("classification", ())}
    semantic = config.classes.get("semantic", [])
    if sorted(semantic) != sorted((*STUFF, *FORMS)) or not kinds <= set(FORMS):
        raise SegforgeError("shapes draws other classes", expected=f"{', '.join((*STUFF, *FORMS))}, in any order")
    if config.classes.get("panoptic") != semantic:
        expected = f"dataset.classes.panoptic=[{','.join(semantic)}]"
        raise SegforgeError("shapes numbers panoptic classes as semantic ones", expected=expected)
    if not config.things:
        raise SegforgeError("dataset.things is empty", expected=f"some of {', '.join(FORMS)}")
    try:
        options = Options(**config.options)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(Options))
        raise SegforgeError(f"dataset.options do not fit: {error}", expected=f"exactly {known}") from error
    for name in ("things_per_scene", "radius", "object_radius"):
        given = getattr(options, name)
        if not isinstance(given, list) or len(given) != 2 or not 0 <= given[0] <= given[1]:
            raise SegforgeError(f"dataset.options.{name}={given}", expected="[least, most]")
    samples: Samples = {task: {split: [] for split in SPLITS} for task in TASKS}
    for split in SPLITS:
        _draw_scenes(config, options, folder, split, samples)
        if "classification" in config.tasks:
            _draw_objects(config, options, folder, split, samples)
    return {task: samples[task] for task in config.tasks}


def _draw_scenes(config: Dataset, options: Options, folder: Path, split: str, samples: Samples) -> None:
    parents = f"scenes/{split}", f"semantic/{split}", f"panoptic_{split}"
    for parent in parents:
        (folder / parent).mkdir(parents=True)
    images, annotations = [], []
    for index in track(range(options.scenes.get(split, 0)), f"shapes: scenes for {split}", unit="images"):
        # A generator per image, so that an image does not depend on how many come before it.
        rng = default_rng([options.seed, SPLITS.index(split), 0, index])
        pixels, ids, instances = _scene(rng, options, config)
        name = f"{index:05d}.png"
        image, semantic, panoptic = (f"{parent}/{name}" for parent in parents)
        _save(folder / image, pixels)
        _save(folder / semantic, ids)
        write_segment_ids(folder / panoptic, instances)
        segments = describe_segments(instances, {i: i % 256 - 1 for i in np.unique(instances).tolist()})
        images.append({"id": index, "file_name": name, "height": config.height, "width": config.width})
        annotations.append({"image_id": index, "file_name": name, "segments_info": segments})
        samples["semantic"][split].append({"image": image, "label": semantic})
        samples["panoptic"][split].append({"image": image, "label": panoptic, "segments": index_segments(segments)})
    write_annotations(folder / f"panoptic_{split}.json", config, images, annotations)


def _draw_objects(config: Dataset, options: Options, folder: Path, split: str, samples: Samples) -> None:
    (folder / "objects" / split).mkdir(parents=True)
    names = config.classes["classification"]
    for index in track(range(options.objects.get(split, 0)), f"shapes: single things for {split}", unit="images"):
        rng = default_rng([options.seed, SPLITS.index(split), 1, index])
        label, path = index % len(names), f"objects/{split}/{index:05d}.png"
        _save(folder / path, _single(rng, options, names[label]))
        samples["classification"][split].append({"image": path, "label": label})


def _scene(rng: Generator, options: Options, config: Dataset) -> tuple[Pixels, Pixels, NDArray[np.int32]]:
    """One scene: the image, its class ids, and its panoptic ids (0 where void)."""
    height, width = config.height, config.width
    names = config.classes["semantic"]
    rows, columns = np.arange(height)[:, None], np.arange(width)
    horizon = int(rng.integers(height * 2 // 5, height * 3 // 5))
    skyline = horizon + (columns - width // 2) * int(rng.integers(-12, 13)) // width
    left, breadth = int(rng.integers(-20, width - 40)), int(rng.integers(48, 96))
    foot, top = int(rng.integers(4, 16)), int(rng.integers(24, 44))
    wall = ((columns >= left) & (columns < left + breadth))[None] & (rows > horizon - top) & (rows < horizon + foot)
    sky, ground = names.index("sky"), names.index("ground")
    stuff = np.where(wall, names.index("wall"), np.where(rows < skyline[None], sky, ground))
    image = np.zeros((height, width, 3), np.int32)
    for name in STUFF:
        image = np.where((stuff == names.index(name))[..., None], _texture(rng, name, height, width), image)
    ids, instances = stuff.astype(np.uint8), stuff.astype(np.int32) + 1
    for number in range(1, 1 + int(rng.integers(options.things_per_scene[0], options.things_per_scene[1] + 1))):
        name = config.things[int(rng.integers(len(config.things)))]
        radius = int(rng.integers(options.radius[0], options.radius[1] + 1))
        centre = int(rng.integers(width)), int(rng.integers(height))
        cover = _cover(rng, FORMS[name], centre, radius, height, width)
        image = _paint(rng, options, name, cover, image)
        inside, rim = cover >= 192, (cover >= 64) & (cover < 192)
        category = names.index(name)
        ids = np.where(inside, category, np.where(rim, config.void, ids)).astype(np.uint8)
        instances = np.where(inside, category + 1 + 256 * number, np.where(rim, 0, instances)).astype(np.int32)
    return _finish(rng, options, image), ids, instances


def _single(rng: Generator, options: Options, name: str) -> Pixels:
    """A picture of one thing, whole or nearly so, over one texture and small scraps of any colour."""
    side = OBJECT_SIDE
    image = _texture(rng, STUFF[int(rng.integers(len(STUFF)))], side, side)
    for _ in range(int(rng.integers(3, 8))):
        scrap = ("disc", "triangle", "star")[int(rng.integers(3))]
        centre = int(rng.integers(side)), int(rng.integers(side))
        cover = _cover(rng, scrap, centre, int(rng.integers(3, 8)), side, side)
        image = _paint(rng, options, "star", cover, image)
    centre = int(rng.integers(32, side - 32)), int(rng.integers(32, side - 32))
    radius = int(rng.integers(options.object_radius[0], options.object_radius[1] + 1))
    cover = _cover(rng, FORMS[name], centre, radius, side, side)
    return _finish(rng, options, _paint(rng, options, name, cover, image))


def _texture(rng: Generator, name: str, height: int, width: int) -> Rgb:
    """A background of one stuff class: a gradient with clouds, speckle with stripes, or bricks."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    base = np.array(STUFF_RGB[name]) + rng.integers(-14, 15, 3)
    if name == "sky":
        shade = rows * int(rng.integers(10, 35)) // height + _blobs(rng, height, width, 24)
    elif name == "ground":
        step = int(rng.integers(6, 14))
        speckle = np.kron(rng.integers(-22, 23, (-(-height // 2), -(-width // 2))), np.ones((2, 2), np.int64))
        stripes = np.where((rows + columns // int(rng.integers(2, 6))) // step % 2, 9, -9)
        shade = speckle[:height, :width] + stripes + _blobs(rng, height, width, 12)
    else:
        brick, length = int(rng.integers(6, 10)), int(rng.integers(12, 20))
        course = rows // brick
        mortar = (rows % brick == 0) | ((columns + course % 2 * (length // 2)) % length == 0)
        shade = np.where(mortar, -38, 0) + _blobs(rng, height, width, 12)
    return (base + shade[..., None]).astype(np.int32)


def _blobs(rng: Generator, height: int, width: int, size: int) -> NDArray[np.int64]:
    """Slow changes of brightness from -size to size."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)).astype(np.int64)
    return (smooth - 128) * size // 128


def _cover(rng: Generator, form: str, centre: tuple[int, int], radius: int, height: int, width: int) -> Cover:
    """A turned outline."""
    turn = int(rng.integers(360)) / 360 * TURN
    squeeze = int(rng.integers(80, 101)) / 100
    reaches = {"disc": 40 * [1.0], "triangle": 3 * [1.15], "star": 5 * [0.52, 1.2]}[form]  # of each spoke, in radii
    points = []
    for step, reach in enumerate(reaches):
        angle = step / len(reaches) * TURN
        x, y = reach * radius * math.cos(angle), reach * radius * squeeze * math.sin(angle)
        turned = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
        points.append(tuple(round((c + t) * OVERSAMPLE) for c, t in zip(centre, turned, strict=True)))
    large = Image.new("L", (width * OVERSAMPLE, height * OVERSAMPLE))
    ImageDraw.Draw(large).polygon(points, fill=255)
    return np.asarray(large.reduce(OVERSAMPLE)).astype(np.int32)


def _paint(rng: Generator, options: Options, name: str, cover: Cover, image: Rgb) -> Rgb:
    """Lay a thing in a hue of its class over the image, shaded across and faintly striped."""
    height, width = cover.shape
    hues = HUES[name]
    hue = hues[int(rng.integers(len(hues)))] + int(rng.integers(-options.hue_spread, options.hue_spread + 1))
    saturation, value = int(rng.integers(60, 91)) / 100, int(rng.integers(65, 96)) / 100
    colour = np.array([round(255 * part) for part in colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)])
    slope = rng.integers(-60, 61, 2)
    tilt, breadth = int(rng.integers(-1, 2)), int(rng.integers(3, 7))
    rows, columns = np.ix_(cover.any(1), cover.any(0))  # elsewhere nothing changes
    shade = (rows * int(slope[0]) + columns * int(slope[1])) // (height + width) - int(slope.sum()) // 4
    stripes = np.where((rows + columns * tilt) // breadth % 2, 10, -10)
    fill = colour + (shade + stripes)[..., None]
    share = cover[rows, columns][..., None]
    painted = image.copy()
    painted[rows, columns] = (fill * share + image[rows, columns] * (255 - share)) // 255
    return painted


def _finish(rng: Generator, options: Options, image: Rgb) -> Pixels:
    """Light that changes over the picture, then noise on every value."""
    height, width = image.shape[:2]
    change = round(options.illumination * 256)
    corners = rng.integers(256 - change, 257 + change, (2, 2))
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    upper = corners[0, 0] * (width - columns) + corners[0, 1] * columns
    lower = corners[1, 0] * (width - columns) + corners[1, 1] * columns
    light = (upper * (height - rows) + lower * rows) // (width * height)
    noisy = image * light[..., None] // 256 + rng.integers(-options.noise, options.noise + 1, image.shape)
    return np.asarray(noisy.clip(0, 255), np.uint8)


def _save(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(path, compress_level=4)
