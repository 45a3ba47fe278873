"""Training: the same seed gives the same bytes, and a killed run ends where an unbroken one does."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import make_data, tiny_config

from segforge import layout
from segforge.checkpoint import load_checkpoint, save_checkpoint
from segforge.config.network import NetworkConfig
from segforge.config.recipe import Loss, Weights
from segforge.datasets.core.index import load_index
from segforge.errors import SegforgeError
from segforge.files import read_csv, read_json, sha256_file, write_json
from segforge.layout import VariantPaths
from segforge.tasks import task_of
from segforge.training import state as training_state
from segforge.training.data import SplitTensors, common_size
from segforge.training.state import load_state, run_key, save_state
from stages.train import train

ROOT = Path(__file__).resolve().parents[2]


def outputs(config: NetworkConfig) -> dict[str, str]:
    """Hashes of all that training leaves."""
    paths = VariantPaths(config.variant)
    files = [*paths.checkpoint.iterdir(), paths.curves, paths.metrics("train")]
    return {path.name: sha256_file(path) for path in sorted(files)}


@pytest.mark.parametrize("task", ["semantic", "classification"])
def test_the_same_seed_gives_the_same_bytes(tiny: Path, task: str) -> None:
    config = tiny_config(task)
    train(config)
    first = outputs(config)
    assert set(first) == {
        "best.safetensors",
        "last.safetensors",
        "checkpoint.json",
        f"{config.variant}.csv",
        f"{config.variant}.json",
    }
    train(config)
    assert outputs(config) == first
    config.seed = 1
    train(config)
    assert outputs(config)["last.safetensors"] != first["last.safetensors"]


def test_what_a_checkpoint_says(tiny: Path) -> None:
    config = tiny_config(epochs=3)
    train(config)
    paths = VariantPaths(config.variant)
    found = read_json(paths.checkpoint / "checkpoint.json", made_by="")
    curves = read_csv(paths.curves, made_by="")
    scores = [float(row["score"]) for row in curves]
    assert [row["epoch"] for row in curves] == ["1", "2", "3"]
    assert found["scores"] == {"val": max(scores)}
    assert found["epoch"] == scores.index(max(scores)) + 1
    assert found["sha256"] == sha256_file(paths.checkpoint / "best.safetensors")
    assert found["train_images"] == sorted(
        sample.sha256[:16] for sample in load_index("tiny").split("semantic", "train")
    )
    assert found["initialisation"] == "random"
    assert read_json(paths.metrics("train"), made_by="")["miou"] == max(scores)
    assert not paths.training_state.exists()
    network = load_checkpoint(paths.checkpoint, config)
    assert not network.training


def test_without_a_selecting_split_the_last_is_the_best(tiny: Path) -> None:
    config = tiny_config(splits=["train", "val"], select=None, loss=Loss(name="ohem", class_weights="inverse_log"))
    train(config)
    folder = VariantPaths(config.variant).checkpoint
    assert sha256_file(folder / "best.safetensors") == sha256_file(folder / "last.safetensors")
    assert len(read_json(folder / "checkpoint.json", made_by="")["train_images"]) == 12


class Cut(Exception):
    pass


@pytest.mark.parametrize(("task", "amp"), [("semantic", "none"), ("classification", "bf16")])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, task: str, amp: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(task, epochs=3, amp=amp)
    train(config)
    unbroken = outputs(config)
    calls = 0

    def saves_then_falls(*words: object) -> None:
        nonlocal calls
        save_state(*words)  # type: ignore[arg-type]
        calls += 1
        if calls in (1, 2):
            raise Cut

    monkeypatch.setattr(training_state, "save_state", saves_then_falls)
    for _ in range(2):
        with pytest.raises(Cut):
            train(config)
    train(config)
    assert calls == 2  # each run went on, none did an epoch twice, and the last epoch needs no state
    assert "going on after epoch 2" in capsys.readouterr().err
    assert outputs(config) == unbroken


def test_sigkill_in_the_middle_of_an_epoch(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config("classification", epochs=4)
    train(config)
    unbroken = outputs(config)
    script = textwrap.dedent("""
        import time
        from segforge.training import state
        from stages.train import train
        from tiny_training import tiny_config
        save = state.save_state
        def slow(*words):
            save(*words)
            time.sleep(0.5)
        state.save_state = slow
        train(tiny_config("classification", epochs=4))
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "src", "tests"))}
    state = VariantPaths(config.variant).training_state / "state.pt"
    run = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not state.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.6)  # into the second epoch
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert state.exists()
    train(config)
    assert "going on after epoch" in capsys.readouterr().err
    assert outputs(config) == unbroken


