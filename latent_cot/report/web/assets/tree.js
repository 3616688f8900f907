// How the tree of all chains looks.

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
    const twigs = [
      ...(chain && rest.length ? [el("li.branch", {}, stem(massOf(chain)), endElement(chain))] : []),
      ...rest.map(branch),
    ];
    const tokens = tokenElements(question, samples, path, colour);
    tokens[0]?.setAttribute("tabindex", "0");
    return el(
      "li.branch",
      {},
      stem(mass.get(first)),
      el(
        "div.segment",
        {},
        el(textClass(question), {}, tokens),
        chain && !rest.length ? endElement(chain) : null,
        el("span.mass", {}, percent(Math.min(1, mass.get(first)))),
      ),
      twigs.length ? el("ul.twigs", {}, twigs) : null,
    );
  }
  return el(
    "div.tree-frame.scroll",
    { tabindex: "0", "aria-label": "Tree of the chains" },
    el(
      "p.note",
      {},
      usesWeight
        ? "Stems are as thick as the posterior weight of the chains behind them."
        : `Stems are as thick as the probability under ${samples.reasoner} of the sampled chains behind them.`,
    ),
    el("ul.tree", {}, branch(0)),
  );
}

function stem(share) {
  const element = el("span.stem", { "aria-hidden": "true" });
  element.style.setProperty("--share", String(Math.min(1, share)));
  return element;
}

function endElement(chain) {
  return el(
    "span.end",
    {},
    "⊤ ",
    verdict(chain),
    chain.answer === null ? null : el("span.answer", {}, ` = ${printable(chain.answer)}`),
    el("span.note", {}, ` ×${chain.count}`),
  );
}

/** A tree that is wider than its frame becomes an outline: from the top down, a branch below the one it comes from. */
function fitTree(pane) {
  const frame = pane.querySelector(".tree-frame");
  if (!frame) return;
  frame.classList.remove("outline");
  frame.classList.toggle("outline", frame.scrollWidth > frame.clientWidth + 1);
}
