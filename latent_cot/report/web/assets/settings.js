// All settings, and where runs differ.

function showSettings(report, section) {
  const flat = report.runs.map((run) => flatten(run.settings));
  const names = [...new Set(flat.flatMap((settings) => [...settings.keys()]))];
  const differing = new Set(names.filter((name) => new Set(flat.map((settings) => settings.get(name))).size > 1));
  const several = report.runs.length > 1;
  section.append(
    el(
      "p",
      {},
      several ? `${plural(differing.size, "setting")} of ${names.length} differ. ` : "",
      "To run one again, from its folder: ",
      el(
        "code",
        {},
        `latent-cot ${report.runs[0].method === "em" ? "em" : "fit"} --config config.yaml --output-dir NEW`,
      ),
    ),
  );
  const listed = (of) =>
    table(
      ["setting", ...report.runs.map((run) => (several ? printable(run.name) : "value"))],
      of.map((name) => [
        el("code", {}, name),
        ...flat.map((settings) => el("code", {}, printable(settings.get(name) ?? "–"))),
      ]),
    );
  if (several && differing.size) section.append(listed(names.filter((name) => differing.has(name))));
  section.append(el("details", {}, el("summary", {}, `All ${names.length} settings`), listed(names)));
}

/** {"e_step": {"steps": 40}} as "e_step.steps" -> "40". */
function flatten(settings, prefix = "", into = new Map()) {
  for (const [name, value] of Object.entries(settings)) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) flatten(value, `${prefix}${name}.`, into);
    else into.set(prefix + name, Array.isArray(value) ? value.join(", ") : String(value));
  }
  return into;
}
