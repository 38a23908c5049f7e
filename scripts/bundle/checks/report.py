"""Results: a line of JSON each, appended as they come; a table of them at the end; and the deadline."""

import json
import math
import time


class Report:
    def __init__(self, path, budget, device):
        self.path, self.device, self.lines, self.began = path, device, [], time.monotonic()
        self.deadline = self.began + budget if budget is not None else math.inf

    def line(self, kind, **fields):
        """Appends a line: what was found, and on what."""
        rounded = {key: significant(value) for key, value in fields.items()}
        line = {"kind": kind, "device": self.device, **rounded}
        self.lines.append(line)
        with open(self.path, "a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def left(self):
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def reaches(self, what, seconds=1.0):
        """Whether there is time for a thing that takes about so long; says so in the file if not."""
        if self.left() > seconds:
            return True
        self.line(
            "skipped",
            what=what,
            why=f"the deadline: about {seconds:.0f} s are wanted, {max(0, self.left()):.0f} s are left",
        )
        return False

    def of(self, *kinds):
        return [line for line in self.lines if line["kind"] in kinds]

    def failed(self):
        return self.of("error") + [line for line in self.of("check", "bits") if not line["passed"]]

    def end(self, unchecked):
        """The last line, and the table, which is printed last as what is printed may be cut at its beginning."""
        failed, skipped = self.failed(), self.of("skipped")
        seconds = time.monotonic() - self.began
        self.line(
            "end", passed=not failed, failed=len(failed), skipped=len(skipped), unchecked=unchecked, seconds=seconds
        )
        print(self.table())
        print(
            f"{self.device}: {len(self.of('check'))} results in {seconds:.0f} s, {len(failed)} wrong or errors, "
            f"{len(skipped)} left out; {self.path}"
        )

    def table(self):
        rows = ["| kernel | results | worst error | its bound | |", "|---|---|---|---|---|"]
        kernels = {}
        for line in self.of("check"):
            kernels.setdefault(line["kernel"], []).append(line)
        for kernel, lines in kernels.items():
            worst = max(lines, key=lambda line: (not line["passed"], share_of_bound(line)))
            state = "" if all(line["passed"] for line in lines) else "WRONG"
            rows.append(f"| {kernel} | {len(lines)} | {number(worst['error'])} | {number(worst['bound'])} | {state} |")
        for line in self.of("bits"):
            rows.append(
                f"{line['case']}: {line['repetitions']} repetitions, {'equal' if line['passed'] else 'DIFFERENT'} bits"
            )
        for line in self.of("long"):
            rows.append(
                f"{line['case']}, {line['who']}: ||x - f64|| / ||f64|| = {number(line['norm'])} ({line['what']})"
            )
        rows += [f"ceiling: {line['what']} {line['rate']} {line['unit']}" for line in self.of("peak")]
        if times := self.of("time"):
            rows += ["", "| what | who | ms | rate | share |", "|---|---|---|---|---|"]
            rows += [
                f"| {line['what']} | {line['who']} | {number(1e3 * line['seconds'])} | {line['rate']:.4g} "
                f"{line['unit']} | {100 * line['share']:.0f} % |"
                for line in times
            ]
        rows += [f"left out: {line['what']}: {line['why']}" for line in self.of("skipped")]
        failed = self.failed()
        for line in failed[:20]:
            what = " ".join(filter(None, (line["case"], line.get("kernel"), line.get("what"))))
            if "message" in line:
                rows.append(f"ERROR {what}: {line['message'].splitlines()[-1]}")
            else:
                rows.append(
                    f"WRONG {what}"
                    + (f": {number(line['error'])} over {number(line['bound'])}" if "error" in line else "")
                )
        if len(failed) > 20:
            rows.append(f"and {len(failed) - 20} more: {self.path}")
        return "\n".join(rows)


def share_of_bound(line):
    error = math.inf if line["error"] is None else line["error"]
    return error / line["bound"] if line["bound"] else error


def number(value):
    return "not a number" if value is None else f"{value:.2g}"


def significant(value):
    """Four digits are enough, and JSON has no NaN."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
