"""What strategies propose from what was measured, and strategies that other distributions add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import msgspec
import pytest

from gpubench.errors import GpubenchError
from gpubench.flags import HOST_BOUND
from gpubench.report.model import Measurement, Protocol
from gpubench.search import strategies
from gpubench.search.space import Candidate, ToggleValues
from gpubench.search.strategies import all_strategies, each, get_strategy, search_space, strategy_names
from gpubench.search.strategy import History, SearchSpace, Strategy
from tests.faults.scripted import Planted, study
from tests.search.test_space import builder

TOGGLES = [ToggleValues("precision", ("bf16-autocast", "tf32")), ToggleValues("threads", (101, 102))]
Rows = dict[str, Measurement]


def space(strategy: str = "ladder") -> SearchSpace:
    return search_space(builder(), TOGGLES, get_strategy(strategy))


def row(candidate: Candidate) -> Measurement:
    return Measurement(
        id=candidate.id,
        configuration=candidate.configuration,
        status="skipped" if candidate.skip else "ok",
        reason="",
        roles=list(candidate.roles),
    )


def propose(searched: SearchSpace, rows: Rows, costs: Mapping[str, float]) -> list[str]:
    """Measures the next proposal; its ids."""
    history = History(searched, rows, lambda measured: costs.get(measured.id, 1.0))
    fresh = history.missing(searched.strategy.propose(history))
    for candidate in fresh:
        known = rows.get(candidate.id) or row(replace(candidate, roles=()))
        rows[candidate.id] = msgspec.structs.replace(known, roles=[*known.roles, *candidate.roles])
    return [candidate.id for candidate in fresh]


def test_the_ladder_takes_the_best_alone_adds_them_up_and_keeps_what_helped() -> None:
    searched = space()
    rows = {"baseline": row(searched.baseline)}
    costs = {"precision=bf16-autocast": 0.5, "threads=102": 0.8, "threads=102,precision=bf16-autocast": 0.4}
    alone = ["precision=bf16-autocast", "precision=tf32", "threads=101", "threads=102"]
    assert propose(searched, rows, costs) == alone
    assert rows["precision=tf32"].status == "skipped"
    # The first step is the value alone, which gets a further role.
    assert propose(searched, rows, costs) == ["precision=bf16-autocast", "threads=102,precision=bf16-autocast"]
    assert [role.kind for role in rows["threads=102,precision=bf16-autocast"].roles] == ["ladder", "all"]
    assert propose(searched, rows, costs) == []  # both steps helped, and their combination has a row


def test_a_step_that_does_not_help_is_left_out_of_the_combination() -> None:
    toggles = [*TOGGLES, ToggleValues("channels_last", ("on",))]
    searched = search_space(builder(), toggles, get_strategy("ladder"))
    rows = {"baseline": row(searched.baseline)}
    two, three = "threads=101,precision=bf16-autocast", "threads=101,precision=bf16-autocast,channels_last=on"
    costs = {"precision=bf16-autocast": 0.9, "threads=101": 0.9, "channels_last=on": 0.9, two: 0.95, three: 0.8}
    propose(searched, rows, costs)
    assert propose(searched, rows, costs) == ["precision=bf16-autocast", two, three]
    assert propose(searched, rows, costs) == ["precision=bf16-autocast,channels_last=on"]
    assert propose(searched, rows, costs) == []


COMPILED = [ToggleValues("precision", ("bf16-autocast", "bf16-weights")), ToggleValues("compile", ("default",))]
AUTOCAST, WEIGHTS, INDUCTOR = "precision=bf16-autocast", "precision=bf16-weights", "compile=default"
ALONE = {AUTOCAST: 0.6, WEIGHTS: 0.5, INDUCTOR: 0.7}
TWICE_COMPILED = [f"{WEIGHTS},{INDUCTOR}", f"{AUTOCAST},{INDUCTOR}"]


def host_bound(rows: Rows, *ids: str) -> None:
    for row_id in ids:
        rows[row_id] = msgspec.structs.replace(rows[row_id], flags=[HOST_BOUND.flag("the GPU waited")])


def after_alone(costs: Mapping[str, float], *waited: str) -> tuple[SearchSpace, Rows]:
    """The ladder once each value has been measured alone; the rows `waited` had to wait for the host."""
    searched = search_space(builder(), COMPILED, get_strategy("ladder"))
    rows = {"baseline": row(searched.baseline)}
    assert propose(searched, rows, costs) == [AUTOCAST, WEIGHTS, INDUCTOR]
    host_bound(rows, *waited)
    return searched, rows


@pytest.mark.parametrize(("compiled", "best"), [(0.3, AUTOCAST), (0.45, WEIGHTS)])
def test_two_values_that_waited_for_the_host_are_tried_again_compiled(compiled: float, best: str) -> None:
    costs = {**ALONE, TWICE_COMPILED[0]: 0.4, TWICE_COMPILED[1]: compiled}
    searched, rows = after_alone(costs, AUTOCAST)
    assert propose(searched, rows, costs) == TWICE_COMPILED
    assert propose(searched, rows, costs) == [best, f"{best},{INDUCTOR}"]  # further roles for rows that are there
    assert propose(searched, rows, costs) == []


def test_one_that_fails_compiled_is_not_chosen() -> None:
    searched, rows = after_alone(ALONE, AUTOCAST)
    propose(searched, rows, ALONE)
    rows[TWICE_COMPILED[0]] = msgspec.structs.replace(rows[TWICE_COMPILED[0]], status="failed")
    assert propose(searched, rows, ALONE) == [AUTOCAST, TWICE_COMPILED[1]]


def test_values_that_waited_for_nothing_are_not_tried_again() -> None:
    searched, rows = after_alone(ALONE)
    assert propose(searched, rows, ALONE) == [WEIGHTS, TWICE_COMPILED[0]]


def test_nothing_is_tried_again_where_compiling_does_not_help() -> None:
    costs = {**ALONE, INDUCTOR: 1.5}
    searched, rows = after_alone(costs, AUTOCAST, WEIGHTS)
    assert propose(searched, rows, costs) == [WEIGHTS, TWICE_COMPILED[0]]


@pytest.mark.parametrize(("strategy", "count"), [("each", 4), ("grid", 8)])
def test_strategies_of_one_proposal_end_after_it(strategy: str, count: int) -> None:
    searched, rows = space(strategy), Rows()
    assert len(propose(searched, rows, {})) == count
    assert propose(searched, rows, {}) == []
    assert searched.strategy.outlook(searched) == []


def test_the_ladder_says_what_will_follow() -> None:
    assert space().strategy.outlook(space()) == [
        "+ precision, at the best of bf16-autocast",
        "+ threads, at the best of 101, 102",
    ]


# ----- strategies of other distributions


def twice(history: History) -> list[Candidate]:
    """Each value alone, and then the best one with 103 threads; it proposes all again and again."""
    alone = list(each.propose(history))
    if history.missing(alone):
        return alone
    best = min(history.rows.values(), key=history.cost)
    return [*alone, history.space.builder.plan({**best.configuration, "threads": 103})]


TWICE = Strategy(name="twice", propose=twice)
LADDER = Strategy(name="ladder", propose=twice)
NOT_ONE = object()


@pytest.fixture(autouse=True)
def fresh_registry() -> Iterator[None]:
    all_strategies.cache_clear()
    yield
    all_strategies.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    entry_point = EntryPoint("theirs", target, "gpubench.strategies")
    monkeypatch.setattr(strategies, "entry_points", lambda group: [entry_point] if group == entry_point.group else [])


def test_another_distributions_strategy_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, f"{__name__}:TWICE")
    assert strategy_names() == ["each", "grid", "ladder", "twice"]
    speeds = {"baseline": 0.1, "precision=bf16-autocast": 0.05}
    planted = Planted(lambda row_id, _: speeds.get(row_id, 0.04 if "103" in row_id else 0.09))
    report = study(tmp_path / "r.json", planted, space("twice"), Protocol()).compare()
    assert planted.ran[0] == "baseline"
    assert sorted(planted.ran[1:4]) == ["precision=bf16-autocast", "threads=101", "threads=102"]
    assert planted.ran[4:] == ["threads=103,precision=bf16-autocast"]
    assert report.plan.strategy == "twice"
    assert report.recommendation is not None
    assert report.recommendation.id == "threads=103,precision=bf16-autocast"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (f"{__name__}:LADDER", "strategy name 'ladder' of entry point 'theirs' .* is taken"),
        (f"{__name__}:NOT_ONE", "is of type object, not Strategy"),
        ("no_such_module:X", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_a_broken_or_clashing_strategy_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    install(monkeypatch, target)
    with pytest.raises(GpubenchError, match=words):
        get_strategy("each")


def test_the_sweep_is_no_strategy_to_compare_by() -> None:
    with pytest.raises(GpubenchError, match="Unknown strategy 'sweep'"):
        get_strategy("sweep")


@pytest.mark.parametrize("strategy", ["each", "grid", "ladder"])
def test_combinations_are_measured_beside_what_a_strategy_proposes(strategy: str) -> None:
    both = {"precision": "bf16-weights", "threads": 103}
    searched = search_space(builder(), TOGGLES, get_strategy(strategy), together=[both])
    assert "threads=103,precision=bf16-weights" in [candidate.id for candidate in searched.planned]
