"""Make or download one data set, and a recipe's weights when one is named: python stages/download.py dataset=shapes."""

from segforge.config import DatasetConfig
from segforge.stage import run_stage


def download(config: DatasetConfig) -> None:
    from segforge.datasets import make_dataset
    from segforge.datasets.download import fetch

    make_dataset(config.dataset)
    if config.recipe and config.recipe.weights:
        fetch(config.recipe.weights)


if __name__ == "__main__":
    run_stage("dataset", download)
