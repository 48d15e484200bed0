// What the page computes and says: pure functions, tested by tests/serve/figures.test.js.

export const percent = (share) => `${Math.round(100 * share)} %`;
export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
export const milliseconds = (time) => `${time.toFixed(time < 10 ? 1 : 0)} ms`;
export const clamped = (value) => Math.min(1, Math.max(0, value));
export const stem = (name) => name.replace(/\.[^.]+$/, "");
export const fileName = (name, model, output) => `${name}.${model}.${output === "json" ? "json" : `${output}.png`}`;

// Two photos of one name: cat, cat-2. Some file systems do not tell cases apart.
export function uniqueStems(names) {
  const taken = new Set();
  return names.map(stem).map((name) => {
    let free = name;
    for (let number = 2; taken.has(free.toLowerCase()); number++) free = `${name}-${number}`;
    taken.add(free.toLowerCase());
    return free;
  });
}

export const objects = (classes) => classes.filter((each) => each.role === "foreground").map((each) => each.name);
export const named = (classes) => (objects(classes).length < 4 ? objects(classes).join(" or ") : "");

// What a model sees: "cat, 98 %", each region's class where they differ, or "no cat or dog, 97 %".
export function sees(summary, classes) {
  const words = ({ name, probability }) => `${name}, ${percent(probability)}`;
  if (!summary.foreground) {
    const nothing = named(classes) ? `no ${named(classes)}` : "nothing";
    return summary.presence === null ? nothing : words({ name: nothing, probability: 1 - summary.presence });
  }
  const regions = new Map(); // a narrow region has no class; of two regions of one class the larger one counts
  for (const { foreground_class: found } of summary.boxes) if (found && !regions.has(found.name)) regions.set(found.name, found);
  if (regions.size > 1) return [...regions.values()].map(words).join("; ");
  return summary.foreground_class ? words(summary.foreground_class) : named(classes) || "foreground";
}

// The share of equal pixels of two masks, RGBA of one size.
export function agreement(first, second) {
  let same = 0;
  for (let at = 0; at < first.length; at += 4) same += first[at] === second[at];
  return (4 * same) / first.length;
}

// The smallest box that holds every pixel of an RGBA image that is not transparent, all of it if none is.
export function visibleBox(data, width, height) {
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if (data[4 * (y * width + x) + 3]) [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x + 1), y + 1];
  return right ? { x: left, y: top, width: right - left, height: bottom - top } : { x: 0, y: 0, width, height };
}

// The part of an image that covers a canvas, cut at the middle.
export function coveringPart(image, canvas) {
  const scale = Math.min(image.width / canvas.width, image.height / canvas.height);
  const [width, height] = [canvas.width * scale, canvas.height * scale];
  return { x: (image.width - width) / 2, y: (image.height - height) / 2, width, height };
}
