// A question's rationales: what they weigh, and how a chain and the tree of all chains look.
//
// Nodes are prefixes: columns `parent`, `token`, `log_q`, ... of which entry 0 is the empty rationale s_0.

/** Adds to a question what follows from its nodes: each chain's path, log q, log-reward, weights, text. */
function weigh(question, samples) {
  if (question.weighed) return question;
  question.weighed = true;
  const { nodes, chains } = question;
  question.callAt = new Map(question.calls.map((call) => [call.node, call]));
  for (const chain of chains) {
    chain.path = pathTo(nodes, chain.leaf);
    chain.logQ = d3.sum(chain.path, (node) => nodes.log_q[node] ?? 0) + (nodes.stop_q[chain.leaf] ?? 0);
    chain.logP = d3.sum(chain.path, (node) => nodes.log_p[node] ?? 0) + (nodes.stop_p[chain.leaf] ?? 0);
    chain.logReward = nodes.log_reward[chain.leaf];
    chain.q = Math.exp(chain.logQ);
    chain.share = chain.count / samples.n;
    chain.text = chain.path.map((node) => (nodes.token[node] === null ? "" : samples.tokens[nodes.token[node]])).join("");
  }
  const best = d3.max(chains, (chain) => chain.logReward ?? -Infinity);
  const total = d3.sum(chains, (chain) => (chain.logReward === null ? 0 : Math.exp(chain.logReward - best)));
  question.known = total > 0; // is there a reward at all?
  for (const chain of chains) chain.weight = question.known ? (chain.logReward === null ? 0 : Math.exp(chain.logReward - best) / total) : null;
  chains.sort((a, b) => (b.weight ?? b.q) - (a.weight ?? a.q) || b.logQ - a.logQ);
  question.figures = figuresOf(question, samples);
  return question;
}

function pathTo(nodes, leaf) {
  const path = [];
  for (let node = leaf; node >= 0; node = nodes.parent[node]) path.push(node);
  return path.reverse();
}

function figuresOf({ chains, known }, samples) {
  const graded = chains.filter((chain) => chain.right !== null);
  const found = {
    distinct: chains.length,
    right: graded.length ? d3.sum(graded, (chain) => (chain.right ? chain.count : 0)) : null,
    mass: Math.min(1, d3.sum(chains, (chain) => chain.q)),
    bound: null,
    ess: null,
  };
  if (known && samples.temperature === 1) { // importance weights R / q are of samples from q itself
    const logs = chains.map((chain) => (chain.logReward === null ? -Infinity : chain.logReward - chain.logQ));
    const top = d3.max(logs);
    const sum = d3.sum(chains, (chain, k) => chain.count * Math.exp(logs[k] - top));
    const squares = d3.sum(chains, (chain, k) => chain.count * Math.exp(2 * (logs[k] - top)));
    found.bound = top + Math.log(sum / samples.n);
    found.ess = (sum * sum) / squares / samples.n;
  }
  return found;
}

// -- tokens -------------------------------------------------------------------------------------------------

/** The tokens of some nodes of a question, in order, as elements that know their node. A tool's tokens are one frame. */
function tokenElements(question, samples, path, colour) {
  const { nodes, callAt } = question;
  const elements = [];
  let frame = null;
  for (const node of path) {
    const index = nodes.token[node];
    if (index !== null) {
      const text = printable(samples.tokens[index]);
      if (nodes.log_q[node] === null) {
        if (frame) frame.append(text);
        else elements.push(frame = el("span.tool", { tabindex: "-1" }, text.trimStart())); // its margin is space enough
        frame.dataset.node = node;
      } else {
        frame = null;
        elements.push(el(`span.token.s${level(nodes[`log_${colour}`][node])}`, { "data-node": node, tabindex: "-1" }, text));
      }
      const call = callAt.get(node);
      if (call?.error) elements.push(el("span.failed", { "data-node": node, tabindex: "-1" }, `✗ ${printable(call.tool)}`));
    }
    const stop = nodes[`stop_${colour}`][node];
    if (stop !== null) {
      const mark = el("span.state", { "data-node": node, "data-state": "yes", tabindex: "-1", role: "img", "aria-label": `may stop here, ${percent(Math.exp(stop))}` });
      mark.style.setProperty("--stop", String(Math.exp(stop)));
      elements.push(mark);
    }
  }
  return elements;
}