def test_a_state_of_another_recipe_is_not_gone_on_from(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    folder = VariantPaths(config.variant).training_state
    save_state(folder, "another key", {"network": {}})
    train(config)
    assert "another recipe" in capsys.readouterr().err
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"torn")
    state, why = load_state(folder, "key")
    assert state is None
    assert "cannot be read" in why


def test_the_key_knows_recipe_seed_and_data(tiny: Path) -> None:
    cpu = torch.device("cpu")
    keys = [run_key(tiny_config(), cpu)]
    changes: list[Callable[[NetworkConfig], None]] = [
        lambda c: setattr(c, "seed", 5),
        lambda c: setattr(c.recipe.training, "lr", 0.1),
        lambda c: setattr(c.recipe, "weights", Weights(name="w.pth", sha256="0")),
        lambda c: setattr(c.recipe, "weights", Weights(name="w.pth", sha256="0", holds="network")),
        lambda c: setattr(c.dataset, "things", ["green"]),
        lambda c: setattr(c.dataset, "void_rule", "wrong"),
        lambda c: setattr(c.dataset, "height", 64),
    ]
    for change in changes:
        config = tiny_config()
        change(config)
        keys.append(run_key(config, cpu))
    assert run_key(tiny_config(), cpu) == keys[0]
    index = layout.dataset("tiny") / "index.json"
    write_json(index, {**read_json(index, made_by=""), "labels_sha256": "of other labels"})
    keys.append(run_key(tiny_config(), cpu))
    assert len(set(keys)) == len(keys) == 9


@pytest.mark.parametrize("what", ["state", "checkpoint"])
def test_a_full_disk_is_an_error_of_the_system(tiny: Path, what: str) -> None:
    """A limit on the size of files stands for the disk; what wrote them raises its own errors there."""
    tensors = {"a": torch.zeros(10_000)}
    words = {"best": tensors, "last": tensors, "classes": [], "epoch": 1, "scores": {}, "train_images": []}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            if what == "state":
                save_state(tiny / "out", "key", {"network": tensors})
            else:
                save_checkpoint(tiny / "out" / "checkpoint", tiny_config(), **words)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tiny / "out").iterdir()) == []


def test_a_checkpoint_of_another_network_is_refused(tiny: Path) -> None:
    config = tiny_config("classification", epochs=1)
    train(config)
    folder = VariantPaths(config.variant).checkpoint
    for change, said in (
        (lambda c: setattr(c.backbone, "name", "mobilenet_v3_large"), "backbone mobilenet_v3_small instead"),
        (lambda c: setattr(c.model, "name", "deeplabv3plus"), "model classifier instead of deeplabv3plus"),
        (lambda c: c.dataset.classes["classification"].append("more"), "classes 3 .* instead of 4"),
        (lambda c: c.model.options.update(dropout=0.9), "options"),
    ):
        other = tiny_config("classification", epochs=1)
        change(other)
        with pytest.raises(SegforgeError, match=said):
            load_checkpoint(folder, other)
    weights = folder / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(SegforgeError, match="not the one"):
        load_checkpoint(folder, config)
    with pytest.raises(SegforgeError, match=r"stages/train\.py model=classifier"):
        load_checkpoint(tiny / "nowhere", config)


def test_a_pickle_with_code_as_backbone_weights_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    file = tiny / "mirror" / "weights.pth"
    file.parent.mkdir()
    file.write_bytes(pickle.dumps({"a": os.getcwd}))
    monkeypatch.setenv("SEGFORGE_MIRROR", str(file.parent))
    config = tiny_config()
    config.recipe.weights = Weights(name="weights.pth", sha256=sha256_file(file))
    with pytest.raises(SegforgeError, match=r"weights\.pth is refused"):
        train(config)


