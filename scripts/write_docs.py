"""Writes docs/toggles.md, docs/claims.md and a part of docs/workloads.md; `--check` only tells if they differ.

The claims table is of the reports under results/DEVICE/claims/ that git tracks.

python scripts/write_docs.py [--check]
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections import defaultdict
from pathlib import Path

import gpubench.toggles
from gpubench import api
from gpubench.analysis.guides import Guide, all_guides
from gpubench.cli.toggles import card
from gpubench.render.claims_document import claimed, claims_content
from gpubench.render.formats import render
from gpubench.render.formats.markdown import escape
from gpubench.report.store import load
from gpubench.toggles import bundled_toggles
from gpubench.toggles.toggle import Toggle
from gpubench.workloads.catalog import SUMMARIES, TOGGLES
from gpubench.workloads.loader import load as load_workload
from gpubench.workloads.source import find
from scripts.update_readme import committed

DOCS = Path(__file__).parents[1] / "docs"
MADE = "Made by `scripts/write_docs.py`; do not edit it by hand.\n"
BEGIN, END = "<!-- bundled:begin -->\n", "<!-- bundled:end -->\n"


# ----- toggles


def toggles() -> str:
    """The page of toggles: a section for each family, then those of bundled workloads."""
    parts = ["# Toggles\n", MADE, "`gpubench toggles NAME` shows the same with the code to paste.\n"]
    for family, (about, members) in families().items():
        parts += [f"## {family}\n", f"{about}\n", *map(section, members)]
    parts += ["## Of bundled workloads\n", "They apply to these workloads alone.\n"]
    parts += [section(toggle, of) for toggle, of in own().values()]
    return "\n".join(parts)


def families() -> dict[str, tuple[str, list[Toggle]]]:
    """Family -> what it is about, and its toggles."""
    found: dict[str, tuple[str, list[Toggle]]] = {}
    for module in pkgutil.iter_modules(gpubench.toggles.__path__):
        if module.ispkg:
            package = importlib.import_module(f"gpubench.toggles.{module.name}")
            names = [each.name for each in pkgutil.iter_modules(package.__path__)]
            members = [bundled_toggles()[name] for name in names if name in bundled_toggles()]
            found[module.name] = ((package.__doc__ or "").splitlines()[0], members)
    return found


def own() -> dict[str, tuple[Toggle, list[str]]]:
    """The toggles that bundled workloads bring, each with the workloads."""
    found: dict[str, tuple[Toggle, list[str]]] = {}
    for workload, names in TOGGLES.items():
        brought = {toggle.name: toggle for toggle in load_workload(workload, "tiny").workload.toggles}
        for name in names:
            found.setdefault(name, (brought[name], []))[1].append(workload)
    return dict(sorted(found.items()))


def section(toggle: Toggle, workloads: list[str] | tuple[str, ...] = ()) -> str:
    """One toggle: what it is, its values and what they need, its proof, who claims what of it."""
    facts = card(toggle)
    lines = [f"### `{toggle.name}`", "", toggle.summary, ""]
    lines += [f"* Of: {', '.join(f'`{each}`' for each in workloads)}"] if workloads else []
    lines += [f"* Applies {facts['applies']}"] if facts["applies"] else []
    lines += [f"* Proof: {escape(facts['evidence'])}"] if facts["evidence"] else []
    lines += (
        [f"* Claimed by: {', '.join(f'[{guide}](claims.md#{guide})' for guide in toggle.claims)}"]
        if toggle.claims
        else []
    )
    lines += [f"* Source: {escape(toggle.source)}", ""]
    lines += ["| value | what it does | needs |", "| --- | --- | --- |"]
    for number, each in enumerate(facts["values"]):
        mark = " (baseline)" if number == 0 else ""
        lines.append(f"| `{each['value']}`{mark} | {escape(each['meaning'])} | {escape('; '.join(each['needs']))} |")
    if toggle.integers:
        low, high = toggle.integers.low, toggle.integers.high
        lines.append(f"| {low} to {high} | {escape(toggle.integers.meaning)} | |")
    return "\n".join([*lines, ""])


# ----- workloads


def workloads() -> str:
    """The table of bundled workloads, between the markers of docs/workloads.md."""
    lines = ["| workload | what it is | item | modes | parameters | toggles of its own |", "| --- |" + " --- |" * 5]
    for name, summary in SUMMARIES.items():
        workload = load_workload(name, "tiny").workload
        target = find(name).target
        given = inspect.signature(target).parameters.values() if callable(target) else ()
        parameters = ", ".join(f"`{each.name}={each.default}`" for each in given if each.name != "size")
        brought = ", ".join(f"`{each}`" for each in TOGGLES.get(name, ()))
        cells = (f"`{name}`", escape(summary), workload.item, ", ".join(workload.modes), parameters, brought)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# ----- claims


def claims() -> str:
    """The page of claims: what each guide says, and what the committed reports measured."""
    text = (
        "What published guides promise, each statement as a row. `gpubench claims` measures them on your machine: a "
        "speed-up is new over old throughput, memory is the share of the peak that is saved.\n"
    )
    parts = ["# Claims of published guides\n", MADE, text, *map(guide_section, all_guides().values())]
    return "\n".join([*parts, "## Measured\n", measured()])


def guide_section(guide: Guide) -> str:
    """What a guide claims."""
    hardware = f" Its figures are of {guide.hardware}." if guide.hardware else ""
    lines = [f"## {guide.name}", "", f"{guide.title}.{hardware}", ""]
    lines += ["| id | technique | mode | claimed | in its words | known mistake |", "| --- |" + " --- |" * 5]
    for claim in guide.claim:
        cells = (claim.id, claim.technique, claim.mode, claimed(claim), claim.statement, claim.correction)
        lines.append(f"| {' | '.join(map(escape, cells))} |")
    return "\n".join([*lines, ""])


def measured() -> str:
    """The findings of the committed reports, for each device."""
    folders = defaultdict(list)
    for path in committed():
        if path.parent.name == "claims":
            folders[path.parents[1].name].append((path.relative_to(DOCS.parent).as_posix(), load(path)))
    if not folders:
        return "No report of a device is committed yet.\n"
    found = {device: each for sources in folders.values() for device, each in api.claims(sources).items()}
    return render(claims_content(found), "markdown").replace("\n## ", "\n### ").replace("## ", "### ", 1)


def main() -> int:
    """Writes the pages, or compares them; the exit code."""
    page = (DOCS / "workloads.md").read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = {
        "toggles.md": toggles(),
        "claims.md": claims(),
        "workloads.md": f"{before}{BEGIN}{workloads()}{END}{after}",
    }
    for name, text in wanted.items():
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"docs/{name} is not what scripts/write_docs.py writes.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
