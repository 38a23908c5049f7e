"use strict";
// What is said in words: configs and where they differ, the data, warnings.

// A config's keys, flat and in order: [["train.lr", "0.001"], ...].
function flat(value, path = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([key, inner]) => flat(inner, path ? `${path}.${key}` : key));
  }
  return [[path, typeof value === "string" ? value : JSON.stringify(value)]];
}

// One config as tables, one for each section.
function sectionsOf(config) {
  const sections = new Map();
  for (const [key, value] of config) {
    const [section, ...rest] = key.split(".");
    if (!sections.has(section)) sections.set(section, []);
    sections
      .get(section)
      .push(element("tr", {}, element("th", { scope: "row" }, rest.join(".") || section), element("td", {}, value)));
  }
  return [...sections].map(([name, rows]) =>
    element("div", {}, element("h3", {}, name), element("table", {}, element("tbody", {}, ...rows))),
  );
}

function showConfig(runs) {
  const configs = runs.map(run => new Map(run.details?.config ? flat(run.details.config) : []));
  const keys = [...new Set(configs.flatMap(config => [...config.keys()]))];
  const differs = key => configs.some(config => config.get(key) !== configs[0].get(key));
  const several = runs.length > 1;
  byId("only-different").parentElement.hidden = !several;
  if (!several && keys.length) {
    byId("config-table").replaceChildren(element("div", { class: "sections" }, ...sectionsOf(configs[0])));
    return;
  }
  // Where runs write to differs always.
  const rows = keys.filter(key => !byId("only-different").checked || (differs(key) && key !== "run.out"));
  if (rows.length === 0) {
    byId("config-table").replaceChildren(
      element(
        "p",
        { class: "empty" },
        keys.length && several ? "These runs have the same config." : "No config.toml.",
      ),
    );
    return;
  }
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, "key"),
    ...runs.map(run => element("th", { scope: "col" }, swatch(run), run.name)),
  );
  const body = rows.map(key =>
    element(
      "tr",
      { class: differs(key) ? "differs" : undefined },
      element("th", { scope: "row" }, key),
      ...configs.map(config => element("td", {}, config.get(key) ?? "–")),
    ),
  );
  byId("config-table").replaceChildren(
    element(
      "div",
      { class: "scroll", tabindex: "0" },
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)),
    ),
  );
}

const LISTED = 50;

// A list that is folded up, of the first of `all` texts.
function folded(title, all, texts) {
  if (all === 0) return null;
  const more = all > LISTED ? [element("li", {}, `and ${(all - LISTED).toLocaleString("en")} more`)] : [];
  return element(
    "details",
    {},
    element("summary", {}, title),
    element("ul", { class: "files" }, ...texts.slice(0, LISTED).map(text => element("li", {}, text)), ...more),
  );
}

function aboutFile({ path, clips, class: name, notes }) {
  const more = [name ? `, ${name}` : "", notes?.length ? `; ${notes.join("; ")}` : ""].join("");
  return `${path}: ${count(clips, "clip", "clips")}${more}`;
}

// The contact sheet; in the page a link to it in full size.
function sheetOf(run, address) {
  const alt = `Contact sheet of the clips that ${run.name} trains on`;
  const image = element("img", { class: "sheet", src: address, loading: "lazy", alt });
  return source.live ? element("a", { href: address, target: "_blank", rel: "noopener" }, image) : image;
}

function showData(runs) {
  const alike = new Map(); // runs of the same data are one report
  for (const run of runs.filter(run => run.details?.data)) {
    const key = JSON.stringify(run.details.data);
    alike.set(key, [...(alike.get(key) || []), run]);
  }
  const reports = [...alike.values()].flatMap(([run, ...others]) => {
    const data = run.details.data;
    const used = data.file_count ?? data.files.length,
      unused = data.skipped_count ?? data.skipped.length;
    const classes = data.classes.length ? `, ${count(data.classes.length, "class", "classes")}` : "";
    const tokens = data.tokens_per_clip ? ` of ${count(data.tokens_per_clip, "token", "tokens")}` : "";
    const sizes = (data.buckets || []).map(bucket => `${bucket.width} × ${bucket.height} × ${bucket.frames}`);
    const says =
      `${count(data.clips, "clip", "clips")}${tokens} from ${count(used, "file", "files")}${classes}; ` +
      (data.buckets ? `${sizes.join(", ")} (width × height × frames).` :
      `${data.frames === 1 ? "images" : `${data.frames} frames`} of ${data.width} × ${data.height} pixels` +
      `${data.stride > 1 ? `, one frame in ${data.stride}` : ""}${data.fps ? `, at ${data.fps} a second` : ""}.`);
    const sheet = run.details.pictures.includes("data.png") ? source.file(run.id, "data.png") : null;
    return [
      element("h3", {}, ...[run, ...others].flatMap((run, i) => [i ? " and " : "", swatch(run), run.name])),
      element("p", {}, says),
      data.mixed_rates ? element("p", {}, data.mixed_rates) : null,
      sheet ? sheetOf(run, sheet) : null,
      folded(
        `${count(unused, "file", "files")} not used`,
        unused,
        data.skipped.map(file => `${file.path}: ${file.reason}`),
      ),
      folded("Classes", data.classes.length, data.classes),
      folded("Files used", used, data.files.map(aboutFile)),
    ].filter(Boolean);
  });
  byId("data-report").replaceChildren(
    ...(reports.length
      ? reports
      : [element("p", { class: "empty" }, "No data.json: the run is of an older version, or has not started.")]),
  );
}

function showWarnings(runs) {
  const all = runs.flatMap(run => [
    ...(run.details?.warnings || []).map(warning => ({ run, ...warning })),
    ...(run.curves?.damaged
      ? [
          {
            run,
            message: `metrics.jsonl: ${count(run.curves.damaged, "line is", "lines are")} damaged and not drawn`,
          },
        ]
      : []),
  ]);
  const badge = byId("warning-count");
  badge.hidden = all.length === 0;
  badge.textContent = all.length;
  const rows = all.map(({ run, time, message }) =>
    element(
      "li",
      {},
      swatch(run),
      element("span", { class: "note" }, (time || "").replace("T", " ").slice(0, 19)),
      " ",
      String(message),
    ),
  );
  byId("warning-list").replaceChildren(
    rows.length ? element("ul", { class: "warnings" }, ...rows) : element("p", { class: "empty" }, "None."),
  );
}