def test_bad_input_is_said_before_work(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny_config()
    config.train_on = "cuda"
    with pytest.raises(SegforgeError, match="no NVIDIA GPU"):
        train(config)
    config.train_on = "cpu"
    config.recipe.input.width = 50
    with pytest.raises(SegforgeError, match="multiples of 16"):
        train(config)
    config.model.task = "panoptic"
    with pytest.raises(SegforgeError, match="panoptic"):
        train(config)


def test_classes_that_are_not_the_data_sets_are_refused(tiny: Path) -> None:
    config = tiny_config("classification", epochs=0)
    config.dataset.classes["classification"] = ["none", "blue", "green"]
    with pytest.raises(SegforgeError, match=r"other classes(.|\n)*stages/download\.py dataset=tiny"):
        train(config)
    config.dataset.classes["classification"] = []  # the data set's own
    train(config)


def test_a_scored_image_among_the_training_images_is_refused(tiny: Path) -> None:
    config = tiny_config()
    index = tiny / "data/tiny/index.json"
    trained, scored = (load_index("tiny").split("semantic", split)[0].sha256 for split in ("train", "test"))
    index.write_text(index.read_text().replace(scored, trained))
    with pytest.raises(SegforgeError, match="both"):
        train(config)


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Path) -> None:
    with pytest.raises(SegforgeError, match="smaller"):
        train(tiny_config(lr=1e30, optimizer="sgd"))


@pytest.mark.parametrize("name", ["semantic", "classification"])
def test_decoding_ahead_gives_what_memory_gives(tiny: Path, name: str) -> None:
    samples = load_index("tiny").split(name, "train")
    order = list(torch.randperm(8, generator=torch.Generator().manual_seed(0)).split(3))
    task, cpu = task_of(name), torch.device("cpu")
    kept, ahead = (
        list(SplitTensors(samples, task, (30, 36), cpu, "x", memory_bytes=bound).batches(order))
        for bound in (1 << 30, 0)
    )
    assert len(kept) == len(ahead) == 3
    for one, other in zip(kept, ahead, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert kept[0][0].shape == (3, 3, 30, 36)
    assert kept[0][0].dtype == torch.uint8
    assert kept[0][1].shape == ((3, 30, 36) if name == "semantic" else (3,))
    assert kept[0][1].dtype == (torch.uint8 if name == "semantic" else torch.int64)


def test_sizes_that_differ_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, size in enumerate([(32, 48), (32, 52)]):
        make_data(tmp_path / str(number), {"train": 2}, size)
    monkeypatch.chdir(tmp_path / "0")
    same = load_index("tiny").split("semantic", "train")
    assert common_size(same) == (32, 48)
    monkeypatch.chdir(tmp_path / "1")
    wider = load_index("tiny").split("semantic", "train")
    mixed = [type(s)(Path.cwd().parent / n / s.image, 0, "") for n, rows in (("0", same), ("1", wider)) for s in rows]
    assert common_size(mixed) is None


def test_weights_of_a_whole_network_can_be_taken_as_they_are(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_config("classification"))
    folder = VariantPaths(tiny_config("classification").variant).checkpoint
    trained = load_file(folder / "best.safetensors")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    torch.save({"state_dict": {f"module.{key}": value for key, value in trained.items()}}, mirror / "network.pth")
    monkeypatch.setenv("SEGFORGE_MIRROR", str(mirror))
    config = tiny_config("classification", epochs=0, select=None, splits=["train", "val"])
    config.recipe.weights = Weights(name="network.pth", sha256=sha256_file(mirror / "network.pth")[:8], holds="network")
    train(config)
    taken = load_file(folder / "best.safetensors")
    assert taken.keys() == trained.keys()
    assert all(torch.equal(taken[key], trained[key]) for key in trained)
    assert read_json(folder / "checkpoint.json", made_by="")["epochs"] == 0

    config.dataset.classes["classification"] = ["none", "green", "blue", "red"]
    index = read_json(layout.dataset("tiny") / "index.json", made_by="")
    index["classes"]["classification"].append("red")
    write_json(layout.dataset("tiny") / "index.json", index)
    with pytest.raises(SegforgeError, match=r"weights are of 3 classes, the data set has 4"):
        train(config)
