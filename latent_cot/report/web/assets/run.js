// What was run.

function lastRound(run) {
  return run.accuracy.reduce((latest, row) => Math.max(latest, row.round), -1);
}

function reasonersIn(run) {
  return [...new Set(run.accuracy.map((row) => row.reasoner))].sort().reverse(); // q before p
}

function showRuns(report, section) {
  const heading = section.querySelector("h1");
  heading.append(report.runs.map((run) => printable(run.name)).join("  ·  "));
  const same = (name) => [...new Set(report.runs.map((run) => printable(run[name])))].join(", ");
  heading.before(el("p.eyebrow", {}, `${same("task")}  ·  ${same("model")}  ·  ${same("method")}`));
  section.append(
    el("p.lead", {}, report.runs.length > 1 ? `${report.runs.length} runs, side by side.` : sentence(report.runs[0])),
  );
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
  const rows = run.accuracy.filter((row) => row.round === last && row.reasoner === reasonersIn(run)[0]);
  const seenOnes = rows.filter((row) => row.trained);
  const range = (of) => {
    const shares = of.map((row) => 100 * row.accuracy);
    const [low, high] = [Math.min(...shares), Math.max(...shares)].map((share) => share.toFixed(0));
    return low === high ? `${low} %` : `${low} to ${high} %`;
  };
  const what =
    seenOnes.length && seenOnes.length < rows.length
      ? `${range(seenOnes)} right on the kinds of question it was trained on, ${range(rows.filter((row) => !row.trained))} beyond them`
      : `${range(rows)} right`;
  return `After round ${last}, ${rows[0].reasoner} is ${what}.`;
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
