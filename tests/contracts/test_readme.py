"""What README.md and CONTRIBUTING.md tell the reader to type exists and composes."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from segforge import config as schema

ROOT = Path(__file__).resolve().parents[2]
CONFIG_OF_STAGE = {
    **dict.fromkeys(("probe", "ceilings", "report"), "machine"),
    "download": "dataset",
    **dict.fromkeys(("train", "export", "simplify", "tails"), "network"),
    **dict.fromkeys(
        ("quantize", "build", "evaluate", "gate", "benchmark", "compare", "predict", "preprocess"), "engine"
    ),
}


def commands() -> list[str]:
    """Every line of a bash block, without its remark and its prompt."""
    found = []
    for name in ("README.md", "CONTRIBUTING.md", "results/README.md"):
        text = (ROOT / name).read_text()
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [re.sub(r"\s+# .*", "", line.removeprefix("$ ")).strip() for line in lines]
    return [line for line in found if line and not line.startswith("#")]


def test_there_are_commands_of_each_kind() -> None:
    first = {line.split()[0] for line in commands()}
    assert {"make", "python", "dvc"} <= first


@pytest.mark.parametrize("command", [c for c in commands() if re.match(r"(\w+=\S+ )*python stages/", c)])
def test_a_stage_command_composes(command: str, composed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    words = words[words.index("python") + 1 :]
    stage = Path(words[0]).stem
    assert (ROOT / words[0]).is_file()
    plain = OmegaConf.to_object(composed(CONFIG_OF_STAGE[stage], words[1:]))
    if isinstance(plain, schema.NetworkConfig):
        schema.check_network(plain)
    if isinstance(plain, schema.EngineConfig):
        schema.check_engine(plain)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_a_make_verb_exists(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    verb = next(w for w in shlex.split(command)[1:] if "=" not in w)
    assert re.search(rf"^{verb}:.*##", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)]+)\)", (ROOT / "README.md").read_text()))
def test_what_the_readme_links_to_exists(path: str) -> None:
    assert (ROOT / path).exists()
