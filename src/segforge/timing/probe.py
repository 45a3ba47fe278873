"""What this machine is: the facts an engine and a figure depend on, the same bytes every time."""

import csv
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from segforge import layout
from segforge.config import MachineConfig
from segforge.files import write_json
from segforge.progress import say
from segforge.runtimes.base import usable_cores

# What decides which kernels a runtime picks. Spelled as Linux does in /proc/cpuinfo.
INSTRUCTIONS = re.compile(r"avx2|avx512\w*|avx_vnni\w*|amx_\w+|fma|f16c|asimd\w*|bf16|i8mm|sve\w*")
PACKAGES = ("numpy", "onnx", "onnxruntime", "openvino", "torch", "torchvision")
GPU_FIELDS = {"name": "name", "uuid": "uuid", "memory": "memory.total", "driver": "driver_version", "sm": "compute_cap"}


def installed_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """The version of each package without importing it; None where it is not installed."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {package: version(package) for package in packages}


def gpus() -> list[dict[str, str]]:
    """One row per NVIDIA GPU: name, uuid, memory, driver, sm (compute capability); empty without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS.values())}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return []
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(GPU_FIELDS, row, strict=True)) for row in rows]


def machine_identity() -> dict[str, Any]:
    """Hardware, system and versions as JSON values; holds no clock, load, host name or path."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    words = listed[1].split() if listed else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": {
            "model": model[1].strip() if model else platform.processor() or platform.machine(),
            "instructions": sorted({word for word in words if INSTRUCTIONS.fullmatch(word)}),
            "usable_cores": usable_cores(),
            "memory_gib": round(memory / 2**30),
        },
        "system": {
            "os": f"{platform.system()} {platform.machine()}",
            "kernel": platform.release(),
            "libc": " ".join(platform.libc_ver()).strip(),
            "python": platform.python_version(),
        },
        "gpus": gpus(),
        "versions": installed_versions(),
    }


def probe(config: MachineConfig) -> None:
    """Write the machine's identity to models/machine.json."""
    write_json(layout.MACHINE, machine_identity())
    say(f"probe: wrote {layout.MACHINE}")
