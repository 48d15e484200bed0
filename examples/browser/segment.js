// A photo to a mask in the browser, as petseg.predict has it in Python: the same squeezing, the same outline.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";

ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };

const TINY = 1.1754943508222875e-38; // the smallest normal float32

/** Returns a shipped model, ready: {session, classes, size, title}. */
export async function load(name) {
  const [card, session] = await Promise.all([
    fetch(`./vendor/${name}.json`).then((answer) => answer.json()),
    ort.InferenceSession.create(`./vendor/${name}.onnx`, { executionProviders: ["wasm"] }),
  ]);
  return { session, classes: card.classes, size: card.size, title: card.title };
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

/** Returns what a model sees in a photo: {labels, milliseconds}; labels are 0 background, 1 pet, 2 border a pixel. */
export async function segment(model, photo) {
  const { size } = model;
  const image = new ort.Tensor("uint8", squeezed(photo, size), [1, size, size, 3]);
  const started = performance.now();
  const { probabilities } = await model.session.run({ image });
  const milliseconds = performance.now() - started;
  const odds = logOdds(probabilities.data, model.classes, size);
  return { ...outlined(odds, size, photo.width, photo.height), milliseconds };
}

/** Returns [2][size * size]: log of p(pet) and of p(border) over p(background). */
function logOdds(probabilities, classes, size) {
  const count = size * size;
  const sum = (names) => {
    const total = new Float32Array(count);
    for (const name of names) {
      const at = classes.indexOf(name);
      if (at >= 0) for (let place = 0; place < count; place++) total[place] += probabilities[at * count + place];
    }
    return total.map((share) => Math.log(Math.max(share, TINY)));
  };
  const background = sum(["background"]);
  return [["pet", "cat", "dog"], ["border"]].map((names) => sum(names).map((log, place) => log - background[place]));
}

/** Enlarges the odds to the photo's size, bilinear, and says what is likeliest at each pixel. */
function outlined([pet, border], size, width, height) {
  const columns = neighbours(size, width);
  const rows = neighbours(size, height);
  const mask = new Uint8Array(width * height);
  const labels = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const { first: above, second: below, share: down } = rows[y];
    for (let x = 0; x < width; x++) {
      const { first: left, second: right, share: across } = columns[x];
      const at = (map) => {
        const top = map[above * size + left] + (map[above * size + right] - map[above * size + left]) * across;
        const bottom = map[below * size + left] + (map[below * size + right] - map[below * size + left]) * across;
        return top + (bottom - top) * down;
      };
      const here = at(pet);
      mask[y * width + x] = here > 0 ? 255 : 0;
      labels[y * width + x] = at(border) > Math.max(here, 0) ? 2 : here > 0 ? 1 : 0;
    }
  }
  return { mask, labels };
}

function neighbours(own, wanted) {
  return Array.from({ length: wanted }, (_, place) => {
    const at = Math.min(Math.max((place + 0.5) * (own / wanted) - 0.5, 0), own - 1);
    const first = Math.floor(at);
    return { first, second: Math.min(first + 1, own - 1), share: Math.fround(at - first) };
  });
}

// --- squeezing, as Pillow does it: resize((size, size), BILINEAR, reducing_gap=3), to the bit ---

const BITS = 22; // of the weights behind the point

/** Returns the photo squeezed to a square, uint8 [size, size, 3]. */
export function squeezed(photo, size) {
  const factors = [photo.width, photo.height].map((side) => Math.max(1, Math.floor(side / size / 3)));
  const small = reduced(photo, factors);
  const across = weights(small.width, Math.fround(photo.width / factors[0]), size);
  const down = weights(small.height, Math.fround(photo.height / factors[1]), size);
  // as Pillow 13 has it, found by trying; before, it always went across first, which rounds a few colours differently
  const downFirst = small.height > Math.max(size, 2 * small.width - size);
  return downFirst
    ? squeezedAcross(squeezedDown(small.data, small.width, down), small.width, size, across)
    : squeezedDown(squeezedAcross(small.data, small.width, small.height, across), size, down);
}

/** Returns [height, places, 3] of [height, width, 3]. */
function squeezedAcross(values, width, height, places) {
  const made = new Uint8Array(height * places.length * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < places.length; x++) {
      for (let c = 0; c < 3; c++) {
        made[(y * places.length + x) * 3 + c] = weighted(values, (y * width + places[x].first) * 3 + c, 3, places[x]);
      }
    }
  }
  return made;
}

/** Returns [places, width, 3] of [height, width, 3]. */
function squeezedDown(values, width, places) {
  const made = new Uint8Array(places.length * width * 3);
  for (let y = 0; y < places.length; y++) {
    for (let at = 0; at < width * 3; at++) {
      made[y * width * 3 + at] = weighted(values, places[y].first * width * 3 + at, width * 3, places[y]);
    }
  }
  return made;
}

function weighted(values, from, step, { shares }) {
  let sum = 1 << (BITS - 1);
  for (let at = 0; at < shares.length; at++) sum += values[from + at * step] * shares[at];
  return Math.min(255, Math.max(0, sum >> BITS));
}

/** Returns for each place of `wanted` the pixels that a triangle around it covers, and their weights. */
function weights(own, end, wanted) {
  const scale = end / wanted;
  const reach = Math.max(scale, 1);
  return Array.from({ length: wanted }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(own, Math.trunc(centre + reach + 0.5));
    const shares = Array.from({ length: last - first }, (_, at) =>
      Math.max(0, 1 - Math.abs((at + first - centre + 0.5) * (1 / reach))),
    );
    const total = shares.reduce((sum, share) => sum + share, 0);
    return { first, shares: shares.map((share) => Math.trunc(0.5 + (share / total) * 2 ** BITS)) };
  });
}

/** Returns the mean over boxes of across x down pixels, RGB; boxes at the right and lower edge may hold fewer. */
function reduced({ data, width: wide, height: high }, [across, down]) {
  const width = Math.ceil(wide / across);
  const height = Math.ceil(high / down);
  const small = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    const rows = Math.min(down, high - y * down);
    for (let x = 0; x < width; x++) {
      const columns = Math.min(across, wide - x * across);
      const count = rows * columns;
      const multiplier = Math.trunc(Math.fround(2 ** 32 / (256 * count)));
      for (let c = 0; c < 3; c++) {
        let sum = Math.trunc(count / 2);
        for (let row = 0; row < rows; row++) {
          const from = ((y * down + row) * wide + x * across) * 4 + c;
          for (let column = 0; column < columns; column++) sum += data[from + column * 4];
        }
        small[(y * width + x) * 3 + c] = Math.floor((sum * multiplier) / 2 ** 24);
      }
    }
  }
  return { data: small, width, height };
}
