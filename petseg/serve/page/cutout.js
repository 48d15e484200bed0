// The cut-out on a canvas: what the brush erased and restored, the new background, the crop. Places are shares of the photo.

import { coveringPart, visibleBox } from "./figures.js";

export const LARGEST_SHOWN = 2048; // longer side in pixels of what is shown; a download has the photo's own size

// An image file or picture as a bitmap, its longer side at most `side`.
export async function decoded(blob, side = Infinity) {
  const whole = await createImageBitmap(blob);
  const scale = side / Math.max(whole.width, whole.height);
  if (scale >= 1) return whole;
  const [width, height] = [whole.width, whole.height].map((length) => Math.max(1, Math.round(length * scale)));
  return createImageBitmap(whole, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
}

// Draws the stroke {restore, size, points}: an eraser, or a brush whose paint is the photo.
export function drawStroke(context, { restore, size, points }, photo) {
  const { width, height } = context.canvas;
  context.save();
  context.globalCompositeOperation = restore ? "source-over" : "destination-out";
  context.strokeStyle = restore ? context.createPattern(photo, "no-repeat") : "#000";
  Object.assign(context, { lineWidth: size * width, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  context.moveTo(points[0][0] * width - 0.1, points[0][1] * height); // a dot is a line too
  for (const [x, y] of points) context.lineTo(x * width, y * height);
  context.stroke();
  context.restore();
}

async function draw(canvas, item, cutout, side) {
  const bitmap = await decoded(cutout, side);
  const photo = item.strokes.some(({ restore }) => restore) && (await decoded(item.blob, side));
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  for (const stroke of item.strokes) drawStroke(context, stroke, photo);
  return context;
}

// Returns the cut-out as it is shown, away from the screen, and what is seen of it as shares cut off at each side.
export async function shown(item, cutout) {
  const canvas = new OffscreenCanvas(1, 1);
  const { width, height } = (await draw(canvas, item, cutout, LARGEST_SHOWN)).canvas;
  const box = boxOf(canvas);
  return { canvas, cut: [box.y / height, 1 - (box.x + box.width) / width, 1 - (box.y + box.height) / height, box.x / width] };
}

const boxOf = (canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return visibleBox(data, canvas.width, canvas.height);
};

// The file to keep, PNG: the server's own where nothing was changed.
export async function finished(item, cutout, { background, crop }) {
  if (!item.strokes.length && !background && !crop) return cutout;
  const canvas = new OffscreenCanvas(1, 1);
  const context = await draw(canvas, item, cutout);
  const box = crop ? boxOf(canvas) : { x: 0, y: 0, width: canvas.width, height: canvas.height };
  context.globalCompositeOperation = "destination-over";
  if (background instanceof Blob) {
    const image = await decoded(background);
    const { x, y, width, height } = coveringPart(image, canvas);
    context.drawImage(image, x, y, width, height, 0, 0, canvas.width, canvas.height);
  } else if (background) {
    context.fillStyle = background;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  const kept = new OffscreenCanvas(box.width, box.height);
  kept.getContext("2d").drawImage(canvas, -box.x, -box.y);
  return kept.convertToBlob({ type: "image/png" });
}
