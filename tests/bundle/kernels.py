"""Stands in for the kernels' checks: two lines of results, one wrong if $STAND_IN/wrong-kernel is there."""
import json
import os
import sys

folder = sys.argv[sys.argv.index("--out") + 1]
passed = not os.path.exists(os.path.join(os.environ["STAND_IN"], "wrong-kernel"))
lines = [
    dict(kind="check", kernel="adamw", case="3 x 5", what="m", error=1e-7, bound=1e-6, passed=True),
    dict(kind="check", kernel="gelu_forward_f32", case="7", what="y", error=0.5, bound=1e-6, passed=passed),
    dict(kind="end", passed=passed),
]
with open(os.path.join(folder, "kernels.jsonl"), "a") as file:
    file.writelines(json.dumps(line) + "\n" for line in lines)
print("the budget is", sys.argv[sys.argv.index("--budget") + 1])
sys.exit(not passed)
