// The figures that a task has instead of right answers.

/** Of tasks that have figures of rationales instead of right answers: a table a split. */
function metricTables(runs) {
  const unique = (values) => [...new Set(values)];
  const rows = runs.flatMap((run) =>
    run.metrics.map((row) => ({
      ...row,
      column: `${runs.indexOf(run)}/${row.round}/${row.reasoner}`, // two runs may have one name
      heading: `${runs.length > 1 ? `${printable(run.name)}, ` : ""}round ${row.round}, ${row.reasoner}`,
    })),
  );
  const columns = unique(rows.map((row) => row.column));
  const headings = columns.map((column) => rows.find((row) => row.column === column).heading);
  return el(
    "div",
    {},
    el(
      "p",
      {},
      "Figures of rationales sampled for test questions, with 95 % intervals of their mean (bootstrap over questions) where there is one.",
    ),
    unique(rows.map((row) => row.split))
      .map((split) => {
        const own = rows.filter((row) => row.split === split);
        return [
          el("h3", {}, printable(split)),
          table(
            ["figure", ...headings],
            unique(own.map((row) => row.metric)).map((metric) => {
              const [first] = own.filter((row) => row.metric === metric);
              const note = first.better === "neither" ? "" : `; ${first.better} is better`;
              return [
                [printable(metric), first.description ? el("div.note", {}, printable(first.description), note) : null],
                ...columns.map((column) => {
                  const row = own.find((one) => one.metric === metric && one.column === column);
                  return row ? row.text : "–";
                }),
              ];
            }),
          ),
        ];
      })
      .flat(),
  );
}
