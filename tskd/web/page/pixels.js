// An image file to the bytes that `tskd predict` sees: stored values, turned as EXIF says, alpha dropped, windowed.
import { exchangesSides, inspected, turn } from "./inspect.js";

export const MOST_PIXELS = 16_000_000; // iOS draws no larger canvas, and the network needs 35 bytes a pixel

/**
 * Return {image: ImageData without transparency, notes: what is not as `tskd predict` has it}.
 * levels: what the 256 levels of a file become (the model's intensity window), null: what they are.
 */
export async function readPixels(file, levels) {
  const { blob, orientation, bits, binary } = await inspected(file);
  if (bits === 16 && levels) throw new Error("a PNG of 16 bits, of which a browser shows 8. Use `tskd predict` for it");
  const bitmap = await createImageBitmap(blob, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none", // profiles are not applied: the network was trained without
    premultiplyAlpha: "none",
  });
  try {
    const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
    const image = drawn(bitmap, orientation, shrink);
    opaque(image, levels && !binary ? levels : null);
    return { image, notes: notes(bitmap, shrink, bits) };
  } finally {
    bitmap.close();
  }
}

function notes({ width, height }, shrink, bits) {
  const found = [];
  if (shrink < 1) found.push(`Its ${width} × ${height} pixels were reduced before; the mask has the reduced size.`);
  if (bits === 16) found.push("Of its 16 bits the browser reads 8, so that the mask may differ at its edge from that of `tskd predict`.");
  return found;
}

function drawn(bitmap, orientation, shrink) {
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * shrink)));
  const size = exchangesSides(orientation) ? [height, width] : [width, height];
  const context = canvas(...size).getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.imageSmoothingQuality = "high";
  turn(context, orientation, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  const image = context.getImageData(0, 0, ...size);
  if (shrink === 1 && isTransparent(image.data)) {
    context.globalCompositeOperation = "copy";
    context.drawImage(withoutAlpha(bitmap), 0, 0);
    return context.getImageData(0, 0, ...size);
  }
  return image;
}

function canvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function isTransparent(rgba) {
  for (let alpha = 3; alpha < rgba.length; alpha += 4) if (rgba[alpha] < 255) return true;
  return false;
}

// A 2-D canvas forgets colours below transparent pixels; a texture keeps them.
function withoutAlpha(bitmap) {
  const { width, height } = bitmap;
  const gl = canvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Error("it has transparent pixels, whose colours this browser cannot read. Save it again without alpha");
  }
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const image = new ImageData(width, height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(image.data.buffer));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  opaque(image, null);
  const page = canvas(width, height);
  page.getContext("2d").putImageData(image, 0, 0);
  return page;
}

function opaque({ data }, levels) {
  for (let at = 0; at < data.length; at += 4) {
    if (levels) for (let colour = at; colour < at + 3; colour += 1) data[colour] = levels[data[colour]];
    data[at + 3] = 255;
  }
}
