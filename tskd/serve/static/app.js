// The page: what a click, a key or a dropped file does.

import { Refused, ask, askJson, useToken } from "/static/api.js";
import { Viewer } from "/static/viewer.js";

const $ = (id) => document.getElementById(id);
export const viewer = new Viewer($("canvas"));
export const state = { model: null, opened: null, slice: 0, masks: new Map(), edited: new Set(), undo: [], window: null, asked: 0 };
const LABELS = {
  "image/png": "Mask (PNG)", "application/x-nifti": "Mask (NIfTI)", "application/dicom": "Mask (DICOM SEG)", "application/json": "Numbers (JSON)",
};
const ENDINGS = { "image/png": ".png", "application/x-nifti": ".nii.gz", "application/dicom": ".seg.dcm", "application/json": ".json" };

function tell(text) {
  $("status").textContent = text;
}

async function trying(work) {
  $("problem").textContent = "";
  try {
    return await work();
  } catch (error) {
    tell("");
    if (!(error instanceof Refused)) throw error;
    $("problem").textContent = error.message;
    $("token-form").hidden = error.status !== 401;
    if (error.status === 401) $("token").focus();
    return undefined;
  }
}

function element(name, text, properties = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  return Object.assign(made, properties);
}

// --- the model ---

async function start() {
  await trying(async () => {
    state.model = await askJson("/v1/model");
    $("token-form").hidden = true;
    const { classes, dataset, colours, examples } = state.model;
    $("title").textContent = `Segmentation of ${classes.join(", ")}`;
    document.title = `${$("title").textContent} · ${dataset}`;
    viewer.colours = colours;
    $("card-text").replaceChildren(...new DOMParser().parseFromString(state.model.card_html, "text/html").body.childNodes);
    $("class").replaceChildren(...classes.map((one, k) => element("option", one, { value: k + 1 })));
    $("examples").hidden = !examples.length;
    for (const old of $("examples").querySelectorAll("button")) old.remove();
    for (const one of examples) {
      const button = element("button", one.replaceAll("_", " "), { type: "button" });
      button.addEventListener("click", () => open(`/v1/examples/${encodeURIComponent(one)}`, {}, one));
      $("examples").append(button);
    }
    $("pool").hidden = !state.model.pool;
    if (state.model.pool) {
      $("work").hidden = false;
      await listCandidates();
    }
  });
}

// --- opening ---

export async function openFile(file) {
  if (state.model && file.size > state.model.upload_bytes) {
    $("problem").textContent = `The file has more than ${Math.round(state.model.upload_bytes / 2 ** 20)} MB.`;
    return;
  }
  const body = new FormData();
  body.append("file", file);
  await open("/v1/views", { body }, "file");
}

async function open(path, options, what) {
  if (state.edited.size && !confirm("Corrections are not saved. Open another image all the same?")) return;
  tell(`Segmenting the ${what.replaceAll("_", " ")} …`);
  await trying(async () => {
    const opened = await askJson(path, { method: "POST", ...options });
    const before = state.opened;
    Object.assign(state, { opened, slice: 0, masks: new Map(), edited: new Set(), undo: [], window: null });
    if (before) ask(`/v1/views/${before.view}`, { method: "DELETE" }).catch(() => undefined);
    for (const id of ["work", "view", "results"]) $(id).hidden = false;
    $("correct").hidden = !state.model.corrections;
    showFound();
    const most = opened.found.slices.map((one) => one.pixels.reduce((a, b) => a + b, 0));
    const largest = Math.max(...most);
    await showSlice(largest ? most.indexOf(largest) : Math.floor(most.length / 2));
    viewer.fit();
    tell(`Done in ${opened.found.seconds.toFixed(1)} s. ${spoken(opened.found)}`);
  });
}

function spoken(found) {
  const parts = found.classes.map((one) => `${one.name}: ${size(one) || `${one.pixels} pixels`}`);
  return `${parts.join("; ")}; confidence ${found.confidence.toFixed(2)}.${toLookAt(found) ? ` ${toLookAt(found)}` : ""}`;
}

// Of an image the reasons; of a volume how many slices have one.
function toLookAt(found) {
  const doubted = found.slices.filter((one) => one.look);
  if (!doubted.length) return "";
  if (found.slices.length === 1) return `Look at this one: ${doubted[0].look}.`;
  return `Look at ${doubted.length} of ${found.slices.length} slices: ${[...new Set(doubted.map((one) => one.look))].join("; ")}.`;
}

function size(one) {
  if (one.ml !== null) return `${rounded(one.ml)} ml`;
  return one.mm2 === null ? "" : `${rounded(one.mm2)} mm²`;
}

