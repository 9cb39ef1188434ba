// Residual maps and pictures of images as the browser can draw them.

import { bytesOf, overlay } from "./colours.js";

/** Residuals of a `png` map, row by row. */
async function residualsOf(map) {
  const blob = new Blob([bytesOf(map.data)], { type: "image/png" });
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(map.width, map.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, map.width, map.height);
  const residuals = new Float32Array(map.width * map.height);
  for (let i = 0; i < residuals.length; i++) residuals[i] = (data[4 * i] / 255) * map.scale;
  return residuals;
}

/** A canvas with the coloured overlay of a `png` map. */
export async function heatOf(map, scale) {
  const canvas = new OffscreenCanvas(map.width, map.height);
  const image = overlay(await residualsOf(map), scale, map.width, map.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The stored pixels of a file, unturned as the service sees them; null where this browser cannot. */
export async function pictureOf(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "none" });
  } catch {
    return null;
  }
}

/** Picture and overlay on one canvas, shrunk to at most `side` pixels. */
export async function thumbnail(canvas, file, map, scale, side) {
  const [picture, heat] = await Promise.all([pictureOf(file), map ? heatOf(map, scale) : null]);
  const size = picture ?? heat;
  if (!size) return;
  const factor = Math.min(1, side / Math.max(size.width, size.height));
  canvas.width = Math.max(1, Math.round(size.width * factor));
  canvas.height = Math.max(1, Math.round(size.height * factor));
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, canvas.width, canvas.height); // what is transparent lies over black
  if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (heat) {
    context.globalAlpha = 0.75;
    context.drawImage(heat, 0, 0, canvas.width, canvas.height);
  }
  picture?.close();
}
