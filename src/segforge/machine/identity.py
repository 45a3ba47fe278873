"""What this machine is: the facts that an engine and a figure depend on, the same bytes every time.

Each device and each runtime that is here has a file of its own: what an engine does not need makes it not stale.
"""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from segforge import layout
from segforge.config.engine import Device
from segforge.errors import SegforgeError
from segforge.files import read_json
from segforge.process import usable_cores


@dataclass(frozen=True)
class Gpu:
    """One card."""

    name: str
    uuid: str
    sm: str  # compute capability, such as 9.0
    memory_gib: int
    driver: str


@contextmanager
def nvml() -> Iterator[Any]:
    """The module `pynvml`, initialised; None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or one that does not answer
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def visible(uuids: list[str], chosen: str | None) -> list[str]:
    """What `chosen`, a CUDA_VISIBLE_DEVICES, leaves in its order, up to a word for no card or several; None: all."""
    if chosen is None:
        return uuids
    found: list[str] = []
    for word in map(str.strip, chosen.split(",")):
        numbered = uuids[int(word) :][:1] if word.isdecimal() else []
        named = numbered or [uuid for uuid in uuids if word and uuid.startswith(word)]
        if len(named) != 1:
            break
        found += named
    return found


def gpus() -> list[Gpu]:
    """The cards that CUDA_VISIBLE_DEVICES leaves to this process; empty without a driver.

    In NVML's order, that of the PCI bus, which `run_stage` makes CUDA's too.
    """
    with nvml() as library:
        if library is None:
            return []
        cards, driver = {}, str(library.nvmlSystemGetDriverVersion())
        for card in map(library.nvmlDeviceGetHandleByIndex, range(library.nvmlDeviceGetCount())):
            name, uuid = str(library.nvmlDeviceGetName(card)), str(library.nvmlDeviceGetUUID(card))
            sm = ".".join(map(str, library.nvmlDeviceGetCudaComputeCapability(card)))
            memory_gib = round(library.nvmlDeviceGetMemoryInfo(card).total / 2**30)
            cards[uuid] = Gpu(name, uuid, sm, memory_gib, driver)
    return [cards[uuid] for uuid in visible(list(cards), os.environ.get("CUDA_VISIBLE_DEVICES"))]


# What decides which kernels a runtime picks. Spelled as Linux does in /proc/cpuinfo, which psutil does not read.
INSTRUCTIONS = re.compile(r"avx2|avx512\w*|avx_vnni\w*|amx_\w+|fma|f16c|asimd\w*|bf16|i8mm|sve\w*")
PROBE = "python stages/probe.py"


def installed_versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """The version of each package without importing it; None where it is not installed."""
    versions: dict[str, str | None] = dict.fromkeys(packages)
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def cpu() -> dict[str, Any]:
    """The processor as JSON values; holds no clock, load, host name or path."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    words = listed[1].split() if listed else []
    return {
        "name": model[1].strip() if model else platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.machine()}",
        "instructions": sorted({word for word in words if INSTRUCTIONS.fullmatch(word)}),
        "usable_cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }


def _named(words: str, name: str) -> bool:
    """Whether `words` stand in `name`, whole: a GH200 is no H200, and a T400 no T4."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", name, re.IGNORECASE) is not None if words else True


def find_gpu(device: Device) -> tuple[int, Gpu] | None:
    """The first card that is `device`, and which of those that this process sees it is; None where none is."""
    wanted = device.recognise
    for number, card in enumerate(gpus() if device.kind == "gpu" else []):
        if _named(wanted.name, card.name) and wanted.sm in ("", card.sm) and wanted.uuid in (None, card.uuid):
            return number, card
    return None


def identity(device: Device) -> dict[str, Any] | None:
    """The facts about `device` on which its engines depend; None where it is not here."""
    if found := find_gpu(device):
        # Which of several equal cards it is decides nothing: the record of each figure says it.
        return {key: value for key, value in asdict(found[1]).items() if key != "uuid"}
    here = cpu()
    return here if device.kind == "cpu" and _named(device.recognise.name, here["name"]) else None


def require_device(device: Device) -> dict[str, Any]:
    """The facts about `device`; raises `SegforgeError` where it is not here, with what is."""
    here = identity(device)
    if here is None:
        cards = ", ".join(f"{card.name} (SM {card.sm}, {card.uuid})" for card in gpus()) or "no NVIDIA GPU"
        wanted = ", ".join(f"{key} {value}" for key, value in asdict(device.recognise).items() if value)
        raise SegforgeError(
            f"device {device.name!r} is not here: {cards if device.kind == 'gpu' else cpu()['name']}",
            expected=f"a {device.kind} " + (f"with {wanted}" if wanted else "that this process can reach"),
            hint=f"another target; or recognise: in conf/device/{device.name}.yaml, where this is one",
        )
    return here


def require_probed(device: Device, *, then: str, runtime: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The facts about `device` as they are and as probe wrote them, on which DVC decides.

    `runtime` holds the versions of one by its name, which are compared too. Raises `SegforgeError` where anything
    differs; `then` is the command that was to run.
    """
    here = require_device(device)
    facts = {layout.machine(device.name): here}
    facts |= {layout.installed(device.name, name): versions for name, versions in (runtime or {}).items()}
    for path, now in facts.items():
        if changed := "; ".join(differences(now, read_json(path, made_by=PROBE))):
            problem = f"{path} does not describe this machine: {changed}"
            raise SegforgeError(problem, expected="the machine as it is now", hint=f"{PROBE}, then {then}")
    return here


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Where two JSON values differ, in words: theirs, then ours."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [] if ours == theirs else [f"{prefix.removesuffix('.')} {theirs!r}, here {ours!r}"]
    names = sorted({*ours, *theirs})
    return [text for name in names for text in differences(ours.get(name), theirs.get(name), f"{prefix}{name}.")]
