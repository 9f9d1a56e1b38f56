"""What a reader must know of a figure beside its status: every kind of flag, what it does, and the flag itself.

The table of flags in docs/measurement.md is made from `KINDS` (scripts/update_flag_table.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gpubench.text import clause

Effect = Literal["gates", "allowed", "caution", "note"]

BUSY_CORES = 0.25  # a quarter of a core: the system's own housekeeping stays below 0.1 (seen on an idle machine)
IDLE_CORES = 2  # one for the thread that launches kernels, one for those of autograd and of the driver
MAJOR_FAULTS = 10  # pages read from disk while sampling: fewer are late loads of code
HOST_BOUND_SHARE = 0.8  # of the step, that the host needs to enqueue it: above, it can hardly be faster than the host
IDLE_SHARE = 0.25  # of the step, in which the GPU does nothing: with less it is busy, however long the host takes
NOISY_EFFECT = 0.05  # smallest effect that the rounds must be able to detect


@dataclass(frozen=True)
class FlagKind:
    """A kind of flag. `meaning` is a clause for the sentences of a recommendation, where the kind takes part in them.

    effect: "gates" keeps a row from being recommended, "caution" is said beside its recommendation, "note" is shown
    in the table only.
    """

    name: str
    when: str
    remedy: str
    effect: Effect = "note"
    meaning: str = ""
    outweighed: bool = False  # three processes or more behind the figure lift the gate: their spread contains it
    disturbs: bool = False  # something outside the configuration changed the figure: its round is replaced
    repeats: bool = False  # a first process with it is measured once more
    strict: bool = False  # a row with it fails under --strict

    def flag(self, detail: str) -> Flag:
        """A flag of this kind."""
        return Flag(self.name, clause(detail), self.effect)


class Flag(Struct, frozen=True):
    """One flag of a round or a row. Kinds of other versions of gpubench are kept, with the effect they were given."""

    kind: str
    detail: str
    effect: Effect  # "allowed": it would gate, but for --allow

    def __str__(self) -> str:
        return f"{self.label}: {self.detail}" if self.detail else self.label

    @property
    def label(self) -> str:
        """The flag without its detail."""
        return f"{self.kind} (allowed)" if self.effect == "allowed" else self.kind

    @property
    def about(self) -> FlagKind:
        """What the registry says of its kind; of an unknown one, that it does nothing by itself."""
        return KINDS.get(self.kind) or FlagKind(self.kind, "", "", meaning="another version of gpubench flagged it")

    @property
    def disturbs(self) -> bool:
        """Whether something outside the configuration changed the figure, and the user did not allow that."""
        return self.about.disturbs and self.effect != "allowed"

    @property
    def fails_strictly(self) -> bool:
        """Whether a row with it fails under --strict."""
        return self.about.strict and self.effect != "allowed"

    def under(self, allow: Collection[str]) -> Flag:
        """This flag where the user allows the kinds `allow`, and no others."""
        if self.kind in allow:
            return replace(self, effect="allowed")
        return replace(self, effect="gates") if self.effect == "allowed" else self


UNSTEADY = FlagKind(
    "unsteady",
    "The warm-up did not settle, or the samples of a process measured alone drift by more than 3 % (Kendall's tau, "
    "p < 0.01).",
    "Measure in more processes (`--rounds 3`), or on a quieter machine.",
    "gates",
    "its speed had not settled when it was measured",
    outweighed=True,
    repeats=True,
    strict=True,
)
CONTAMINATED = FlagKind(
    "contaminated",
    f"Other processes used the GPU, or more than {BUSY_CORES:g} cores were kept busy by others or taken by the "
    "hypervisor, or the control group's CPU quota held the process back. On a GPU busy cores count only where the step "
    f"is host-bound, or fewer than {IDLE_CORES} cores were idle.",
    "Stop the process that the flag names, or measure when the machine is idle.",
    "gates",
    "others used the machine while it was measured",
    disturbs=True,
    repeats=True,
    strict=True,
)
SWAPPED = FlagKind(
    "swapped",
    f"Memory of the process was in swap, or more than {MAJOR_FAULTS} pages were read from disk during sampling.",
    "Free memory, or measure a smaller batch or model.",
    "gates",
    "its memory was being swapped while it was measured",
    disturbs=True,
    repeats=True,
    strict=True,
)
MEMOIZED = FlagKind(
    "memoized",
    "A step on inputs that it has seen before runs clearly fewer operators than one on fresh inputs, twice over.",
    "Empty the model's cache in the step, or key it by what real use repeats.",
    "gates",
    "it keeps results of inputs that it has seen, so its figure is not the model's speed",
    strict=True,
)
NOISY = FlagKind(
    "noisy",
    f"Over 3 processes or more, only effects above {100 * NOISY_EFFECT:g} % can be told from chance.",
    "Measure more rounds (`--rounds`, `--final-rounds`).",
    "caution",
    "its processes differ so much that small effects cannot be seen",
    strict=True,
)
THROTTLED = FlagKind(
    "throttled",
    "Samples taken during a thermal or power-supply slowdown were discarded and taken again. If all were, the row "
    "fails.",
    "Improve the cooling or the power supply.",
    "caution",
    "the device was held back by heat or power supply; those samples were discarded and taken again",
    strict=True,
)
HOST_BOUND = FlagKind(
    "host_bound",
    f"The host needs more than {100 * HOST_BOUND_SHARE:g} % of the step's time to enqueue it, and the GPU did nothing "
    f"in more than {100 * IDLE_SHARE:g} % of it.",
    "Try a larger batch, or CUDA graphs. The figure itself is right for this machine.",
    "caution",
    "the GPU waited for the host in a good part of each step, so the figure depends on this CPU too",
    strict=True,
)
POWER_CAPPED = FlagKind(
    "power_capped",
    "The GPU ran at its power limit.",
    "None needed: the figure is right for this limit. Compare only GPUs with the same limit.",
    "caution",
    "the device ran at its power limit",
)
GROWING_MEMORY = FlagKind(
    "growing_memory",
    "Memory in use grew with every step of the memory pass, by a page or more. Such a row is recommended neither for "
    "the least memory nor under --max-memory.",
    "Look for tensors that the model keeps (lists, caches, graphs of earlier losses).",
    "caution",
    "memory grows with every step",
)
KEEPS_STATE = FlagKind(
    "keeps_state",
    "A step changes its inputs, the model or something else that the next step finds. The first steps of a fresh model "
    "are compared with the reference's; later ones have no counterpart there.",
    "Clone inputs before they are changed in place. Keep counters, caches and optimizers out of the timed step, unless "
    "they are a part of what you time.",
    "caution",
    "each step depends on those before it",
)
WARM_CACHE = FlagKind(
    "warm_cache",
    "The compiled code came from a cache outside the run.",
    "Empty that cache to measure the compile time; other figures are not affected.",
    "caution",
    "its compile time is not known",
)
PARTLY_COMPILED = FlagKind(
    "partly_compiled",
    "Dynamo broke the graph, frames ran eager, or CUDA graphs were skipped.",
    "`TORCH_LOGS=graph_breaks` names the lines.",
    "caution",
    "not all of the model was compiled",
)
SPEED_CHANGED = FlagKind(
    "speed_changed",
    "Just before its proof, the last thing that a process does, a step took more than twice or less than half as long "
    "as when it was sampled.",
    "Run the model inside `build` until all its steps do the same work. If they never do, no single figure is right.",
    "gates",
    "its steps took another time later on",
    repeats=True,
    strict=True,
)
INTERRUPTED = FlagKind(
    "interrupted",
    "The process, gpubench or the machine was stopped (Ctrl-Z, a debugger, a closed lid) while samples were taken. "
    "Those were discarded and taken again. If all were, the row fails.",
    "None needed, unless it happens often: then something on this machine stops processes.",
)
STOPPED_BY_TIME = FlagKind(
    "stopped_by_time",
    "Sampling ended at its time limit, before it had enough samples or a small enough spread.",
    "Judge by the interval over processes; more rounds narrow it.",
)
SHORT_WARMUP = FlagKind(
    "short_warmup",
    "The warm-up ended at its time limit with too few iterations to tell whether it had settled.",
    "Measure in more processes, or a smaller batch.",
)
QUALITY_UNCHECKED = FlagKind(
    "quality_unchecked",
    "No output could be compared: they are random, zero, empty or rounding noise, or there is no reference. Except for "
    "the baseline such a row is not recommended.",
    "Do what the flag's reason says: make random numbers an input of the model, or give it weights and inputs that "
    "fill its outputs, say.",
)
PARTLY_CHECKED = FlagKind(
    "partly_checked",
    "Some of the outputs could not be compared: they hold no numbers, are zero, empty or rounding noise. The others "
    "are right.",
    "Return tensors, and give the model weights and inputs that fill its outputs.",
    "caution",
    "not all of its outputs were compared",
)
REMEASURED = FlagKind(
    "remeasured",
    "The first process was discarded for the flag named, and measured once more.",
    "None needed.",
)
MEASURED_APART = FlagKind(
    "measured_apart",
    "It did not fit into memory beside the others of its round, and was measured alone after them.",
    "Free memory, or measure a smaller batch or model.",
)
UNRELIABLE = FlagKind(
    "unreliable",
    "An earlier process was fine and a later one failed; the row has the later one's status, and no figures unless "
    "only the proof is missing.",
    "Read the row's reason and `log_tail`.",
)

KINDS = {kind.name: kind for kind in tuple(globals().values()) if isinstance(kind, FlagKind)}
GATES = tuple(kind.name for kind in KINDS.values() if kind.effect == "gates")  # what --allow takes
STRICT = tuple(kind.name for kind in KINDS.values() if kind.strict)  # what --strict fails
