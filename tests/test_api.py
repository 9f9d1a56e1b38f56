"""The Python API: what it returns, raises and tells, that it prints nothing, and that its examples are so."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import gpubench
from gpubench import api
from gpubench.cli.main import run as command_line
from gpubench.errors import GpubenchError
from gpubench.executor.executor import Job
from gpubench.executor.local import Target
from gpubench.executor.outcome import Outcome
from gpubench.report import store
from gpubench.report.model import Measurement, Protocol, Report
from gpubench.search.space import Candidate
from gpubench.study import launch, launch_ab
from gpubench.worker.messages import ProbeResult
from tests import reports
from tests.faults.scripted import Planted
from tests.running import BUSY, MODELS, ROOT, environment

GOOD = f"{MODELS}:good"
PACKAGE = ROOT / "gpubench"


class Recorder(api.Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.begun: list[str] = []
        self.phases: list[str] = []
        self.rows: list[str] = []

    def report_at(self, path: Path) -> None:
        self.paths.append(path)

    def started(self, number: int, planned: Candidate, note: str) -> None:
        self.begun.append(planned.id)

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def finished(self, row: Measurement) -> None:
        self.rows.append(row.id)


@dataclass
class Run:
    """A real run and all that can be seen of it from outside."""

    folder: Path
    report: Report | None = None
    printed: str = ""
    heard: Recorder = field(default_factory=Recorder)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`compare` of two rows, saved as report.json."""
    made = Run(tmp_path_factory.mktemp("compared"))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        made.report = gpubench.compare(
            GOOD, device="cpu", set={"threads": 1}, strategy="each", final_rounds=0, allow=BUSY[1::2],
            output=made.folder / "report.json", listener=made.heard,
        )  # fmt: skip
    made.printed = said.getvalue()
    return made


def test_compare_returns_the_report_that_it_saves(compared: Run) -> None:
    assert compared.report is not None and compared.report.finished_at
    assert [(row.id, row.status) for row in compared.report.measurements] == [("baseline", "ok"), ("threads=1", "ok")]
    assert gpubench.load_report(compared.folder / "report.json") == compared.report
    assert [path.name for path in compared.folder.iterdir()] == ["report.json"]


def test_it_prints_nothing_and_tells_the_listener(compared: Run) -> None:
    assert compared.printed == ""
    assert compared.heard.paths == [compared.folder / "report.json"]
    assert set(compared.heard.begun) == set(compared.heard.rows) == {"baseline", "threads=1"}
    assert {"build", "warm-up"} <= set(compared.heard.phases)


