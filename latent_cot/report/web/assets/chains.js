// How a chain looks: its tokens, and what is known of each.

/** The tokens of some nodes of a question, in order, as elements that know their node. A tool's tokens are one frame. */
function tokenElements(question, samples, path, colour) {
  const { nodes, callsAt } = question;
  const elements = [];
  let frame = null;
  for (const node of path) {
    const index = nodes.token[node];
    if (index !== null) {
      const text = printable(samples.tokens[index]);
      if (nodes.log_q[node] === null) {
        if (frame) frame.append(text);
        else elements.push((frame = el("span.tool", { tabindex: "-1" }, text.trimStart()))); // its margin is space enough
        frame.dataset.node = node;
      } else {
        frame = null;
        elements.push(
          el(`span.token.s${level(nodes[`log_${colour}`][node])}`, { "data-node": node, tabindex: "-1" }, text),
        );
      }
      for (const call of (callsAt.get(node) ?? []).filter((one) => one.error))
        elements.push(el("span.failed", { "data-node": node, tabindex: "-1" }, `✗ ${printable(call.tool)}`));
    }
    const stop = nodes[`stop_${colour}`][node];
    if (stop !== null) {
      const mark = el("span.state", {
        "data-node": node,
        "data-state": "yes",
        tabindex: "-1",
        role: "img",
        "aria-label": `may stop here, ${percent(Math.exp(stop))}`,
      });
      mark.style.setProperty("--stop", String(Math.exp(stop)));
      elements.push(mark);
    }
  }
  return elements;
}

/** What is known of a prefix, for the tooltip: [label, value] pairs behind a heading. */
function describeNode(question, samples, node, isState) {
  const { nodes, callsAt } = question;
  const index = nodes.token[node];
  const chance = (log) => `${fixed(log, 3)}  (${percent(Math.exp(log))})`;
  const rows = [];
  let heading;
  if (index === null) heading = "the empty rationale s₀";
  else if (nodes.log_q[node] === null) {
    const answeredAt = (place) => callsAt.get(place)?.find((one) => !one.error);
    let asked = node;
    while (asked > 0 && !answeredAt(asked)) asked = nodes.parent[asked];
    const call = answeredAt(asked);
    heading = call
      ? `${printable(call.tool)}: ${printable(call.request.trim())} → ${printable((call.result ?? "").trim())}`
      : "a tool's result";
    rows.push(["not a choice of the model", ""]);
  } else {
    heading = isState ? "a state: the chain may stop here" : `“${printable(samples.tokens[index])}”`;
    if (!isState) {
      rows.push([`log ${samples.reasoner}`, chance(nodes.log_q[node])]);
      if (samples.reasoner !== "p") rows.push(["log p", chance(nodes.log_p[node])]);
    }
    for (const call of (callsAt.get(node) ?? []).filter((one) => one.error))
      rows.push([`${printable(call.tool)} refused`, printable(call.error)]);
  }
  if (nodes.log_reward[node] !== null) rows.push(["log R of this prefix", fixed(nodes.log_reward[node], 3)]);
  if (nodes.stop_q[node] !== null) {
    rows.push([`stop, ${samples.reasoner}`, chance(nodes.stop_q[node])]);
    if (samples.reasoner !== "p") rows.push(["stop, p", chance(nodes.stop_p[node])]);
  } else if (index !== null && nodes.log_reward[node] === null && nodes.log_q[node] !== null)
    rows.push(["no state", "it may not stop here"]);
  return { heading, rows };
}

function meter(label, share, moot = false) {
  const bar = el("span.bar", { "aria-hidden": "true" });
  bar.style.setProperty("--share", String(share));
  return el(
    moot ? "span.meter.moot" : "span.meter",
    {},
    el("span.label", {}, label),
    bar,
    el("b", {}, percent(share)),
  );
}

const MOOT =
  "No sampled chain is right: posterior weights are shares of next to nothing here, and say nothing of the posterior.";

function isMoot(question) {
  return question.known && question.figures.right === 0;
}

/** "= 14", or that there is none; nothing where nobody asks. */
function answerOf({ answer, right }) {
  if (answer !== null) return el("span.answer", {}, `= ${printable(answer)}`);
  return right === null ? null : el("span.note", {}, "no answer");
}

/** Of the element that holds a chain's tokens. */
function textClass(question) {
  return question.dense ? "div.chain-text.dense" : "div.chain-text";
}

function chainElement(question, samples, chain, colour) {
  const tokens = tokenElements(question, samples, chain.path, colour);
  tokens[0]?.setAttribute("tabindex", "0"); // one stop of the Tab key a chain; arrow keys go on from there
  return el(
    "li.chain",
    { "data-right": String(chain.right) },
    el(
      "div.chain-head",
      {},
      verdict(chain),
      answerOf(chain),
      chain.cut ? el("span.tag", { title: "stopped by force at the largest number of tokens" }, "cut") : null,
      question.known ? meter("posterior", chain.weight, isMoot(question)) : null,
      meter(samples.reasoner, chain.q),
      el(
        "span.numbers",
        {},
        `×${chain.count}`,
        el("span", {}, `log ${samples.reasoner} ${fixed(chain.logQ)}`),
        question.known ? el("span", {}, `log R ${fixed(chain.logReward)}`) : null,
      ),
    ),
    el(textClass(question), {}, chain.text.trim() ? null : el("i.note", {}, EMPTY), tokens, chain.cut ? null : el("span.end", { title: "the chain stops" }, "⊤")),
  );
}
