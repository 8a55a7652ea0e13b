// Posters for films of which no picture exists: a motif and colours by genre, drawn from the film's id.

const SVG = "http://www.w3.org/2000/svg";

// ground, figure, detail, ink
const LOOKS = {
  Action: ["#d1432a", "#f0892b", "#2e1f27", "#fff4e0", rays],
  Adventure: ["#2a9d8f", "#e9c46a", "#264653", "#fffaf0", hills],
  Animation: ["#ff9ebb", "#5e60ce", "#fff3f7", "#2b1b3d", bubbles],
  "Children's": ["#8ecae6", "#fb8500", "#ffffff", "#12313f", bubbles],
  Comedy: ["#ffd23f", "#ee4266", "#3bceac", "#2b2118", confetti],
  Crime: ["#1f2430", "#c8b68e", "#8c2f39", "#f3ead7", blinds],
  Documentary: ["#d7dfd0", "#52796f", "#8a9a7b", "#1f2d2b", contours],
  Drama: ["#6d2e46", "#d5a79b", "#a24e5b", "#fbeee6", moons],
  Fantasy: ["#3c1a6e", "#b185db", "#f9e07f", "#f7efff", stars],
  "Film-Noir": ["#15161a", "#e6e1d3", "#55565c", "#f7f3e8", blinds],
  History: ["#b08968", "#f0e3c8", "#6c4f3d", "#26190f", arches],
  Horror: ["#140c0d", "#b3001b", "#4a0d14", "#f4e9e6", spikes],
  Musical: ["#d6336c", "#ffd166", "#6f1d4f", "#fff7f0", levels],
  Mystery: ["#14213d", "#fca311", "#33507c", "#eef1f6", eye],
  Romance: ["#f7c6c7", "#d7263d", "#fff1e6", "#4a1420", hearts],
  Science: ["#0b132b", "#5bc0be", "#f4d35e", "#eafcfb", orbits],
  "Sci-Fi": ["#0b132b", "#5bc0be", "#f4d35e", "#eafcfb", orbits],
  Sports: ["#137547", "#f5f749", "#0b3d26", "#f4fff8", rays],
  Thriller: ["#e5e5e0", "#d00000", "#16161a", "#16161a", spikes],
  Travel: ["#219ebc", "#ffb703", "#023047", "#f3fbff", hills],
  War: ["#59614a", "#c9b79c", "#2d3226", "#f6f1e3", arches],
  Western: ["#d98e4a", "#7f3c1e", "#f6d8ae", "#2b1508", hills],
  Youth: ["#cdb4db", "#ff006e", "#ffffff", "#2d1b3a", confetti],
};
const PLAIN = ["#3d405b", "#81b29a", "#f2cc8f", "#f4f1de", moons];

// mulberry32 on a hash of the id: equal films look equal, always
function stream(text) {
  let seed = 2166136261;
  for (const letter of text) seed = Math.imul(seed ^ letter.codePointAt(0), 16777619);
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function draw(parent, kind, values) {
  const shape = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(values)) shape.setAttribute(name, value);
  return parent.appendChild(shape);
}

const points = (list) => list.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
const span = (random, low, high) => low + (high - low) * random();

function rays(svg, random, [figure, detail]) {
  const x = span(random, 40, 160), y = span(random, 150, 230), count = 9 + Math.floor(random() * 5);
  for (let i = 0; i < count; i++) {
    const from = (2 * Math.PI * i) / count + random() * 0.1, to = from + Math.PI / count;
    const corner = (angle) => [x + 400 * Math.cos(angle), y + 400 * Math.sin(angle)];
    draw(svg, "polygon", { points: points([[x, y], corner(from), corner(to)]), fill: figure, opacity: 0.9 });
  }
  draw(svg, "circle", { cx: x, cy: y, r: span(random, 26, 40), class: "ground" });
  draw(svg, "circle", { cx: x, cy: y, r: 20, fill: detail });
}

