from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small_world import CLASSES, COLOURS, HEIGHT, MEAN, STD, VARIANT, WIDTH

from segforge.datasets.core.images import read_label_ids
from segforge.engines.engine import build_engine
from segforge.errors import SegforgeError
from segforge.files import read_csv
from segforge.graph.file import embed_passport, save_onnx
from segforge.layout import EnginePaths
from stages.predict import find_images, predict


def flat(path: str, colour: int, size=(WIDTH, HEIGHT)) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(int(v) for v in COLOURS[colour])).save(path)
    return Path(path)


@pytest.fixture
def engine(world):
    config = world.config()
    world.quantize(config)
    build_engine(config)
    return lambda given, to="out": predict(replace(config, input=given, output=to))


def written(folder="out") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_folder_of_any_sizes_gives_maps_of_their_own_size(engine, capsys):
    flat("in/sky.png", 1)
    flat("in/sand.JPG", 4, (33, 21))
    Path("in/notes.txt").write_text("no image")
    engine("in")
    assert written() == ["sand-overlay.jpg", "sand.png", "sky-overlay.jpg", "sky.png"]
    ids = read_label_ids(Path("out/sand.png"))
    assert ids.shape == (21, 33) and (ids == 4).all()
    assert (read_label_ids(Path("out/sky.png")) == 1).all()
    assert Image.open("out/sand-overlay.jpg").size == (33, 21)
    assert "wrote 2 predictions to out/" in capsys.readouterr().err


def test_a_glob_takes_what_it_names_in_any_number(engine):
    for i in range(11):
        flat(f"in/a{i:02}.png", i % 5)
    flat("in/b.png", 0)
    engine("in/a*.png", "deep/out")
    assert len(written("deep/out")) == 22
    assert [read_label_ids(Path(f"deep/out/a{i:02}.png"))[9, 9] for i in range(11)] == [i % 5 for i in range(11)]


def test_a_file_is_enough(engine):
    engine(str(flat("one.png", 2)))
    assert written() == ["one-overlay.jpg", "one.png"]


def test_all_is_checked_before_anything_is_written(engine):
    flat("in/a.png", 0)
    whole = flat("in/z.jpg", 1).read_bytes()
    Path("in/cut.jpg").write_bytes(whole[: len(whole) // 2])
    Path("in/empty.png").touch()
    with pytest.raises(SegforgeError, match=r"2 of 4 files are no readable images(.|\n)*in/cut.jpg(.|\n)*in/empty.png"):
        engine("in")
    assert not Path("out").exists()


def test_two_inputs_never_share_an_output(engine):
    flat("in/a.png", 0)
    flat("in/a.jpg", 0)
    with pytest.raises(SegforgeError, match=r"in/a.jpg and in/a.png would both write a.png"):
        engine("in")


def test_inputs_are_never_overwritten(engine):
    before = flat("in/a.png", 0).read_bytes()
    with pytest.raises(SegforgeError, match=r"in/a\.png would overwrite an input"):
        engine("in", "in")
    assert Path("in/a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "match"),
    [("nowhere/*.jpg", "no file matches"), ("empty", "the folder empty holds no images"), ("x.jpg", "no file matches")],
)
def test_nothing_to_do_is_an_error(project, given, match):
    Path("empty").mkdir()
    with pytest.raises(SegforgeError, match=match):
        find_images(given)


def test_a_folder_is_needed(engine):
    flat("a.png", 0)
    with pytest.raises(SegforgeError, match="needs input= and output="):
        engine("a.png", None)
    Path("file").touch()
    with pytest.raises(SegforgeError, match="file is a file"):
        engine("a.png", "file")


def test_an_engine_that_is_not_its_manifests_is_refused(engine):
    flat("a.png", 0)
    EnginePaths(VARIANT, "cpu-onnxruntime", "fp32").engine.write_bytes(b"foreign")
    with pytest.raises(SegforgeError, match="is refused"):
        engine("a.png")
    assert not Path("out").exists()


def test_a_classifier_gives_a_table(world):
    prototypes = (COLOURS - MEAN) / STD
    arrays = {"w": prototypes[:, :, None, None] * 4, "b": -2 * (prototypes**2).sum(axis=1)}
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"], "mean"),
        helper.make_node("Conv", ["mean", "w", "b"], ["map"], "nearest"),
        helper.make_node("Flatten", ["map"], ["logits"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    kind = {"task": "classification", "tail": "logits", "output_height": 0, "output_width": 0, "colours": []}
    embed_passport(model, replace(world.passport, **kind))
    config = world.config()
    typed = EnginePaths(VARIANT, "cpu-onnxruntime", "fp32").typed
    typed.parent.mkdir(parents=True)
    save_onnx(model, typed)
    build_engine(config)
    for i, name in enumerate(CLASSES):
        flat(f"in/{name}.png", i)
    predict(replace(config, input="in", output="out"))
    assert written() == ["predictions.csv"]
    rows = read_csv(Path("out/predictions.csv"), made_by="")
    assert [row["class"] for row in rows] == sorted(CLASSES)
    assert rows[0]["image"] == "in/brick.png" and all(0.2 < float(row["probability"]) <= 1 for row in rows)


def test_a_user_types_it(engine, stage):
    flat("in/a.png", 0)
    done = stage("predict", f"variant={VARIANT}", "input=in/*.png", "output=out")
    assert done.returncode == 0, done.stderr
    assert "images per second" in done.stderr
    done = stage("predict", f"variant={VARIANT}", "output=out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
