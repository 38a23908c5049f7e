"use strict";
// What pointer and keyboard do to a chart: read values at a step, zoom in on steps, and back to the whole.

class ZoomedChart extends Chart {
  constructor(title, note, changed) {
    super(title, note, changed);
    this.listen();
  }

  // The step under a place of the screen.
  stepAt(clientX) {
    const box = this.svg.getBoundingClientRect();
    const share = (((clientX - box.left) / box.width) * this.width - LEFT) / (this.width - LEFT - RIGHT);
    return this.between(Math.min(1, Math.max(0, share)));
  }

  // The step at a share of the width.
  between(share) {
    const from = Math.max(this.from, view.logX ? 0.5 : this.from);
    return view.logX ? from * (this.to / from) ** share : from + (this.to - from) * share;
  }

  zoom(from, to) {
    Object.assign(view, { from: Math.max(1, Math.floor(from)), to: Math.ceil(to) });
    if (view.to - view.from < 2) view.to = view.from + 2;
    this.changed();
  }

  listen() {
    const svg = this.svg;
    let start = null;
    svg.onpointerdown = event => {
      if (event.button === 0 && this.lines.length) start = event.clientX;
    };
    svg.onpointermove = event => {
      if (!this.lines.length) return;
      view.cursor = this.stepAt(event.clientX);
      if (start !== null && Math.abs(event.clientX - start) > 5) {
        svg.setPointerCapture(event.pointerId);
        const ends = [start, event.clientX].map(at => this.x(this.stepAt(at))).sort((a, b) => a - b);
        this.selection.setAttribute("x", ends[0]);
        this.selection.setAttribute("width", ends[1] - ends[0]);
        this.selection.setAttribute("visibility", "visible");
      }
      this.changed(true);
    };
    svg.onpointerup = event => {
      if (start !== null && Math.abs(event.clientX - start) > 5) {
        const ends = [start, event.clientX].map(at => this.stepAt(at)).sort((a, b) => a - b);
        start = null;
        this.zoom(...ends);
      }
      start = null;
    };
    svg.onpointercancel = svg.onpointerleave = () => {
      if (start === null || !this.selection) view.cursor = null;
      start = null;
      this.selection?.setAttribute("visibility", "hidden");
      if (this.lines.length) this.changed(true);
    };
    svg.ondblclick = () => this.whole();
    svg.onkeydown = event => this.key(event);
  }

  whole() {
    Object.assign(view, { from: null, to: null });
    this.changed();
  }

  key(event) {
    if (!this.lines.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const span = this.to - this.from,
      middle = view.cursor ?? this.from + span / 2;
    const move = by => {
      const next =
        view.cursor === null ? this.to : view.cursor + by * Math.max(1, span / (event.shiftKey ? 10 : 100));
      view.cursor = Math.min(this.to, Math.max(this.from, next));
      this.changed(true);
    };
    const closer = factor => this.zoom(middle - (middle - this.from) * factor, middle + (this.to - middle) * factor);
    const actions = {
      ArrowLeft: () => move(-1),
      ArrowRight: () => move(1),
      "+": () => closer(0.5),
      "=": () => closer(0.5),
      "-": () => (view.from === null ? null : closer(2)),
      Escape: () => this.whole(),
      0: () => this.whole(),
      Home: () => {
        view.cursor = this.from;
        this.changed(true);
      },
      End: () => {
        view.cursor = this.to;
        this.changed(true);
      },
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }
}
