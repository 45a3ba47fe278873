"""Train one variant: python stages/train.py model=deeplabv3plus backbone=mobilenet_v2 dataset=shapes."""

import shutil

from segforge.config.network import NetworkConfig
from segforge.datasets.core.index import load_index
from segforge.stage import run_stage
from segforge.terminal import say


def train(config: NetworkConfig) -> None:
    """Train one variant and write its checkpoint, curves and figures.

    A run that was killed goes on from its last whole epoch, to the same weights (on a CPU bit by
    bit). Raises `SegforgeError` for a device, data or weights that it cannot have.
    """
    # Here, behind the checks of the config: PyTorch takes seconds to import.
    from segforge.training.state import load_state, run_key, save_state, write_results
    from segforge.training.trainer import Trainer, choose_device, training_samples

    paths, epochs = config.paths, config.recipe.training.epochs
    device = choose_device(config.train_on)
    index = load_index(config.dataset.name)
    samples = training_samples(config, index)
    say(f"{config.variant}: {len(samples)} images, {epochs} epochs on {device}; to {paths.checkpoint}/")
    trainer = Trainer(config, index, samples, device)
    key = run_key(config, device)
    state, why_not = load_state(paths.training_state, key)
    if why_not:
        say(why_not)
    if state:
        trainer.restore(state)
        say(f"going on after epoch {trainer.progress.epoch}")
    for done in trainer.epochs():
        if done < epochs:  # after the last one the checkpoint follows
            save_state(paths.training_state, key, trainer.state())
    write_results(config, trainer, index, samples)
    shutil.rmtree(paths.training_state, ignore_errors=True)


if __name__ == "__main__":
    run_stage(train)
