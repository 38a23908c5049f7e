"use strict";
// A run's measurements as they arrive: by name, points that stand for one or more steps each, with lowest and highest
// value.

class Curves {
  constructor() {
    Object.assign(this, { generation: 0, width: 0, lastStep: 0, series: {}, damaged: 0, read: 0, size: 0 });
  }

  // What to ask for next.
  get known() {
    return { generation: this.generation, width: this.width, from: this.lastStep };
  }

  // Whether all that the file holds has arrived.
  get whole() {
    return this.read >= this.size;
  }

  // Takes an answer; returns whether anything changed.
  take(answer) {
    if (answer.generation === undefined) return false; // no metrics yet
    const changed = answer.generation !== this.generation || answer.read !== this.read;
    const parts = pointsOf(answer.series);
    if (answer.from > 0) {
      const place = step => Math.floor((step - 1) / answer.width);
      for (const [name, part] of Object.entries(parts)) {
        const old = this.series[name];
        let keep = old ? old.step.length : 0;
        while (keep > 0 && place(old.step[keep - 1]) >= place(answer.from)) keep -= 1;
        for (const key of Object.keys(part)) part[key] = old ? old[key].slice(0, keep).concat(part[key]) : part[key];
        this.series[name] = part;
      }
    } else {
      this.series = parts;
    }
    this.generation = answer.generation;
    this.width = answer.width;
    this.lastStep = answer.last_step;
    this.damaged = answer.damaged;
    this.read = answer.read;
    this.size = answer.size;
    return changed;
  }
}

// Columns as the server sends them, made complete.
function pointsOf(series) {
  const parts = {};
  for (const [name, { step = series.loss && series.loss.step, mean, min = mean, max = mean }] of Object.entries(
    series || {},
  )) {
    parts[name] = { step, mean, min: min.slice(), max: max.slice() };
  }
  return parts;
}

// An exponential moving average that starts unbiased. `weight` is that of what came before.
function smoothed(values, weight) {
  let sum = 0,
    share = 0;
  return values.map(value => {
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}
