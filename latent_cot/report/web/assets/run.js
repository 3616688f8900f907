// What was run.

/** The newest round in which all splits were asked for, of a reasoner or of all: a later one may be under way. */
function lastRound(run, reasoner = null) {
  const rows = [...run.accuracy, ...run.metrics].filter((row) => reasoner === null || row.reasoner === reasoner);
  const asked = d3.rollups(
    rows,
    (of) => new Set(of.map((row) => `${row.reasoner}/${row.split}`)).size,
    (row) => row.round,
  );
  const most = d3.max(asked, ([, n]) => n);
  return d3.max(asked.filter(([, n]) => n === most), ([round]) => round) ?? -1;
}

function reasonersIn(run) {
  return [...new Set(run.accuracy.map((row) => row.reasoner))].sort(); // p, which the run is about, before q
}

function showRuns(report, section) {
  const heading = section.querySelector("h1");
  heading.append(report.runs.map((run) => printable(run.name)).join("  ·  "));
  const same = (name) => [...new Set(report.runs.map((run) => printable(run[name])))].join(", ");
  heading.before(el("p.eyebrow", {}, `${same("task")}  ·  ${same("model")}  ·  ${same("method")}`));
  section.append(
    el("p.lead", {}, report.runs.length > 1 ? `${report.runs.length} runs, side by side.` : sentence(report.runs[0])),
  );
  const named = report.runs.length > 1;
  section.append(...report.runs.map((run) => warningCard(run, named)).filter((card) => card !== null));
  section.append(
    el(
      "div.columns",
      {},
      report.runs.map((run) => runCard(run, report.runs.length > 1)),
    ),
  );
}

function sentence(run) {
  const last = lastRound(run);
  if (last < 0) return `The run is ${run.status}; nothing has been evaluated yet.`;
  if (!run.accuracy.length) return `Its figures after round ${last} are below.`;
  const told = reasonersIn(run)
    .map((reasoner) => [reasoner, lastRound(run, reasoner)])
    .map(([reasoner, round]) => {
      const rows = run.accuracy.filter((row) => row.round === round && row.reasoner === reasoner);
      return `${WHO[reasoner] ?? reasoner} is ${rightOf(rows)}${round === last ? "" : ` (after round ${round})`}`;
    });
  return `After round ${last}, ${told.join("; ")}.`;
}

const WHO = { p: "p, the model,", q: "q, the sampler," };

/** "95 % right", or by whether it was trained on such questions. */
function rightOf(rows) {
  const seenOnes = rows.filter((row) => row.trained);
  const range = (of) => {
    const shares = of.map((row) => 100 * row.accuracy);
    const [low, high] = [Math.min(...shares), Math.max(...shares)].map((share) => share.toFixed(0));
    return low === high ? `${low} %` : `${low} to ${high} %`;
  };
  return seenOnes.length && seenOnes.length < rows.length
    ? `${range(seenOnes)} right on the kinds of question it was trained on, ${range(rows.filter((row) => !row.trained))} beyond them`
    : `${range(rows)} right`;
}

/** What the run has found wrong with itself. */
function warningCard(run, named) {
  if (!run.warnings?.length) return null;
  return el(
    "div.warning",
    { role: "alert" },
    el("strong", {}, named ? `Warning: ${printable(run.name)}` : "Warning"),
    run.warnings.map((one) => {
      const phase = PHASES[one.kind] ?? printable(one.kind).replace("_", " ");
      return el("p", {}, `Round ${one.round}, ${phase}, unit ${one.unit}: ${printable(one.warning)}.`);
    }),
  );
}

function runCard(run, named) {
  const list = el(
    "dl.facts",
    {},
    run.facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, printable(value)))),
  );
  return el(
    "article.card",
    {},
    named ? el("h3", {}, printable(run.name)) : null,
    list,
    run.notes.length
      ? el(
          "details",
          {},
          el("summary", {}, plural(run.notes.length, "note")),
          el(
            "ul",
            {},
            run.notes.map((note) => el("li", {}, printable(note))),
          ),
        )
      : null,
  );
}
