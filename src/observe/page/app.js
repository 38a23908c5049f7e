"use strict";
// The page: which runs are chosen, what is asked for and when, and drawing what has changed. The address keeps what is
// chosen.

const EVERY = 1500; // milliseconds between looks
const FIND_FROM = 9; // runs from which on there is a field to find one
const CLOSE_POINTS = 400; // a zoom that shows fewer points of a long run fetches the steps between them

const chosen = new Map(); // by id: {id, name, slot, curves, points, details}
let listed = [];

const panels = new Panels(byId("panels"), onlyCursor => (onlyCursor ? panels.readout() : zoomed()));
const samples = new Samples();
const runsShown = () => [...chosen.values()];

function readAddress() {
  const wish = new URLSearchParams(location.hash.slice(1));
  view.smoothing = Math.min(0.99, Math.max(0, Number(wish.get("smoothing") ?? 0.6) || 0));
  view.logX = wish.has("logx");
  view.logY = wish.has("logy");
  return (wish.get("runs") || "").split(",").filter(Boolean);
}

function writeAddress() {
  const wish = new URLSearchParams({ runs: [...chosen.keys()].join(","), smoothing: view.smoothing });
  if (view.logX) wish.set("logx", "1");
  if (view.logY) wish.set("logy", "1");
  if (source.live) history.replaceState(null, "", `#${wish}`);
}

function choose(id, on) {
  const run = listed.find(run => run.id === id);
  if (on && run && !chosen.has(id)) {
    const taken = runsShown().map(other => other.slot);
    const slot = [...Array(taken.length + 1).keys()].find(slot => !taken.includes(slot));
    chosen.set(id, { id, name: run.name, slot, curves: new Curves(), points: {}, details: null, text: "" });
  } else if (!on) {
    chosen.delete(id);
  }
}

// The list of runs, with what is chosen ticked; focus stays where it is.
function showList() {
  const list = byId("runs"),
    focused = document.activeElement?.id;
  const find = byId("find").value.toLowerCase();
  byId("find").hidden = listed.length < FIND_FROM;
  byId("run-count").textContent = listed.length;
  const now = Date.now() / 1000;
  const rows = listed
    .filter(run => run.name.toLowerCase().includes(find))
    .map(run => {
      const picked = chosen.get(run.id);
      const box = element("input", { type: "checkbox", id: `run-${run.id}` });
      box.checked = Boolean(picked);
      box.onchange = () => {
        choose(run.id, box.checked);
        writeAddress();
        draw();
        look();
      };
      const share = run.step && run.steps ? Math.min(1, run.step / run.steps) : 0;
      const progress = element("progress", { max: 1, value: share, "aria-hidden": "true" });
      const recent =
        source.live && run.written && now - run.written < Math.max(30, 4 * (run.seconds || 0)) && share < 1;
      const about = [
        run.step
          ? `step ${run.step.toLocaleString("en")}${run.steps ? ` of ${run.steps.toLocaleString("en")}` : ""}`
          : "no steps yet",
        run.loss !== null ? `loss ${shown(run.loss)}` : null,
        recent && run.seconds ? `${shown((run.steps - run.step) * run.seconds, "s")} left` : null,
        recent ? null : ago(now - run.written),
      ]
        .filter(Boolean)
        .join(" · ");
      const spot = element("i", { class: picked ? "swatch" : "swatch off" });
      if (picked) spot.style.setProperty("--key", runColour(picked.slot));
      return element(
        "li",
        {},
        element(
          "label",
          { title: run.path },
          box,
          spot,
          element("span", { class: "name" }, run.name),
          recent ? element("span", { class: "live" }, "live") : null,
          progress,
          element("span", { class: "about" }, about),
        ),
      );
    });
  list.replaceChildren(...rows);
  if (focused?.startsWith("run-")) byId(focused)?.focus();
}

function ago(seconds) {
  if (!Number.isFinite(seconds) || !source.live) return null;
  const [value, unit] =
    seconds < 90
      ? [seconds, "s"]
      : seconds < 5400
        ? [seconds / 60, "min"]
        : seconds < 172800
          ? [seconds / 3600, "h"]
          : [seconds / 86400, "days"];
  return `${Math.round(value)} ${unit} ago`;
}

