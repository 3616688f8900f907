// What the rationales of a question weigh.
//
// Nodes are prefixes: columns `parent`, `token`, `log_q`, ... of which entry 0 is the empty rationale s_0.

/** Adds to a question what follows from its nodes: each chain's path, log q, log-reward, weights, text. */
function weigh(question, samples) {
  if (question.weighed) return question;
  question.weighed = true;
  const { nodes, chains } = question;
  question.dense = d3.sum(nodes.stop_q, (stop) => stop !== null) > nodes.parent.length / 2; // states at every token?
  question.callAt = new Map(question.calls.map((call) => [call.node, call]));
  for (const chain of chains) {
    chain.path = pathTo(nodes, chain.leaf);
    chain.logQ = d3.sum(chain.path, (node) => nodes.log_q[node] ?? 0) + (nodes.stop_q[chain.leaf] ?? 0);
    chain.logP = d3.sum(chain.path, (node) => nodes.log_p[node] ?? 0) + (nodes.stop_p[chain.leaf] ?? 0);
    chain.logReward = nodes.log_reward[chain.leaf];
    chain.q = Math.exp(chain.logQ);
    chain.share = chain.count / samples.n;
    chain.text = chain.path
      .map((node) => (nodes.token[node] === null ? "" : samples.tokens[nodes.token[node]]))
      .join("");
  }
  const best = d3.max(chains, (chain) => chain.logReward ?? -Infinity);
  const total = d3.sum(chains, (chain) => (chain.logReward === null ? 0 : Math.exp(chain.logReward - best)));
  question.known = total > 0; // is there a reward at all?
  for (const chain of chains)
    chain.weight = question.known ? (chain.logReward === null ? 0 : Math.exp(chain.logReward - best) / total) : null;
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
    mass: Math.min(
      1,
      d3.sum(chains, (chain) => chain.q),
    ),
    bound: null,
    ess: null,
  };
  if (known && samples.temperature === 1) {
    // importance weights R / q are of samples from q itself
    const logs = chains.map((chain) => (chain.logReward === null ? -Infinity : chain.logReward - chain.logQ));
    const top = d3.max(logs);
    const sum = d3.sum(chains, (chain, k) => chain.count * Math.exp(logs[k] - top));
    const squares = d3.sum(chains, (chain, k) => chain.count * Math.exp(2 * (logs[k] - top)));
    found.bound = top + Math.log(sum / samples.n);
    found.ess = (sum * sum) / squares / samples.n;
  }
  return found;
}
