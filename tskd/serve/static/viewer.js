// The canvas: a slice, its mask as colours and outlines, zoom, pan, brush and eraser. It knows nothing of the server.

const LARGEST = 64;

export class Viewer extends EventTarget {
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.paper = canvas.getContext("2d");
    this.image = null; // ImageBitmap
    this.mask = null; // Uint8Array, a class index a pixel
    this.width = this.height = 0;
    this.aspect = 1; // height of a pixel by its width
    this.colours = [];
    this.opacity = 0.45;
    this.outline = true;
    this.tool = "move";
    this.label = 1;
    this.size = 10;
    this.cross = null;
    this.scale = 1;
    this.x = this.y = 0;
    this.area = document.createElement("canvas");
    this.pointers = new Map();
    new ResizeObserver(() => this.resized()).observe(canvas);
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => this[kind](event));
    }
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  show(image, mask, width, height, aspect) {
    const other = width !== this.width || height !== this.height || aspect !== this.aspect;
    Object.assign(this, { image, mask, width, height, aspect });
    this.area.width = width;
    this.area.height = height;
    if (other) this.cross = { x: width / 2, y: height / 2 };
    if (other) this.fit();
    this.changed();
  }

  changed() {
    this.drawMask();
    this.draw();
  }

  resized() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    this.fit();
  }

  fit() {
    if (!this.width) return;
    this.scale = Math.min(this.canvas.width / this.width, this.canvas.height / (this.height * this.aspect));
    this.x = (this.canvas.width - this.width * this.scale) / 2;
    this.y = (this.canvas.height - this.height * this.aspect * this.scale) / 2;
    this.draw();
  }

  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    const scale = Math.min(Math.max(this.scale * factor, 0.02), LARGEST);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  pan(x, y) {
    this.x += x;
    this.y += y;
    this.draw();
  }

  drawMask() {
    if (!this.mask) return;
    const { width, height, mask } = this;
    const drawn = new ImageData(width, height);
    const pixels = new Uint32Array(drawn.data.buffer);
    const fill = this.colours.map(([r, g, b]) => packed(r, g, b, Math.round(255 * this.opacity)));
    const line = this.colours.map(([r, g, b]) => packed(r, g, b, 255));
    for (let row = 0, k = 0; row < height; row++) {
      for (let column = 0; column < width; column++, k++) {
        const label = mask[k];
        if (!label) continue;
        const edge = this.outline && (column === 0 || row === 0 || column === width - 1 || row === height - 1 ||
          mask[k - 1] !== label || mask[k + 1] !== label || mask[k - width] !== label || mask[k + width] !== label);
        pixels[k] = edge ? line[label - 1] : fill[label - 1];
      }
    }
    this.area.getContext("2d").putImageData(drawn, 0, 0);
  }

  draw() {
    const { paper, canvas } = this;
    paper.setTransform(1, 0, 0, 1, 0, 0);
    paper.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.image) return;
    paper.setTransform(this.scale, 0, 0, this.scale * this.aspect, this.x, this.y);
    paper.imageSmoothingEnabled = this.scale < 1;
    paper.drawImage(this.image, 0, 0);
    paper.drawImage(this.area, 0, 0);
    if (this.tool !== "move" && this.cross) this.drawCross();
  }

  drawCross() {
    const { paper, cross, size } = this;
    for (const [colour, width] of [["#000", 3], ["#fff", 1]]) {
      paper.beginPath();
      paper.ellipse(cross.x, cross.y, size / 2, size / 2 / this.aspect, 0, 0, 2 * Math.PI);
      paper.strokeStyle = colour;
      paper.lineWidth = width / this.scale;
      paper.stroke();
    }
  }

  paint(from, to) {
    const label = this.tool === "eraser" ? 0 : this.label;
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y)));
    for (let step = 0; step <= steps; step++) {
      const part = step / steps;
      this.dab(from.x + (to.x - from.x) * part, from.y + (to.y - from.y) * part, label);
    }
    this.cross = to;
    this.changed();
  }

  dab(x, y, label) {
    const across = this.size / 2, down = across / this.aspect;
    for (let row = Math.max(0, Math.floor(y - down)); row <= Math.min(this.height - 1, Math.ceil(y + down)); row++) {
      for (let column = Math.max(0, Math.floor(x - across)); column <= Math.min(this.width - 1, Math.ceil(x + across)); column++) {
        const dx = (column + 0.5 - x) / across, dy = (row + 0.5 - y) / down;
        if (dx * dx + dy * dy <= 1 || (Math.floor(x) === column && Math.floor(y) === row)) this.mask[row * this.width + column] = label;
      }
    }
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect(), ratio = this.canvas.width / box.width;
    const x = (event.clientX - box.left) * ratio, y = (event.clientY - box.top) * ratio;
    return { x: (x - this.x) / this.scale, y: (y - this.y) / (this.scale * this.aspect), onCanvas: { x, y } };
  }

  pointerdown(event) {
    if (!this.image) return;
    this.canvas.setPointerCapture(event.pointerId);
    const place = this.place(event);
    this.pointers.set(event.pointerId, place);
    if (this.tool !== "move" && this.pointers.size === 1) {
      this.dispatchEvent(new Event("stroke"));
      this.paint(place, place);
    }
  }

  pointermove(event) {
    if (!this.image) return;
    const before = this.pointers.get(event.pointerId), place = this.place(event);
    if (!before) {
      this.cross = place;
      if (this.tool !== "move") this.draw();
      return;
    }
    if (this.pointers.size === 2) this.pinch(event.pointerId, before, place);
    else if (this.tool === "move") this.pan(place.onCanvas.x - before.onCanvas.x, place.onCanvas.y - before.onCanvas.y);
    else this.paint(before, place);
    this.pointers.set(event.pointerId, this.place(event));
  }

  pinch(moved, before, place) {
    const [other] = [...this.pointers].filter(([id]) => id !== moved).map(([, at]) => at.onCanvas);
    const length = (at) => Math.hypot(at.x - other.x, at.y - other.y);
    if (length(before.onCanvas) > 0) this.zoom(length(place.onCanvas) / length(before.onCanvas), other.x, other.y);
  }

  pointerup(event) {
    const painted = this.pointers.delete(event.pointerId) && this.tool !== "move";
    if (painted) this.dispatchEvent(new Event("edited"));
  }

  pointercancel(event) {
    this.pointerup(event);
  }

  wheel(event) {
    event.preventDefault();
    if (event.shiftKey) {
      this.dispatchEvent(new CustomEvent("scroll", { detail: Math.sign(event.deltaY || event.deltaX) }));
      return;
    }
    const { onCanvas } = this.place(event);
    this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, onCanvas.x, onCanvas.y);
  }
}

const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

function packed(r, g, b, a) {
  return little ? ((a << 24) | (b << 16) | (g << 8) | r) >>> 0 : ((r << 24) | (g << 16) | (b << 8) | a) >>> 0;
}
