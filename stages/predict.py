"""Run an engine on images: python stages/predict.py variant=… input=<file, folder or glob> output=<folder>."""

import glob
import time
from collections.abc import Sequence
from pathlib import Path

from segforge.config.engine import EngineConfig
from segforge.datasets.core.images import prefetch, read_image
from segforge.engines.engine import Engine
from segforge.errors import SegforgeError, few
from segforge.evaluation import infer
from segforge.stage import run_stage
from segforge.tasks import task_of
from segforge.tasks.core.base import Task
from segforge.terminal import say, track

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
HINT = "python stages/predict.py variant=… target=… precision=… input=<file, folder or glob> output=<folder>"


def predict(config: EngineConfig) -> None:
    """Run an engine over `config.input` and write to `config.output`.

    Semantic: `<stem>.png` (grey PNG of class ids, of the image's own size) and `<stem>-overlay.jpg`.
    Panoptic: a PNG of segment ids in COCO's format in its place, and panoptic.json beside them all.
    Classification: predictions.csv with image, class and probability. Every image is decoded once
    before the first is run: one that is broken stops the work before anything is written. Raises
    `SegforgeError` for that, for no files, for two files of one stem, and for outputs that would
    overwrite inputs.
    """
    if not config.input or not config.output:
        raise SegforgeError("predict needs input= and output=", expected="images to read and a folder", hint=HINT)
    files, output = find_images(config.input), Path(config.output)
    if output.exists() and not output.is_dir():
        raise SegforgeError(f"{output} is a file", expected="a folder, which need not exist yet")
    engine = Engine.of(config)
    passport, task = engine.passport, task_of(engine.passport.task)
    check_names(files, output, task)
    check_images(files)
    with engine.open() as runner:
        batch = min(passport.batch_max, max(passport.batch_min, len(files)))
        say(f"{len(files)} images at batch {batch} through {config.target.name} {config.precision.name} to {output}/")
        start = time.monotonic()
        rows = []
        parts = track(infer(runner, passport, files, read_image, batch), "predict", total=-(-len(files) // batch))
        for part, images, raw in parts:
            for path, image, found in zip(part, images, task.predictions(raw, passport), strict=True):
                rows.append(task.save(image, path, found, output, passport))
        task.save_table([row for row in rows if row], output, passport)
        took = time.monotonic() - start
    say(f"wrote {len(files)} predictions to {output}/, {len(files) / took:.1f} images per second with files")


def find_images(given: str) -> list[Path]:
    """The files that a file name, a folder (its images, not its subfolders) or a glob stands for, sorted."""
    path = Path(given)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    else:
        found = glob.glob(given, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        files = sorted(p for p in map(Path, found) if p.is_file())
    if not files:
        what = f"the folder {given} holds no images" if path.is_dir() else f"no file matches {given!r}"
        raise SegforgeError(what, expected=f"a file, a folder with {' '.join(SUFFIXES)}, or a quoted glob", hint=HINT)
    return files


def check_names(files: Sequence[Path], output: Path, task: Task) -> None:
    """Raise `SegforgeError` where an output would overwrite another output or an input."""
    named: dict[str, Path] = {}
    inputs = {path.resolve() for path in files}
    for path in files:
        for name in task.files(path.stem):
            if name in named:
                raise SegforgeError(f"{named[name]} and {path} would both write {name}", expected="one name each")
            named[name] = path
            if (output / name).resolve() in inputs:
                problem = f"output {output / name} would overwrite an input"
                raise SegforgeError(problem, expected="another folder", hint=HINT)


def check_images(files: Sequence[Path]) -> None:
    """Decode every file once; raises `SegforgeError` naming those that are no images."""

    def fault(path: Path) -> str:
        try:
            read_image(path)
        except SegforgeError as error:
            return str(error).splitlines()[0]
        return ""

    found = track(prefetch(files, fault, ahead=4), "checking images", total=len(files), unit="images")
    if broken := [text for text in found if text]:
        shown = few(broken, "\n  ")
        problem = f"{len(broken)} of {len(files)} files are no readable images; nothing was written\n  {shown}"
        raise SegforgeError(problem, expected="images that decode", hint="take these files out, then the same command")


if __name__ == "__main__":
    run_stage(predict)
