// Files to try, which come with the service; only those whose model is served are offered.

import { address } from "./api.js";
import { byId, el, svg } from "./dom.js";
import { showTitle } from "./models.js";
import { hear, state } from "./store.js";

const EXAMPLES = [
  { files: ["digit-2.png"], model: "digits-nln", title: "Digit 2", about: "a kind it never saw" },
  { files: ["digit-7.png"], model: "digits-nln", title: "Digit 7", about: "a normal one" },
  { files: ["tile-blowhole.png"], model: "tiles-nln", title: "Tile, blowhole", about: "a small defect" },
  { files: ["tile-free.png"], model: "tiles-nln", title: "Tile, clean", about: "no defect" },
  { files: ["bag.png", "sneaker.png"], model: "fashion-iae-lstm-kl", title: "Bag, sneaker", about: "sneakers are normal" },
  { files: ["turbine.csv"], model: "turbine-iae-lstm-kl", title: "Wind turbine", about: "ice grows (simulated)" },
];

const CURVE = "M3 32 8 29 12 33 17 27 21 30 25 24 28 26 32 13 36 10 41 15";

const at = (name) => address(`static/examples/${name}`);

async function take(example, begin) {
  const files = await Promise.all(example.files.map(async (name) => {
    const response = await fetch(at(name));
    if (!response.ok) throw new Error(`The example ${name} is not there.`);
    const blob = await response.blob();
    return new File([blob], name, { type: name.endsWith(".csv") ? "text/csv" : blob.type });
  }));
  const task = state.models.find((m) => m.name === example.model).task;
  state.chosen[task] = example.model;
  byId(`model-${task}`).value = example.model;
  showTitle(task);
  await begin(files);
}

/** Offers the examples; `begin(files)` scores them anew, `sorry(error)` says why not. */
export function wireExamples(begin, sorry) {
  hear("models", () => {
    const served = new Set(state.models.filter((m) => m.active_version).map((m) => m.name));
    const offered = EXAMPLES.filter((example) => served.has(example.model));
    byId("examples").hidden = !offered.length;
    byId("example-list").replaceChildren(...offered.map((example) => {
      const picture = example.files[0].endsWith(".csv")
        ? svg("svg", { class: "example-sign", viewBox: "0 0 44 44", "aria-hidden": "true" }, svg("path", { d: CURVE }))
        : el("img", { className: "example-sign", src: at(example.files[0]), alt: "" });
      return el("li", {}, el("button", { type: "button", className: "example", onclick: () => take(example, begin).catch(sorry) },
        picture, el("span", {}, el("b", { text: example.title }), el("span", { className: "quiet", text: example.about }))));
    }));
  });
}
