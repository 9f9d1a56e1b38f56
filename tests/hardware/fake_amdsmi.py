"""An `amdsmi` package without a GPU: what its Python interface gives, in its own units, for one or more cards."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest


class AmdSmiException(Exception):
    """The package's base class."""


class AmdSmiLibraryException(AmdSmiException):
    """What every refused call raises."""

    def get_error_info(self) -> str:
        return "AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported"


class AmdSmiTemperatureType(enum.IntEnum):
    EDGE = 0
    HOTSPOT = 1


class AmdSmiTemperatureMetric(enum.IntEnum):
    CURRENT = 0


class AmdSmiClkType(enum.IntEnum):
    GFX = 0
    MEM = 4


@dataclass
class FakeAmd:
    """One card; every answer may be changed while it is being read."""

    uuid: str = "a1ff74a1-0000-1000-80ff-112233445566"
    hip_uuid: str = "GPU-9246b4cd8ef9a1b2"
    activity: dict[str, Any] = field(
        default_factory=lambda: {"gfx_activity": 93, "umc_activity": 35, "mm_activity": "N/A"}
    )
    vram: dict[str, Any] = field(default_factory=lambda: {"vram_total": 196_592, "vram_used": 2048})
    power: dict[str, Any] = field(
        default_factory=lambda: {"current_socket_power": 412, "average_socket_power": "N/A", "power_limit": 750}
    )
    energy: dict[str, Any] = field(
        default_factory=lambda: {"energy_accumulator": 2_000_000, "counter_resolution": 15.259, "timestamp": 1}
    )
    temperatures: dict[int, int] = field(default_factory=lambda: {AmdSmiTemperatureType.EDGE: 61})
    clocks: dict[int, dict[str, Any]] = field(
        default_factory=lambda: {AmdSmiClkType.GFX: {"clk": 2100}, AmdSmiClkType.MEM: {"clk": 1300}}
    )
    processes: list[Any] = field(default_factory=list)
    caps: dict[str, Any] = field(default_factory=lambda: {"power_cap": 550_000_000, "default_power_cap": 750_000_000})
    asic: dict[str, Any] = field(default_factory=lambda: {"market_name": "AMD Instinct MI300X"})


class FakeAmdSmi(ModuleType):
    """The module itself."""

    def __init__(self, *cards: FakeAmd) -> None:
        super().__init__("amdsmi")
        self.cards = list(cards)
        self.refused: set[str] = set()
        self.is_open = False
        self.AmdSmiException = AmdSmiException
        self.AmdSmiTemperatureType = AmdSmiTemperatureType
        self.AmdSmiTemperatureMetric = AmdSmiTemperatureMetric
        self.AmdSmiClkType = AmdSmiClkType
        answers = {
            "amdsmi_get_gpu_activity": lambda card: card.activity,
            "amdsmi_get_gpu_vram_usage": lambda card: card.vram,
            "amdsmi_get_power_info": lambda card: card.power,
            "amdsmi_get_energy_count": lambda card: card.energy,
            "amdsmi_get_temp_metric": lambda card, place, metric: card.temperatures[place],
            "amdsmi_get_clock_info": lambda card, kind: card.clocks[kind],
            "amdsmi_get_gpu_process_list": lambda card: card.processes,
            "amdsmi_get_power_cap_info": lambda card: card.caps,
            "amdsmi_get_gpu_asic_info": lambda card: card.asic,
            "amdsmi_get_gpu_device_uuid": lambda card: card.uuid,
            "amdsmi_get_gpu_enumeration_info": lambda card: {"hip_id": 0, "hip_uuid": card.hip_uuid},
            "amdsmi_get_processor_handles": lambda: list(self.cards),
            "amdsmi_init": lambda: self._set_open(True),
            "amdsmi_shut_down": lambda: self._set_open(False),
        }
        self.functions = list(answers)
        for name, answer in answers.items():
            setattr(self, name, self._guarded(name, answer))

    def _set_open(self, is_open: bool) -> None:
        self.is_open = is_open

    def _guarded(self, name: str, answer: Any) -> Any:
        def call(*arguments: Any) -> Any:
            assert self.is_open or name == "amdsmi_init", "read before amdsmi_init"
            if name in self.refused:
                raise AmdSmiLibraryException
            try:
                return answer(*arguments)
            except KeyError:
                raise AmdSmiLibraryException from None

        return call


def install(monkeypatch: pytest.MonkeyPatch, *cards: FakeAmd) -> FakeAmdSmi:
    """Puts a package with these cards where `import amdsmi` finds it."""
    module = FakeAmdSmi(*cards)
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    return module
