"""What many configurations really do on a device, for reading afterwards: kernels, errors, launches, memory.

    python scripts/gpu_corpus.py eager|compiled FOLDER [--device cuda:0] [--size base] [--models resnet50,vae,unet3d]

Each model has a process of its own, and each configuration is one line of FOLDER/corpus-KIND-MODEL.jsonl, written when
it is known, so that a run that is cut off leaves what it had. `eager`: every precision with and without channels_last
in inference, two precisions in training. `compiled`: two modes of the compiler in inference, the models at the same
time; meanwhile FOLDER/corpus-compiled-processes.jsonl has whom the driver lists on the device.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Configuration = dict[str, str | int]
MODELS = "resnet50,vae,unet3d"
WARM_STEPS, STEADY_STEPS = 3, 10
LOOK_S = 0.1  # between two looks at the driver's list of processes


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("kind", choices=["eager", "compiled"])
    found.add_argument("folder", type=Path)
    found.add_argument("--device", default="cuda:0")
    found.add_argument("--size", default="base")
    found.add_argument("--models", default=MODELS)
    found.add_argument("--limit", type=float, default=3600.0, help="Seconds for all models; each has its share.")
    found.add_argument("--one", action="store_true", help="Run the only model in this process.")
    return found


# ----- the parent: one process a model


def main(arguments: list[str]) -> int:
    """Runs what the command line asks for; 1 where a model's process failed."""
    given = parser().parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.one:
        run_model(given.kind, given.models, given.device, given.size, given.folder)
        return 0
    children: list[subprocess.Popen[bytes]] = []
    # So that a signal to this process ends the children too, wherever they were started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    done = threading.Event()
    watch = threading.Thread(target=watch_processes, args=(given, children, done), daemon=True)
    models, begun = given.models.split(","), time.monotonic()
    try:
        if given.kind == "compiled":
            watch.start()
        for number, model in enumerate(models, start=1):
            command = [sys.executable, __file__, given.kind, str(given.folder), "--one", "--models", model]
            children.append(subprocess.Popen([*command, "--device", given.device, "--size", given.size]))
            if given.kind == "eager":  # one after the other: their times are read
                end(children[-1], begun + given.limit * number / len(models))
        for child in children:
            end(child, begun + given.limit)
        return int(any(child.returncode for child in children))
    finally:
        done.set()
        for child in children:
            child.kill()
        if watch.is_alive():
            watch.join(timeout=2)


