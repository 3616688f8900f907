// Everything but the explorer: what was run, accuracies, before and after, training, settings.

const PHASES = {
  init: "Fine-tuning on demonstrations", imitate: "Imitating demonstrations", e_step: "E-step", m_step: "M-step",
  policy: "Policy gradient", posterior: "Forward KL", fit: "Fine-tuning", draw: "Drawing rationales", sample: "Sampling",
};
const FIGURES = {
  loss: ["loss", "per question"],
  log_reward: ["log-reward", "mean log p(Z Y | X) of the sampled chains, nats"],
  variance: ["Var(log R − log q)", "nats²; 0 once q is the posterior"],
  accuracy: ["right", "share of the sampled chains"],
  distinct: ["distinct", "different chains ÷ sampled chains"],
  kl: ["KL", "from the start, nats"],
  ess: ["effective sample size", "÷ n"],
  bound: ["bound", "on log p(Y | X), nats"],
  validation: ["validation", "share right"],
};
const SKEWED = new Set(["loss", "variance"]); // from 0 to a few large values: drawn on a square root scale
const SHARES = new Set(["accuracy", "distinct", "ess", "validation", "mass"]);
const BEFORE_AFTER = { base: "untrained model", q: "q, trained", p: "p, trained" };

function lastRound(run) {
  return run.accuracy.reduce((latest, row) => Math.max(latest, row.round), -1);
}

function reasonersIn(run) {
  return [...new Set(run.accuracy.map((row) => row.reasoner))].sort().reverse(); // q before p
}

// -- what was run -------------------------------------------------------------------------------------------

function showRuns(report, section) {
  const heading = section.querySelector("h1");
  heading.append(report.runs.map((run) => printable(run.name)).join("  ·  "));
  const same = (name) => [...new Set(report.runs.map((run) => printable(run[name])))].join(", ");
  heading.before(el("p.eyebrow", {}, `${same("task")}  ·  ${same("model")}  ·  ${same("method")}`));
  section.append(el("p.lead", {}, report.runs.length > 1 ? `${report.runs.length} runs, side by side.` : sentence(report.runs[0])));
  section.append(el("div.columns", {}, report.runs.map((run) => runCard(run, report.runs.length > 1))));
}

function sentence(run) {
  const last = lastRound(run);
  if (last < 0) return `The run is ${run.status}; nothing has been evaluated yet.`;
  const rows = run.accuracy.filter((row) => row.round === last && row.reasoner === reasonersIn(run)[0]);
  const seenOnes = rows.filter((row) => row.trained);
  const range = (of) => {
    const shares = of.map((row) => 100 * row.accuracy);
    const [low, high] = [Math.min(...shares), Math.max(...shares)].map((share) => share.toFixed(0));
    return low === high ? `${low} %` : `${low} to ${high} %`;
  };
  const what = seenOnes.length && seenOnes.length < rows.length
    ? `${range(seenOnes)} right on the kinds of question it was trained on, ${range(rows.filter((row) => !row.trained))} beyond them`
    : `${range(rows)} right`;
  return `After round ${last}, ${rows[0].reasoner} is ${what}.`;
}

function runCard(run, named) {
  const list = el("dl.facts", {}, run.facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, printable(value)))));
  return el("article.card", {}, named ? el("h3", {}, printable(run.name)) : null, list,
    run.notes.length ? el("details", {}, el("summary", {}, plural(run.notes.length, "note")), el("ul", {}, run.notes.map((note) => el("li", {}, printable(note))))) : null);
}

// -- accuracy -----------------------------------------------------------------------------------------------

