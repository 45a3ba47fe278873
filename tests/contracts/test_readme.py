"""What README.md and CONTRIBUTING.md tell the reader to type exists and composes."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from omegaconf import OmegaConf

from segforge.config.engine import EngineConfig
from segforge.config.network import NetworkConfig

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
    if isinstance(plain, NetworkConfig):
        plain.check()
    if isinstance(plain, EngineConfig):
        plain.check()


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_a_make_verb_exists(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    verb = next(w for w in shlex.split(command)[1:] if "=" not in w)
    assert re.search(rf"^{verb}:.*##", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("word", re.findall(r"dvc exp run -S '([^']+)'", (ROOT / "README.md").read_text()))
def test_an_experiment_sets_what_there_is(word: str, project: Path) -> None:
    """DVC refuses a key that is not in the file, unless `+` says that it is new."""
    path, _, override = word.partition(":")
    assert (project / path).is_file()
    apply_overrides(project / path, [override])


@pytest.mark.parametrize("command", [c for c in commands() if re.match(r"(\w+=\S+ )*dvc repro \S", c)])
def test_a_stage_that_dvc_is_told_to_run_exists(command: str) -> None:
    words = shlex.split(command)
    for target in words[words.index("repro") + 1 :]:
        file, _, name = target.rpartition(":")
        verb, _, key = name.partition("@")
        stage = yaml.safe_load((ROOT / file).read_text())["stages"][verb]
        rows = yaml.safe_load((ROOT / "params.yaml").read_text())[stage["foreach"].strip("${}")]
        assert key in rows


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)]+)\)", (ROOT / "README.md").read_text()))
def test_what_the_readme_links_to_exists(path: str) -> None:
    assert (ROOT / path).exists()