function rounded(value) {
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

function showFound() {
  const { found, values, window, forms } = state.opened;
  const rows = found.classes.map((one, k) => {
    const row = document.createElement("tr"), name = element("th", "", { scope: "row" }), swatch = element("span", "", { className: "swatch" });
    swatch.style.backgroundColor = `rgb(${state.model.colours[k].join(" ")})`;
    name.append(swatch, one.name);
    row.append(name, element("td", one.pixels.toLocaleString("en"), { className: "number" }),
      element("td", size(one) || "not stated", { className: "number" }));
    return row;
  });
  $("classes").replaceChildren(...rows);
  $("size-head").textContent = found.kind === "image" ? "Area" : "Volume";
  $("confidence").value = found.confidence;
  $("confidence-told").textContent = `${found.confidence.toFixed(2)}${found.confidence_is_calibrated ? "" : " (not calibrated)"}`;
  $("confidence-means").textContent = `${found.confidence_means}.`;
  $("look").textContent = toLookAt(found);
  $("remarks").replaceChildren(...found.remarks.map((one) => element("li", one)));
  $("downloads").replaceChildren(...forms.map((form) => {
    const button = element("button", LABELS[form], { type: "button" });
    button.addEventListener("click", () => download(form));
    return button;
  }));
  const last = found.slices.length - 1;
  $("slices").hidden = last === 0;
  $("slice").max = last;
  $("windowing").hidden = values === null;
  if (values) showWindow(...(window || values));
}

function showWindow(low, high) {
  const [least, most] = state.opened.values;
  for (const [name, value] of [["low", low], ["high", high]]) {
    $(name).min = Math.min(least, low);
    $(name).max = Math.max(most, high);
    $(name).value = value;
    $(`${name}-told`).textContent = rounded(value);
  }
}

// --- slices ---

export async function showSlice(number) {
  const { opened } = state, turn = ++state.asked;
  const { found, view } = opened;
  number = Math.min(Math.max(number, 0), found.slices.length - 1);
  const window = state.window ? `&low=${state.window[0]}&high=${state.window[1]}` : "";
  const [image, mask] = await Promise.all([
    ask(`/v1/views/${view}/image?slice=${number}${window}`).then((one) => one.blob()).then((one) => createImageBitmap(one)),
    state.masks.get(number) || ask(`/v1/views/${view}/mask?slice=${number}`).then((one) => one.arrayBuffer()).then((one) => new Uint8Array(one)),
  ]);
  if (turn !== state.asked) return; // another slice was asked for meanwhile
  state.masks.set(number, mask);
  state.slice = number;
  const aspect = found.spacing_mm ? found.spacing_mm[0] / found.spacing_mm[1] : 1;
  viewer.show(image, mask, image.width, image.height, aspect);
  $("slice").value = number;
  const told = `${number + 1} of ${found.slices.length}`;
  $("slice-told").textContent = told;
  $("slice").setAttribute("aria-valuetext", told);
  $("canvas").setAttribute("aria-label", described(number));
}

function described(number) {
  const { found } = state.opened, counts = found.slices[number].pixels;
  const parts = found.classes.map((one, k) => `${one.name} ${counts[k]} pixels`);
  return `${found.slices.length > 1 ? `Slice ${number + 1} of ${found.slices.length}` : "Image"}, found: ${parts.join(", ")}`;
}

async function download(form) {
  await trying(async () => {
    const answer = await ask(`/v1/views/${state.opened.view}/answer`, { headers: { Accept: form } });
    const link = element("a", "", { href: URL.createObjectURL(await answer.blob()), download: `mask${ENDINGS[form]}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

// --- corrections ---

function setTool(tool) {
  viewer.tool = tool;
  document.querySelector(`[name=tool][value=${tool}]`).checked = true;
  $("canvas").classList.toggle("paints", tool !== "move");
  viewer.draw();
}

function remember() {
  state.undo.push([state.slice, state.masks.get(state.slice).slice()]);
  if (state.undo.length > 30) state.undo.shift();
}

function noteEdit() {
  state.edited.add(state.slice);
  tell(`${state.edited.size} ${state.edited.size === 1 ? "slice" : "slices"} changed, not saved.`);
}

async function undo() {
  const last = state.undo.pop();
  if (!last) return;
  state.masks.get(last[0]).set(last[1]);
  if (last[0] === state.slice) viewer.changed();
  else await showSlice(last[0]);
}

export async function save() {
  if (!state.opened) return;
  const slices = state.edited.size ? [...state.edited] : [state.slice];
  await trying(async () => {
    for (const one of slices) {
      const options = { method: "POST", body: state.masks.get(one), headers: { "Content-Type": "application/octet-stream" } };
      await askJson(`/v1/views/${state.opened.view}/corrections?slice=${one}`, options);
      state.edited.delete(one);
    }
    tell(`Saved ${slices.length === 1 ? "one mask" : `${slices.length} masks`} into the data folder of corrections.`);
    if (state.model.pool) await listCandidates();
  });
}

let polling, listed = "";

async function listCandidates() {
  clearTimeout(polling);
  const { left, next } = await askJson("/v1/pool");
  if (left) polling = setTimeout(poll, 3000);
  $("pool-told").textContent = left ? `${left} images still to be looked at; the model doubts these most so far:` : "The model doubts these most:";
  if (!left && !next.length) $("pool-told").textContent = "Every image of the pool has a mask.";
  if (listed === JSON.stringify(next)) return; // drawn anew it would take the keyboard's focus away
  listed = JSON.stringify(next);
  $("candidates").replaceChildren(...next.map((one) => {
    const item = document.createElement("li"), button = element("button", `${one.name} (doubt ${one.doubt.toFixed(2)})`, { type: "button" });
    button.addEventListener("click", () => open(`/v1/pool/${one.number}`, {}, "image"));
    item.append(button);
    return item;
  }));
}

/** Look again in the background: not by `trying`, which takes away what the page has to say of the person's own work. */
async function poll() {
  try {
    await listCandidates();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    polling = setTimeout(poll, 3000);
  }
}

// --- what a person does ---

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) {
    if (event.key === "z" && !$("correct").hidden) {
      event.preventDefault();
      undo();
    }
    return;
  }
  const action = KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (!action || !state.opened) return;
  event.preventDefault();
  action(event);
}

function arrow(x, y) {
  return () => {
    if (viewer.tool === "move") return viewer.pan(-40 * x, -40 * y);
    const step = Math.max(1, viewer.size / 4);
    viewer.cross = {
      x: Math.min(Math.max(viewer.cross.x + x * step, 0), viewer.width - 1), y: Math.min(Math.max(viewer.cross.y + y * step, 0), viewer.height - 1),
    };
    return viewer.draw();
  };
}

function dab() {
  if (viewer.tool === "move") return;
  remember();
  viewer.paint(viewer.cross, viewer.cross);
  noteEdit();
}

function toggle(id) {
  return () => $(id).click();
}

function hideOrShow() {
  $("opacity").value = Number($("opacity").value) ? 0 : 45;
  $("opacity").dispatchEvent(new Event("input"));
}

const painting = (tool) => () => !$("correct").hidden && setTool(tool);
const KEYS = {
  ArrowLeft: arrow(-1, 0), ArrowRight: arrow(1, 0), ArrowUp: arrow(0, -1), ArrowDown: arrow(0, 1),
  "+": () => viewer.zoom(1.25), "=": () => viewer.zoom(1.25), "-": () => viewer.zoom(0.8), 0: () => viewer.fit(),
  PageUp: () => trying(() => showSlice(state.slice - 1)), PageDown: () => trying(() => showSlice(state.slice + 1)),
  m: hideOrShow, h: toggle("outline"), b: painting("brush"), e: painting("eraser"), v: painting("move"), " ": dab,
};

function onInput(id, work) {
  $(id).addEventListener("input", () => work($(id)));
}

function windowed() {
  let low = Number($("low").value), high = Number($("high").value);
  if (low >= high) [low, high] = [Math.min(low, high), Math.max(low, high) + 1e-6];
  state.window = [low, high];
  $("low-told").textContent = rounded(low);
  $("high-told").textContent = rounded(high);
  trying(() => showSlice(state.slice));
}

$("canvas").addEventListener("keydown", key);
$("file").addEventListener("change", () => $("file").files.length && openFile($("file").files[0]).then(() => { $("file").value = ""; }));
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
  });
}
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken($("token").value.trim());
  $("token").value = "";
  start();
});
onInput("opacity", (one) => { viewer.opacity = one.value / 100; viewer.changed(); });
onInput("outline", (one) => { viewer.outline = one.checked; viewer.changed(); });
onInput("slice", (one) => trying(() => showSlice(Number(one.value))));
onInput("low", windowed);
onInput("high", windowed);
onInput("size", (one) => { viewer.size = Number(one.value); $("size-told").textContent = `${one.value} px`; viewer.draw(); });
onInput("class", (one) => { viewer.label = Number(one.value); });
$("size-told").textContent = `${$("size").value} px`;
$("window-reset").addEventListener("click", () => {
  state.window = null;
  showWindow(...(state.opened.window || state.opened.values));
  trying(() => showSlice(state.slice));
});
$("zoom-in").addEventListener("click", () => viewer.zoom(1.25));
$("zoom-out").addEventListener("click", () => viewer.zoom(0.8));
$("fit").addEventListener("click", () => viewer.fit());
$("card-button").addEventListener("click", () => $("card").showModal());
$("undo").addEventListener("click", undo);
$("save").addEventListener("click", save);
for (const one of document.querySelectorAll("[name=tool]")) one.addEventListener("change", () => setTool(one.value));
viewer.addEventListener("stroke", remember);
viewer.addEventListener("edited", noteEdit);
viewer.addEventListener("scroll", (event) => trying(() => showSlice(state.slice + event.detail)));
addEventListener("beforeunload", (event) => { if (state.edited.size) event.preventDefault(); });
start();
