"use strict";
// Where the page's data come from: the server that `longreel watch` runs, or, in a report, the page itself.

const source = (() => {
  const embedded = document.getElementById("report");
  if (embedded) {
    const report = JSON.parse(embedded.textContent);
    return {
      live: false,
      report,
      runs: async () => report.runs,
      details: async id => report.details[id],
      metrics: async id => report.metrics[id],
      close: async () => null,
      file: (id, name) => report.files[`${id}/${name}`] || null,
    };
  }
  const get = async path => {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  };
  return {
    live: true,
    runs: () => get("/api/runs"),
    details: id => get(`/api/runs/${id}`),
    // Only what is new, of what came before.
    metrics: (id, { generation, width, from }) =>
      get(`/api/runs/${id}/metrics?generation=${generation}&width=${width}&from=${from}`),
    // Every step of a range, where that is not too much.
    close: (id, first, last) => get(`/api/runs/${id}/metrics?first=${first}&last=${last}`),
    file: (id, name) => `/files/${id}/${name}`,
  };
})();

// An element with attributes, properties (on...) and children; text is never read as HTML.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made[key] = value;
    else if (value !== undefined && value !== null && value !== false)
      made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

const byId = id => document.getElementById(id);