function hills(svg, random, [figure, detail]) {
  draw(svg, "circle", { cx: span(random, 50, 150), cy: span(random, 130, 160), r: span(random, 26, 40), fill: figure });
  for (let layer = 0; layer < 3; layer++) {
    const base = 185 + 38 * layer, a = span(random, 12, 30), shift = random() * 6;
    const ridge = Array.from({ length: 11 }, (_, i) => [i * 20, base + a * Math.sin(i * 0.75 + shift) + 6 * random()]);
    draw(svg, "polygon", { points: points([[0, 300], ...ridge, [200, 300]]), fill: detail, opacity: 0.38 + 0.24 * layer });
  }
}

function bubbles(svg, random, [figure, detail]) {
  for (let i = 0; i < 9; i++) {
    const r = span(random, 10, 42);
    draw(svg, "circle", { cx: span(random, 10, 190), cy: span(random, 130, 290), r, fill: i % 3 ? figure : detail, opacity: 0.92 });
    draw(svg, "circle", { cx: span(random, 10, 190), cy: span(random, 130, 290), r: r / 4, fill: i % 2 ? detail : figure });
  }
}

function confetti(svg, random, [figure, detail]) {
  for (let i = 0; i < 15; i++) {
    const turn = `translate(${span(random, 8, 192)} ${span(random, 125, 290)}) rotate(${random() * 360})`;
    const size = span(random, 12, 30), fill = i % 2 ? figure : detail;
    if (i % 3) draw(svg, "path", { d: `M${-size} 0a${size} ${size} 0 0 1 ${2 * size} 0z`, fill, transform: turn });
    else draw(svg, "rect", { x: -size / 2, y: -4, width: size, height: 8, rx: 4, fill, transform: turn });
  }
}

function blinds(svg, random, [figure, detail]) {
  const x = span(random, 60, 140);
  draw(svg, "circle", { cx: x, cy: 205, r: 62, fill: figure });
  draw(svg, "circle", { cx: x + span(random, 18, 30), cy: 198, r: 50, fill: detail });
  const tilt = span(random, -9, 9);
  for (let i = 0; i < 12; i++)
    draw(svg, "rect", { x: -40, y: 118 + i * 17, width: 280, height: 7, class: "ground", transform: `rotate(${tilt} 100 200)` });
}

function contours(svg, random, [figure, detail]) {
  const x = span(random, 60, 140), y = span(random, 180, 220), tilt = random() * 180;
  for (let i = 0; i < 9; i++)
    draw(svg, "ellipse", {
      cx: x + 3 * i, cy: y, rx: 10 + i * 15, ry: 6 + i * 10.5, fill: "none", stroke: i % 3 ? figure : detail, "stroke-width": 3.2,
      transform: `rotate(${tilt} ${x} ${y})`,
    });
}

function moons(svg, random, [figure, detail]) {
  const y = span(random, 190, 225), gap = span(random, 26, 44), r = span(random, 54, 70);
  draw(svg, "circle", { cx: 100 - gap, cy: y, r, fill: figure });
  draw(svg, "circle", { cx: 100 + gap, cy: y, r, fill: detail, opacity: 0.86 });
  draw(svg, "rect", { x: 0, y: y + r * 0.45, width: 200, height: 3, class: "ground" });
}

function stars(svg, random, [figure, detail]) {
  draw(svg, "circle", { cx: 100, cy: 215, r: 66, fill: figure });
  draw(svg, "circle", { cx: 100 + span(random, -34, 34), cy: 196, r: 56, class: "ground" });
  for (let i = 0; i < 13; i++) {
    const size = span(random, 3, 12), x = span(random, 12, 188), y = span(random, 122, 288), thin = size / 4;
    const corners = [[0, -size], [thin, -thin], [size, 0], [thin, thin], [0, size], [-thin, thin], [-size, 0], [-thin, -thin]];
    draw(svg, "polygon", { points: points(corners.map(([a, b]) => [x + a, y + b])), fill: detail });
  }
}

function arches(svg, random, [figure, detail]) {
  const count = 3 + Math.floor(random() * 2), width = 200 / count;
  for (let row = 0; row < 2; row++)
    for (let i = 0; i < count; i++) {
      const x = i * width + 7, w = width - 14, y = 160 + row * 76;
      draw(svg, "path", { d: `M${x} ${y + 70}V${y + w / 2}a${w / 2} ${w / 2} 0 0 1 ${w} 0V${y + 70}z`, fill: random() < 0.3 ? figure : detail });
    }
}

