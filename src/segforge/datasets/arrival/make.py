"""A whole data set, made or brought in, or none."""

from segforge import layout
from segforge.config.recipe import Dataset
from segforge.datasets import maker_of
from segforge.datasets.arrival.checks import hash_labels, validate_samples
from segforge.files import atomic_folder, write_json
from segforge.terminal import say


def make_dataset(config: Dataset) -> None:
    """Write data/<name>/ with its `index.json`, whole or not at all, after every check has passed.

    Raises `SegforgeError` for an unknown format and for whatever download and checks refuse.
    """
    make = maker_of(config.format)
    target = layout.dataset(config.name)
    say(f"{config.name}: writing {target}/")
    with atomic_folder(target) as folder:
        samples = make(config, folder)
        validate_samples(config, folder, samples)
        write_json(
            folder / "index.json",
            {
                "name": config.name,
                "void": config.void,
                "colours": config.colours,
                "classes": config.classes,
                # Whatever changes in the data set or its config changes the index: it is all that
                # later stages track. Images carry their hashes in `samples`.
                "things": config.things,
                "void_rule": config.void_rule,
                "score_split": config.score_split,
                "size": [config.height, config.width],
                "labels_sha256": hash_labels(config.name, folder, samples),
                "samples": samples,
            },
        )
    for task, splits in samples.items():
        say(f"{config.name}: {task}: " + ", ".join(f"{len(rows)} {split}" for split, rows in splits.items()))
