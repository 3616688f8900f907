// The same questions before and after training, and rationales sampled on the way.

const BEFORE_AFTER = { base: "untrained model", q: "q, trained", p: "p, trained" };

function showBefore(report, section) {
  const sampled = report.runs.filter((run) => run.samples?.before_after.length);
  const logged = report.runs.filter((run) => run.logged.length);
  if (!sampled.length && !logged.length) {
    section.append(empty("No samples", "The run has logged no rationales, and none were sampled for this report."));
    return;
  }
  if (sampled.length) {
    section.append(
      el(
        "p",
        {},
        "The likeliest chain (greedy) for the same question, before any training and after it. ",
        el("span.tool", {}, "results"),
        " in frames are a tool's.",
      ),
    );
    section.append(
      el(
        "div.cards",
        {},
        beforeQuestions(sampled).map((key) => beforeCard(key, sampled)),
      ),
    );
  }
  if (logged.length) {
    section.append(el("h3", {}, "While it was trained"));
    section.append(
      el(
        "p",
        {},
        "Rationales of training questions at the first, a middle and the last step of each round; ×n: how often of those sampled.",
      ),
    );
    for (const run of logged) section.append(loggedTable(run, logged.length > 1));
  }
}

function beforeQuestions(runs) {
  const keys = new Map();
  for (const run of runs)
    for (const item of run.samples.before_after) keys.set(`${item.split}\n${item.question}`, item);
  return [...keys.values()];
}

function beforeCard(first, runs) {
  const rows = runs.flatMap((run) => {
    const item = run.samples.before_after.find((one) => one.split === first.split && one.question === first.question);
    return item
      ? Object.entries(item.by).map(([name, outcome]) => [
          runs.length > 1 ? `${printable(run.name)}: ${BEFORE_AFTER[name]}` : BEFORE_AFTER[name],
          outcome,
        ])
      : [];
  });
  return el(
    "article.card.before",
    {},
    el(
      "header",
      {},
      el("code.question", {}, printable(first.question)),
      first.answer === null ? null : el("span.note", {}, ` = ${printable(first.answer)}`),
      el("span.tag", {}, printable(first.split)),
    ),
    rows.map(([label, outcome]) =>
      el("div.row", {}, el("span.label", {}, label), verdict(outcome) ?? el("span"), segmentText(outcome)),
    ),
  );
}

/** "✓ right", "✗ wrong"; nothing where nobody can tell. */
function verdict({ right, answer }) {
  if (right === null) return null;
  const title = answer === null ? "no answer" : `answer ${printable(answer)}`;
  return el(`span.verdict.${right ? "right" : "wrong"}`, { title }, right ? "✓ right" : "✗ wrong");
}

/** A chain that is known by its text only: [kind, text] parts. Of failed calls the first is quoted. */
function segmentText({ text, cut }) {
  const failed = text.filter(([kind]) => kind === "failed").map(([, reason]) => printable(reason));
  return el(
    "span.chain-text",
    {},
    text.some(([kind, part]) => kind !== "failed" && part.trim()) ? null : el("i.note", {}, EMPTY),
    text
      .filter(([kind]) => kind !== "failed")
      .map(([kind, part], k) =>
        el(kind === "tool" ? "span.tool" : "span", {}, printable(k && kind === "own" ? part : part.trimStart())),
      ),
    cut ? el("span.tag", {}, "cut") : null,
    failed.length
      ? el("span.failed", { title: failed.join("\n") }, `✗ ${plural(failed.length, "call")} refused: ${failed[0]}`)
      : null,
  );
}

function loggedTable(run, named) {
  const headings = ["round", "phase", "step", "question", "rationale", "×", "log R"];
  const rows = run.logged.map((row) => [
    row.round,
    PHASES[row.phase] ?? row.phase,
    row.unit,
    el("code", {}, printable(row.question)),
    segmentText(row),
    row.count,
    fixed(row.log_reward),
  ]);
  return el(
    "details",
    { open: !named },
    el("summary", {}, named ? printable(run.name) : `${plural(run.logged.length, "sampled rationale")}`),
    table(headings, rows, "table.logged"),
  );
}
