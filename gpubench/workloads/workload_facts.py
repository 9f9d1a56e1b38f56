"""Facts of a workload that decide which toggles apply: plain data, readable without torch."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from gpubench.workloads.optimizing import PLAIN, OptimizerFacts

Mode = Literal["inference", "training"]


class CompileTarget(Struct, frozen=True, kw_only=True):
    """A submodule that torch.compile is applied to by itself."""

    name: str  # dotted; "" is the whole model
    forward_module: (
        str  # where its forward is defined: "my_model", or "torch.nn.modules.container" of a bare Sequential
    )


class OwnValue(Struct, frozen=True, kw_only=True):
    """One value of a workload's own toggle, as a process without torch knows it."""

    value: str | int
    meaning: str
    usage: str  # code that does the same in the reader's own program
    impossible: str = ""  # why it cannot run on this device and in this mode
    tolerance: float | None = None  # relative output error that it is allowed; None: fp32's own
    noise_group: str = ""
    magnitude: float | None = None  # None: larger than every number
    needs: dict[str, list[str | int]] = field(default_factory=dict)  # other toggle -> values allowed


class OwnToggle(Struct, frozen=True, kw_only=True):
    """A toggle that a workload brings with it: all that can be said of it without its code."""

    name: str
    summary: str
    stage: str  # name of a `toggle.Stage`
    source: str
    values: list[OwnValue]  # the baseline first
    left_out: str = ""  # why it does not apply here
    reference: str | int | None = None  # the value that outputs are compared with; None: the baseline
    changes_problem: bool = False
    is_plain: bool = True
    ranks_anew_compiled: bool = False
    compiles: list[str | int] = field(default_factory=list)
    replays_graphs: list[str | int] = field(default_factory=list)
    picks_by_time: list[str | int] = field(default_factory=list)
    idle_when: dict[str, list[str | int]] = field(default_factory=dict)
    conflicts: list[OwnConflict] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    claims: list[str] = field(default_factory=list)


class OwnConflict(Struct, frozen=True, kw_only=True):
    """A value of an own toggle that cannot be combined with values of another toggle."""

    value: str | int
    other: str
    other_values: list[str | int]
    reason: str


class WorkloadFacts(Struct, frozen=True, kw_only=True):
    """One workload at one size in one mode."""

    reference: str  # as given by the user: "vae", "my_model.py:make"
    name: str
    item: str  # what FPS counts: "image", "patch"
    mode: Mode
    modes: list[Mode]
    size: str
    parameters: dict[str, str | int | float | bool]  # further arguments of the workload's function
    batch_size: int  # of the baseline
    parameter_count: int
    input_shapes: list[list[int]]  # of its tensors, in order
    complex_weights: bool = False  # parameters or buffers, which precisions leave alone
    nested_inputs: bool = False  # they are no plain tuple of tensors
    convolution_dimensions: list[int] = field(default_factory=list)  # [2], [3], []
    attention: bool = False
    modules: dict[str, int] = field(default_factory=dict)  # class -> how many, of those without parts: {"Linear": 12}
    parts: list[str] = field(default_factory=list)  # dotted names of its modules, an index as *: "blocks.*.norm"
    blocks: int = 0  # see `workloads.blocks`
    projections: list[list[str]] = field(default_factory=list)  # separate query, key, value layers with one input
    unconvolved: list[str] = field(default_factory=list)  # weights of 4 or 5 dimensions that no convolution uses
    called: list[str] = field(default_factory=list)  # modules that the step itself calls, by name; "" is the model
    misses_targets: bool = False  # the step calls none of its compile targets, so compiling them changes nothing
    compile_targets: list[CompileTarget] | None = None  # None: not recorded (older reports)
    block_targets: list[CompileTarget] = field(default_factory=list)  # the blocks
    whole_target: CompileTarget | None = None  # the model itself; None: not recorded
    # What its own code asks for; `toggles` take it as the baseline.
    dtypes: list[str] = field(default_factory=list)  # its convolutions, matrix products and attention run in: "bf16"
    autocast: list[str] = field(default_factory=list)  # of the autocast regions that its code enters: "bf16"
    compiles_itself: bool = False  # its code calls torch.compile
    settings: dict[str, str] = field(default_factory=dict)  # that its code changes in torch for the whole process
    notes: list[str] = field(default_factory=list)  # what a report says of how it is built
    tile_sizes: list[int] = field(default_factory=list)  # offered; empty: cannot be tiled
    tile_multiple: int = 1  # a tile size must be a multiple of this
    tile_overlap: int = 0  # the default
    optimizers: list[OptimizerFacts] = field(default_factory=lambda: [PLAIN])  # of the training step
    dataset: bool = False  # its inputs are the items of a dataset
    stages: list[str] = field(default_factory=list)  # submodules that run one after another, by name
    own_train_step: bool = False  # its code calls `backward` and the optimizers itself
    toggles: list[OwnToggle] = field(default_factory=list)  # that the workload brings with it
    resolution: int | None = None  # of the longer spatial side, if there is one
    not_compared: dict[str, str] = field(default_factory=dict)  # outputs of the step: path -> why
    source_hash: str | None = None  # of a user's file; a run with a changed file is not resumed
