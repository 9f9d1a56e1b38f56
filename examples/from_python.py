"""Which settings make a model fast, asked from Python: `python examples/from_python.py [WORKLOAD]`."""

import sys

import gpubench

workload = sys.argv[1] if len(sys.argv) > 1 else "resnet50"
report = gpubench.compare(workload, set={"precision": ["bf16-autocast"]}, final_rounds=0, output="from_python.json")
for row in report.measurements:
    print(f"{row.id}: {row.status}, {row.fps or 0:.1f} {report.workload.item}s/s")
if report.recommendation is not None:
    print("Recommended:", report.recommendation.configuration)
