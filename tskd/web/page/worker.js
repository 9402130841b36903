// Runs the network apart from the page, so that the page answers while it computes.
import * as ort from "./ort/ort.wasm.min.js";

const place = (name) => new URL(name, import.meta.url).href;
ort.env.wasm.wasmPaths = {
  mjs: place("ort/ort-wasm-simd-threaded.js"),
  wasm: place("ort/ort-wasm-simd-threaded.wasm"),
};
ort.env.wasm.numThreads = 1; // more need headers that plain file servers do not send

let session;

async function open({ network }) {
  session = await ort.InferenceSession.create(place(network), { executionProviders: ["wasm"], enableCpuMemArena: false });
  return {};
}

async function segment({ rgba, height, width }) {
  const began = performance.now();
  const image = new ort.Tensor("uint8", withoutAlpha(rgba), [height, width, 3]);
  const wanted = ["classes", "confidence", "unfamiliarity"].filter((name) => session.outputNames.includes(name));
  const answer = await session.run({ image }, wanted);
  const number = (name) => (answer[name] ? Number(answer[name].data[0]) : null);
  const classes = answer.classes.data.slice(); // memory of its own, which can be handed over
  const told = { classes, confidence: number("confidence"), unfamiliarity: number("unfamiliarity") };
  for (const tensor of Object.values(answer)) tensor.dispose();
  return { ...told, milliseconds: performance.now() - began };
}

function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

self.addEventListener("message", async ({ data: { id, work, ...given } }) => {
  try {
    const value = await { open, segment }[work](given);
    self.postMessage({ id, value }, value.classes ? [value.classes.buffer] : []);
  } catch (error) {
    self.postMessage({ id, problem: String(error?.message ?? error) });
  }
});
