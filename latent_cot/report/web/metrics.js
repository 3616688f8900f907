// The figures that a task has instead of right answers.

/** Of tasks that have figures of rationales instead of right answers: a table a split. */
function metricTables(runs) {
  const unique = (values) => [...new Set(values)];
  const rows = runs.flatMap((run) =>
    run.metrics.map((row) => ({
      ...row,
      run,
      column: `${runs.length > 1 ? `${printable(run.name)}, ` : ""}round ${row.round}, ${row.reasoner}`,
    })),
  );
  const columns = unique(rows.map((row) => row.column));
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
          el(
            "div.scroll",
            { tabindex: "0" },
            el(
              "table",
              {},
              el(
                "thead",
                {},
                el(
                  "tr",
                  {},
                  el("th", { scope: "col" }, "figure"),
                  columns.map((column) => el("th", { scope: "col" }, column)),
                ),
              ),
              el(
                "tbody",
                {},
                unique(own.map((row) => row.metric)).map((metric) => {
                  const [first] = own.filter((row) => row.metric === metric);
                  return el(
                    "tr",
                    {},
                    el(
                      "th",
                      { scope: "row" },
                      printable(metric),
                      first.description
                        ? el(
                            "div.note",
                            {},
                            printable(first.description),
                            first.better === "neither" ? "" : `; ${first.better} is better`,
                          )
                        : null,
                    ),
                    columns.map((column) => {
                      const row = own.find((one) => one.metric === metric && one.column === column);
                      return el("td", {}, row ? row.text : "–");
                    }),
                  );
                }),
              ),
            ),
          ),
        ];
      })
      .flat(),
  );
}
