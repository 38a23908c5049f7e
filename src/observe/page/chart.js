"use strict";
// A chart: lines, or areas on top of each other, over steps; with axes, a legend that reads values, zoom by pointer and
// keyboard. All charts share `view`, so that they show the same steps, `first` to `last` or what is zoomed to, and the
// same cursor.

const view = { from: null, to: null, first: 1, last: 2, cursor: null, logX: false, logY: false, smoothing: 0.6 };

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 210,
  LEFT = 64,
  RIGHT = 12,
  TOP = 8,
  BOTTOM = 24;
let chartCount = 0;

function drawn(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// The index of the last of some ascending numbers that is not above `value`; 0 if all are.
function lastUpTo(numbers, value) {
  let low = 0,
    high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return Math.max(0, low - 1);
}

class Chart {
  // `changed` is called after the user moved `view`.
  constructor(title, note, changed) {
    Object.assign(this, {
      title,
      changed,
      id: `chart-${chartCount++}`,
      lines: [],
      rulers: [],
      unit: "",
      stacked: false,
      log: true,
    });
    this.svg = drawn("svg", { class: "chart", tabindex: "0", role: "img", height: HEIGHT });
    this.legend = element("ul", { class: "legend", "aria-live": "polite" });
    this.node = element(
      "figure",
      { class: "panel" },
      element("figcaption", {}, element("h3", {}, title), note ? element("span", { class: "note" }, note) : null),
      this.svg,
      this.legend,
    );
  }

  // lines: [{label, colour, dash, marks, step, mean, min, max, smooth}]; rulers: [{label, colour, value}].
  show({ lines, rulers = [], unit = "", stacked = false, log = true }) {
    this.lines = lines.filter(line => line.step.length > 0);
    Object.assign(this, { rulers, unit, stacked, log });
    this.node.hidden = this.lines.length === 0;
    if (stacked) this.stack();
    this.draw();
  }

  // Puts each line on the one before; all have the first one's steps, and where one has no value it adds nothing.
  stack() {
    const steps = this.lines.length ? this.lines.reduce((a, b) => (a.step.length >= b.step.length ? a : b)).step : [];
    let below = steps.map(() => 0);
    for (const line of this.lines) {
      const value = new Map(line.step.map((step, i) => [step, line.mean[i]]));
      const own = smoothed(
        steps.map(step => value.get(step) || 0),
        view.smoothing,
      );
      Object.assign(line, { step: steps, own, below, above: below.map((y, i) => y + own[i]) });
      below = line.above;
    }
  }

  get width() {
    return Math.max(240, this.svg.clientWidth || this.node.clientWidth || 320);
  }

  // The steps shown.
  range() {
    const from = view.from ?? view.first,
      to = view.to ?? view.last;
    return to > from ? [from, to] : [from - (view.logX ? from / 2 : 1), from + 1];
  }

  // Lowest and highest value shown: spikes above the 99th percentile may be cut off, curves may not.
  heights(parts) {
    if (this.stacked) {
      const tops = this.lines.length ? this.lines[this.lines.length - 1].above : [];
      const [from, to] = this.range();
      const steps = this.lines.length ? this.lines[0].step : [];
      const inside = tops.filter((_, i) => steps[i] >= from && steps[i] <= to).sort((a, b) => a - b);
      return [0, (inside[Math.floor((inside.length - 1) * 0.99)] || 1) * 1.1];
    }
    const positive = value => !this.logarithmic || value > 0;
    const means = parts.flatMap(part => part.smooth).filter(positive);
    const highs = parts
      .flatMap(part => part.max)
      .filter(positive)
      .sort((a, b) => a - b);
    const lows = parts
      .flatMap(part => part.min)
      .filter(positive)
      .sort((a, b) => a - b);
    const cut = (sorted, share) => sorted[Math.floor((sorted.length - 1) * share)];
    const least = (a, b) => Math.min(a, b),
      most = (a, b) => Math.max(a, b);
    const rulers = this.rulers.map(ruler => ruler.value).filter(positive);
    let high = [...means, ...rulers, cut(highs, 0.99)].filter(Number.isFinite).reduce(most, -Infinity);
    let low = [...means, ...rulers, cut(lows, 0.01)].filter(Number.isFinite).reduce(least, Infinity);
    if (!Number.isFinite(high)) return [0.1, 1];
    if (this.logarithmic)
      return high > low ? [low / (high / low) ** 0.05, high * (high / low) ** 0.05] : [low / 2, high * 2];
    if (this.unit && low >= 0) low = 0; // amounts are compared with nothing
    const share = rulers.length ? 0.2 : 0.06; // a ruler's label stands above it
    const room = high > low ? (high - low) * share : Math.abs(high) * 0.2 || 1;
    return [low === 0 ? 0 : low - room, high + room];
  }

  get logarithmic() {
    return view.logY && this.log && !this.stacked;
  }

  // The points of a line within the steps shown, and the next beyond on both sides, so that it runs to the edge.
  inside(line, from, to) {
    let start = lastUpTo(line.step, from),
      end = Math.min(line.step.length, lastUpTo(line.step, to) + 2);
    const cut = values => values.slice(start, end);
    const smooth = line.smooth === false ? line.mean : (line.smoothValues ||= smoothed(line.mean, view.smoothing));
    return {
      line,
      step: cut(line.step),
      mean: cut(line.mean),
      min: cut(line.min),
      max: cut(line.max),
      smooth: cut(smooth),
    };
  }

  draw() {
    const width = this.width;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren();
    if (this.lines.length === 0) return;
    const [from, to] = this.range();
    const parts = this.stacked ? [] : this.lines.map(line => this.inside(line, from, to));
    const [low, high] = this.heights(parts);
    const log = (value, on) => (on ? Math.log(value) : value);
    const scale = (low, high, start, end, on) => value =>
      start + ((log(value, on) - log(low, on)) / (log(high, on) - log(low, on))) * (end - start);
    const x = (this.x = scale(Math.max(from, view.logX ? 0.5 : from), to, LEFT, width - RIGHT, view.logX));
    const y = scale(low, high, HEIGHT - BOTTOM, TOP, this.logarithmic);
    Object.assign(this, { from, to });
    this.axes(x, y, low, high, width);
    const clip = `${this.id}-clip`;
    this.svg.append(
      drawn(
        "clipPath",
        { id: clip },
        drawn("rect", { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM }),
      ),
    );
    const area = drawn("g", { "clip-path": `url(#${clip})` });
    this.svg.append(area);
    const path = (steps, values) =>
      steps
        .map((step, i) =>
          (this.logarithmic && values[i] <= 0) || (view.logX && step <= 0)
            ? ""
            : `${x(step).toFixed(1)} ${y(values[i]).toFixed(1)}`,
        )
        .filter(Boolean)
        .join("L");
    const between = (steps, lows, highs) => {
      const back = path([...steps].reverse(), [...lows].reverse()),
        forth = path(steps, highs);
      return back && forth ? `M${forth}L${back}Z` : "";
    };
    if (this.stacked) {
      for (const line of this.lines) {
        area.append(
          drawn("path", { d: between(line.step, line.below, line.above), fill: line.colour, class: "layer" }),
        );
      }
    }
    for (const { line, step, mean, min, max, smooth } of parts) {
      if (line.smooth !== false) {
        const floor = min.map(value => (this.logarithmic && value <= 0 ? low : value));
        if (max.some((value, i) => value > min[i]))
          area.append(drawn("path", { d: between(step, floor, max), fill: line.colour, class: "band" }));
        if (view.smoothing > 0)
          area.append(drawn("path", { d: `M${path(step, mean)}`, stroke: line.colour, class: "raw" }));
      }
      const d = path(step, smooth);
      if (d)
        area.append(
          drawn("path", { d: `M${d}`, stroke: line.colour, class: "line", "stroke-dasharray": line.dash || "" }),
        );
      const marked = (line.marks && step.length <= 60) || step.length === 1;
      if (marked)
        step.forEach((at, i) =>
          area.append(drawn("circle", { cx: x(at), cy: y(smooth[i]), r: 2.6, fill: line.colour })),
        );
    }
    for (const { value, label, colour } of this.rulers) {
      area.append(
        drawn("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), stroke: colour, class: "ruler" }),
      );
      area.append(
        drawn("text", { x: width - RIGHT - 4, y: y(value) - 5, class: "tick", "text-anchor": "end" }, label),
      );
    }
    this.cursorLine = drawn("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor" });
    this.selection = drawn("rect", {
      y: TOP,
      height: HEIGHT - TOP - BOTTOM,
      class: "selection",
      visibility: "hidden",
    });
    area.append(this.cursorLine, this.selection);
    this.readout();
  }

  axes(x, y, low, high, width) {
    const across = ticks(
      Math.max(this.from, view.logX ? 1 : this.from),
      this.to,
      Math.max(3, Math.floor(width / 65)),
      view.logX,
    );
    for (const step of across.filter(Number.isInteger)) {
      this.svg.append(
        drawn("text", { x: x(step), y: HEIGHT - 6, class: "tick", "text-anchor": "middle" }, tick(step)),
      );
    }
    const one = this.unit === "GiB" ? 2 ** 30 : 1; // round in its unit
    for (const value of ticks(low / one, high / one, 5, this.logarithmic).map(tick => tick * one)) {
      this.svg.append(
        drawn("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
        drawn("text", { x: LEFT - 8, y: y(value) + 4, class: "tick", "text-anchor": "end" }, tick(value, this.unit)),
      );
    }
  }

  // The legend with each line's value at the cursor, or its last one.
  readout() {
    const at = view.cursor !== null && view.cursor >= this.from && view.cursor <= this.to ? view.cursor : null;
    this.cursorLine.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at !== null) for (const end of ["x1", "x2"]) this.cursorLine.setAttribute(end, this.x(at));
    const items = [];
    let group = null; // lines of one run stand in one row, behind its name
    for (const line of this.lines) {
      const i = lastUpTo(line.step, at ?? this.to);
      const value = this.stacked ? line.own[i] : line.mean[i];
      const key = element("i", { class: "key" });
      key.style.setProperty("--key", line.colour);
      key.style.setProperty("--dash", line.dash ? "dashed" : "solid");
      const item = element("span", {}, key, line.label, " ", element("b", {}, shown(value, this.unit)));
      if (group === null || line.run !== group.run) {
        group = {
          run: line.run,
          node: element("li", {}, line.run ? element("span", { class: "of" }, line.run) : ""),
        };
        items.push(group.node);
      }
      group.node.append(" ", item);
    }
    if (at !== null) items.unshift(element("li", { class: "at" }, `step ${Math.round(at).toLocaleString("en")}`));
    this.legend.replaceChildren(...items);
    this.svg.setAttribute(
      "aria-label",
      `${this.title} over steps. ${items.map(item => item.textContent.trim()).join("; ")}`,
    );
  }
}
