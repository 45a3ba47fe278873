"""NVML without a driver: the functions of the module `pynvml` that Segforge calls, over cards that a test makes up.

They stand in for functions that are there: a name that NVML does not have fails the test.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

GIB = 2**30
Reading = tuple[int, int, int, int]  # MHz, mW, degrees, mask of reasons for a lower clock


@dataclass
class Card:
    """One card; each sample takes the next of its readings, and the last one stays."""

    name: str = "NVIDIA H200"
    uuid: str = "GPU-1111"
    sm: tuple[int, int] = (9, 0)
    memory: int = 141 * GIB
    readings: list[Reading] = field(default_factory=lambda: [(1980, 300_500, 60, 0)])
    taken: int = 0  # samples

    @property
    def now(self) -> Reading:
        """The reading of the sample that is being taken."""
        return self.readings[min(self.taken, len(self.readings)) - 1]


class FakeNvml:
    """The cards of a machine in the order of its bus; `open` counts how often NVML is initialised now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *cards: Card) -> None:
        self.cards, self.open, self.error = cards, 0, 0
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, function in {
            "nvmlInit": self._init,
            "nvmlShutdown": self._shutdown,
            "nvmlSystemGetDriverVersion": self._checked(lambda: "580.1"),
            "nvmlDeviceGetCount": self._checked(lambda: len(self.cards)),
            "nvmlDeviceGetHandleByIndex": self._checked(lambda index: self.cards[index]),
            "nvmlDeviceGetHandleByUUID": self._checked(self._by_uuid),
            "nvmlDeviceGetUUID": self._checked(lambda card: card.uuid),
            "nvmlDeviceGetName": self._checked(lambda card: card.name),
            "nvmlDeviceGetCudaComputeCapability": self._checked(lambda card: card.sm),
            "nvmlDeviceGetMemoryInfo": self._checked(lambda card: SimpleNamespace(total=card.memory)),
            "nvmlDeviceGetCurrentClocksThrottleReasons": self._checked(self._next_reasons),
            "nvmlDeviceGetClockInfo": self._checked(lambda card, kind: {pynvml.NVML_CLOCK_SM: card.now[0]}[kind]),
            "nvmlDeviceGetPowerUsage": self._checked(lambda card: card.now[1]),
            "nvmlDeviceGetTemperature": self._checked(
                lambda card, kind: {pynvml.NVML_TEMPERATURE_GPU: card.now[2]}[kind]
            ),
        }.items():
            monkeypatch.setattr(pynvml, name, function)

    def _init(self) -> None:
        if self.error:
            raise pynvml.NVMLError(self.error)
        self.open += 1

    def _shutdown(self) -> None:
        self.open -= 1

    def _checked(self, function: Any) -> Any:
        """`function` between init and shutdown alone, as in NVML."""

        def call(*arguments: Any) -> Any:
            if not self.open or self.error:
                raise pynvml.NVMLError(self.error or pynvml.NVML_ERROR_UNINITIALIZED)
            return function(*arguments)

        return call

    def _by_uuid(self, uuid: str) -> Card:
        for card in self.cards:
            if card.uuid == uuid:
                return card
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    @staticmethod
    def _next_reasons(card: Card) -> int:
        card.taken += 1
        return card.now[3]