function spikes(svg, random, [figure, detail]) {
  for (const [fill, base, reach] of [[detail, 300, 165], [figure, 304, 105]]) {
    const count = 6 + Math.floor(random() * 3), width = 200 / count;
    for (let i = 0; i < count; i++)
      draw(svg, "polygon", {
        points: points([[i * width - 6, base], [(i + 0.5) * width + span(random, -9, 9), base - span(random, reach / 2, reach)], [(i + 1) * width + 6, base]]), fill,
      });
  }
}

function levels(svg, random, [figure, detail]) {
  for (let i = 0; i < 9; i++) {
    const height = span(random, 24, 150);
    draw(svg, "rect", { x: 9 + i * 20.6, y: 284 - height, width: 14, height, rx: 7, fill: i % 3 === 1 ? detail : figure });
    draw(svg, "circle", { cx: 16 + i * 20.6, cy: 284 - height - 15, r: 4.5, fill: figure });
  }
}

function eye(svg, random, [figure, detail]) {
  const y = span(random, 195, 215);
  draw(svg, "path", { d: `M6 ${y}Q100 ${y - 110} 194 ${y}Q100 ${y + 110} 6 ${y}z`, fill: detail });
  draw(svg, "circle", { cx: 100, cy: y, r: 40, fill: figure });
  const x = 100 + span(random, -16, 16);
  draw(svg, "circle", { cx: x, cy: y - 6, r: 12, class: "ground" });
  draw(svg, "polygon", { points: points([[x - 5, y], [x + 5, y], [x + 10, y + 25], [x - 10, y + 25]]), class: "ground" });
}

function hearts(svg, random, [figure, detail]) {
  for (let i = 0; i < 6; i++) {
    const size = i ? span(random, 0.5, 1.3) : 3, x = i ? span(random, 20, 180) : 100, y = i ? span(random, 140, 285) : 200;
    draw(svg, "path", {
      d: "M0 14C-26-4-14-24 0-11C14-24 26-4 0 14z", fill: i % 2 ? detail : figure, opacity: i ? 0.95 : 0.9,
      transform: `translate(${x} ${y}) scale(${size}) rotate(${span(random, -18, 18)})`,
    });
  }
}

function orbits(svg, random, [figure, detail]) {
  const y = span(random, 190, 215), tilt = span(random, -40, 40);
  for (let i = 1; i < 5; i++) {
    draw(svg, "ellipse", { cx: 100, cy: y, rx: 26 + i * 22, ry: 8 + i * 9, fill: "none", stroke: figure, "stroke-width": 2, opacity: 1 - i * 0.15, transform: `rotate(${tilt} 100 ${y})` });
    draw(svg, "circle", { cx: 100 + (26 + i * 22) * (i % 2 ? 1 : -1), cy: y, r: span(random, 4, 9), fill: detail, transform: `rotate(${tilt} 100 ${y})` });
  }
  draw(svg, "circle", { cx: 100, cy: y, r: 25, fill: figure });
}

function text(parent, kind, content) {
  const part = document.createElement("span");
  part.className = kind;
  part.textContent = content;
  parent.append(part);
}

/** The poster of a film, to be put into an element of class "poster". */
export function poster(film) {
  const random = stream(film.id + film.title);
  const known = film.genres.filter((genre) => genre in LOOKS);
  const [ground, figure, detail, ink, motif] = LOOKS[known[Math.floor(random() * known.length)]] ?? PLAIN;
  const sheet = document.createElement("span");
  sheet.className = "sheet";
  sheet.style.setProperty("--ground", ground);
  sheet.style.setProperty("--ink", ink);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 200 300");
  svg.setAttribute("preserveAspectRatio", "xMidYMax slice");
  svg.setAttribute("aria-hidden", "true");
  motif(svg, random, random() < 0.75 ? [figure, detail] : [detail, figure]);
  sheet.append(svg);
  text(sheet, film.title.length > 24 || /\S{11}/.test(film.title) ? "name long" : "name", film.title);
  text(sheet, "year", film.year);
  return sheet;
}
