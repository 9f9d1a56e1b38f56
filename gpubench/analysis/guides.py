"""What published guides claim, and what here is measured to hold it against: `profiles/claims/`."""

from __future__ import annotations

import functools
import tomllib
from typing import Literal

import msgspec
from msgspec import Struct, field

from gpubench.errors import GpubenchError, unknown_name
from gpubench.profiles_folder import profiles_folder
from gpubench.report.model import Value
from gpubench.workloads.workload_facts import Mode

MODES: tuple[Mode, ...] = ("inference", "training")
# What a claim without a figure says: "faster"; memory saved; no slower; outputs as they should be; less of a metric.
Expectation = Literal["faster", "less_memory", "same_speed", "right_outputs", "less"]


class Measure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two configurations of a workload whose difference is what a claim is about.

    on:     what is claimed to help; toggles that are not named have their baseline.
    off:    what it is compared with.
    fix:    held in both.
    metric: the figure of `on` that counts, by name (`gpubench.metrics`); empty: speed, and memory where claimed.
    """

    workload: str
    on: dict[str, Value] = field(default_factory=dict)
    off: dict[str, Value] = field(default_factory=dict)
    fix: dict[str, Value] = field(default_factory=dict)
    parameters: dict[str, Value] = field(default_factory=dict)
    modes: list[Mode] = field(default_factory=lambda: list(MODES))
    devices: list[Literal["cpu", "cuda"]] = field(default_factory=lambda: ["cpu", "cuda"])
    metric: str = ""
    at_least: float | None = None  # of the metric
    expects: Expectation | None = None  # of this measure, where the claim's own is another
    note: str = ""  # in what it is not just what the guide says


class Claim(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One statement of a guide. Speed-ups are of throughput; memory is the share of the peak that is saved, 0 to 1."""

    id: str  # within its guide
    technique: str  # as the guide calls it
    mode: Literal["inference", "training", "both"]
    hardware: str = ""  # that the figures were measured on
    guide_workload: str = ""  # the same
    speedup_low: float | None = None
    speedup_high: float | None = None  # without a `speedup_low`: "up to"
    memory_low: float | None = None
    memory_high: float | None = None
    statement: str = ""
    correction: str = ""  # what is known to be wrong in the guide
    expects: Expectation | None = None  # where there is no figure
    measure: list[Measure] = field(default_factory=list)
    unmeasured: str = ""  # why no configuration can show it

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that it speaks of."""
        return MODES if self.mode == "both" else (self.mode,)


class Guide(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published guide with what it claims."""

    name: str
    title: str
    claim: list[Claim]
    hardware: str = ""


@functools.cache
def all_guides() -> dict[str, Guide]:
    """Every guide by name. Raises GpubenchError where one of the files is damaged."""
    guides = {}
    for path in sorted((profiles_folder() / "claims").glob("*.toml")):
        try:
            guide = msgspec.convert(tomllib.loads(path.read_text()), Guide)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise GpubenchError(f"The claims in {path} are damaged: {error}.", "Install gpubench again.") from error
        guides[guide.name] = guide
    return guides


def names() -> list[str]:
    """What `chosen` knows: the guides, and the workloads that their claims are measured on."""
    workloads = {each.workload for guide in all_guides().values() for claim in guide.claim for each in claim.measure}
    return [*all_guides(), *sorted(workloads)]


def chosen(name: str | None) -> list[tuple[Guide, Claim]]:
    """The claims of the guide, or about the workload, of that name; None: all.

    Raises GpubenchError with the nearest name where there is neither.
    """
    claims = [(guide, claim) for guide in all_guides().values() for claim in guide.claim]
    if name is None:
        return claims
    if name in all_guides():
        return [(guide, claim) for guide, claim in claims if guide.name == name]
    about = [(guide, claim) for guide, claim in claims if any(name == each.workload for each in claim.measure)]
    if not about:
        raise unknown_name("guide or workload", name, names())
    return about
