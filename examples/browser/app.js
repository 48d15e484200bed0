// The page around segment.js: a photo or the webcam, tinted by what the model sees.

import { load, pixels, segment } from "./segment.js";

const WEIGHTS = { foreground: 0.45, background: 0.55, boundary: 0.7 }; // of a class's colour, as petseg draws it
const LARGEST = 2048;

const find = (id) => document.getElementById(id);
const say = (text) => (find("status").textContent = text);
const models = new Map(); // name -> promise of a model

let camera = null;
let last = null; // the photo shown, for when the model is changed

function chosen() {
  const name = find("model").value;
  if (!models.has(name)) {
    const loading = load(name).catch((error) => {
      models.delete(name); // the next try may reach it
      throw new Error(`The model cannot be loaded (${error.message}); was \`npm install\` run in examples/browser?`);
    });
    models.set(name, loading);
  }
  return models.get(name);
}

async function show(photo) {
  const model = await chosen();
  const result = await segment(model, photo);
  const tinted = new ImageData(new Uint8ClampedArray(photo.data), photo.width, photo.height);
  const colours = model.classes.map(({ colour, role }) =>
    [1, 3, 5].map((at) => (role === "background" ? 255 : parseInt(colour.slice(at, at + 2), 16))),
  );
  const weights = model.classes.map(({ role }) => WEIGHTS[role]);
  for (const [place, id] of result.ids.entries()) {
    for (let channel = 0; channel < 3; channel++) {
      const at = 4 * place + channel;
      tinted.data[at] += (colours[id][channel] - tinted.data[at]) * weights[id];
    }
  }
  const canvas = find("overlay");
  canvas.width = photo.width;
  canvas.height = photo.height;
  canvas.getContext("2d").putImageData(tinted, 0, 0);
  return { ...result, title: model.title };
}

async function take(blob) {
  stop();
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return say("This is not an image that the browser can read; choose a JPEG, PNG, WebP or AVIF.");
  }
  last = pixels(bitmap, bitmap.width, bitmap.height, LARGEST);
  await again();
}

async function again() {
  let shown;
  try {
    shown = await show(last);
  } catch (error) {
    return say(error.message);
  }
  const { mask, milliseconds, title } = shown;
  const share = mask.reduce((sum, value) => sum + (value > 0), 0) / mask.length;
  say(`${title}: ${Math.round(100 * share)} % of the photo is foreground; ${Math.round(milliseconds)} ms in this browser.`);
  const canvas = new OffscreenCanvas(last.width, last.height);
  const image = new ImageData(last.width, last.height);
  for (const [place, value] of mask.entries()) image.data.set([value, value, value, 255], 4 * place);
  canvas.getContext("2d").putImageData(image, 0, 0);
  URL.revokeObjectURL(find("save").href);
  find("save").href = URL.createObjectURL(await canvas.convertToBlob());
  find("save").hidden = false;
}

async function start() {
  if (!navigator.mediaDevices) return say("The browser lends its webcam to pages on localhost and over https alone.");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 480 } } });
  } catch (error) {
    return say(`The webcam cannot be used (${error.message}).`);
  }
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = stream;
  await video.play();
  camera = stream;
  find("save").hidden = true;
  find("webcam").setAttribute("aria-pressed", "true");
  find("webcam").textContent = "Stop webcam";
  const ends = [];
  while (camera === stream) {
    last = pixels(video, video.videoWidth, video.videoHeight, 480);
    const { title } = await show(last);
    ends.push(performance.now());
    if (ends.length > 20) ends.shift();
    const rate = (1000 * (ends.length - 1)) / (ends.at(-1) - ends[0]);
    if (camera === stream && ends.length > 1) say(`${title}: ${rate.toFixed(1)} frames a second`);
    await new Promise(requestAnimationFrame);
  }
}

function stop() {
  if (!camera) return;
  camera.getTracks().forEach((track) => track.stop());
  camera = null;
  find("webcam").setAttribute("aria-pressed", "false");
  find("webcam").textContent = "Webcam";
}

find("file").addEventListener("change", (event) => event.target.files.length && take(event.target.files[0]));
find("sample").addEventListener("click", async () => take(await (await fetch("./vendor/cat.jpg")).blob()));
find("webcam").addEventListener("click", () => (camera ? (stop(), again()) : start()));
find("model").addEventListener("change", () => last && !camera && again());

try {
  await chosen();
  say("Ready: choose a photo.");
  document.body.dataset.ready = "true";
} catch (error) {
  say(error.message);
}
