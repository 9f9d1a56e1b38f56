"""What a study is asked for, with all that can be refused before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import msgspec

from gpubench.errors import GpubenchError, check_current_folder, unknown_name
from gpubench.flags import GATES
from gpubench.metrics import all_metrics
from gpubench.report.model import Objective, Protocol, Value
from gpubench.search.presets import check_name
from gpubench.search.requested import DEFAULT_PRESET, Requested, read_request
from gpubench.search.strategies import get_strategy
from gpubench.worker.messages import WorkloadChoice
from gpubench.workloads.catalog import brings
from gpubench.workloads.source import check_reference
from gpubench.workloads.workload_facts import Mode

Values = Value | Sequence[Value]
Choices = Mapping[str, Values]  # toggle -> one value, or several

COMPARE = "compare-opts"  # the command that has a default preset
FINAL_ROUNDS = 6
LONGEST_S = 30 * 24 * 3600.0  # a month: beyond it the system's own clocks overflow
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """A study as it is asked for; `gpubench.api.compare` and `sweep` say what each field means."""

    command: str = COMPARE  # what the report says it was made by
    workload: str = "resnet50"
    mode: Mode | None = None
    size: str = "auto"
    parameters: Mapping[str, object] = field(default_factory=dict)
    batch_size: int | None = None
    device: str = "auto"
    preset: str | None = None
    strategy: str | None = None
    set: Choices = field(default_factory=dict)
    fix: Mapping[str, Value] = field(default_factory=dict)
    together: Sequence[Mapping[str, Value]] = ()  # combinations that are measured beside what the strategy proposes
    sweep: str | None = None  # the toggle whose `values` are measured one after the other; None: compare toggles
    values: Values = ()
    also: Choices = field(default_factory=dict)
    objective: Objective = "fps"
    max_memory_bytes: int | None = None
    timeout_s: float = 600.0
    rounds: int = 1
    final_rounds: int | None = None  # None: FINAL_ROUNDS, but for a limited time
    strict: bool = False
    allow: Sequence[str] = ()
    seed: int = 0

    def check(self) -> None:
        """Raises GpubenchError for whatever can be seen to be wrong without loading torch."""
        check_current_folder()
        check_workload(self.workload)
        one_of("mode", self.mode, (None, *get_args(Mode)))
        one_of("objective", self.objective, get_args(Objective))
        try:
            msgspec.convert({name: getattr(self, name) for name in self.__dataclass_fields__}, StudyRequest)
        except msgspec.ValidationError as error:
            raise GpubenchError(f"Wrong type of argument: {error}.", "See help(gpubench.compare).") from error
        all_metrics()  # a broken plug-in is better told before the run than after it
        if self.strategy is not None:
            get_strategy(self.strategy)
        self.requested()
        for toggle in (*self.also, *([self.sweep] if self.sweep else [])):
            check_name(toggle, brings(self.workload))
        for flag in self.allow:
            if flag not in GATES:
                raise unknown_name("flag", flag, GATES)
        for name, value, low in (
            ("batch_size", self.batch_size, 1),
            ("max_memory_bytes", self.max_memory_bytes, 1),
            ("rounds", self.rounds, 1),
            ("final_rounds", self.final_rounds, 0),
            ("seed", self.seed, 0),
        ):
            if value is not None and (not isinstance(value, int) or value < low):
                raise GpubenchError(f"{name} is {value!r}.", f"Give a whole number from {low} on.")
        if self.seed > LARGEST_SEED:
            raise GpubenchError(f"seed is {self.seed}.", f"Give a whole number up to {LARGEST_SEED}.")
        if not self.timeout_s > 0:
            raise GpubenchError(f"timeout_s is {self.timeout_s!r}.", "Give seconds above 0.")

    def requested(self) -> Requested:
        """What to try and to hold; GpubenchError where that is wrong on any device."""
        values = {name: [str(value) for value in values_of(given)] for name, given in self.set.items()}
        fixed = {name: str(value) for name, value in self.fix.items()}
        default = DEFAULT_PRESET if self.command == COMPARE else None
        together = [{name: str(value) for name, value in each.items()} for each in self.together]
        return read_request(values, fixed, self.preset, default, brings(self.workload), together)

    def choice(self) -> WorkloadChoice:
        """The workload with its parameters, as workers are asked for it."""
        return WorkloadChoice(
            reference=self.workload,
            size=None if self.size == "auto" else self.size,
            parameters={name: str(value) for name, value in self.parameters.items()},
            mode=self.mode,
        )

    def protocol(self) -> Protocol:
        """How it is measured, as far as the device does not decide that."""
        return Protocol(
            pair="round",
            timeout_s=min(self.timeout_s, LONGEST_S),
            seed=self.seed,
            max_memory_bytes=self.max_memory_bytes,
            rounds=self.rounds,
            final_rounds=0 if self.sweep else FINAL_ROUNDS if self.final_rounds is None else self.final_rounds,
        )


def check_workload(workload: object) -> None:
    """Raises GpubenchError where `workload` is no reference, or names nothing as far as can be told at once."""
    if not isinstance(workload, str):
        raise GpubenchError(
            f"The workload is an object of type {type(workload).__name__}, which measured processes cannot import.",
            "Give a bundled name, 'FILE.py:NAME' or 'package.module:NAME' of a Workload or a function that returns it.",
        )
    check_reference(workload)


def one_of(name: str, value: str | None, known: Sequence[str | None]) -> None:
    """Raises GpubenchError where `value` is not in `known`."""
    if value not in known:
        raise unknown_name(name, str(value), [word for word in known if word is not None])


def values_of(values: Values) -> tuple[Value, ...]:
    """One value as a tuple; several as they are."""
    return (values,) if isinstance(values, str | int) else tuple(values)
