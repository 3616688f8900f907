// How sure a reasoner was of a token, in eight levels. Their colours (report.css) are steps of cividis, whose lightness is
// monotone and which looks alike to people who see colours differently; the line below a token says the same again.

const LEVELS = [
  [0.99, "≥ 99 %"],
  [0.95, "95–99 %"],
  [0.8, "80–95 %"],
  [0.5, "50–80 %"],
  [0.25, "25–50 %"],
  [0.1, "10–25 %"],
  [0.01, "1–10 %"],
  [0, "< 1 %"],
];

/** The level, 0 to 7, of a token of this log-probability. */
function level(logProb) {
  const probability = Math.exp(logProb);
  return LEVELS.findIndex(([least]) => probability >= least);
}

/** The scale as a row of samples. */
function scaleLegend(name) {
  return el(
    "div.legend.scale",
    {
      role: "img",
      "aria-label": `Tokens are coloured by their probability under ${name}, from sure (plain) to surprising (strong).`,
    },
    el("span.legend-title", {}, `probability of the token under ${name}`),
    ...LEVELS.map(([, label], k) => el(`span.token.s${k}`, {}, label)),
  );
}
