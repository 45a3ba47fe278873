"""What starts every program in stages/: compose conf/, check it, run one function, report errors plainly."""

import errno
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segforge import layout
from segforge.config.compose import GROUPS, SCHEMAS, register
from segforge.config.rules import known_names
from segforge.errors import SegforgeError


def run_stage(work: Callable[[Any], None]) -> None:
    """Compose the primary config that `work` takes with the command line, check it, and hand it over.

    The annotation of `work`'s one parameter, a class of `SCHEMAS`, says which it is. Exits with 1 and one message on a
    `SegforgeError`, a full disk or another operating-system error, with 130 on Ctrl-C; prints a
    traceback only with HYDRA_FULL_ERROR=1.
    """
    # Importing torch and tracing a network make millions of objects that stay: looking through them for
    # garbage after every 700 new ones is an eighth of an export.
    gc.set_threshold(100_000)
    # SIGTERM unwinds like Ctrl-C, so that temporary files beside the targets are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # NVML's, by which a device is found (machine.identity)
    (taken,) = (kind for name, kind in get_type_hints(work).items() if name != "return")
    config_name = next(name for name, kind in SCHEMAS.items() if kind is taken)
    composed = False

    def task(config: DictConfig) -> None:
        nonlocal composed
        composed = True
        _guard(lambda: work(_checked(config)))

    _guard(layout.require_root)
    if config_name == "engine":
        _guard(_refuse_network_words)
    register()
    try:
        hydra.main(version_base="1.3", config_path=str(Path("conf").resolve()), config_name=config_name)(task)()
    except SystemExit as stop:
        if stop.code and not composed:
            print(_known_names(config_name), file=sys.stderr)
        raise


def _checked(config: DictConfig) -> Any:
    try:
        checked: Any = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise SegforgeError(f"the config is not whole: {error}", expected="a value for every key of conf/") from error
    checked.check()
    return checked


def _guard(work: Callable[[], None]) -> None:
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(130)
    except (SegforgeError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            traceback.print_exc()
        message = str(error)
        if isinstance(error, OSError):
            message = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
            if error.errno == errno.ENOSPC:
                message += "\n  nothing was half-written; expected: free space\n  try: free some, then the same command"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


def _refuse_network_words() -> None:
    """`model=` and its like mean something only to the model half; say what to type instead."""
    words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    groups = ("model", "backbone", "dataset")
    if given := [f"{group}=" for group in groups if group in words]:
        expected = "variant=<model>-<backbone>-<dataset>: this stage knows only the ONNX file"
        hint = "variant=" + "-".join(words.get(group, f"<{group}>") for group in groups)
        raise SegforgeError(f"{', '.join(given)} belong to the model half", expected=expected, hint=hint)


def _known_names(config_name: str) -> str:
    lines = [f"  {group}: {', '.join(known_names(group))}" for group in GROUPS[config_name]]
    return "\n".join(["known names:", *lines, f"try: python stages/{Path(sys.argv[0]).name} --help"])
