"use strict";
// Which charts there are, and what of the runs' measurements each shows.

const RUN_COLOURS = 8; // --run-0 to --run-7 in style.css

const runColour = slot => `var(--run-${slot % RUN_COLOURS})`;

// A line of one run's chart, from the points of one name; of several runs each is named.
function line(runs, run, name, label, more = {}) {
  const points = run.points[name];
  return points
    ? [{ label, run: runs.length > 1 ? run.name : "", colour: runColour(run.slot), ...points, ...more }]
    : [];
}

const BANDS = ["least noise", "less noise", "more noise", "most noise"];

const PANELS = [
  {
    title: "Loss",
    note: "training, and validation where it is measured",
    show: runs => ({
      lines: runs.flatMap(run => [
        ...line(runs, run, "loss", "training"),
        ...line(runs, run, "heldout", "validation", {
          dash: "6 4",
          marks: true,
          smooth: false,
          colour: runs.length > 1 ? runColour(run.slot) : "var(--validation)",
        }),
      ]),
    }),
  },
  {
    title: "Validation loss by noise",
    note: "the same clips at four levels of noise",
    show: runs => ({
      lines: runs.flatMap(run =>
        Object.keys(run.points)
          .filter(name => /^heldout_q\d+$/.test(name))
          .sort()
          .flatMap((name, i, all) =>
            line(runs, run, name, all.length === 4 ? BANDS[i] : `noise ${i + 1} of ${all.length}`, {
              smooth: false,
              marks: true,
              colour: runs.length > 1 ? runColour(run.slot) : `var(--noise-${i % 4})`,
              dash: runs.length > 1 ? ["", "7 3", "4 3", "2 3"][i % 4] : "",
            }),
          ),
      ),
    }),
  },
  {
    title: "Validation loss by size",
    note: "where the held-out clips have several: width x height x frames",
    show: runs => ({
      lines: runs.flatMap(run =>
        Object.keys(run.points)
          .filter(name => /^heldout_\d+x\d+x\d+$/.test(name))
          .sort()
          .flatMap((name, i) =>
            line(runs, run, name, name.slice("heldout_".length), {
              smooth: false,
              marks: true,
              colour: runs.length > 1 ? runColour(run.slot) : `var(--noise-${i % 4})`,
              dash: ["", "7 3", "4 3", "2 3"][(runs.length > 1 ? i : Math.floor(i / 4)) % 4],
            }),
          ),
      ),
    }),
  },
  {
    title: "Gradient norm",
    note: "before clipping",
    show: runs => ({ lines: runs.flatMap(run => line(runs, run, "grad_norm", "norm")) }),
  },
  {
    title: "Learning rate",
    show: runs => ({ lines: runs.flatMap(run => line(runs, run, "lr", "rate", { smooth: false })) }),
  },
  {
    title: "Speed",
    note: "tokens a second, all ranks",
    show: runs => ({ lines: runs.flatMap(run => line(runs, run, "tokens_per_s", "tokens/s")), unit: "/s" }),
  },
  {
    title: "Memory",
    note: "highest so far, against the plan",
    show: runs => ({
      unit: "GiB",
      log: false,
      lines: runs.flatMap(run => line(runs, run, "peak_rss", "peak", { smooth: false })),
      rulers: runs.flatMap(run => {
        const planned = run.details?.plan?.bytes;
        const known = runs.find(other => other.details?.plan?.bytes === planned); // equal plans are one line
        return planned && known === run
          ? [{ value: planned, colour: runColour(run.slot), label: `planned ${shown(planned, "GiB")}` }]
          : [];
      }),
    }),
  },
];

// Where the time of a step goes: a chart of its own for each run. Parts that hardly show are one.
const LAYERS = 8;
const LEAST_SHARE = 0.02;

function timePanel(run) {
  const all = Object.entries(run.points).filter(([name]) => name.startsWith("seconds_"));
  const parts = all.map(([name, points]) => ({
    name: name.slice("seconds_".length).replaceAll("_", " "),
    points,
    total: points.mean.reduce((sum, value) => sum + value, 0),
  }));
  parts.sort((a, b) => b.total - a.total);
  const whole = parts.reduce((sum, part) => sum + part.total, 0);
  const large = parts.filter((part, i) => i < LAYERS && part.total >= LEAST_SHARE * whole);
  const small = parts.filter(part => !large.includes(part));
  const lines = large.map((part, i) => ({ label: part.name, colour: `var(--layer-${i})`, ...part.points }));
  if (small.length) {
    const sums = new Map();
    for (const { points } of small)
      points.step.forEach((step, i) => sums.set(step, (sums.get(step) || 0) + points.mean[i]));
    const step = [...sums.keys()].sort((a, b) => a - b),
      mean = step.map(at => sums.get(at));
    lines.push({
      label: count(small.length, "small part", "small parts"),
      colour: `var(--layer-${LAYERS})`,
      step,
      mean,
      min: mean,
      max: mean,
    });
  }
  return { lines, unit: "s", stacked: true };
}

// Makes the charts, and draws them for the runs that are chosen.
class Panels {
  constructor(parent, changed) {
    this.parent = parent;
    this.changed = changed;
    this.fixed = PANELS.map(panel => ({ chart: new ZoomedChart(panel.title, panel.note, changed), panel }));
    this.times = new Map();
    parent.append(...this.fixed.map(({ chart }) => chart.node));
    new ResizeObserver(() => this.charts.forEach(chart => chart.draw())).observe(parent);
  }

  get charts() {
    return [...this.fixed.map(({ chart }) => chart), ...this.times.values()];
  }

  show(runs) {
    const steps = runs.map(run => run.curves.series.loss?.step || []).filter(steps => steps.length);
    if (steps.length) {
      view.first = Math.min(...steps.map(steps => steps[0]));
      view.last = Math.max(...steps.map(steps => steps[steps.length - 1]));
    }
    for (const { chart, panel } of this.fixed) chart.show(panel.show(runs));
    for (const [id, chart] of this.times) {
      if (!runs.some(run => run.id === id)) {
        chart.node.remove();
        this.times.delete(id);
      }
    }
    for (const run of runs) {
      if (!this.times.has(run.id)) {
        const chart = new ZoomedChart("Where a step's time goes", "", this.changed);
        chart.name = chart.node.querySelector("figcaption").appendChild(element("span", { class: "note" }));
        this.times.set(run.id, chart);
        this.parent.append(chart.node);
      }
      const chart = this.times.get(run.id);
      chart.name.textContent = runs.length > 1 ? run.name : "seconds by part, on rank 0";
      chart.show(timePanel(run));
    }
  }

  readout() {
    this.charts.filter(chart => chart.lines.length && chart.cursorLine).forEach(chart => chart.readout());
  }
}