def test_the_command_line_asks_for_the_same(compared: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes the report for its own: everything that it would measure is there, measured alike."""
    copy = tmp_path / "report.json"
    shutil.copy(compared.folder / "report.json", copy)
    code = command_line(
        ["compare-opts", GOOD, "--device", "cpu", "--set", "threads=1", "--strategy", "each", "--final-rounds", "0",
         *BUSY, "--resume", "--output", str(copy), "--format", "json", "--quiet"]
    )  # fmt: skip
    assert code == 0
    shown = store.decode(capsys.readouterr().out.encode(), "stdout")
    assert compared.report is not None
    assert shown == store.load(copy)
    assert shown.plan == compared.report.plan
    assert [row.samples_s for row in shown.measurements] == [row.samples_s for row in compared.report.measurements]


def test_reading_functions_take_reports_and_files(compared: Run) -> None:
    path = compared.folder / "report.json"
    assert compared.report is not None
    of_files = gpubench.check(path, str(path))
    of_reports = gpubench.check(compared.report, compared.report)
    assert of_files.verdict == of_reports.verdict
    assert [row.id for row in of_files.rows] == [row.id for row in of_reports.rows] == ["baseline", "threads=1"]
    alone = gpubench.check(compared.report, compared.folder / "none")
    assert alone.verdict == "incomparable" and "has no baseline" in alone.notes[0]
    (answer,) = gpubench.recommend([path])
    (other,) = gpubench.recommend([compared.report])
    assert answer.advice == other.advice
    assert (answer.source, other.source) == (str(path), "report 1")


# ----- scripted processes


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Planted:
    """Processes, workload and device are scripted, in an empty folder."""
    made = Planted(lambda row_id, _: 0.05 if row_id.startswith("precision") else 0.1)

    @contextlib.contextmanager
    def local_executor(targets: dict[str, Target], _: str, protocol: Protocol, __: object) -> Iterator[Planted]:
        known = reports.report(
            device=reports.CPU, reference=next(iter(targets.values())).workload.reference, name="resnet50"
        )
        made.protocol = protocol
        described = ProbeResult(known.workload, known.device, known.environment)
        made.describe = lambda *_: described  # type: ignore[method-assign]
        yield made

    monkeypatch.setattr(launch, "local_executor", local_executor)
    monkeypatch.setattr(launch_ab, "local_executor", local_executor)
    monkeypatch.chdir(tmp_path)
    return made


def test_what_is_known_of_the_machine_before_is_told_before(scripted: Planted) -> None:
    heard: list[str] = []

    class Hears(api.Listener):
        def note(self, text: str) -> None:
            heard.append(text)

        def started(self, number: int, planned: Candidate, note: str) -> None:
            heard.append(planned.id)

    scripted.notes = ["There is a GPU, but the CPU was measured."]
    report = gpubench.compare(GOOD, set={"threads": 1}, strategy="each", final_rounds=0, listener=Hears())
    assert heard[:2] == [scripted.notes[0], "baseline"] and heard.count(scripted.notes[0]) == 1
    assert scripted.notes[0] in report.notes


def test_without_output_no_file_stays(scripted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    report = gpubench.sweep("batch_size", [1, 2], workload=GOOD, device="cpu", rounds=2)
    assert [row.id for row in report.measurements] == ["batch_size=1", "batch_size=2"]
    assert report.plan.command == "batch-sweep"
    assert report.sweep is not None and report.sweep.largest_fitting == 2
    assert report.protocol.rounds == 2
    assert list(tmp_path.rglob("*")) == [scratch]


def test_a_report_that_cannot_be_saved_is_not_lost(
    scripted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the API it is in the error; the command line prints it and ends with code 2."""
    save, count = store.save, []

    def fails_later(report: Report, path: Path) -> None:
        count.append(path)
        if len(count) > 1:
            raise GpubenchError("The disk is full.")
        save(report, path)

    monkeypatch.setattr(store, "save", fails_later)
    with pytest.raises(api.ReportNotSaved, match=r"could not be saved: The disk is full\.") as caught:
        gpubench.compare(GOOD, device="cpu", set={"threads": 1}, final_rounds=0, output=tmp_path / "a.json")
    assert [row.status for row in caught.value.report.measurements] == ["ok", "ok"]
    count.clear()
    arguments = ["compare-opts", GOOD, "--device", "cpu", "--set", "threads=1", "--final-rounds", "0"]
    assert command_line([*arguments, "--output", "b.json", "--format", "json"]) == 2
    said = capsys.readouterr()
    assert len(json.loads(said.out)["measurements"]) == 2
    assert "could not be saved" in said.err and "Stopped" not in said.err


def test_a_finished_report_is_kept_and_an_unfinished_one_is_resumed(scripted: Planted, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    asked = {"device": "cpu", "set": {"threads": 1}, "strategy": "each", "final_rounds": 0, "output": path}
    gpubench.compare(GOOD, **asked)  # type: ignore[arg-type]

    class Stops(api.Listener):
        def finished(self, row: Measurement) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpubench.compare(GOOD, **asked, listener=Stops())  # type: ignore[arg-type]
    assert store.load(tmp_path / "report.json.bak").finished_at
    assert store.load(path).finished_at is None
    with pytest.raises(GpubenchError, match="holds an unfinished run"):
        gpubench.compare(GOOD, **asked)  # type: ignore[arg-type]
    scripted.ran.clear()
    report = gpubench.compare(GOOD, **asked, resume=True)  # type: ignore[arg-type]
    assert report.finished_at and len(report.measurements) == 2
    assert scripted.ran == ["threads=1"]


def test_the_command_line_takes_the_former_names(scripted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare-opts", GOOD, "--device", "cpu", "--set", "threads=1", "--strategy", "each"]
    for old, new in (
        (["--matrix", "quick", "--duel-rounds", "0"], ["--preset", "quick", "--final-rounds", "0"]),
        (["--pair", "round", "--final-rounds", "0"], ["--final-rounds", "0"]),
    ):
        plans = []
        for number, options in enumerate((old, new)):
            path = f"{'-'.join(new)}-{number}.json"
            assert command_line([*arguments, *options, "--output", path, *(["--quiet"] if number else [])]) == 0
            report = store.load(path)
            plans.append((report.plan, report.protocol))
        assert plans[0] == plans[1]
    assert capsys.readouterr().err.count("--pair has no effect") == 1
    assert command_line(["compare-opts", "--matrix", "quick", "--preset", "full"]) == 2
    assert "--matrix is the former name of --preset." in capsys.readouterr().err


MEASURED = ["--mode", "training", "--size", "tiny", "--param", "width=3", "--resolution", "32", "--device", "cpu",
            "--fix", "threads=2", "--timeout", "2min", "--seed", "7"]  # fmt: skip
ALIKE = {"mode": "training", "size": "tiny", "parameters": {"width": "3", "resolution": 32}, "device": "cpu",
         "fix": {"threads": "2"}, "timeout_s": 120.0, "seed": 7}  # fmt: skip
JUDGED = ["--objective", "memory", "--max-memory", "1GiB", "--rounds", "4", "--strict", "--allow", "unsteady"]
CONSIDERED = {"objective": "memory", "max_memory_bytes": 2**30, "rounds": 4, "strict": True, "allow": ("unsteady",)}
TRIED = ["--set", "compile=default", "--set", "precision=fp32,bf16-autocast"]
SETS = {"compile": ["default"], "precision": ["fp32", "bf16-autocast"]}


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["compare-opts"], lambda: gpubench.compare()),
        (
            ["compare-opts", "vae", *MEASURED, *JUDGED, *TRIED, "--batch-size", "2", "--preset", "quick", "--strategy",
             "grid", "--final-rounds", "3"],
            lambda: gpubench.compare("vae", **ALIKE, **CONSIDERED, set=SETS, batch_size=2, preset="quick",
                                     strategy="grid", final_rounds=3),
        ),
        (["batch-sweep", "--sizes", "1", "2"], lambda: gpubench.sweep("batch_size", [1, 2])),
        (
            ["batch-sweep", "vae", *MEASURED, *JUDGED, "--sizes", "4"],
            lambda: gpubench.sweep("batch_size", 4, workload="vae", **ALIKE, **CONSIDERED),
        ),
        (
            ["tile-sweep", "--sizes", "64,0", "--overlaps", "8", "--batch-size", "2"],
            lambda: gpubench.sweep("tile_size", [64, 0], workload="vae", also={"tile_overlap": (8,)}, batch_size=2,
                                   mode="inference"),
        ),
        (["ab", "--a", "python3"], lambda: gpubench.ab("python3")),
        (
            ["ab", "vae", *MEASURED, *TRIED, "--a", "python3", "--b", "HEAD", "--max-slowdown", "5%", "--rounds", "6",
             "--max-memory-growth", "3%", "--time-limit", "9s", "--pair", "round", "--batch-size", "2"],
            lambda: gpubench.ab("python3", "HEAD", workload="vae", **ALIKE, set=SETS, rounds=6, batch_size=2,
                                limits=api.Limits(slowdown=0.05, memory_growth=0.03), time_limit_s=9.0, pair="round"),
        ),
    ],
)  # fmt: skip
def test_every_option_means_the_same_as_the_argument_of_its_name(
    arguments: list[str], call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def ask(request: object, *_: object) -> object:
        asked.append(request)
        raise GpubenchError("That is all.")

    monkeypatch.setattr(launch, "run", ask)
    monkeypatch.setattr(launch_ab, "run", ask)
    assert command_line(arguments) == 2
    with pytest.raises(GpubenchError, match="That is all"):
        call()
    assert asked[0] == asked[1]


def test_a_stopped_command_says_how_to_resume_and_resume_finds_its_report(
    scripted: Planted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_alone = scripted.run_alone

    def stops(job: Job) -> Outcome:
        if job.id == "threads=1":
            raise KeyboardInterrupt
        return run_alone(job)

    monkeypatch.setattr(scripted, "run_alone", stops)
    arguments = ["compare-opts", GOOD, "--set", "threads=1", "--strategy", "each", "--final-rounds", "0"]
    assert command_line(arguments) == 130
    (path,) = Path().rglob("resnet50-inference-*.json")
    assert f"Stopped. What was measured is in {path}; resume with: --resume --output {path}" in capsys.readouterr().err
    monkeypatch.setattr(scripted, "run_alone", run_alone)
    assert command_line([*arguments, "--resume"]) == 0
    assert f"Report: {path}" in capsys.readouterr().err
    assert store.load(path).finished_at
    assert scripted.ran == ["baseline", "threads=1"]
    path.rename(path.with_name("resnet50-inference-20200101T000000Z.json"))  # names have the second, and it is the same
    assert command_line([*arguments, "--resume"]) == 0
    assert "There is no unfinished report to resume yet: a new one begins at gpubench-runs" in capsys.readouterr().err
    assert len(list(Path().rglob("resnet50-inference-*.json"))) == 2


@pytest.mark.parametrize("there", [None, b""])
def test_a_restarted_job_has_one_command_line(scripted: Planted, tmp_path: Path, there: bytes | None) -> None:
    """A scheduler starts it for the first time and after an interruption with the same words."""
    path, told = tmp_path / "report.json", []
    if there is not None:
        path.write_bytes(there)

    class Hears(api.Listener):
        def note(self, text: str) -> None:
            told.append(text)

        def finished(self, row: Measurement) -> None:
            if row.id == "baseline" and len(told) == 1:
                raise KeyboardInterrupt

    def run() -> Report:
        return gpubench.compare(
            GOOD, device="cpu", set={"threads": 1}, strategy="each", final_rounds=0, output=path, resume=True,
            listener=Hears(),
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run()
    assert told == [f"There is no unfinished report to resume yet: a new one begins at {path}."]
    told.append("restarted")
    assert run().finished_at
    assert len(told) == 2
    assert scripted.ran == ["baseline", "threads=1"]


@pytest.mark.parametrize("name", ["compare", "sweep", "measure", "plan", "ab", "check", "recommend", "load_report"])
def test_the_example_of_each_function_runs(
    name: str, scripted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in ("check", "recommend", "load_report"):
        faster = reports.row("precision=bf16-autocast", 0.05, {"precision": "bf16-autocast"})
        store.save(reports.report(reports.baseline(), faster, name="resnet50"), Path("run.json"))
        (tmp_path / "baselines").mkdir()
        shutil.copy("run.json", "baselines/run.json")
    (tmp_path / "my_model.py").write_text(MODELS.read_text() + "\n\nmake_old = make_new = good\n")
    examples = doctest.DocTestFinder(recurse=False).find(getattr(api, name), name, globs={"gpubench": gpubench})
    assert sum(len(one.examples) for one in examples) >= 1
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    for one in examples:
        runner.run(one)
    assert runner.failures == 0, capsys.readouterr().out


def test_the_snippet_of_the_readme_runs(scripted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    section = (ROOT / "README.md").read_text().partition("## From Python")[2].partition("\n## ")[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(snippet, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "baseline ok" in said and "precision=bf16-autocast" in said


@pytest.mark.slow
def test_the_example_script_runs(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "examples" / "from_python.py"), GOOD]
    done = subprocess.run(script, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "baseline: ok" in done.stdout and "precision=bf16-autocast: ok" in done.stdout
    assert (tmp_path / "from_python.json").exists()


# ----- errors


def workload_object() -> object:
    return gpubench.Workload(name="x", item="row", batch_size=1, build=lambda: None, inputs=lambda *_: ())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gpubench.compare(workload_object()), "object of type Workload.*FILE.py:NAME"),
        (lambda: gpubench.compare("resnet5"), "Did you mean 'resnet50'"),
        (lambda: gpubench.compare(mode="infer"), "Unknown mode 'infer'"),
        (lambda: gpubench.compare(objective="speed"), "Unknown objective 'speed'"),
        (lambda: gpubench.compare(strategy="all"), "Unknown strategy 'all'.*ladder"),
        (lambda: gpubench.compare(preset="defualt"), "Did you mean 'default'"),
        (lambda: gpubench.compare(set={"precison": "fp32"}), "Did you mean 'precision'"),
        (lambda: gpubench.compare(allow=["wrong"]), "Unknown flag 'wrong'"),
        (lambda: gpubench.compare(rounds=0), "rounds is 0. Give a whole number from 1 on"),
        (lambda: gpubench.compare(final_rounds=1.5), "Expected `int . null`, got `float`"),
        (lambda: gpubench.compare(seed=2**31), "seed is 2147483648"),
        (lambda: gpubench.compare(timeout_s=0), "timeout_s is 0"),
        (lambda: gpubench.compare(resume=True), "no report to resume without output"),
        (lambda: gpubench.compare(output="/dev/null/x.json"), "/dev/null"),
        (lambda: gpubench.sweep("batch"), "Did you mean 'batch_size'"),
        (lambda: gpubench.ab("."), "Both sides are the same"),
        (lambda: gpubench.ab("python3", rounds=4), "rounds is 4. Give a whole number from 5 on"),
        (lambda: gpubench.ab("python3", time_limit_s=0), "time_limit_s is 0"),
        (lambda: gpubench.check("missing.json", "x"), "no file missing.json"),
        (lambda: gpubench.check(reports.report(), "x", allow_different=["moon"]), "Unknown field 'moon'"),
        (lambda: gpubench.recommend([], objective="speed"), "Unknown objective 'speed'"),
        (lambda: gpubench.load_report("missing.json"), "no file missing.json"),
    ],
)
def test_what_does_not_fit_is_one_sentence_at_once(
    call: Callable[[], object], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "local_executor", None)  # no process is started for it
    with pytest.raises(GpubenchError, match=words):
        call()
    assert list(tmp_path.iterdir()) == []


# ----- what it must not do


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, gpubench; gpubench.compare; print(sorted({'torch', 'typer', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = "import sys, gpubench; print([name for name in sys.modules if name.startswith('gpubench.')])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in gpubench.__all__:
        assert getattr(gpubench, name) is not None
        assert name in dir(gpubench)
    with pytest.raises(AttributeError, match="no attribute 'comparee'"):
        gpubench.comparee  # noqa: B018


def imported(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_only_the_command_line_prints_or_exits() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli") or path.name == "__main__.py":
            continue
        assert not any(name.startswith(("typer", "gpubench.cli")) for name in imported(path)), path
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), path
        exits = [call for call in calls if isinstance(call, ast.Attribute) and ast.unparse(call) == "sys.exit"]
        assert not exits or path.parent.name == "worker", path  # a worker is a program of its own


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_do_not_use_the_command_line(path: Path) -> None:
    assert not any(name.startswith("gpubench.cli") for name in imported(path))
