// Curves: q against the posterior, and the figures of every step.

const PHASES = {
  init: "Fine-tuning on demonstrations",
  start_q: "Imitating demonstrations",
  e_step: "E-step",
  m_step: "M-step",
  policy: "Policy gradient",
  fit: "Fine-tuning",
  draw: "Drawing rationales",
  sample: "Sampling",
}; // others, of a method of one's own, by the name that they have there
const CHECKS = new Set(["diagnose_before", "diagnose", "validate", "evaluate"]);
const FIGURES = {
  loss: ["loss", "per question"],
  forward_kl_loss: ["loss of the further steps", "forward KL, per question"],
  log_reward: ["log-reward", "mean log p(Z Y | X) of the sampled chains, nats"],
  variance: ["Var(log R − log q)", "nats²; 0 once q is the posterior"],
  accuracy: ["right", "share of the sampled chains"],
  distinct: ["distinct", "different chains ÷ sampled chains"],
  single: ["one chain", "share of questions whose samples are all one chain"],
  kl: ["KL", "from the start, nats"],
  ess: ["effective sample size", "÷ n"],
  log_z: ["log Z", "as the loss estimates it, mean over questions, nats"],
  cut: ["cut", "share of the chains that were stopped by force"],
  elbo: ["ELBO", "log p(Y | X) − KL(q ‖ posterior), nats"],
  bound: ["mean log p(Y | X), estimated", "of the questions, by importance sampling, nats; above 0 only by chance"],
  validation: ["validation", "share right"],
  validation_loss: ["validation loss", "nats a token"],
  replayed: ["replayed", "share of the rationales that an earlier q has sampled"],
  mismatch: ["gap to the sampler", "mean |Δ log q| of an action, nats"],
  staleness: ["staleness", "updates of q since its rationales were begun"],
  sampling_seconds: ["sampling", "seconds of a step's rollouts"],
  trainer_waited: ["trainer waited", "seconds for the samplers"],
  sampler_waited: ["samplers waited", "seconds for the trainer"],
  age: ["age of these", "steps since they were sampled, mean"],
};
/** Where R is another one than p(Z Y | X). */
const OF_ANOTHER_REWARD = {
  log_reward: ["log-reward", "mean log R of the sampled chains, nats"],
  elbo: ["ELBO", "log Z(X) − KL(q ‖ posterior), nats"],
  bound: ["mean log Z(X), estimated", "of the questions, by importance sampling, nats"],
};
const SKEWED = new Set(["loss", "variance"]); // from 0 to a few large values: drawn on a square root scale
const SHARES = new Set(["accuracy", "distinct", "single", "cut", "ess", "validation", "mass", "replayed"]);

function showTraining(report, section) {
  const runs = report.runs;
  const charts = [];
  const phases = [...new Set(runs.flatMap((run) => Object.keys(run.steps)))].filter((phase) => !CHECKS.has(phase));
  const series = runs.map((run, r) => ({
    run,
    label: printable(run.name),
    colour: COLOURS[r % COLOURS.length],
    dash: dashOf(r),
    symbol: SYMBOLS[r % SYMBOLS.length],
  }));
  // The phase that learns from rationales first: it is what the run is about.
  const order = d3.sort(phases, (phase) => (runs.some((run) => "log_reward" in (run.steps[phase] ?? {})) ? 0 : 1));
  for (const phase of order) {
    const drawn = Object.keys(FIGURES).filter((name) =>
      runs.some((run) => (run.steps[phase]?.[name]?.length ?? 0) > 1),
    );
    const title = PHASES[phase] ?? phase.replaceAll("_", " ");
    if (drawn.length) charts.push([title, drawn.map((name) => stepChart(phase, name, series))]);
  }
  const compared = runs.some((run) => run.posterior.length);
  if (!charts.length && !compared) {
    section.append(empty("No training was logged", "The method does not train, or has not begun."));
    return;
  }
  if (runs.length > 1) section.append(seriesLegend(series));
  if (compared) {
    section.append(el("h3", {}, "How near q is to the posterior"));
    section.append(
      el(
        "p",
        {},
        "On validation questions, before and after each round's training of q: means over questions, each with its samples from q scored exactly under q and under p as it was then, before the M-step. ± is the standard error over questions. The rationales above have the same figures of single questions, under p as it is in the end.",
      ),
    );
    section.append(
      el(
        "div.grid.four",
        {},
        ["variance", "elbo", "bound", "ess", "mass"]
          .filter((name) => runs.some((run) => run.posterior.some((row) => typeof row[name] === "number")))
          .map((name) => posteriorChart(name, series)),
      ),
    );
  }
  for (const [title, figures] of charts) section.append(el("h3", {}, title), el("div.grid", {}, figures));
}

/** What the figures are called: by the reward of all runs, or, where these have several, of any. */
function labelsOf(series) {
  return series.some(({ run }) => run.joint === false) ? { ...FIGURES, ...OF_ANOTHER_REWARD } : FIGURES;
}

