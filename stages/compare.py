"""Time two engines in turn: python stages/compare.py variant=… precision=int8 against=cpu-torch/fp32."""

import statistics
from contextlib import ExitStack

from segforge.config.compose import engine_config
from segforge.config.engine import EngineConfig
from segforge.datasets.core.index import load_index
from segforge.engines.engine import Engine
from segforge.engines.ledger import read_ledger
from segforge.errors import SegforgeError
from segforge.files import write_csv
from segforge.stage import run_stage
from segforge.terminal import say, table
from segforge.timing import measure

COLUMNS = ("batch", "against_ms", "engine_ms", "ratio", "ratio_min", "ratio_max", "blocks", "against_score", "score")
BLOCKS, RUNS, UNCOUNTED = 15, 5, 2  # turns of each engine per batch; runs of a turn that count, and that do not


def compare(config: EngineConfig) -> None:
    """Time the engine's `compute` in turn with that of `config.against`, and print and write the ratios.

    On a machine that others share, only such a ratio holds. Writes metrics/compare/…: per batch the medians
    in ms, the median, lowest and highest ratio over the turns (against / engine: above 1 the engine is
    faster), and the scores of the very two engines at that batch from their ledgers. Raises `SegforgeError`
    for an unknown or unbuilt engine, and for one that was built anew after it was scored.
    """
    target, _, precision = config.against.partition("/")
    if not precision:
        raise SegforgeError(f"against={config.against}", expected="<target>/<precision>", hint="against=cpu-torch/fp32")
    # The other engine first: what it sets for the whole process (the allocator) serves it as in its own.
    engines = [Engine.of(one) for one in (engine_config(config.variant, target, precision), config)]
    passport = engines[1].passport
    batches = sorted(set(config.benchmark.batches))
    passport.require_batches(batches)
    samples = load_index(passport.dataset).split(passport.task, passport.score_split)[: config.benchmark.images]
    # Before anything is timed: an engine that was built anew since has no score to stand beside its time.
    against_scores, scores = (_scores(engine) for engine in engines)
    rows = []
    with ExitStack() as stack:
        runners = [stack.enter_context(engine.open()) for engine in engines]
        for batch in batches:
            works = [measure.compute(runner, passport, samples, batch) for runner in runners]
            turns = measure.in_turn(works, turns=BLOCKS, runs=RUNS, uncounted=UNCOUNTED)
            against, own = ([seconds for (seconds,) in turn] for turn in turns)
            ratios = [slow / fast for slow, fast in zip(against, own, strict=True)]
            times = {"against_ms": statistics.median(against) * 1000, "engine_ms": statistics.median(own) * 1000}
            times |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
            figures = {name: round(value, 4) for name, value in times.items()}
            scored = {"against_score": against_scores.get(str(batch), ""), "score": scores.get(str(batch), "")}
            rows.append({"batch": batch, **figures, "blocks": BLOCKS, **scored})
            say(f"batch {batch}: {times['ratio']:.2f} times as fast as {config.against}")
    target_file = config.paths.detail("compare", f"{config.against.replace('/', '-')}.csv")
    write_csv(target_file, COLUMNS, rows)
    print(table(COLUMNS, [[str(row[name]) for name in COLUMNS] for row in rows]))
    print(target_file)


def _scores(engine: Engine) -> dict[str, str]:
    """The score of the engine by batch."""
    return {row["batch"]: row["score"] for row in read_ledger(engine.paths) if row["step"] == "engine"}


if __name__ == "__main__":
    run_stage(compare)