/** What is known of a prefix, for the tooltip: [label, value] pairs behind a heading. */
function describeNode(question, samples, node, isState) {
  const { nodes, callAt } = question;
  const index = nodes.token[node];
  const chance = (log) => `${fixed(log, 3)}  (${percent(Math.exp(log))})`;
  const rows = [];
  let heading;
  if (index === null) heading = "the empty rationale s₀";
  else if (nodes.log_q[node] === null) {
    let asked = node;
    while (asked > 0 && !callAt.has(asked)) asked = nodes.parent[asked];
    const call = callAt.get(asked);
    heading = call ? `${printable(call.tool)}: ${printable(call.request.trim())} → ${printable((call.result ?? "").trim())}` : "a tool's result";
    rows.push(["not a choice of the model", ""]);
  } else {
    heading = isState ? "a state: the chain may stop here" : `“${printable(samples.tokens[index])}”`;
    if (!isState) {
      rows.push([`log ${samples.reasoner}`, chance(nodes.log_q[node])]);
      if (samples.reasoner !== "p") rows.push(["log p", chance(nodes.log_p[node])]);
    }
    const call = callAt.get(node);
    if (call?.error) rows.push([`${printable(call.tool)} refused`, printable(call.error)]);
  }
  if (nodes.log_reward[node] !== null) rows.push(["log R of this prefix", fixed(nodes.log_reward[node], 3)]);
  if (nodes.stop_q[node] !== null) {
    rows.push([`stop, ${samples.reasoner}`, chance(nodes.stop_q[node])]);
    if (samples.reasoner !== "p") rows.push(["stop, p", chance(nodes.stop_p[node])]);
  } else if (index !== null && nodes.log_reward[node] === null && nodes.log_q[node] !== null) rows.push(["no state", "it may not stop here"]);
  return { heading, rows };
}

// -- a chain ------------------------------------------------------------------------------------------------

function meter(label, share) {
  const bar = el("span.bar", { "aria-hidden": "true" });
  bar.style.setProperty("--share", String(share));
  return el("span.meter", {}, el("span.label", {}, label), bar, el("b", {}, percent(share)));
}

function chainElement(question, samples, chain, colour) {
  const tokens = tokenElements(question, samples, chain.path, colour);
  tokens[0]?.setAttribute("tabindex", "0"); // one stop of the Tab key a chain; arrow keys go on from there
  return el("li.chain", { "data-right": String(chain.right) },
    el("div.chain-head", {},
      verdict(chain),
      chain.answer === null ? el("span.note", {}, "no answer") : el("span.answer", {}, `= ${printable(chain.answer)}`),
      chain.cut ? el("span.tag", { title: "stopped by force at the largest number of tokens" }, "cut") : null,
      question.known ? meter("posterior", chain.weight) : null,
      meter(samples.reasoner, chain.q),
      el("span.numbers", {}, `×${chain.count}`, el("span", {}, `log ${samples.reasoner} ${fixed(chain.logQ)}`), question.known ? el("span", {}, `log R ${fixed(chain.logReward)}`) : null)),
    el("div.chain-text", {}, tokens, chain.cut ? null : el("span.end", { title: "the chain stops" }, "⊤")));
}

// -- the tree -----------------------------------------------------------------------------------------------

/** The chains merged: what they share is one branch, whose stem is as thick as its mass. */
function treeElement(question, samples, chains, colour) {
  const { nodes } = question;
  const usesWeight = colour === "p" && question.known;
  const massOf = (chain) => (usesWeight ? chain.weight : chain.q);
  const mass = new Map();
  const children = new Map();
  const ends = new Map();
  for (const chain of chains) {
    for (const node of chain.path) {
      mass.set(node, (mass.get(node) ?? 0) + massOf(chain));
      const parent = nodes.parent[node];
      if (parent >= 0) {
        if (!children.has(parent)) children.set(parent, new Set());
        children.get(parent).add(node);
      }
    }
    ends.set(chain.leaf, chain);
  }
  function branch(first) {
    const path = [first];
    let node = first;
    while (!ends.has(node) && children.get(node)?.size === 1) {
      [node] = children.get(node);
      path.push(node);
    }
    const rest = [...(children.get(node) ?? [])].sort((a, b) => mass.get(b) - mass.get(a));
    const chain = ends.get(node);
    const twigs = [...(chain && rest.length ? [el("li.branch", {}, stem(massOf(chain)), endElement(chain))] : []), ...rest.map(branch)];
    const tokens = tokenElements(question, samples, path, colour);
    tokens[0]?.setAttribute("tabindex", "0");
    return el("li.branch", {}, stem(mass.get(first)),
      el("div.segment", {}, el("span.chain-text", {}, tokens), chain && !rest.length ? endElement(chain) : null, el("span.mass", {}, percent(Math.min(1, mass.get(first))))),
      twigs.length ? el("ul.twigs", {}, twigs) : null);
  }
  return el("div.tree-frame.scroll", { tabindex: "0", "aria-label": "Tree of the chains" },
    el("p.note", {}, usesWeight ? "Stems are as thick as the posterior weight of the chains behind them." : `Stems are as thick as the probability under ${samples.reasoner} of the sampled chains behind them.`),
    el("ul.tree", {}, branch(0)));
}

function stem(share) {
  const element = el("span.stem", { "aria-hidden": "true" });
  element.style.setProperty("--share", String(Math.min(1, share)));
  return element;
}

function endElement(chain) {
  return el("span.end", {}, "⊤ ", verdict(chain), chain.answer === null ? null : el("span.answer", {}, ` = ${printable(chain.answer)}`), el("span.note", {}, ` ×${chain.count}`));
}
