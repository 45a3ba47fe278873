"""Two engines in turn, in one run: on a machine that others share, only such a ratio holds."""

import statistics
from contextlib import ExitStack

from segforge.config import EngineConfig, engine_config
from segforge.datasets.base import load_index
from segforge.errors import SegforgeError
from segforge.files import write_csv
from segforge.progress import say
from segforge.report.table import text_table
from segforge.runtimes.build import engine_metadata, open_engine, paths_of
from segforge.scores.evaluate import require_batches
from segforge.scores.ledger import read_ledger
from segforge.timing import measure

COLUMNS = ("batch", "against_ms", "engine_ms", "ratio", "ratio_min", "ratio_max", "blocks", "against_score", "score")
BLOCKS = 15  # turns of each engine per batch
RUNS = 5  # per turn that are counted
UNCOUNTED = 2  # at the start of a turn: the other engine's threads still spin down, the caches are its own


def compare(config: EngineConfig) -> None:
    """Time the engine's `compute` in turn with that of `config.against`, and print and write the ratios.

    Writes metrics/compare/…: per batch the medians in ms, the median, lowest and
    highest ratio over the turns (against / engine: above 1 the engine is faster), and the scores of
    the very two engines at that batch from their ledgers. Raises `SegforgeError` for an unknown or
    unbuilt engine, and for one that was built anew after it was scored.
    """
    target, _, precision = config.against.partition("/")
    if not precision:
        raise SegforgeError(f"against={config.against}", expected="<target>/<precision>", hint="against=cpu-torch/fp32")
    other = engine_config(config.variant, target, precision)
    metadata = engine_metadata(config)
    require_batches(config.benchmark.batches, metadata)
    samples = load_index(metadata.dataset).split(metadata.task, metadata.score_split)[: config.benchmark.images]
    # Before anything is timed: an engine that was built anew since has no score to stand beside its time.
    against_scores, scores = (_scores(one) for one in (other, config))
    rows = []
    with ExitStack() as stack:
        # The other engine first: what it sets for the whole process (the allocator) serves it as in its own.
        runners = [stack.enter_context(open_engine(one)) for one in (other, config)]
        for batch in sorted(set(config.benchmark.batches)):
            works = [measure.latencies(runner, metadata, samples, batch)["compute"] for runner in runners]
            turns: list[list[float]] = [[], []]
            for _ in range(BLOCKS):
                for work, medians in zip(works, turns, strict=True):
                    seconds = [work() for _ in range(UNCOUNTED + RUNS)][UNCOUNTED:]
                    medians.append(statistics.median(seconds))
            ratios = [slow / fast for slow, fast in zip(*turns, strict=True)]
            figures = {
                "against_ms": statistics.median(turns[0]) * 1000,
                "engine_ms": statistics.median(turns[1]) * 1000,
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
            rows.append(
                {
                    "batch": batch,
                    **{name: round(value, 4) for name, value in figures.items()},
                    "blocks": BLOCKS,
                    "against_score": against_scores.get(str(batch), ""),
                    "score": scores.get(str(batch), ""),
                }
            )
            say(f"batch {batch}: {figures['ratio']:.2f} times as fast as {config.against}")
    target_file = paths_of(config).detail("compare", f"{config.against.replace('/', '-')}.csv")
    write_csv(target_file, COLUMNS, rows)
    print(text_table(list(COLUMNS), [[str(row[name]) for name in COLUMNS] for row in rows]))
    print(target_file)


def _scores(config: EngineConfig) -> dict[str, str]:
    """The score of the engine by batch."""
    return {row["batch"]: row["score"] for row in read_ledger(paths_of(config)) if row["step"] == "engine"}
