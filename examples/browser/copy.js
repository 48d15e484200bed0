// Copies what the page loads into vendor/: the runtime from node_modules, the models and the sample from the package.

import { copyFileSync, mkdirSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const runtime = join(here, "node_modules", "onnxruntime-web", "dist");
const petseg = join(here, "..", "..", "petseg");
const files = [
  join(runtime, "ort.wasm.bundle.min.mjs"),
  join(runtime, "ort-wasm-simd-threaded.wasm"),
  ...["unet_lite2", "unet_small", "segnet_small"].flatMap((name) =>
    ["onnx", "json"].map((ending) => join(petseg, "weights", `${name}.${ending}`)),
  ),
  join(petseg, "serve", "page", "cat.jpg"),
];

mkdirSync(join(here, "vendor"), { recursive: true });
for (const file of files) copyFileSync(file, join(here, "vendor", basename(file)));
console.log(`vendor/ holds ${files.length} files`);
