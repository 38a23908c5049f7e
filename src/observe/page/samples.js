"use strict";
// Sample clips: of all chosen runs at one step, side by side; and of each run through its steps. Nodes are kept while
// their clip is wanted, so that what plays goes on playing when something new arrives.

const STRIP = 8; // steps of a strip, evenly spread
const MOST_SHOWN = 12; // clips of a run at one step

class Samples {
  constructor() {
    this.rows = byId("sample-rows");
    this.step = byId("sample-step");
    this.media = new Map();
    this.runs = [];
    this.follows = true; // the last step, until the user chooses another
    this.playing = false;
    this.step.oninput = () => {
      this.follows = Number(this.step.value) === Number(this.step.max);
      this.draw();
    };
    byId("play").onclick = () => this.play(!this.playing);
  }

  show(runs) {
    this.runs = runs;
    const chosen = this.steps?.[this.step.value];
    this.steps = [...new Set(runs.flatMap(run => (run.details?.samples || []).map(sample => sample.step)))].sort(
      (a, b) => a - b,
    );
    this.step.max = Math.max(0, this.steps.length - 1);
    this.step.value = this.follows || chosen === undefined ? this.step.max : lastUpTo(this.steps, chosen);
    this.draw();
  }

  draw() {
    byId("sample-tools").hidden = this.steps.length === 0;
    if (this.steps.length === 0) {
      this.media.clear();
      const left = source.live
        ? "No samples yet. With train.sample_every a run writes some as it goes."
        : "No samples.";
      this.rows.replaceChildren(element("p", { class: "empty" }, left));
      return;
    }
    const step = this.steps[this.step.value];
    byId("sample-step-shown").textContent = step.toLocaleString("en");
    this.step.setAttribute("aria-valuetext", `step ${step}`);
    const used = new Set();
    const card = (run, sample, place, caption) => this.card(run, sample, place, caption, used);
    const columns = this.runs.map(run => {
      const all = run.details?.samples || [];
      const at = Math.max(...all.map(sample => sample.step).filter(own => own <= step));
      const shown = all.filter(sample => sample.step === at).slice(0, MOST_SHOWN);
      const heading = element(
        "h3",
        {},
        swatch(run),
        run.name,
        element("span", { class: "note" }, shown.length ? `step ${at.toLocaleString("en")}` : "none yet"),
      );
      return element(
        "div",
        { class: "column" },
        heading,
        element(
          "div",
          { class: "cards" },
          ...shown.map(sample => card(run, sample, "large", `sample ${sample.number + 1}`)),
        ),
      );
    });
    const strips = this.runs.flatMap(run => {
      const own = (run.details?.samples || []).filter(sample => sample.number === 0);
      if (own.length < 2) return [];
      const picked =
        own.length <= STRIP
          ? own
          : Array.from({ length: STRIP }, (_, i) => own[Math.round((i * (own.length - 1)) / (STRIP - 1))]);
      const items = picked.map(sample => {
        const choose = element(
          "button",
          {
            type: "button",
            class: "step",
            "aria-pressed": String(sample.step === step),
            onclick: () => {
              this.follows = false;
              this.step.value = this.steps.indexOf(sample.step);
              this.draw();
            },
          },
          `step ${sample.step.toLocaleString("en")}`,
        );
        return element("li", {}, card(run, sample, "small"), choose);
      });
      return [
        element("h3", {}, swatch(run), `${run.name}: sample 1, as it improved`),
        element("ol", { class: "strip", tabindex: "0", "aria-label": `${run.name}: sample 1 by step` }, ...items),
      ];
    });
    this.rows.replaceChildren(element("div", { class: "side-by-side" }, ...columns), ...strips);
    for (const key of this.media.keys()) if (!used.has(key)) this.media.delete(key);
    if (this.playing) this.play(true);
  }

  card(run, sample, place, caption, used) {
    const key = `${place}/${run.id}/${sample.file}`;
    used.add(key);
    if (!this.media.has(key)) this.media.set(key, this.clip(run, sample, place));
    return element(
      "figure",
      { class: `clip ${place}` },
      this.media.get(key),
      caption ? element("figcaption", {}, caption) : null,
    );
  }

  clip(run, sample, place) {
    const address = source.file(run.id, `samples/${sample.file}`);
    const label = `${run.name}, step ${sample.step}, sample ${sample.number + 1}`;
    if (!address) return element("p", { class: "empty" }, "left out: no room in the report");
    if (!/\.(mp4|webm)$/.test(sample.file)) return element("img", { src: address, alt: label, loading: "lazy" });
    const video = element("video", {
      src: address,
      "aria-label": label,
      playsinline: true,
      loop: true,
      preload: "metadata",
      tabindex: place === "large" ? "0" : undefined,
    });
    video.muted = true;
    if (place === "large") {
      // controls hide much of a small clip, so they are there only when somebody is
      for (const event of ["pointerenter", "focus"])
        video.addEventListener(event, () => {
          video.controls = true;
        });
      for (const event of ["pointerleave", "blur"])
        video.addEventListener(event, () => {
          video.controls = false;
        });
    }
    video.onerror = () => video.replaceWith(element("p", { class: "empty" }, "this browser cannot play the clip"));
    return video;
  }

  play(on) {
    this.playing = on;
    const button = byId("play");
    button.textContent = on ? "Pause all" : "Play all";
    button.setAttribute("aria-pressed", String(on));
    for (const video of this.rows.querySelectorAll("video")) {
      if (on) video.play().catch(() => {});
      else video.pause(); // one that cannot be played says so itself
    }
  }
}

// A spot of a run's colour.
function swatch(run) {
  const spot = element("i", { class: "swatch" });
  spot.style.setProperty("--key", runColour(run.slot));
  return spot;
}
