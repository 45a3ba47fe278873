"""The one reader of images and of labels, and from a decoded image to what a network is fed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge.errors import SegforgeError
from segforge.passport import Array, Passport

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as uint8 RGB [height, width, 3]; raises `SegforgeError` when it cannot be decoded."""
    with _opened(path, "a whole JPEG or PNG") as image:
        return np.asarray(image.convert("RGB"))


def read_label_ids(path: Path) -> NDArray[np.uint8]:
    """A semantic label as uint8 class ids [height, width], from a grey or palette PNG."""
    return read_label(path, ("L", "P"), "a PNG of class ids (grey or palette)")


def read_label(path: Path, modes: Sequence[str], expected: str) -> NDArray[Any]:
    """The stored values of a PNG, unconverted; raises `SegforgeError` unless its Pillow mode is one of `modes`."""
    with _opened(path, "a whole PNG") as image:
        if image.mode not in modes:
            raise SegforgeError(f"{path} has mode {image.mode}", expected=expected)
        return np.asarray(image)


@contextmanager
def _opened(path: Path, expected: str) -> Iterator[Image.Image]:
    """An open image file; raises `SegforgeError` when it is missing, or cannot be decoded while it is open."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise SegforgeError(f"{path} is missing", hint="run the download stage again") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SegforgeError(f"{path} cannot be decoded: {error}", expected=expected) from error


def prefetch(items: Iterable[Item], load: Callable[[Item], Loaded], ahead: int = 2) -> Iterator[Loaded]:
    """`load(item)` in order, computed up to `ahead` items early by a thread each."""
    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque[Future[Loaded]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


Ids = TypeVar("Ids", np.uint8, np.int32)


def resize_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bilinear, antialiased where it shrinks (Pillow's filter); unchanged when the size fits."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_ids(ids: NDArray[Ids], height: int, width: int) -> NDArray[Ids]:
    """Nearest, of uint8 or int32 ids: there is nothing between them."""
    if ids.shape == (height, width):
        return ids
    return np.asarray(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))


def network_input(images: Sequence[NDArray[np.uint8]], passport: Passport) -> Array:
    """A batch for the network from RGB images of any size.

    Returns float32 [batch, 3, height, width], normalised, for `nchw_float32`; uint8
    [batch, height, width, 3] for `nhwc_uint8`. Channels follow `passport.colour_order`. Contiguous.
    """
    batch = np.stack([resize_image(image, passport.height, passport.width) for image in images])
    if passport.colour_order == "bgr":
        batch = batch[..., ::-1]
    if passport.input_layout == "nhwc_uint8":
        return np.ascontiguousarray(batch)
    scale, shift = affine(passport.mean, passport.std)
    return np.ascontiguousarray((batch.astype(np.float32) * scale + shift).transpose(0, 3, 1, 2))


def affine(mean: Sequence[float], std: Sequence[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and shift per channel, float32 [3] each, by which values in 0..255 are normalised."""
    scale = np.float32(1) / np.asarray(std, np.float32)
    return scale, -np.asarray(mean, np.float32) * scale