function stepChart(phase, name, series) {
  const [label, unit] = labelsOf(series)[name];
  const rows = [];
  const bordersOf = series.map(() => new Map());
  for (const [s, one] of series.entries()) {
    const columns = one.run.steps[phase];
    (columns?.[name] ?? []).forEach((value, k) => {
      const round = columns.round[k];
      if (!bordersOf[s].has(round)) bordersOf[s].set(round, k);
      if (value !== null)
        rows.push({
          x: k + 1,
          value: SHARES.has(name) ? 100 * value : value,
          round,
          step: columns.unit[k],
          series: one,
        });
    });
  }
  // Rounds of several lengths have no borders in common.
  const logged = bordersOf.filter((borders) => borders.size);
  const borders = new Set(logged.map((one) => JSON.stringify([...one]))).size === 1 ? logged[0] : new Map();
  const rounds = [...borders.entries()].filter(([, k]) => k > 0);
  return chart(label, SKEWED.has(name) ? `${unit}; square root scale` : unit, () => ({
    marginTop: 22,
    x: { label: "step", tickFormat: "d", ticks: 6 },
    y: {
      label: null,
      grid: true,
      type: SKEWED.has(name) ? "sqrt" : "linear",
      ticks: 5,
      tickFormat: SHARES.has(name) ? (value) => `${value} %` : (value) => figure(value),
    },
    marks: [
      Plot.ruleX(rounds, { x: ([, k]) => k + 0.5, stroke: "var(--muted)", strokeDasharray: "2 3" }),
      Plot.text(
        [...borders.entries()].filter(() => borders.size > 1),
        {
          x: ([, k]) => k + 1,
          text: ([round]) => `round ${round}`,
          frameAnchor: "top-left",
          textAnchor: "start",
          dy: -16,
          fill: "var(--muted)",
        },
      ),
      series.map((one) => [
        Plot.dot(
          rows.filter((row) => row.series === one),
          { x: "x", y: "value", r: 1.8, fill: one.colour, fillOpacity: 0.35 },
        ),
        Plot.line(
          rows.filter((row) => row.series === one),
          Plot.windowY(
            { k: 7, reduce: "median" },
            { x: "x", y: "value", z: "round", stroke: one.colour, strokeWidth: 2, strokeDasharray: one.dash },
          ),
        ),
      ]),
      Plot.tip(
        rows,
        Plot.pointerX({
          x: "x",
          y: "value",
          title: (row) =>
            `${series.length > 1 ? `${row.series.label}\n` : ""}round ${row.round}, step ${row.step}\n${label}: ${SHARES.has(name) ? percent(row.value / 100) : figure(row.value)}`,
        }),
      ),
    ],
  }));
}

function posteriorChart(name, series) {
  const [label, unit] = { ...labelsOf(series), mass: ["mass", "q's probability of the sampled chains"] }[name];
  const share = name === "ess" || name === "mass";
  const rows = series.flatMap((one) =>
    one.run.posterior
      .filter((row) => typeof row[name] === "number")
      .map((row) => ({
        at: `${row.round} ${row.when}`,
        round: row.round,
        value: share ? 100 * row[name] : row[name],
        error: name === "bound" ? row.bound_error : null,
        series: one,
      })),
  );
  const places = d3.sort(
    new Set(rows.map((row) => row.at)),
    (at) => parseInt(at, 10),
    (at) => (at.endsWith("after") ? 1 : 0),
  );
  return chart(label, unit, () => ({
    height: 170,
    x: {
      type: "point",
      domain: places,
      label: "round",
      padding: 0.4,
      tickFormat: (at) => (places.length > 6 ? at.replace(/(\d+) (b|a)\w+/, "$1$2") : at.replace(" ", "\n")),
    },
    marginBottom: 46,
    y: {
      label: null,
      grid: true,
      ticks: 4,
      nice: true,
      zero: name === "variance",
      tickFormat: share ? (value) => `${value} %` : undefined,
    },
    marks: series.map((one) => [
      Plot.line(
        rows.filter((row) => row.series === one),
        { x: "at", y: "value", stroke: one.colour, strokeWidth: 2 },
      ),
      Plot.dot(
        rows.filter((row) => row.series === one),
        { x: "at", y: "value", fill: one.colour, symbol: one.symbol, r: 4 },
      ),
      Plot.text(
        rows.filter((row) => row.series === one),
        {
          x: "at",
          y: "value",
          text: (row) =>
            share
              ? percent(row.value / 100)
              : name === "variance"
                ? figure(row.value)
                : estimate({ bound: row.value, error: row.error ?? null }), // to the digits that the terminal shows
          dy: series.length > 1 && one === series[1] ? 12 : -11,
          fill: "currentColor",
          stroke: "var(--card)",
          strokeWidth: 3,
        },
      ),
    ]),
  }));
}
