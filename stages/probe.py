"""Write down what this machine is, the same bytes every time: python stages/probe.py."""

from segforge import layout
from segforge.config.compose import known_devices
from segforge.config.engine import MachineConfig
from segforge.files import write_json
from segforge.machine.identity import identity, installed_versions
from segforge.runtimes import RUNTIMES
from segforge.stage import run_stage
from segforge.terminal import say


def probe(config: MachineConfig) -> None:
    """Write a file for each device of conf/device/ that is here, and beside it one for each runtime that is installed.

    Files of devices that are not here stay: they are another machine's, whose engines are as good as they were.
    """
    here = {device.name: found for device in known_devices() if (found := identity(device))}
    for name, facts in here.items():
        write_json(layout.machine(name), facts)
        for runtime, packages in RUNTIMES.items():
            versions, path = installed_versions(packages), layout.installed(name, runtime)
            if all(versions.values()):
                write_json(path, versions)
            else:
                path.unlink(missing_ok=True)
    say(f"probe: {', '.join(here)}; wrote {layout.MACHINES}/")


if __name__ == "__main__":
    run_stage(probe)
