"""Train one variant: python stages/train.py model=deeplabv3plus backbone=mobilenet_v2 dataset=shapes."""

from segforge.config import NetworkConfig
from segforge.stage import run_stage


def train(config: NetworkConfig) -> None:
    from segforge.training.loop import train

    train(config)


if __name__ == "__main__":
    run_stage("network", train)
