// What the rationales of a question weigh.
//
// Nodes are prefixes: columns `parent`, `token`, `log_q`, ... of which entry 0 is the empty rationale s_0.

/** Adds to a question what follows from its nodes: each chain's path, log q, log-reward, weights, text. */
function weigh(question, samples) {
  if (question.weighed) return question;
  question.weighed = true;
  const { nodes, chains } = question;
  question.dense = d3.sum(nodes.stop_q, (stop) => stop !== null) > nodes.parent.length / 2; // states at every token?
  question.callsAt = d3.group(question.calls, (call) => call.node); // one that failed may stand where another begins
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

function figuresOf(question, samples) {
  const { chains } = question;
  const graded = chains.filter((chain) => chain.right !== null);
  const right = graded.length ? d3.sum(graded, (chain) => (chain.right ? chain.count : 0)) : null;
  return {
    distinct: chains.length,
    right,
    // 1 where half of the samples are right; where nobody can tell, how many chains there are.
    divided: right === null ? chains.length / samples.n : 1 - Math.abs((2 * right) / samples.n - 1),
    mass: Math.min(
      1,
      d3.sum(chains, (chain) => chain.q),
    ),
    bound: question.bound ?? null,
    error: question.bound_error ?? null,
    ess: question.ess ?? null,
  };
}

/** "−0.25 ± 0.08", in nats: what log p(Y | X) is by importance sampling. It cannot be above 0, but its estimate can. */
function estimate({ bound, error }) {
  return error === null ? fixed(bound) : `${fixed(bound)} ± ${fixed(error)}`;
}
