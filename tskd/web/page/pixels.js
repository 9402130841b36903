// An image file to the bytes that `tskd predict` sees: stored values, turned as EXIF says, alpha dropped.

export const MOST_PIXELS = 16_000_000; // iOS draws no larger canvas, and the network needs 35 bytes a pixel

/** Return {image: ImageData without transparency, reduced: the size before, or null}. */
export async function readPixels(file) {
  const bitmap = await createImageBitmap(file, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none", // profiles are not applied: the network was trained without
    premultiplyAlpha: "none",
  });
  try {
    const { width, height } = bitmap;
    const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
    const size = [width, height].map((side) => Math.max(1, Math.floor(side * shrink)));
    const image = drawn(bitmap, ...size);
    if (shrink === 1 && image.data.some((value, index) => index % 4 === 3 && value < 255)) {
      image.data.set(unmultiplied(bitmap));
    }
    for (let alpha = 3; alpha < image.data.length; alpha += 4) image.data[alpha] = 255;
    return { image, reduced: shrink < 1 ? [width, height] : null };
  } finally {
    bitmap.close();
  }
}

function drawn(bitmap, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

// A 2-D canvas forgets colours below transparent pixels; a texture keeps them.
function unmultiplied(bitmap) {
  const { width, height } = bitmap;
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Error("it has transparent pixels, whose colours this browser cannot read. Save it again without alpha");
  }
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const pixels = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return pixels;
}