def end(child: subprocess.Popen[bytes], deadline: float) -> None:
    """Waits for `child`, and ends it at the deadline; what it has written stays."""
    try:
        child.wait(max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def watch_processes(given: argparse.Namespace, children: list[subprocess.Popen[bytes]], done: threading.Event) -> None:
    """Writes the driver's list of processes on the device whenever it changes, with who of them descends from here."""
    from gpubench.hardware.find_device import find_device
    from gpubench.hardware.nvml_call import Unavailable
    from gpubench.measure.process_table import family, parse, read_stats

    kind, _, index = given.device.partition(":")
    device = find_device(kind, None, int(index or 0)).device
    last: Any = None
    with (given.folder / "corpus-compiled-processes.jsonl").open("w") as file:
        while not done.wait(LOOK_S):
            listed = device.processes() if device and not isinstance(device, Unavailable) else device
            stats = read_stats(Path("/"))
            ours = set() if isinstance(stats, Unavailable) else family(parse(stats), frozenset({os.getpid()}))
            now = str(listed) if not isinstance(listed, list) else [[str(each), each.pid in ours] for each in listed]
            if now != last:
                last = now
                pids = [child.pid for child in children]
                file.write(json.dumps({"at": time.monotonic(), "listed": now, "models": pids}) + "\n")
                file.flush()


# ----- one model


def configurations(kind: str, device: str) -> Iterator[tuple[str, Configuration]]:
    """Mode and configuration, in the order in which they are run; the first of a mode is the reference of errors."""
    from gpubench.toggles import get
    from gpubench.toggles.toggle import AS_BUILT

    # As built a model takes what the configuration before it has left in this process, and it has nothing of its own.
    precisions = [str(value) for value in get("precision").values if value != AS_BUILT]
    plain = "fp32" if "fp32" in precisions else precisions[0]
    if kind == "compiled":
        yield "inference", {"precision": plain, "compile": "off"}
        for compiled in ("default", "reduce-overhead"):
            if device.startswith("cuda") or compiled == "default":
                yield "inference", {"precision": "bf16-autocast", "channels_last": "on", "compile": compiled}
        return
    for precision in sorted(precisions, key=lambda value: value != plain):
        if precision not in ("torch-default", "tf32") or device.startswith("cuda"):
            for layout in ("off", "on"):
                yield "inference", {"precision": precision, "channels_last": layout}
    for precision in (plain, "fp16-autocast"):
        yield "training", {"precision": precision, "channels_last": "on", "optimizer": "fused"}


def run_model(kind: str, model: str, device: str, size: str, folder: Path) -> None:
    """Runs every configuration of `kind` on one model; each is a line of the model's file, whatever becomes of it."""
    from gpubench.worker.messages import WorkloadChoice
    from gpubench.worker.prepare import load_choice, use_device
    from gpubench.workloads.building import build_model

    torch_device = use_device(device)
    loaded, _ = load_choice(WorkloadChoice(reference=model, size=size, parameters={}, mode=None))
    built = build_model(loaded.workload)  # once: every configuration begins from a copy
    loaded = dataclasses.replace(
        loaded, workload=dataclasses.replace(loaded.workload, build=lambda: copy.deepcopy(built))
    )
    references: dict[str, Any] = {}
    with (folder / f"corpus-{kind}-{model}.jsonl").open("w") as file:
        planned = list(configurations(kind, device))
        file.write(json.dumps({"model": model, "planned": len(planned)}) + "\n")
        for mode, configuration in planned:
            started = time.monotonic()
            line: dict[str, Any] = {"model": model, "mode": mode, "configuration": configuration}
            try:
                line |= measure(loaded, mode, configuration, torch_device, references)
            except Exception as error:  # noqa: BLE001 - it is what the line then says
                line["problem"] = f"{type(error).__name__}: {error}"[:2000]
            line["seconds"] = round(time.monotonic() - started, 2)
            file.write(json.dumps(line) + "\n")
            file.flush()


def measure(loaded: Any, mode: Any, configuration: Configuration, device: Any, references: dict[str, Any]) -> Any:
    """All that is read of one configuration."""
    import torch

    from gpubench.measure.trace import trace_step
    from gpubench.toggles.tf32_probe import tf32_in_use
    from gpubench.worker.prepare import apply_toggles, build, make_batches, toggles_of
    from gpubench.worker.step import Stepper

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    context = build(loaded, mode, device, configuration, 0)
    apply_toggles(context, make_batches(loaded, context.batch_size, 2, 0))
    stepper = Stepper(context)

    def synchronized(step: Callable[[], object]) -> tuple[float, float]:
        """Seconds until `step` returned, and until all that it launched was done; nothing was under way before."""
        finish()
        begun = time.perf_counter()
        step()
        returned = time.perf_counter()
        finish()
        return returned - begun, time.perf_counter() - begun

    def finish() -> None:
        if cuda:
            torch.cuda.synchronize(device)

    _, first_s = synchronized(lambda: stepper.run(0))
    found = stepper.output if mode == "inference" else stepper.loss
    assert isinstance(found, torch.Tensor)
    output = found.detach().double().cpu()
    expected = references.setdefault(mode, output)
    for _ in range(WARM_STEPS):
        stepper.step()
    single = [synchronized(stepper.step) for _ in range(5)]

    def several() -> None:
        for _ in range(STEADY_STEPS):
            stepper.step()

    _, several_s = synchronized(several)
    facts: dict[str, Any] = {
        "batch_size": context.batch_size,
        "first_s": first_s,
        "enqueue_s": statistics.median(enqueued for enqueued, _ in single),
        "single_s": statistics.median(whole for _, whole in single),
        "steady_s": several_s / STEADY_STEPS,
        "relative_error": float((output - expected).norm() / expected.norm()),
        "finite": bool(torch.isfinite(output).all()),
    }
    if cuda:
        facts["allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        facts["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
        probe = tf32_in_use(device)
        facts["tf32"] = {"matmul": probe.matmul, "convolution": probe.convolution, "detail": probe.detail}
    for warm in (0, WARM_STEPS):
        facts[f"profiled_after_{warm}"] = profiled(stepper.step, warm, cuda, kernels=warm > 0)
    context.trace = trace_step(stepper.step, cuda=cuda)
    proofs = {toggle.name: toggle.evidence(context, value) for toggle, value in toggles_of(context)}
    facts["evidence"] = {name: [proof.took_effect, proof.detail] for name, proof in proofs.items()}
    return facts


def profiled(step: Callable[[], object], warm: int, cuda: bool, *, kernels: bool) -> dict[str, Any]:
    """How many kernels and launches the profiler has of a step, after `warm` others in its session; and which kernels.

    A kernel belongs to the step where the launch with its correlation id does.
    """
    import tempfile

    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities) as profiler:
        for index in range(warm + 1):
            if cuda:
                torch.cuda.synchronize()
            with record_function("the step that counts" if index == warm else "a warm step"):
                step()
        if cuda:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    begun = max(event["ts"] for event in events if event.get("name") == "the step that counts" and "ts" in event)
    runtime = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    launches = [each for each in runtime if each["ts"] >= begun and "Launch" in each["name"]]
    ids = {each.get("args", {}).get("correlation") for each in launches}
    ran = [event for event in events if event.get("cat") == "kernel" and event["args"].get("correlation") in ids]
    result: dict[str, Any] = {"launches": len(launches), "kernels": len(ran)}
    result["graph_launches"] = sum("GraphLaunch" in each["name"] for each in launches)
    if kernels:
        times: dict[str, list[float]] = defaultdict(list)
        for event in ran:
            times[event["name"]].append(float(event.get("dur", 0)))
        result["by_name"] = [
            [name, len(each), round(sum(each), 1)]  # microseconds
            for name, each in sorted(times.items(), key=lambda item: -sum(item[1]))
        ]
    return result


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main(sys.argv[1:]))
