"""Score an engine at every timed batch: python stages/evaluate.py variant=… target=cpu-openvino precision=int8.

With predictions=<folder>, the outputs of another machine on the inputs that stages/preprocess.py wrote.
"""

from segforge.config.engine import EngineConfig
from segforge.elsewhere import evaluate_predictions
from segforge.engines.engine import Engine
from segforge.engines.ledger import COLUMNS, hash_chain, ledger_rows
from segforge.evaluation import OUTPUTS, score_runner, scored_samples
from segforge.files import write_csv, write_json
from segforge.stage import run_stage
from segforge.tasks import task_of
from segforge.terminal import say


def evaluate(config: EngineConfig) -> None:
    """Score the engine at every timed batch and write its ledger, per-class scores and output hashes.

    Raises `SegforgeError` when the chain of hashes from checkpoint to engine is broken, when data set
    and network disagree about the classes, or when a scored image was trained on.
    """
    if config.predictions is not None:
        evaluate_predictions(config)
        return
    engine = Engine.of(config)
    paths, passport, task = engine.paths, engine.passport, task_of(engine.passport.task)
    batches = sorted(set(config.benchmark.batches))
    passport.require_batches(batches)
    samples, steps = scored_samples(passport), hash_chain(engine)

    say(f"scoring {paths.engine} on {len(samples)} images at batch {', '.join(map(str, batches))}")
    with engine.open() as runner:
        scored = {batch: score_runner(runner, passport, samples, batch) for batch in batches}
    worst = scored[min(batches, key=lambda batch: scored[batch].result["score"])].result

    ledger = ledger_rows(steps, scored, engine.runtime, engine.sha256)
    write_csv(paths.detail("evaluate", "ledger.csv"), COLUMNS, ledger)
    classes = [{"class": c, task.column: s} for c, s in zip(passport.classes, worst["per_class"], strict=True)]
    write_csv(paths.detail("evaluate", "classes.csv"), ["class", task.column], classes)
    outputs = {str(batch): one.outputs_sha256 for batch, one in scored.items()}
    write_json(paths.detail("evaluate", "outputs.json"), {"images": min(OUTPUTS, len(samples)), "sha256": outputs})
    start, score = steps["checkpoint"].score, worst["score"]
    extras = {key: value for key, value in worst.items() if key not in ("score", "per_class")}
    hashes = {"engine_sha256": engine.sha256, "onnx_sha256": engine.onnx_sha256}
    scores = {"metric": task.metric, "score": score, "checkpoint": start, "loss": start - score}
    write_json(paths.metrics("evaluate"), {**scores, **extras, **hashes})
    say(f"wrote {paths.metrics('evaluate')}, {paths.detail('evaluate', 'ledger.csv')} and its neighbours")


if __name__ == "__main__":
    run_stage(evaluate)
