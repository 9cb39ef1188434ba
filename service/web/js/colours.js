// The colours of residuals: the same map, and the same scale, as the heatmaps of the service.

const ANCHORS = [
  [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
  [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
];

/** 256 colours, black - violet - red - yellow. */
export const COLOURS = Array.from({ length: 256 }, (_, level) => {
  const at = (level / 255) * (ANCHORS.length - 1);
  const i = Math.min(Math.floor(at), ANCHORS.length - 2);
  return ANCHORS[i].map((low, c) => Math.trunc(low + (at - i) * (ANCHORS[i + 1][c] - low)));
});

/** The colour of a residual, for CSS; `scale` is the residual of the last colour. */
export function colourOf(residual, scale) {
  const [r, g, b] = COLOURS[levelOf(residual, scale)];
  return `rgb(${r} ${g} ${b})`;
}

/** 0 to 255. */
export function levelOf(residual, scale) {
  return Math.round(Math.min(Math.max(residual / scale, 0), 1) * 255);
}

/** The overlay of a residual map: the higher, the lighter and denser. */
export function overlay(residuals, scale, width, height) {
  const image = new ImageData(width, height);
  for (let i = 0; i < residuals.length; i++) {
    const level = levelOf(residuals[i], scale);
    const [r, g, b] = COLOURS[level];
    image.data.set([r, g, b, Math.min(Math.floor(level * 1.2), 230)], 4 * i);
  }
  return image;
}

/** Draws rows of residuals as blocks of colour, one canvas pixel a cell; null leaves a cell clear. */
export function paintCells(canvas, rows, scale) {
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  const image = new ImageData(canvas.width, canvas.height);
  rows.forEach((row, y) => {
    row.forEach((value, x) => {
      if (value !== null) image.data.set([...COLOURS[levelOf(value, scale)], 255], 4 * (y * canvas.width + x));
    });
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The legend: a bar of all colours. */
export function paintLegend(canvas) {
  paintCells(canvas, [Array.from({ length: 256 }, (_, i) => i / 255)], 1);
}

/** The bytes of a base64 text. */
export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}
