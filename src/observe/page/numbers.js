"use strict";
// Numbers for people: in words, and round ones beside an axis.

const UNITS = ["", "k", "M", "G", "T"];

// A number for people: as many digits as tell.
function shown(value, unit) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (unit === "GiB") {
    const gib = value / 2 ** 30;
    return `${gib >= 100 ? gib.toFixed(0) : gib >= 1 ? gib.toFixed(2) : gib.toFixed(3)} GiB`;
  }
  if (unit === "s") {
    if (value >= 5400) return `${(value / 3600).toFixed(1)} h`;
    if (value >= 90) return `${(value / 60).toFixed(1)} min`;
    return value >= 1 || value === 0
      ? `${value.toFixed(value >= 10 ? 1 : 2)} s`
      : `${(value * 1000).toPrecision(3)} ms`;
  }
  const size = Math.abs(value);
  if (size >= 10000) {
    const power = Math.min(Math.floor(Math.log10(size) / 3), UNITS.length - 1);
    return `${(value / 1000 ** power).toPrecision(3)}${UNITS[power]}`;
  }
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace("e-", "e−");
  return String(Number(value.toPrecision(4)));
}

// A number beside an axis: without digits that say nothing.
const tick = (value, unit) =>
  shown(value, unit)
    .replace(/(\.\d*?)0+(?=\D|$)/, "$1")
    .replace(/\.(?=\D|$)/, "");

const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

// Round numbers from low to high, at most `most`.
function ticks(low, high, most, log) {
  if (log && high / low >= 10) {
    const steps = high / low > 1e3 ? [1] : [1, 2, 5];
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      all.push(...steps.map(step => step * 10 ** power).filter(tick => tick >= low && tick <= high));
    }
    const every = Math.ceil(all.length / most);
    return all.filter((_, i) => i % every === 0);
  }
  const raw = (high - low) / most,
    power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(step => step >= raw);
  const all = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++)
    all.push(Number((i * step).toPrecision(12)));
  return all;
}
