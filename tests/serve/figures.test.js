// Run by test_page.py: node --test tests/serve/figures.test.js

import assert from "node:assert/strict";
import test from "node:test";

import * as figures from "../../petseg/serve/page/figures.js";

const PETS = ["cat", "dog"].map((name) => ({ name, role: "foreground" })).concat({ name: "background", role: "background" });
const found = (name, probability) => ({ foreground_class: name && { name, probability } });
const summary = (changes) => ({ foreground: true, presence: 0.9, boxes: [], foreground_class: null, ...changes });

test("numbers as people read them", () => {
  assert.deepEqual([0, 0.014, 0.996, 1].map(figures.percent), ["0 %", "1 %", "100 %", "100 %"]);
  assert.deepEqual([1_240_000, 9_990_000, 20_000_000].map(figures.megabytes), ["1.2 MB", "10.0 MB", "20 MB"]);
  assert.deepEqual([1.26, 9.97, 123.4].map(figures.milliseconds), ["1.3 ms", "10.0 ms", "123 ms"]);
});

test("names of files: two photos of one name keep both", () => {
  assert.deepEqual(figures.uniqueStems(["a.b.jpg", "cat.jpg", "cat.png", "cat"]), ["a.b", "cat", "cat-2", "cat-3"]);
  assert.deepEqual(figures.uniqueStems(["cat.jpg", "cat.jpg", "cat-2.jpg", "Cat.jpg"]), ["cat", "cat-2", "cat-2-2", "Cat-3"]);
  assert.equal(figures.fileName("cat", "unet", "mask"), "cat.unet.mask.png");
  assert.equal(figures.fileName("cat", "unet", "json"), "cat.unet.json");
});

for (const [words, changes, classes] of [
  ["cat, 98 %", { foreground_class: { name: "cat", probability: 0.98 }, boxes: [found("cat", 0.98)] }],
  ["dog, 70 %; cat, 60 %", { boxes: [found("dog", 0.7), found(null), found("cat", 0.6), found("dog", 0.1)] }],
  ["no cat or dog, 97 %", { foreground: false, presence: 0.03 }],
  ["no cat or dog", { foreground: false, presence: null }],
  ["nothing", { foreground: false, presence: null }, [..."abcd"].map((name) => ({ name, role: "foreground" }))],
  ["leaf", {}, [{ name: "leaf", role: "foreground" }]],
  ["foreground", {}, [..."abcd"].map((name) => ({ name, role: "foreground" }))],
])
  test(`what a model sees: ${words}`, () => assert.equal(figures.sees(summary(changes), classes ?? PETS), words));

test("two masks agree on the share of equal pixels", () => {
  const pixels = (values) => values.flatMap((value) => [value, value, value, 255]);
  assert.equal(figures.agreement(pixels([0, 255, 255, 0]), pixels([0, 255, 0, 0])), 0.75);
});

test("the box of what is visible", () => {
  const data = new Uint8ClampedArray(4 * 5 * 4);
  assert.deepEqual(figures.visibleBox(data, 5, 4), { x: 0, y: 0, width: 5, height: 4 });
  for (const [x, y] of [[1, 2], [3, 1]]) data[4 * (5 * y + x) + 3] = 1;
  assert.deepEqual(figures.visibleBox(data, 5, 4), { x: 1, y: 1, width: 3, height: 2 });
});

test("a background covers the canvas, cut at the middle", () => {
  assert.deepEqual(figures.coveringPart({ width: 400, height: 100 }, { width: 50, height: 50 }), { x: 150, y: 0, width: 100, height: 100 });
  assert.deepEqual(figures.coveringPart({ width: 60, height: 80 }, { width: 120, height: 40 }), { x: 0, y: 30, width: 60, height: 20 });
});