// Draws everything of the chosen runs; of `what` only a part.
function draw(what = { curves: true, details: true }) {
  const runs = runsShown();
  byId("smoothing").value = view.smoothing;
  byId("smoothing-shown").textContent = view.smoothing.toFixed(2);
  byId("log-x").checked = view.logX;
  byId("log-y").checked = view.logY;
  byId("reset").disabled = view.from === null;
  if (what.curves) panels.show(runs);
  if (what.details) {
    samples.show(runs);
    showConfig(runs);
    showData(runs);
  }
  showWarnings(runs);
  const none =
    listed.length === 0
      ? "No runs yet. Start one with longreel train, and it will be here."
      : runs.length === 0
        ? "Choose a run."
        : "";
  const reading = runs.find(run => !run.curves.whole);
  const steps = reading
    ? `Reading ${reading.name}: ${Math.floor((100 * reading.curves.read) / reading.curves.size)} %`
    : "";
  status(none || steps);
}

function status(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

// What the charts draw of a run: a closer look where there is one of the steps shown.
function pick(run) {
  const fits =
    run.close &&
    view.from !== null &&
    run.close.from <= view.from &&
    run.close.to >= Math.min(view.to, run.curves.lastStep);
  run.points = fits ? run.close.series : run.curves.series;
}

let closer = 0;

function zoomed() {
  runsShown().forEach(pick);
  draw({ curves: true });
  clearTimeout(closer);
  closer = setTimeout(async () => {
    const { from, to } = view;
    for (const run of runsShown()) {
      if (from === null || run.curves.width <= 1 || (to - from) / run.curves.width > CLOSE_POINTS) continue;
      const answer = await source.close(run.id, from, to).catch(() => null);
      if (answer && Object.keys(answer.series).length) run.close = { from, to, series: pointsOf(answer.series) };
      pick(run);
    }
    draw({ curves: true });
  }, 200);
}

// Asks for what is new of a run; returns what has changed.
async function update(run) {
  const changed = { curves: false, details: false };
  changed.curves = run.curves.take(await source.metrics(run.id, run.curves.known));
  if (changed.curves) pick(run);
  const details = await source.details(run.id),
    text = JSON.stringify(details);
  if (text !== run.text) {
    Object.assign(run, { details, text });
    changed.details = changed.curves = true; // the memory's plan is among them
  }
  return changed;
}

let looking = false,
  again = 0;

async function look() {
  if (looking || document.hidden) return;
  looking = true;
  clearTimeout(again);
  let wait = EVERY;
  try {
    const first = listed.length === 0;
    listed = await source.runs();
    for (const id of chosen.keys()) if (!listed.some(run => run.id === id)) choose(id, false);
    if (first && listed.length) {
      const wished = readAddress();
      wished.forEach(id => choose(id, true));
      const newest = [...listed].sort((a, b) => (b.written || 0) - (a.written || 0))[0];
      if (chosen.size === 0) (source.live ? [newest] : listed).forEach(run => choose(run.id, true));
      writeAddress();
    }
    showList();
    const changes = await Promise.all(runsShown().map(update));
    const any = what => first || changes.some(change => change[what]);
    if (any("curves") || any("details")) draw({ curves: any("curves"), details: any("details") });
    else draw({});
    if (runsShown().some(run => !run.curves.whole)) wait = 50;
  } catch (error) {
    status(`No answer from longreel watch; asking again. (${error.message})`);
  }
  looking = false;
  if (source.live) again = setTimeout(look, wait);
  else showReport();
}

function showReport() {
  const { left_out: left, most_media: most } = source.report;
  document.body.classList.add("report");
  status(left ? `A report holds ${Math.round(most / 2 ** 20)} MiB of clips and pictures; ${left} are left out.` : "");
}

byId("smoothing").oninput = event => {
  view.smoothing = Number(event.target.value);
  writeAddress();
  draw({ curves: true });
};
for (const [id, key] of [
  ["log-x", "logX"],
  ["log-y", "logY"],
]) {
  byId(id).onchange = event => {
    view[key] = event.target.checked;
    writeAddress();
    draw({ curves: true });
  };
}
byId("reset").onclick = () => {
  Object.assign(view, { from: null, to: null });
  zoomed();
};
byId("only-different").onchange = () => showConfig(runsShown());
byId("find").oninput = showList;
document.addEventListener("visibilitychange", look);
if (matchMedia("(max-width: 760px)").matches) byId("runs-box").open = false;
readAddress();
look();
