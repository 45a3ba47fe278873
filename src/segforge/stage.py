"""What every stage script shares: compose conf/, check it, run one function, report errors plainly."""

import errno
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from segforge import config as schema
from segforge import layout
from segforge.errors import SegforgeError

GROUPS = {
    "network": ("model", "backbone", "dataset", "recipe", "export"),
    "engine": ("precision", "target", "benchmark"),
    "dataset": ("dataset", "recipe"),
    "machine": (),
}
CHECKS: dict[str, Callable[[Any], None]] = {
    "network": schema.check_network,
    "engine": schema.check_engine,
    "dataset": schema.check_dataset,
}


def run_stage(config_name: str, work: Callable[[Any], None]) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and hand the checked config to `work`.

    `work` receives an instance of the schema's dataclass. Exits with 1 and one message on a
    `SegforgeError`, a full disk or another operating-system error, with 130 on Ctrl-C; prints a
    traceback only with HYDRA_FULL_ERROR=1.
    """
    # Importing torch and tracing a network make millions of objects that stay: looking through them for
    # garbage after every 700 new ones is an eighth of an export.
    gc.set_threshold(100_000)
    # SIGTERM unwinds like Ctrl-C, so that temporary files beside the targets are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    composed = False

    def task(config: DictConfig) -> None:
        nonlocal composed
        composed = True
        _guard(lambda: work(_checked(config_name, config)))

    _guard(layout.require_root)
    if config_name == "engine":
        _guard(_refuse_network_words)
    schema.register()
    try:
        hydra.main(version_base="1.3", config_path=str(Path("conf").resolve()), config_name=config_name)(task)()
    except SystemExit as stop:
        if stop.code and not composed:
            print(_known_names(config_name), file=sys.stderr)
        raise


def _checked(config_name: str, config: DictConfig) -> Any:
    checked = OmegaConf.to_object(config)
    if config_name in CHECKS:
        CHECKS[config_name](checked)
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
    given = [group for group in ("model", "backbone", "dataset") if group in words]
    if given:
        parts = [words.get(group, f"<{group}>") for group in ("model", "backbone", "dataset")]
        raise SegforgeError(
            f"{', '.join(f'{group}=' for group in given)} belong to the model half",
            expected="variant=<model>-<backbone>-<dataset>: this stage knows only the ONNX file",
            hint=f"variant={'-'.join(parts)}",
        )


def _known_names(config_name: str) -> str:
    lines = ["known names:"]
    for group in GROUPS[config_name]:
        names = sorted(path.stem for path in Path("conf", group).glob("*.yaml"))
        lines.append(f"  {group}: {', '.join(names)}")
    script = Path(sys.argv[0]).name
    lines.append(f"try: python stages/{script} --help")
    return "\n".join(lines)