function showAccuracy(report, section) {
  const runs = report.runs.filter((run) => run.accuracy.length);
  const measured = report.runs.filter((run) => run.metrics.length);
  if (measured.length) {
    if (!runs.length) section.querySelector("h2").textContent = "Figures";
    section.append(metricTables(measured));
    if (!runs.length) return;
  }
  if (!runs.length) {
    section.append(empty("No accuracy was measured", "The run has not got as far as an evaluation, or its task has no right answers."));
    return;
  }
  const series = seriesOf(runs, reasonersIn);
  const start = { label: "round 0, p", colour: "var(--muted)", symbol: "circle", dash: "1 4" };
  const hasStart = runs.length === 1 && lastRound(runs[0]) > 0 && runs[0].accuracy.some((row) => row.round === 0);
  section.append(el("p", {}, "Share of right answers on test questions, with 95 % intervals (Wilson). ",
    runs.some((run) => run.accuracy.some((row) => row.trained)) ? "Shaded: numbers that occur in training; everything else is out of distribution." : null));
  section.append(seriesLegend(hasStart ? [...series, start] : series));

  const curves = curvesOf(runs, series, hasStart ? start : null);
  if (curves.length) section.append(el("div.grid.two", {}, curves.map(curveChart)));

  const rounds = new Set(runs.flatMap((run) => run.accuracy.map((row) => row.round)));
  if (rounds.size > 1) {
    section.append(el("h3", {}, "By round"));
    section.append(el("div.grid.small", {}, splitsOf(runs).map((split) => roundChart(split, runs, series))));
  }
  section.append(el("details", {}, el("summary", {}, "All figures"), accuracyTable(runs)));
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
    const last = lastRound(one.run);
    points.push(...one.run.accuracy.filter((row) => row.round === last && row.reasoner === one.reasoner && row.numbers).map((row) => ({ row, series: one })));
  }
  if (start) points.push(...runs[0].accuracy.filter((row) => row.round === 0 && row.reasoner === "p" && row.numbers).map((row) => ({ row, series: start })));
  const axes = [...new Set(points.flatMap(({ row }) => Object.keys(row.numbers)))];
  const curves = new Map();
  for (const axis of axes) {
    for (const { row, series: one } of points) {
      if (!(axis in row.numbers)) continue;
      const others = Object.entries(row.numbers).filter(([name]) => name !== axis).map(([name, value]) => countOf(value, name)).join(", ");
      const key = `${axis}/${others}`;
      if (!curves.has(key)) curves.set(key, { axis, others, series: start ? [...series, start] : series, points: [] });
      curves.get(key).points.push({ x: row.numbers[axis], share: row.accuracy, interval: row.interval, trained: row.trained, series: one, title: accuracyTitle(one.label, row) });
    }
  }
  return [...curves.values()].filter((curve) => new Set(curve.points.map((point) => point.x)).size > 1);
}

/** "1 digit", "3 digits". */
function countOf(value, name) {
  return `${value} ${value === 1 ? name.replace(/s$/, "") : name}`;
}

function curveChart({ axis, others, points, series }) {
  const values = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  const trained = [...new Set(points.filter((point) => point.trained).map((point) => point.x))];
  const sorted = d3.sort(points, (point) => point.x);
  return chart(`Right answers by ${axis}`, others ? `(${others})` : "", () => ({
    height: 300,
    x: { label: axis, ticks: values, tickFormat: "d", domain: [values[0] - 0.5, values[values.length - 1] + 0.5] },
    y: { label: null, domain: [0, 100], grid: true, ticks: 5, tickFormat: (value) => `${value} %` },
    marks: [
      Plot.rect(trained, { x1: (x) => x - 0.5, x2: (x) => x + 0.5, y1: 0, y2: 100, fill: "var(--shade)", shapeRendering: "crispEdges" }),
      Plot.text(trained.slice(0, 1), { x: (x) => x - 0.5, y: 0, text: () => "as in training", textAnchor: "start", dx: 5, dy: -9, fill: "var(--muted)" }),
      ...intervalMarks(sorted, series),
    ],
  }));
}

function roundChart(split, runs, series) {
  const rows = series.flatMap((one) => one.run.accuracy
    .filter((row) => row.split === split && row.reasoner === one.reasoner)
    .map((row) => ({ x: row.round, share: row.accuracy, interval: row.interval, series: one, title: accuracyTitle(one.label, row) })));
  const rounds = [...new Set(rows.map((row) => row.x))].sort((a, b) => a - b);
  return chart(printable(split), "", () => ({
    height: 150,
    x: { label: "round", ticks: rounds, tickFormat: "d", domain: [rounds[0] - 0.3, rounds[rounds.length - 1] + 0.3] },
    y: { label: null, domain: [0, 100], grid: true, ticks: [0, 50, 100], tickFormat: (value) => `${value} %` },
    marks: intervalMarks(d3.sort(rows, (row) => row.x), series, 0.06),
  }));
}

