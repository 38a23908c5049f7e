"""The least time that work can take: its operations over the arithmetic peak, its bytes over the bandwidth of memory.

The formulas are those of docs/performance.md, section Floors, which explains them; compare.py --docs fills its table.
"""


def size(dtype):
    return 2 if dtype == "bf16" else 4


def attention_bytes(r, key):
    """q, k, v and o once each; backward reads q, k, v, o, do and writes dq, dk, dv."""
    return (4 if key == "fwd_s" else 12) * r["tokens"] * r["heads"] * r["head_dim"] * size(r["dtype"])


def linear_bytes(r, key):
    """f32: x, W read and y written; backward reads x, dy, W, writes dx and adds to dW."""
    n, inner, out = r["tokens"], r["in"], r["out"]
    forward = n * inner + n * out + inner * out
    return 4 * (forward if key == "fwd_s" else forward + 2 * n * inner + n * out + 3 * inner * out)


def step_bytes(r, _):
    """What passes between the tiles and attention, and what the optimizer reads and writes."""
    d, params = r["dim"], r["layers"] * 16 * r["dim"] ** 2
    return r["layers"] * r["tokens"] * d * (40 + 23 * size(r["dtype"])) + r.get("ranks", 1) * 36 * params


BYTES = dict(attention=attention_bytes, linear=linear_bytes, step=step_bytes)
GFLOPS = dict(fwd_s="fwd_gflops", fwdbwd_s="fwdbwd_gflops", step_s="step_gflops")


def table(rows, peak, title):
    lines = [f"Peak {peak['f32_gflops']:.0f} GFLOP/s in f32 and {peak['bf16_gflops']:.0f} in bf16 ({peak['path']}, "
             f"{peak['threads']} threads); {peak['copy_gb_s']:.0f} GB/s.", "",
             "| work | TFLOP | by operations | by bytes | ours | of the floor |", "|---|---|---|---|---|---|"]
    for row in (row for row in rows if row["key"] in GFLOPS):
        r = row["result"]
        flop = r[GFLOPS[row["key"]]] * r[row["key"]] * 1e9
        arithmetic = flop / (peak[f"{r['dtype']}_gflops"] * 1e9)
        memory = BYTES[row["kind"]](r, row["key"]) / (peak["copy_gb_s"] * 1e9)
        lines.append(f"| {title(row)} | {flop / 1e12:.4g} | {arithmetic:.4g} s | {memory:.4g} s "
                     f"| {row['ours']:.4g} s | {100 * max(arithmetic, memory) / row['ours']:.0f}% |")
    return "\n".join(lines)
