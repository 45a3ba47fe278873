"""Measure what a device can do at most: python stages/ceilings.py device=cpu ceilings_s=1.0."""

from segforge import layout
from segforge.ceilings import cpu, gpu
from segforge.config.engine import MachineConfig
from segforge.errors import SegforgeError
from segforge.files import write_json
from segforge.machine.identity import find_gpu, require_probed
from segforge.stage import run_stage
from segforge.terminal import say


def ceilings(config: MachineConfig) -> None:
    """Measure every ceiling for `config.ceilings_s` seconds and write models/ceilings/<device>.json.

    What cannot be measured here is noted with the reason. Raises `SegforgeError` where the device is not here.
    """
    device, path = config.device, layout.ceilings(config.device.name)
    require_probed(device, then=f"python stages/ceilings.py device={device.name}")
    say(f"ceilings: {device.name} -> {path}")
    if device.kind == "cpu":
        rates, notes = cpu.measure(config.ceilings_s)
    else:
        card = find_gpu(device)
        rates, notes = gpu.measure(config.ceilings_s, card[0]) if card else ({}, {})
    for name, note in notes.items():
        say(f"ceilings: {name}: {note}")
    if not rates:
        raise SegforgeError(f"nothing of {device.name} could be measured", expected="a runtime that computes on it")
    write_json(path, {**rates, "notes": notes})
    say("ceilings: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates["gflops"].items()))


if __name__ == "__main__":
    run_stage(ceilings)
