"""Weights from elsewhere: read without running code, matched key by key."""

import pickletools
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from segforge.architectures.core.base import Architecture, StateDict
from segforge.errors import SegforgeError, few
from segforge.terminal import say

HOLDERS = ("state_dict", "model")  # under which trainers keep the state dict beside other things
AUXILIARY = "auxiliary_head."  # heads that train the network and are gone afterwards
LEGACY_PICKLES = 5  # at the head of a file from before the zip format: magic, protocol, system, object, storage keys
PYTHON = {*sys.stdlib_module_names, *IMPORT_MAPPING}  # with the names of Python 2, which torch.save writes
# Of Python itself only data may be named; functions of it (os.system, builtins.eval) have no place among weights.
DATA = ("_codecs.encode", "argparse.Namespace", "collections.", "datetime.", "enum.", "pathlib.")
TYPES = {bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, range, set, slice, str, tuple}
BUILTIN_DATA = {"getattr", *(one.__name__ for one in TYPES)}  # getattr: mmengine's logs pickle their methods with it


class _Inert:
    """What stands for every foreign class and function of a file: takes anything, does nothing."""

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def read_state_dict(path: Path, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch state dict; no code in the file is ever run.

    It may lie under `state_dict` or `model` beside what trainers add (meta data, logs, optimisers): the
    classes of other packages there become objects that do nothing. The prefix `module.` of
    data-parallel training is taken off. `name` is what messages call the file. Raises `SegforgeError`
    for anything but a mapping from names to tensors, and for a file that names functions of Python's
    own library.
    """
    expected = "a state dict: names and tensors, as torch.save(model.state_dict(), file) writes it"
    try:
        foreign = _foreign_globals(path)
        code = sorted(one for one in foreign if _is_code(one))
        if code:
            raise UnpicklingError(f"it names {few(code)} of Python's own library, as code that runs on loading does")
        stand_ins: dict[str, Any] = dict.fromkeys(foreign, _Inert)
        stand_ins["collections.defaultdict"] = lambda *_: {}
        with torch.serialization.safe_globals([(stand_in, one) for one, stand_in in stand_ins.items()]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or foreign file raises whatever its bytes happen to mean
        raise SegforgeError(f"{name or path} is refused: {_reason(error)}", expected=expected) from error
    for holder in HOLDERS:
        if isinstance(loaded, Mapping) and not _is_state_dict(loaded) and _is_state_dict(loaded.get(holder)):
            loaded = loaded[holder]
    if not _is_state_dict(loaded):
        held = f"a {type(loaded).__name__}"
        if isinstance(loaded, Mapping):
            held += f" of {few([str(key) for key in loaded])}" if loaded else " without keys"
        expected += f"; or one under {' or '.join(HOLDERS)}"
        raise SegforgeError(f"{name or path} is refused: it holds {held}", expected=expected)
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def _reason(error: Exception) -> str:
    """What PyTorch found, without its advice to load the file unsafely."""
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return said[0].partition(" Please use")[0] if said else type(error).__name__


def _is_state_dict(found: Any) -> bool:
    pairs = found.items() if isinstance(found, Mapping) else ()
    return bool(pairs) and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in pairs)


def _foreign_globals(path: Path) -> set[str]:
    """The classes and functions that the file's pickle names and that PyTorch does not know as harmless."""
    if zipfile.is_zipfile(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    with path.open("rb") as file:
        steps = (step for _ in range(LEGACY_PICKLES) for step in pickletools.genops(file))
        # PyTorch takes no other way to name one: a file with STACK_GLOBAL is refused when it is loaded.
        named = [str(name).partition(" ")[::2] for code, name, _ in steps if code.name == "GLOBAL"]
        # And it calls what Python 2 named, as torch.save does, by its name of today.
        return {".".join(NAME_MAPPING.get(one, (IMPORT_MAPPING.get(one[0], one[0]), one[1]))) for one in named}


def _is_code(name: str) -> bool:
    module, _, last = name.partition(".")
    if module in ("builtins", "__builtin__"):
        return last not in BUILTIN_DATA
    return module in PYTHON and not name.startswith(DATA)


def load_backbone_weights(network: torch.nn.Module, part: str, weights: StateDict) -> list[str]:
    """Fill the backbone, which is `network`'s attribute `part`, and return the keys that nothing took.

    A key counts with and without the prefix `part.`, so that torchvision's `features.0.0.weight` fills
    `encoder.features.0.0.weight`. Raises `SegforgeError` listing every key of the backbone that
    `weights` lacks or holds in another shape.
    """
    own = {key: value for key, value in network.state_dict().items() if key.startswith(f"{part}.")}
    names = {key: key if key in own else f"{part}.{key}" for key in weights}
    fitting = {key: name for key, name in names.items() if name in own and own[name].shape == weights[key].shape}
    taken = {name: weights[key] for key, name in fitting.items()}
    unused = [key for key in weights if key not in fitting]
    missing = [key for key in own if key not in taken and not key.endswith("num_batches_tracked")]
    if missing:
        problem = f"the weights do not fit the backbone: {len(missing)} of {len(own)} keys are missing or of another"
        problem += f" shape ({few(missing)}); {len(unused)} keys of the file fit nowhere ({few(unused)})"
        raise SegforgeError(problem, expected="weights of this very backbone")
    network.load_state_dict(taken, strict=False)
    if unused:
        say(f"not used of the weights: {few(unused)}")
    return unused


def load_network_weights(
    network: torch.nn.Module, architecture: Architecture, weights: StateDict, classes: int
) -> list[str]:
    """Fill the whole network, of `classes` classes, and return the keys of auxiliary heads left as they are.

    `weights` may have the keys of any project that `architecture.convert` knows. Auxiliary heads, which
    only training needs, may be missing, and then this says so. Everything else must fit: one
    `SegforgeError` counts, per part of the network, the keys that are missing, left over or of another
    shape, and says what would mend it.
    """
    found = architecture.convert(network, weights)
    own = network.state_dict()
    lacking = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    untrained = [key for key in lacking if key.startswith(AUXILIARY)]
    other = [key for key in found if key in own and own[key].shape != found[key].shape]
    misfits = {
        "missing": [key for key in lacking if key not in untrained],
        "left over": [key for key in found if key not in own],
        "of another shape": other,
    }
    wrong = [f"{len(keys)} {what}: {_by_part(keys)}" for what, keys in misfits.items() if keys]
    if wrong:
        counts = {found[key].shape[0] for key in other if own[key].shape[:1] == (classes,)}
        same_but_first = all(own[key].shape[1:] == found[key].shape[1:] for key in other)
        if len(wrong) == len(counts) == 1 and same_but_first:
            (count,) = counts
            problem = f"the weights are of {count} classes, the data set has {classes} ({few(other)})"
            expected = f"a data set of {count} classes, or the weights of the backbone alone"
            hint = "dataset=<of those classes>, or recipe.weights.holds=backbone"
            raise SegforgeError(problem, expected=expected, hint=hint)
        problem = f"the weights do not fit the network; keys: {'; '.join(wrong)}"
        hint = "backbone=<that of the weights>, another model=, or recipe.weights.holds=backbone"
        raise SegforgeError(problem, expected="weights of this very network", hint=hint)
    network.load_state_dict(dict(found), strict=False)
    if untrained:
        say(f"the weights lack the auxiliary heads, which stay random: {_by_part(untrained)}")
    return untrained


def _by_part(keys: list[str]) -> str:
    """The keys counted by their first two names: `backbone.layer1 (36), decode_head.conv_seg (2)`."""
    parts = Counter(".".join(key.split(".")[:-1][:2]) or key for key in keys)
    return few([f"{part} ({count})" for part, count in parts.items()])


def is_coincheung(weights: StateDict) -> bool:
    """Whether these are weights under the names of CoinCheung/BiSeNet."""
    return any(key.startswith(("cp.resnet.", "detail.S1.")) for key in weights)
