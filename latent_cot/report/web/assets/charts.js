// Charts by Observable Plot. A series (a run's reasoner) has a colour, a symbol and a dash of its own: never colour alone.

const COLOURS = ["var(--series-0)", "var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)"];
const SYMBOLS = ["circle", "square", "triangle", "diamond", "star"];
const DASHES = [null, "6 3", "2 2", "9 3 2 3", "1 4"];

/** Of the r-th run, or of a single run's r-th reasoner. */
function dashOf(r) {
  return DASHES[r % DASHES.length];
}

/** The series of the runs' reasoners: [{run, reasoner, label, colour, symbol, dash}]. With a single run colours tell the
 * reasoners apart; with several colours and dashes tell the runs, and symbols the reasoners. */
function seriesOf(runs, reasonersOf) {
  const found = [];
  runs.forEach((run, r) => {
    for (const reasoner of reasonersOf(run)) {
      const kind = runs.length > 1 ? r : reasoner === "q" ? 0 : 1;
      found.push({
        run,
        reasoner,
        label: runs.length > 1 ? `${printable(run.name)}, ${reasoner}` : reasoner,
        colour: COLOURS[kind % COLOURS.length],
        symbol: SYMBOLS[(reasoner === "q" ? 0 : 1) + (runs.length > 1 ? 2 * (r % 2) : 0)],
        dash: dashOf(kind),
      });
    }
  });
  return found;
}

/** A legend of series. */
function seriesLegend(series) {
  return el("div.legend", {}, ...series.map((one) => el("span.legend-item", {}, sampleOf(one), one.label)));
}

function sampleOf({ colour, symbol, dash }) {
  const svg = d3.create("svg").attr("width", 34).attr("height", 14).attr("aria-hidden", "true");
  svg
    .append("line")
    .attr("x1", 1)
    .attr("x2", 33)
    .attr("y1", 7)
    .attr("y2", 7)
    .attr("stroke", colour)
    .attr("stroke-width", 2)
    .attr("stroke-dasharray", dash);
  if (symbol)
    svg
      .append("path")
      .attr("transform", "translate(17,7)")
      .attr("d", d3.symbol(symbolType(symbol), 44)())
      .attr("fill", colour);
  return svg.node();
}

function symbolType(name) {
  return {
    circle: d3.symbolCircle,
    square: d3.symbolSquare,
    triangle: d3.symbolTriangle,
    diamond: d3.symbolDiamond2,
    star: d3.symbolStar,
  }[name];
}

// Charts are drawn when they come into view, and again when their width has changed.
const drawers = new Map();
const widths = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const width = Math.round(contentRect.width);
    if (width > 0 && target.dataset.width !== String(width) && target.dataset.seen) draw(target, width);
  }
});
const seen = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      target.dataset.seen = "yes";
      seen.unobserve(target);
      draw(target, Math.round(target.clientWidth));
    }
  },
  { rootMargin: "600px" },
);

const PAPER = 640; // pixels that a sheet is wide, at least
// On paper all of them are there.
window.addEventListener("beforeprint", () => {
  for (const target of drawers.keys()) draw(target, Math.min(Math.round(target.clientWidth) || PAPER, PAPER));
});

function draw(target, width) {
  target.dataset.width = String(width);
  target.replaceChildren(drawers.get(target)(width));
}

/** A figure whose chart `options(width)` (those of Plot.plot) describes. */
function chart(title, description, options) {
  const canvas = el("div.canvas");
  canvas.style.minHeight = `${options(PAPER).height ?? 220}px`; // so that nothing moves when it is drawn
  drawers.set(canvas, (width) =>
    Plot.plot({
      width,
      height: 220,
      marginLeft: 46,
      marginBottom: 34,
      marginTop: 12,
      marginRight: 14,
      style: { fontSize: "12px", fontFamily: "inherit", background: "none", overflow: "visible" },
      ariaLabel: `${title}. ${description ?? ""}`,
      ...options(width),
    }),
  );
  widths.observe(canvas);
  seen.observe(canvas);
  return el(
    "figure.chart",
    {},
    el("figcaption", {}, el("strong", {}, title), description ? el("span.note", {}, ` ${description}`) : null),
    canvas,
  );
}

/** Marks of accuracies with intervals, dodged by series: rows have x, share, interval, series, title. */
function intervalMarks(rows, series, step = 0.07) {
  const place = new Map(series.map((one, k) => [one, (k - (series.length - 1) / 2) * step]));
  const x = (row) => row.x + place.get(row.series);
  return series.flatMap((one) => {
    const own = rows.filter((row) => row.series === one);
    return [
      Plot.ruleX(own, {
        x,
        y1: (row) => 100 * row.interval[0],
        y2: (row) => 100 * row.interval[1],
        stroke: one.colour,
        strokeWidth: 1.5,
        strokeOpacity: 0.55,
      }),
      Plot.line(own, {
        x,
        y: (row) => 100 * row.share,
        stroke: one.colour,
        strokeWidth: 2,
        strokeDasharray: one.dash,
      }),
      Plot.dot(own, {
        x,
        y: (row) => 100 * row.share,
        fill: one.colour,
        symbol: one.symbol ?? "circle",
        r: 4,
        stroke: "var(--card)",
        strokeWidth: 1,
      }),
      Plot.tip(own, Plot.pointer({ x, y: (row) => 100 * row.share, title: "title", maxRadius: 24 })),
    ];
  });
}
