"""Weights from elsewhere: read without running code, matched key by key."""

import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from segforge.architectures.base import Architecture
from segforge.errors import SegforgeError
from segforge.progress import say

SHOWN = 5  # of a long list of keys
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

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _plain(*_: object) -> dict[str, Any]:
    return {}


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
            raise UnpicklingError(f"it names {_few(code)} of Python's own library, as code that runs on loading does")
        stand_ins: list[Any] = [
            (_plain if one == "collections.defaultdict" else _Inert, one) for one in sorted(foreign)
        ]
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or foreign file raises whatever its bytes happen to mean
        raise SegforgeError(f"{name or path} is refused: {_reason(error)}", expected=expected) from error
    for holder in HOLDERS:
        if isinstance(loaded, Mapping) and not _is_state_dict(loaded) and _is_state_dict(loaded.get(holder)):
            loaded = loaded[holder]
    if not _is_state_dict(loaded):
        held = f"a {type(loaded).__name__}"
        if isinstance(loaded, Mapping):
            held += f" of {_few([str(key) for key in loaded])}" if loaded else " without keys"
        raise SegforgeError(
            f"{name or path} is refused: it holds {held}", expected=f"{expected}; or one under {' or '.join(HOLDERS)}"
        )
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def _reason(error: Exception) -> str:
    """What PyTorch found, without its advice to load the file unsafely."""
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return said[0].partition(" Please use")[0] if said else type(error).__name__


def _is_state_dict(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items())
    )


def _foreign_globals(path: Path) -> set[str]:
    """The classes and functions that the file's pickle names and that PyTorch does not know as harmless."""
    if zipfile.is_zipfile(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    from torch._weights_only_unpickler import get_globals_in_pkl  # what the function above does to a zip file

    with path.open("rb") as file:
        return set().union(*(get_globals_in_pkl(file) for _ in range(LEGACY_PICKLES)))


def _is_code(name: str) -> bool:
    module, _, last = name.partition(".")
    if module in ("builtins", "__builtin__"):
        return last not in BUILTIN_DATA
    return module in PYTHON and not name.startswith(DATA)


def load_backbone_weights(network: torch.nn.Module, part: str, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Fill the backbone, which is `network`'s attribute `part`, and return the keys that nothing took.

    A key counts with and without the prefix `part.`, so that torchvision's `features.0.0.weight` fills
    `encoder.features.0.0.weight`. Raises `SegforgeError` listing every key of the backbone that
    `weights` lacks or holds in another shape.
    """
    own = {key: value for key, value in network.state_dict().items() if key.startswith(f"{part}.")}
    taken: dict[str, torch.Tensor] = {}
    unused: list[str] = []
    for key, value in weights.items():
        target = key if key in own else f"{part}.{key}"
        if target in own and own[target].shape == value.shape:
            taken[target] = value
        else:
            unused.append(key)
    missing = [key for key in own if key not in taken and not key.endswith("num_batches_tracked")]
    if missing:
        raise SegforgeError(
            f"the weights do not fit the backbone: {len(missing)} of {len(own)} keys are missing or of another shape "
            f"({_few(missing)}); {len(unused)} keys of the file fit nowhere ({_few(unused)})",
            expected="weights of this very backbone",
        )
    network.load_state_dict(taken, strict=False)
    if unused:
        say(f"not used of the weights: {_few(unused)}")
    return unused


def load_network_weights(
    network: torch.nn.Module, architecture: Architecture, weights: Mapping[str, torch.Tensor], classes: int
) -> list[str]:
    """Fill the whole network, of `classes` classes, and return the keys of auxiliary heads left as they are.

    `weights` may have the keys of any project that `architecture.convert` knows. Auxiliary heads, which
    only training needs, may be missing, and then this says so. Everything else must fit: one
    `SegforgeError` counts, per part of the network, the keys that are missing, left over or of another
    shape, and says what would mend it.
    """
    found = architecture.convert(network, weights)
    own = network.state_dict()
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    surplus = [key for key in found if key not in own]
    other = [key for key in found if key in own and own[key].shape != found[key].shape]
    untrained = [key for key in missing if key.startswith(AUXILIARY)]
    missing = [key for key in missing if key not in untrained]
    if missing or surplus or other:
        lines = [
            f"{len(keys)} {what}: {_by_part(keys)}"
            for keys, what in ((missing, "missing"), (surplus, "left over"), (other, "of another shape"))
            if keys
        ]
        theirs = {found[key].shape[0] for key in other if own[key].ndim and own[key].shape[0] == classes}
        if other and not missing and not surplus and len(theirs) == 1 and _same_but_first(other, own, found):
            (count,) = theirs
            raise SegforgeError(
                f"the weights are of {count} classes, the data set has {classes} ({_few(other)})",
                expected=f"a data set of {count} classes, or the weights of the backbone alone",
                hint="dataset=<of those classes>, or recipe.weights.holds=backbone",
            )
        raise SegforgeError(
            f"the weights do not fit the network; keys: {'; '.join(lines)}",
            expected="weights of this very network",
            hint="backbone=<that of the weights>, another model=, or recipe.weights.holds=backbone",
        )
    network.load_state_dict(dict(found), strict=False)
    if untrained:
        say(f"the weights lack the auxiliary heads, which stay random: {_by_part(untrained)}")
    return untrained


def _same_but_first(keys: Iterable[str], own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> bool:
    return all(own[key].shape[1:] == found[key].shape[1:] for key in keys)


def _by_part(keys: list[str]) -> str:
    """The keys counted by their first two names: `backbone.layer1 (36), decode_head.conv_seg (2)`."""
    parts = Counter(".".join(key.split(".")[:-1][:2]) or key for key in keys)
    return _few([f"{part} ({count})" for part, count in parts.items()])


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
