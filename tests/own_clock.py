"""A clock that only a test's own runs move: other work on the machine stretches a sleep."""


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def run(self, seconds: float) -> float:
        self.now += seconds
        return seconds