function accuracyTable(runs) {
  const columns = runs.flatMap((run) => d3.sort([...new Set(run.accuracy.map((row) => `${row.round}/${row.reasoner}`))]).map((key) => {
    const [round, reasoner] = key.split("/");
    return { run, round: Number(round), reasoner };
  }));
  return el("div.scroll", { tabindex: "0" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "% right (95 % interval)"),
      columns.map(({ run, round, reasoner }) => el("th", { scope: "col" }, `${runs.length > 1 ? `${printable(run.name)}, ` : ""}round ${round}, ${reasoner}`)))),
    el("tbody", {}, splitsOf(runs).map((split) => el("tr", {}, el("th", { scope: "row" }, printable(split)),
      columns.map(({ run, round, reasoner }) => {
        const row = run.accuracy.find((one) => one.split === split && one.round === round && one.reasoner === reasoner);
        return el("td", {}, row ? [el("b", {}, (100 * row.accuracy).toFixed(1)), el("span.note", {}, ` (${(100 * row.interval[0]).toFixed(0)}–${(100 * row.interval[1]).toFixed(0)})`)] : "–");
      }))))));
}

/** Of tasks that have figures of rationales instead of right answers: a table a split. */
function metricTables(runs) {
  const unique = (values) => [...new Set(values)];
  const rows = runs.flatMap((run) => run.metrics.map((row) => ({ ...row, run, column: `${runs.length > 1 ? `${printable(run.name)}, ` : ""}round ${row.round}, ${row.reasoner}` })));
  const columns = unique(rows.map((row) => row.column));
  return el("div", {}, el("p", {}, "Figures of rationales sampled for test questions, with 95 % intervals of their mean (bootstrap over questions) where there is one."),
    unique(rows.map((row) => row.split)).map((split) => {
      const own = rows.filter((row) => row.split === split);
      return [el("h3", {}, printable(split)), el("div.scroll", { tabindex: "0" }, el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "figure"), columns.map((column) => el("th", { scope: "col" }, column)))),
        el("tbody", {}, unique(own.map((row) => row.metric)).map((metric) => {
          const [first] = own.filter((row) => row.metric === metric);
          return el("tr", {}, el("th", { scope: "row" }, printable(metric), first.description ? el("div.note", {}, printable(first.description), first.better === "neither" ? "" : `; ${first.better} is better`) : null),
            columns.map((column) => {
              const row = own.find((one) => one.metric === metric && one.column === column);
              return el("td", {}, row ? row.text : "–");
            }));
        }))))];
    }).flat());
}

// -- before and after ---------------------------------------------------------------------------------------

function showBefore(report, section) {
  const sampled = report.runs.filter((run) => run.samples?.before_after.length);
  const logged = report.runs.filter((run) => run.logged.length);
  if (!sampled.length && !logged.length) {
    section.append(empty("No samples", "The run has logged no rationales, and none were sampled for this report."));
    return;
  }
  if (sampled.length) {
    section.append(el("p", {}, "The likeliest chain (greedy) for the same question, before any training and after it. ", el("span.tool", {}, "results"), " in frames are a tool's."));
    section.append(el("div.cards", {}, beforeQuestions(sampled).map((key) => beforeCard(key, sampled))));
  }
  if (logged.length) {
    section.append(el("h3", {}, "While it was trained"));
    section.append(el("p", {}, "Rationales of training questions at the first, a middle and the last step of each round; ×n: how often of those sampled."));
    for (const run of logged) section.append(loggedTable(run, logged.length > 1));
  }
}

function beforeQuestions(runs) {
  const keys = new Map();
  for (const run of runs) for (const item of run.samples.before_after) keys.set(`${item.split}\n${item.question}`, item);
  return [...keys.values()];
}

function beforeCard(first, runs) {
  const rows = runs.flatMap((run) => {
    const item = run.samples.before_after.find((one) => one.split === first.split && one.question === first.question);
    return item ? Object.entries(item.by).map(([name, outcome]) => [runs.length > 1 ? `${printable(run.name)}: ${BEFORE_AFTER[name]}` : BEFORE_AFTER[name], outcome]) : [];
  });
  return el("article.card.before", {},
    el("header", {}, el("code.question", {}, printable(first.question)), first.answer === null ? null : el("span.note", {}, ` = ${printable(first.answer)}`), el("span.tag", {}, printable(first.split))),
    rows.map(([label, outcome]) => el("div.row", {}, el("span.label", {}, label), verdict(outcome), segmentText(outcome))));
}

function verdict({ right, answer }) {
  const [mark, word] = right === null ? ["", "not graded"] : right ? ["✓", "right"] : ["✗", "wrong"];
  return el(`span.verdict.${right === null ? "open" : right ? "right" : "wrong"}`, { title: answer === null ? "no answer" : `answer ${printable(answer)}` }, `${mark} ${word}`);
}

