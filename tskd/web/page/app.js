// The page: a file goes in, its mask and what is known about it are shown. Nothing is sent.
import { readPixels } from "./pixels.js";
import { greyPng } from "./png.js";

const $ = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const percent = (share) => `${(100 * share).toFixed(1)} %`;

let model; // page.json
let busy = false;

// ---- the network, in a worker ----

const waiting = new Map();
let worker;

function start() {
  worker = new Worker("worker.js", { type: "module" });
  worker.addEventListener("message", ({ data: { id, value, problem } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (problem) reject(new Error(problem));
    else resolve(value);
  });
  worker.addEventListener("error", (event) => {
    for (const { reject } of waiting.values()) reject(new Error(event.message || "its script cannot be loaded"));
    waiting.clear();
  });
}

function ask(work, given, transfer = []) {
  return new Promise((resolve, reject) => {
    const id = crypto.getRandomValues(new Uint32Array(1))[0];
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, work, ...given }, transfer);
  });
}

// ---- the copy for use without a network ----

async function keepOffline() {
  if (!("serviceWorker" in navigator)) return "Not kept for use without a network: that needs https.";
  try {
    const kept = await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
    if (!kept.active) await becameActive(kept.installing ?? kept.waiting);
    await controlled();
    return "This page works without a network now.";
  } catch (error) {
    return `Not kept for use without a network (${error.message}).`;
  }
}

function becameActive(script) {
  return new Promise((resolve, reject) => {
    script.addEventListener("statechange", () => {
      if (script.state === "activated") resolve();
      if (script.state === "redundant") reject(new Error("a file is missing, was changed, or found no room"));
    });
  });
}

async function controlled() {
  if (navigator.serviceWorker.controller) return;
  const changed = new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true }));
  await Promise.race([changed, new Promise((resolve) => setTimeout(resolve, 1000))]); // a forced reload has none
}

// ---- one image ----

async function show(file) {
  if (busy || !file) return;
  setBusy(true);
  $("problem").textContent = "";
  $("status").textContent = `${file.name} is being segmented …`;
  try {
    const { image, notes } = await decoded(file);
    const { width, height } = image;
    const rgba = image.data.slice();
    const answer = await ask("segment", { rgba, width, height }, [rgba.buffer]);
    draw(image, answer.classes);
    const areas = count(answer.classes);
    tell(file.name, areas, answer, notes);
    await offer(file.name, answer.classes, width, height);
    $("result").hidden = false;
    $("result").dataset.milliseconds = Math.round(answer.milliseconds);
    $("status").textContent = `${file.name}, ${width} × ${height} pixels: segmented in ${number(Math.round(answer.milliseconds))} ms.`;
    $("result-head").focus({ preventScroll: true });
    $("result").scrollIntoView({ block: "nearest" });
  } catch (error) {
    $("result").hidden = true;
    $("status").textContent = "";
    $("problem").textContent = `${file.name}: ${error.message}.`;
  } finally {
    setBusy(false);
  }
}

async function decoded(file) {
  try {
    return await readPixels(file, model.levels);
  } catch (error) {
    if (error.name !== "InvalidStateError" && error.name !== "EncodingError") throw error;
    throw new Error(
      "not an image that this browser can read. PNG, JPEG, WebP, BMP and GIF are; for DICOM, NIfTI and TIFF use `tskd predict`",
    );
  }
}

function count(classes) {
  const areas = new Array(model.classes.length + 1).fill(0);
  for (const label of classes) areas[label] += 1;
  return areas;
}

function draw(image, classes) {
  const { width, height } = image;
  for (const id of ["image", "mask"]) Object.assign($(id), { width, height });
  $("image").getContext("2d").putImageData(image, 0, 0);
  const colours = [0, ...model.classes.map(({ colour: [red, green, blue] }) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0)];
  const mask = new ImageData(width, height);
  const cells = new Uint32Array(mask.data.buffer);
  for (let cell = 0; cell < cells.length; cell += 1) cells[cell] = colours[classes[cell]];
  $("mask").getContext("2d").putImageData(mask, 0, 0);
  $("view").classList.toggle("small", Math.max(width, height) < 400);
}

function tell(name, areas, answer, notes) {
  const all = areas.reduce((sum, area) => sum + area, 0);
  $("areas").replaceChildren(...model.classes.map((one, index) => row(one, areas[index + 1], all)));
  const found = model.classes.map((one, index) => `${one.name} ${percent(areas[index + 1] / all)}`);
  $("view").setAttribute("aria-label", `${name} with its mask: ${found.join(", ")} of the image`);
  $("confidence").textContent =
    answer.confidence === null ? "This model does not say how sure it is." : `Confidence: ${percent(answer.confidence)}`;
  $("remarks").replaceChildren(...remarks(areas, answer).map((text) => element("li", text)));
  $("note").textContent = notes.join(" ");
}

// As tskd/deploy/doubt.py has it.
function remarks(areas, { confidence, unfamiliarity }) {
  const reasons = [];
  if (confidence !== null && confidence < model.look_below) reasons.push("Look at this one: the model is unsure of it.");
  if (unfamiliarity !== null && unfamiliarity > 1) reasons.push("Look at this one: it is unlike the training images.");
  if (areas.slice(1).every((area) => area === 0)) reasons.push("Nothing was found in this image.");
  return reasons;
}

function row({ name, colour }, area, all) {
  const swatch = element("span", "");
  swatch.className = "swatch";
  swatch.style.backgroundColor = `rgb(${colour.join(" ")})`;
  const head = element("th", "");
  head.scope = "row";
  head.append(swatch, name);
  const cells = [number(area), percent(area / all)].map((text) => {
    const cell = element("td", text);
    cell.className = "number";
    return cell;
  });
  const line = element("tr", "");
  line.append(head, ...cells);
  return line;
}

function element(kind, text) {
  return Object.assign(document.createElement(kind), { textContent: text });
}

async function offer(name, classes, width, height) {
  const link = $("download");
  const before = link.getAttribute("href");
  link.href = URL.createObjectURL(await greyPng(classes, width, height));
  link.download = `${name.replace(/\.[^.]*$/, "")}.mask.png`;
  if (before) URL.revokeObjectURL(before);
}

// ---- the page ----

function setBusy(now) {
  busy = now;
  if (now) document.body.setAttribute("aria-busy", "true");
  else document.body.removeAttribute("aria-busy");
  for (const id of ["file", "camera"]) $(id).disabled = now;
}

function listen() {
  for (const id of ["file", "camera"]) {
    $(id).addEventListener("change", async () => {
      await show($(id).files[0]);
      $(id).value = ""; // the same file may be chosen again
    });
  }
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // elsewhere on the page too: the browser would open the file and leave
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") show(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => show(event.clipboardData.files[0]));
  $("opacity").addEventListener("input", fade);
  fade();
}

function fade() {
  $("opacity-told").textContent = `${$("opacity").value} %`;
  $("mask").style.opacity = $("opacity").value / 100;
}

async function main() {
  setBusy(true);
  try {
    $("status").textContent = "The network is being loaded …";
    $("offline").textContent = await keepOffline();
    model = await (await fetch("page.json")).json();
    start();
    await ask("open", { network: model.network });
    listen();
    $("status").textContent = "Ready.";
    setBusy(false);
  } catch (error) {
    $("status").textContent = "";
    $("problem").textContent = `The network cannot be loaded (${error.message}). Copy the folder to its place again, or use a newer browser.`;
  }
}

main();
