// Accuracies: along the numbers that name splits, by round, and as a table.

function showAccuracy(report, section) {
  const runs = report.runs.filter((run) => run.accuracy.length);
  const measured = report.runs.filter((run) => run.metrics.length);
  if (measured.length) {
    if (!runs.length) section.querySelector("h2").textContent = "Figures";
    section.append(metricTables(measured));
    if (!runs.length) return;
  }
  if (!runs.length) {
    section.append(
      empty(
        "No accuracy was measured",
        "The run has not got as far as an evaluation, or its task has no right answers.",
      ),
    );
    return;
  }
  const series = seriesOf(runs, reasonersIn);
  const start = { label: "round 0, p", colour: "var(--muted)", symbol: "circle", dash: "1 4" };
  const hasStart = runs.length === 1 && lastRound(runs[0]) > 0 && runs[0].accuracy.some((row) => row.round === 0);
  section.append(
    el(
      "p",
      {},
      "Share of right answers on test questions, with 95 % intervals (Wilson). ",
      runs.some((run) => run.accuracy.some((row) => row.trained))
        ? "Shaded: numbers that occur in training; everything else is out of distribution."
        : null,
    ),
  );
  section.append(seriesLegend(hasStart ? [...series, start] : series));

  const curves = curvesOf(runs, series, hasStart ? start : null);
  if (curves.length) section.append(el("div.grid.two", {}, curves.map(curveChart)));

  const rounds = new Set(runs.flatMap((run) => run.accuracy.map((row) => row.round)));
  if (rounds.size > 1) {
    section.append(el("h3", {}, "By round"));
    section.append(
      el(
        "div.grid.small",
        {},
        splitsOf(runs).map((split) => roundChart(split, runs, series)),
      ),
    );
  }
  const drawn = curves.length || rounds.size > 1;
  section.append(el("details", { open: !drawn }, el("summary", {}, "All figures"), accuracyTable(runs)));
}

function splitsOf(runs) {
  return [...new Set(runs.flatMap((run) => run.accuracy.map((row) => row.split)))];
}

function accuracyTitle(label, row) {
  return `${label}\n${printable(row.split)}, round ${row.round}\n${percent(row.accuracy)} right (${percent(row.interval[0])} – ${percent(row.interval[1])}), n = ${row.n}`;
}

/** A curve for each number that varies while the others stay: [{axis, others, points}]. */
function curvesOf(runs, series, start) {
  const points = [];
  for (const one of series) {
    const last = lastRound(one.run, one.reasoner);
    points.push(
      ...one.run.accuracy
        .filter((row) => row.round === last && row.reasoner === one.reasoner && row.numbers)
        .map((row) => ({ row, series: one })),
    );
  }
  if (start)
    points.push(
      ...runs[0].accuracy
        .filter((row) => row.round === 0 && row.reasoner === "p" && row.numbers)
        .map((row) => ({ row, series: start })),
    );
  const axes = [...new Set(points.flatMap(({ row }) => Object.keys(row.numbers)))];
  const curves = new Map();
  for (const axis of axes) {
    for (const { row, series: one } of points) {
      if (!(axis in row.numbers)) continue;
      const others = Object.entries(row.numbers)
        .filter(([name]) => name !== axis)
        .map(([name, value]) => countOf(value, name))
        .join(", ");
      const key = `${axis}/${others}`;
      if (!curves.has(key)) curves.set(key, { axis, others, series: start ? [...series, start] : series, points: [] });
      curves.get(key).points.push({
        x: row.numbers[axis],
        share: row.accuracy,
        interval: row.interval,
        trained: row.trained,
        series: one,
        title: accuracyTitle(one.label, row),
      });
    }
  }
  // Splits of one number, such as those of test and of validation questions, are no points of one line.
  const lines = ({ points }) => [...d3.group(points, (point) => point.series).values()];
  const isCurve = (line) => new Set(line.map((point) => point.x)).size === line.length;
  return [...curves.values()].filter(
    (curve) => new Set(curve.points.map((point) => point.x)).size > 1 && lines(curve).every(isCurve),
  );
}

/** "1 digit", "3 digits". */
function countOf(value, name) {
  return `${value} ${value === 1 ? name.replace(/s$/, "") : name}`;
}

function curveChart({ axis, others, points, series }) {
  const values = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  const trained = [...new Set(points.filter((point) => point.trained).map((point) => point.x))];
  const sorted = d3.sort(points, (point) => point.x);
  return chart(`Right answers by ${axis}`, others ? `(${others}), %` : "%", () => ({
    height: 300,
    x: { label: axis, ticks: values, tickFormat: "d", domain: [values[0] - 0.5, values[values.length - 1] + 0.5] },
    y: { label: null, domain: [0, 100], grid: true, ticks: 5, tickFormat: (value) => `${value} %` },
    marks: [
      Plot.rect(trained, {
        x1: (x) => x - 0.5,
        x2: (x) => x + 0.5,
        y1: 0,
        y2: 100,
        fill: "var(--shade)",
        shapeRendering: "crispEdges",
      }),
      Plot.text(trained.slice(0, 1), {
        x: (x) => x - 0.5,
        y: 0,
        text: () => "as in training",
        textAnchor: "start",
        dx: 5,
        dy: -9,
        fill: "var(--muted)",
      }),
      ...intervalMarks(sorted, series),
    ],
  }));
}

function roundChart(split, runs, series) {
  const rows = series.flatMap((one) =>
    one.run.accuracy
      .filter((row) => row.split === split && row.reasoner === one.reasoner)
      .map((row) => ({
        x: row.round,
        share: row.accuracy,
        interval: row.interval,
        series: one,
        title: accuracyTitle(one.label, row),
      })),
  );
  const rounds = [...new Set(rows.map((row) => row.x))].sort((a, b) => a - b);
  return chart(printable(split), "right, %", () => ({
    height: 150,
    x: { label: "round", ticks: rounds, tickFormat: "d", domain: [rounds[0] - 0.3, rounds[rounds.length - 1] + 0.3] },
    y: { label: null, domain: [0, 100], grid: true, ticks: [0, 50, 100], tickFormat: (value) => `${value} %` },
    marks: intervalMarks(
      d3.sort(rows, (row) => row.x),
      series,
      0.06,
    ),
  }));
}

function accuracyTable(runs) {
  const columns = runs.flatMap((run) =>
    d3.sort(
      [...new Set(run.accuracy.map((row) => `${row.round}/${row.reasoner}`))].map((key) => {
        const [round, reasoner] = key.split("/");
        return { run, round: Number(round), reasoner };
      }),
      (one) => one.round,
      (one) => one.reasoner,
    ),
  );
  return table(
    [
      "% right (95 % interval)",
      ...columns.map(
        ({ run, round, reasoner }) => `${runs.length > 1 ? `${printable(run.name)}, ` : ""}round ${round}, ${reasoner}`,
      ),
    ],
    splitsOf(runs).map((split) => [
      printable(split),
      ...columns.map(({ run, round, reasoner }) => {
        const row = run.accuracy.find((one) => one.split === split && one.round === round && one.reasoner === reasoner);
        if (!row) return "–";
        const [low, high] = row.interval.map((end) => (100 * end).toFixed(0));
        return [el("b", {}, (100 * row.accuracy).toFixed(1)), el("span.note", {}, ` (${low}–${high})`)];
      }),
    ]),
  );
}
