"""Make or download one data set, and a recipe's weights when one is named: python stages/download.py dataset=shapes."""

from segforge.config.network import DatasetConfig
from segforge.datasets.arrival.make import make_dataset
from segforge.fetch import fetch
from segforge.stage import run_stage


def download(config: DatasetConfig) -> None:
    """Write data/<name>/ with its index, whole or not at all, after every check has passed."""
    make_dataset(config.dataset)
    if config.recipe and config.recipe.weights:
        fetch(config.recipe.weights)


if __name__ == "__main__":
    run_stage(download)