/** A chain that is known by its text only: [kind, text] parts. Of failed calls the first is quoted. */
function segmentText({ text, cut }) {
  const failed = text.filter(([kind]) => kind === "failed").map(([, reason]) => printable(reason));
  return el("span.chain-text", {}, text.length ? null : el("i.note", {}, "nothing"),
    text.filter(([kind]) => kind !== "failed").map(([kind, part], k) => el(kind === "tool" ? "span.tool" : "span", {}, printable(k && kind === "own" ? part : part.trimStart()))),
    cut ? el("span.tag", {}, "cut") : null,
    failed.length ? el("span.failed", { title: failed.join("\n") }, `✗ ${plural(failed.length, "call")} refused: ${failed[0]}`) : null);
}

function loggedTable(run, named) {
  return el("details", { open: !named }, el("summary", {}, named ? printable(run.name) : `${plural(run.logged.length, "sampled rationale")}`),
    el("div.scroll", { tabindex: "0" }, el("table.logged", {},
      el("thead", {}, el("tr", {}, ["round", "phase", "step", "question", "rationale", "×", "log R"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, run.logged.map((row) => el("tr", {}, el("td", {}, row.round), el("td", {}, PHASES[row.phase] ?? row.phase), el("td", {}, row.unit),
        el("td", {}, el("code", {}, printable(row.question))), el("td", {}, segmentText(row)), el("td", {}, row.count), el("td", {}, fixed(row.log_reward))))))));
}

// -- training -----------------------------------------------------------------------------------------------

function showTraining(report, section) {
  const runs = report.runs;
  const charts = [];
  const phases = [...new Set(runs.flatMap((run) => Object.keys(run.steps)))].filter((phase) => phase in PHASES);
  const series = runs.map((run, r) => ({ run, label: printable(run.name), colour: COLOURS[r % COLOURS.length], dash: null, symbol: SYMBOLS[r % SYMBOLS.length] }));
  // The phase that learns from rationales first: it is what the run is about.
  const order = d3.sort(phases, (phase) => (runs.some((run) => "log_reward" in (run.steps[phase] ?? {})) ? 0 : 1));
  for (const phase of order) {
    const drawn = Object.keys(FIGURES).filter((name) => runs.some((run) => (run.steps[phase]?.[name]?.length ?? 0) > 1));
    if (drawn.length) charts.push([PHASES[phase], drawn.map((name) => stepChart(phase, name, series))]);
  }
  const compared = runs.some((run) => run.posterior.length);
  if (!charts.length && !compared) {
    section.append(empty("No training was logged", "The method does not train, or has not begun."));
    return;
  }
  if (runs.length > 1) section.append(seriesLegend(series));
  if (compared) {
    section.append(el("h3", {}, "How near q is to the posterior"));
    section.append(el("p", {}, "On validation questions, before and after each round's training of q: means over questions, each with its samples from q scored exactly under q and under p."));
    section.append(el("div.grid.four", {}, ["variance", "bound", "ess", "mass"].filter((name) => runs.some((run) => run.posterior.some((row) => typeof row[name] === "number"))).map((name) => posteriorChart(name, series))));
  }
  for (const [title, figures] of charts) section.append(el("h3", {}, title), el("div.grid", {}, figures));
}

function stepChart(phase, name, series) {
  const [label, unit] = FIGURES[name];
  const rows = [];
  const borders = new Map();
  for (const one of series) {
    const columns = one.run.steps[phase];
    (columns?.[name] ?? []).forEach((value, k) => {
      const round = columns.round[k];
      if (!borders.has(round) || borders.get(round) > k) borders.set(round, k);
      if (value !== null) rows.push({ x: k + 1, value: SHARES.has(name) ? 100 * value : value, round, step: columns.unit[k], series: one });
    });
  }
  const rounds = [...borders.entries()].filter(([, k]) => k > 0);
  return chart(label, unit, () => ({
    marginTop: 22,
    x: { label: "step", tickFormat: "d", ticks: 6 },
    y: { label: null, grid: true, type: SKEWED.has(name) ? "sqrt" : "linear", ticks: 5, tickFormat: SHARES.has(name) ? (value) => `${value} %` : (value) => figure(value) },
    marks: [
      Plot.ruleX(rounds, { x: ([, k]) => k + 0.5, stroke: "var(--muted)", strokeDasharray: "2 3" }),
      Plot.text([...borders.entries()].filter(() => borders.size > 1), { x: ([, k]) => k + 1, text: ([round]) => `round ${round}`, frameAnchor: "top-left", textAnchor: "start", dy: -16, fill: "var(--muted)" }),
      series.map((one) => [
        Plot.dot(rows.filter((row) => row.series === one), { x: "x", y: "value", r: 1.8, fill: one.colour, fillOpacity: 0.35 }),
        Plot.line(rows.filter((row) => row.series === one), Plot.windowY({ k: 7, reduce: "median" }, { x: "x", y: "value", z: "round", stroke: one.colour, strokeWidth: 2 })),
      ]),
      Plot.tip(rows, Plot.pointerX({ x: "x", y: "value", title: (row) => `${series.length > 1 ? `${row.series.label}\n` : ""}round ${row.round}, step ${row.step}\n${label}: ${SHARES.has(name) ? percent(row.value / 100) : figure(row.value)}` })),
    ],
  }));
}

function posteriorChart(name, series) {
  const [label, unit] = { ...FIGURES, mass: ["mass", "q's probability of the sampled chains"] }[name];
  const share = name === "ess" || name === "mass";
  const rows = series.flatMap((one) => one.run.posterior.filter((row) => typeof row[name] === "number")
    .map((row) => ({ at: `${row.round} ${row.when}`, round: row.round, value: share ? 100 * row[name] : row[name], n: row.n, series: one })));
  const places = [...new Set(rows.map((row) => row.at))];
  return chart(label, unit, () => ({
    height: 170,
    x: { type: "point", domain: places, label: "round", padding: 0.4, tickFormat: (at) => (places.length > 6 ? at.replace(/(\d+) (b|a)\w+/, "$1$2") : at.replace(" ", "\n")) },
    marginBottom: 46,
    y: { label: null, grid: true, ticks: 4, nice: true, zero: name === "variance", tickFormat: share ? (value) => `${value} %` : undefined },
    marks: series.map((one) => [
      Plot.line(rows.filter((row) => row.series === one), { x: "at", y: "value", stroke: one.colour, strokeWidth: 2 }),
      Plot.dot(rows.filter((row) => row.series === one), { x: "at", y: "value", fill: one.colour, symbol: one.symbol, r: 4 }),
      Plot.text(rows.filter((row) => row.series === one), { x: "at", y: "value", text: (row) => (share ? percent(row.value / 100) : figure(row.value, 2)), dy: series.length > 1 && one === series[1] ? 12 : -11, fill: "currentColor", stroke: "var(--card)", strokeWidth: 3 }),
    ]),
  }));
}

// -- settings -----------------------------------------------------------------------------------------------

function showSettings(report, section) {
  const flat = report.runs.map((run) => flatten(run.settings));
  const names = [...new Set(flat.flatMap((settings) => [...settings.keys()]))];
  const differing = new Set(names.filter((name) => new Set(flat.map((settings) => settings.get(name))).size > 1));
  const several = report.runs.length > 1;
  section.append(el("p", {}, several ? `${plural(differing.size, "setting")} of ${names.length} differ. ` : "",
    "To run it again: ", el("code", {}, `latent-cot ${report.runs[0].method === "em" ? "em" : "fit"} --config ${printable(report.runs[0].name)}/config.yaml --output-dir NEW`)));
  const table = (of) => el("div.scroll", { tabindex: "0" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "setting"), report.runs.map((run) => el("th", { scope: "col" }, several ? printable(run.name) : "value")))),
    el("tbody", {}, of.map((name) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, name)), flat.map((settings) => el("td", {}, el("code", {}, printable(settings.get(name) ?? "–")))))))));
  if (several && differing.size) section.append(table(names.filter((name) => differing.has(name))));
  section.append(el("details", {}, el("summary", {}, `All ${names.length} settings`), table(names)));
}

/** {"e_step": {"steps": 40}} as "e_step.steps" -> "40". */
function flatten(settings, prefix = "", into = new Map()) {
  for (const [name, value] of Object.entries(settings)) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) flatten(value, `${prefix}${name}.`, into);
    else into.set(prefix + name, Array.isArray(value) ? value.join(", ") : String(value));
  }
  return into;
}

/** What stands where there is nothing to show. */
function empty(title, remedy) {
  return el("div.empty", {}, el("strong", {}, title), el("p", {}, remedy));
}
