"""NVML without exceptions: open it, find the device that CUDA means, read it (`nvml_device`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from gpubench.hardware.nvml_call import Unavailable, attempt, plausible, where_known
from gpubench.hardware.nvml_device import NvmlDevice

__all__ = ["Nvml", "NvmlDevice", "Unavailable"]

PREFIXES = ("GPU-", "MIG-")
MOST_CARDS = 1024  # a count above it is none


class Nvml:
    """NVML, initialized. It needs no CUDA context, so the parent of all workers can hold it."""

    @classmethod
    def open(cls) -> Nvml | Unavailable:
        """NVML ready for use, or why it is not."""
        failed = attempt("nvmlInit")
        return failed if isinstance(failed, Unavailable) else cls()

    def close(self) -> None:
        """Shuts NVML down; devices found through it can no longer be read."""
        attempt("nvmlShutdown")

    def driver_version(self) -> str | Unavailable:
        """The driver's version, such as 570.86.15."""
        version: str | Unavailable = attempt("nvmlSystemGetDriverVersion")
        return version

    def cuda_version(self) -> tuple[int, int] | Unavailable:
        """The newest CUDA that the driver knows, such as (12, 8)."""
        version = plausible(attempt("nvmlSystemGetCudaDriverVersion_v2"), 1000, 1_000_000)
        return where_known(lambda version: (version // 1000, version % 1000 // 10), version)

    def devices(self) -> list[NvmlDevice | Unavailable] | Unavailable:
        """Every card that NVML counts, in PCI order, whatever CUDA_VISIBLE_DEVICES says; one that cannot be reached
        keeps its place, so that the numbers of the others stay theirs."""
        count = plausible(attempt("nvmlDeviceGetCount"), 0, MOST_CARDS)
        if isinstance(count, Unavailable):
            return count
        return [self._card(index) for index in range(count)]

    def _card(self, index: int) -> NvmlDevice | Unavailable:
        handle = attempt("nvmlDeviceGetHandleByIndex", index)
        if isinstance(handle, Unavailable):
            return Unavailable(f"card {index} cannot be reached: {handle.reason}", handle.code)
        uuid = attempt("nvmlDeviceGetUUID", handle)
        return NvmlDevice(handle, None if isinstance(uuid, Unavailable) else uuid)  # Jetson boards have none

    def device(self, uuid: str) -> NvmlDevice | Unavailable:
        """The card or MIG instance with this UUID, which may lack its prefix, as torch reports it."""
        names = [uuid] if uuid.startswith(PREFIXES) else [prefix + uuid for prefix in PREFIXES]
        handle: Any = Unavailable("NVML was given no UUID")
        for name in names:
            handle = attempt("nvmlDeviceGetHandleByUUID", name.encode())
            if _is_value(handle):
                return self._device(handle, name)
        return Unavailable(f"the device {uuid} cannot be reached: {handle.reason}")

    def _device(self, handle: Any, uuid: str) -> NvmlDevice | Unavailable:
        if not uuid.startswith("MIG-"):
            return NvmlDevice(handle, uuid)
        card = attempt("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
        if isinstance(card, Unavailable):
            return Unavailable(f"the card of the MIG instance {uuid} cannot be reached: {card.reason}")
        return NvmlDevice(handle, uuid, card)

    def find(
        self, uuid: str | None, index: int, environment: Mapping[str, str] = os.environ
    ) -> NvmlDevice | Unavailable:
        """The device with torch's UUID; where torch gave none or NVML has no such device, `cuda_device`."""
        by_uuid = self.device(uuid) if uuid else Unavailable("torch gave no UUID")
        return self.cuda_device(index, environment) if isinstance(by_uuid, Unavailable) else by_uuid

    def cuda_device(self, index: int, environment: Mapping[str, str] = os.environ) -> NvmlDevice | Unavailable:
        """The device that a process with `environment` calls `cuda:<index>`, found without starting CUDA.

        A UUID from torch (`device`) is surer: where CUDA_VISIBLE_DEVICES holds numbers and the cards differ, CUDA
        counts the fastest first, and this gives `Unavailable` rather than a guess.
        """
        cards = self.devices()
        if isinstance(cards, Unavailable):
            return cards
        readable = [card for card in cards if isinstance(card, NvmlDevice)]
        entries = visible_entries(environment.get("CUDA_VISIBLE_DEVICES"), len(cards))
        if not 0 <= index < len(entries):
            return Unavailable(
                f"CUDA has no device {index}: CUDA_VISIBLE_DEVICES leaves {len(entries)} of {len(cards)}"
            )
        entry = entries[index]
        if entry.startswith("MIG-"):
            return self.device(entry)
        if entry.startswith("GPU-"):
            # CUDA allows an unambiguous beginning, and stops counting at an entry that is none.
            for named in entries[: index + 1]:
                matching = [card for card in readable if card.uuid and card.uuid.startswith(named)]
                if len(matching) != 1:
                    unread = "".join(f"; {card.reason}" for card in cards if isinstance(card, Unavailable))
                    return Unavailable(f"{len(matching)} cards have a UUID that begins with {named}{unread}")
            return _whole_card(matching[0])
        if environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({card.state().name for card in readable}) > 1:
            return Unavailable(
                "CUDA and NVML may count unlike cards in different order: set CUDA_DEVICE_ORDER=PCI_BUS_ID, "
                "or name UUIDs in CUDA_VISIBLE_DEVICES"
            )
        card = cards[int(entry)]
        return card if isinstance(card, Unavailable) else _whole_card(card)


def visible_entries(value: str | None, count: int) -> list[str]:
    """The devices that CUDA would offer, in order: numbers as text, or UUIDs.

    As CUDA and torch (torch.cuda._parse_visible_devices) read it: the first entry decides which kind all have, the
    first invalid one ends the list, one that comes twice empties it, and a number may have letters behind it.
    """
    if value is None:
        return [str(index) for index in range(count)]
    parts = [part.strip() for part in value.split(",")]
    kind = next((prefix for prefix in PREFIXES if parts[0].startswith(prefix)), "")
    entries: list[str] = []
    for part in parts:
        if kind:
            entry = part if part.startswith(kind) else ""
        else:
            digits = re.match(r"\+?(\d+)", part, re.ASCII)
            entry = str(int(digits[1])) if digits and int(digits[1]) < count else ""
        if not entry:
            break
        if entry in entries:
            return []
        entries.append(entry)
    return entries


def _is_value(result: Any) -> bool:
    return not isinstance(result, Unavailable)


def _whole_card(card: NvmlDevice) -> NvmlDevice | Unavailable:
    if card.state().mig:
        return Unavailable(
            f"the card {card.uuid} is split into MIG instances: name the instance (MIG-...) in CUDA_VISIBLE_DEVICES"
        )
    return card
