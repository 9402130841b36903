// What has to be known of a file before a browser decodes it: whether it is whole (not every browser says so, and
// `tskd predict` refuses halves), its bits, and its orientation where browsers disagree: all honour the EXIF of a JPEG, of PNG
// and WebP some do and some do not, so theirs is taken out and done here.
// Sources: PNG (third edition), 5.3 and 11.3.4.4; WebP container, "Metadata"; Exif 2.32, tag 0x0112; ITU-T T.81, B.1.
import { crc32 } from "./png.js";

const TURNS = { // (a, b, c, d, e, f) of a canvas that is (width, height) before it is turned
  2: (w) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w) => [0, -1, 1, 0, 0, w],
};

const CUT_OFF = "damaged or cut off. Copy it again from its source";

/**
 * Return {blob: the file without that orientation, orientation, bits of a sample or null, binary: black and white}.
 * Throws where the file is not whole.
 */
export async function inspected(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const text = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  if (text(1, 4) === "PNG") return png(bytes, text);
  if (text(0, 4) === "RIFF" && text(8, 12) === "WEBP") return webp(bytes, text);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) requireWholeJpeg(bytes);
  return { blob: file, orientation: 1, bits: null, binary: false };
}

/** Draw a bitmap on a context as an orientation has it shown. */
export function turn(context, orientation, width, height) {
  const matrix = TURNS[orientation]?.(width, height);
  if (matrix) context.setTransform(...matrix);
}

export const exchangesSides = (orientation) => orientation >= 5 && orientation <= 8;

function png(bytes, text) {
  const view = new DataView(bytes.buffer);
  const found = { blob: null, orientation: 1, bits: bytes[24], binary: bytes[24] === 1 && bytes[25] === 0 };
  const kept = [bytes.subarray(0, 8)];
  for (let at = 8, kind = ""; kind !== "IEND"; ) {
    const end = at + 12 > bytes.length ? Infinity : at + 12 + view.getUint32(at);
    if (end > bytes.length || crc32(bytes.subarray(at + 4, end - 4)) !== view.getUint32(end - 4)) throw new Error(CUT_OFF);
    kind = text(at + 4, at + 8);
    if (kind === "eXIf") found.orientation = stated(bytes.subarray(at + 8, end - 4));
    else kept.push(bytes.subarray(at, end));
    at = end;
  }
  found.blob = new Blob(kept, { type: "image/png" });
  return found;
}

function webp(bytes, text) {
  const view = new DataView(bytes.buffer);
  if (view.getUint32(4, true) + 8 > bytes.length) throw new Error(CUT_OFF);
  let orientation = 1;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const end = at + 8 + view.getUint32(at + 4, true);
    if (text(at, at + 4) === "EXIF") {
      const skip = text(at + 8, at + 12) === "Exif" ? 6 : 0;
      orientation = stated(bytes.subarray(at + 8 + skip, end));
      bytes.set([0x78, 0x78, 0x78, 0x78], at); // a chunk of an unknown name is passed over
    }
    at = end + (end % 2);
  }
  return { blob: new Blob([bytes], { type: "image/webp" }), orientation, bits: 8, binary: false };
}

/** Return the orientation in EXIF's own TIFF structure, 1 where there is none. */
function stated(exif) {
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  try {
    const little = view.getUint16(0) === 0x4949;
    const first = view.getUint32(4, little);
    for (let entry = 0; entry < view.getUint16(first, little); entry += 1) {
      const at = first + 2 + 12 * entry;
      if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // cut off: it states nothing
  }
  return 1;
}

// A JPEG ends with a marker; what cameras put after it does not count.
function requireWholeJpeg(bytes) {
  let at = 2;
  while (at + 2 <= bytes.length) {
    const marker = bytes[at + 1];
    if (bytes[at] === 0xff && marker === 0xd9) return;
    if (bytes[at] === 0xff && marker !== 0xff && marker !== 0 && !(marker >= 0xd0 && marker <= 0xd7)) {
      at += 2 + ((bytes[at + 2] << 8) | bytes[at + 3]); // a segment says how long it is
    } else {
      at += 1; // coded pixels, or padding
    }
  }
  throw new Error(CUT_OFF);
}
