// A photo to a mask in the browser, as petseg.predict has it in Python. Three ONNX graphs do the work: resize.onnx
// (make_graphs.py writes it), the model, and maps.onnx.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";

ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };

const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"]; // of classes that bring none, as petseg.data.dataset has them
const ROLES = { background: "background", border: "boundary" };

const session = (path) => ort.InferenceSession.create(path, { executionProviders: ["wasm"] });
const sizes = (...numbers) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [4]);
const resize = session("./resize.onnx");
const maps = session("./maps.onnx");

/** Returns a shipped model, ready: {session, classes: [{name, colour, role}], size, title}. */
export async function load(name) {
  const [card, model] = await Promise.all([
    fetch(`./vendor/${name}.json`).then((answer) => answer.json()),
    session(`./vendor/${name}.onnx`),
  ]);
  const classes = card.classes.map((entry, place) => {
    const given = typeof entry === "string" ? { name: entry } : entry;
    return { colour: COLOURS[place % COLOURS.length], role: ROLES[given.name] ?? "foreground", ...given };
  });
  return { session: model, classes, size: card.size, title: card.title };
}

/** Returns the pixels of anything that can be drawn, at most `side` a side: ImageData. */
export function pixels(drawable, width, height, side = Infinity) {
  const scale = Math.min(1, side / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // what is transparent is put on white
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(drawable, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Returns a photo as the model takes it: a tensor, uint8 [1, size, size, 3]. */
export async function resized({ data, width, height }, size) {
  const colours = new Uint8Array(width * height * 3);
  for (let place = 0; place < width * height; place++) colours.set(data.subarray(4 * place, 4 * place + 3), 3 * place);
  const image = new ort.Tensor("uint8", colours, [1, height, width, 3]);
  return (await (await resize).run({ image, sizes: sizes(1, size, size, 3) })).resized;
}

/** Returns what a model sees in a photo: {mask, ids, milliseconds}; 255 is foreground, ids are places in `classes`. */
export async function segment({ session, classes, size }, photo) {
  const image = await resized(photo, size);
  const started = performance.now();
  const { probabilities } = await session.run({ image });
  const milliseconds = performance.now() - started;
  const members = (role) => classes.map((each) => Number(each.role === role));
  const roles = [...members("foreground"), ...members("background")];
  const { mask, class_ids } = await (await maps).run({
    probabilities,
    roles: new ort.Tensor("float32", roles, [2, classes.length]),
    sizes: sizes(1, classes.length, photo.height, photo.width),
    role_sizes: sizes(1, 2, photo.height, photo.width),
  });
  return { mask: mask.data, ids: Uint8Array.from(class_ids.data, Number), milliseconds };
}
