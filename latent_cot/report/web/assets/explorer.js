// The rationale explorer: pick a question, see its chains; filter, search, compare two runs.

const CHAINS_AT_ONCE = 40;
const QUESTIONS_AT_ONCE = 150;

function showRationales(report, section, tooltip) {
  const runs = report.runs.flatMap((run) => panesOf(run, report.runs.length > 1));
  if (!runs.length) {
    section.append(
      empty(
        "No rationales were sampled",
        "This report was made from the logs alone. Make it without --no-model to see, token by token, how the run's chains come about.",
      ),
    );
    return null;
  }
  return new Explorer(runs, section, tooltip);
}

/** A run once for each reasoner whose rationales it has: each is a pane of its own. */
function panesOf(run, named) {
  if (!run.samples?.questions.length) return [];
  const all = [run.samples, ...(run.samples.beside ?? [])];
  if (all.length === 1) return [run];
  const name = ({ reasoner }) => (named ? `${run.name}, ${reasoner}` : REASONERS[reasoner]);
  return all.map((samples) => ({ ...run, samples, name: name(samples), of: run.name }));
}

const REASONERS = { p: "p, the model", q: "q, the sampler" };

/** Order of the questions -> its name, and how high a question's figures are in it. */
const ORDERS = {
  given: ["as sampled", () => 0],
  hardest: ["hardest first", (figures) => (figures.right === null ? -(figures.bound ?? 0) : -figures.right)],
  divided: ["most divided first", (figures) => figures.divided],
};

class Explorer {
  constructor(runs, section, tooltip) {
    this.runs = runs;
    const nameOf = (run) => run.of ?? run.name;
    const other = runs.find((run) => nameOf(run) !== nameOf(runs[0])) ?? runs[1]; // else the run's other reasoner
    this.shown = other ? [runs[0], other] : [runs[0]];
    this.tooltip = tooltip;
    this.state = { search: "", split: "", order: "given", outcome: "all", colour: "q", view: "chains" };
    this.entries = entriesOf(runs);
    // Of a question that all samples answer alike there is little to see.
    this.selected = d3.greatest(this.entries, (entry) => this.score(entry, "divided"));
    this.usesTools = runs.some((run) => run.samples.questions.some((question) => question.calls.length));
    this.layout(section);
    this.filter();
    if (this.selected) keepInView(this.selected.item, this.list);
    this.follow();
    window.addEventListener("hashchange", () => this.follow());
    window.addEventListener("resize", () => this.panes.querySelectorAll(".pane").forEach(fitTree));
  }

  /** How high a question is in an order, by the first of those shown that has it. */
  score(entry, order) {
    const run = [...this.shown, ...this.runs].find((one) => entry.by.has(one));
    return ORDERS[order][1](weigh(entry.by.get(run), run.samples).figures);
  }

  // -- a selection has an address ------------------------------------------------------------------------

  /** Show what the address says, if it says anything. */
  follow() {
    const asked = new URLSearchParams(window.location.hash.slice(1));
    const entry = this.entries.find((one) => String(one.id) === asked.get("q"));
    if (!entry) return;
    if (!this.shown.some((run) => entry.by.has(run))) {
      this.shown[0] = this.runs.find((run) => entry.by.has(run));
      this.pickers[0].value = String(this.runs.indexOf(this.shown[0]));
      this.filter();
    }
    if (["chains", "tree"].includes(asked.get("view"))) this.view.set(asked.get("view"));
    if (["q", "p"].includes(asked.get("colour"))) this.colour.set(asked.get("colour"));
    if (!this.visible.includes(entry)) {
      this.search.value = "";
      this.split.value = "";
      Object.assign(this.state, { search: "", split: "" });
      this.outcome.set("all");
    }
    this.select(entry);
    document.getElementById("rationales").scrollIntoView({ behavior: "instant" });
  }

  /** Put what is selected into the address. */
  remember() {
    const { view, colour } = this.state;
    const parts = [`q=${this.selected.id}`];
    if (view !== "chains") parts.push(`view=${view}`);
    if (colour !== "q") parts.push(`colour=${colour}`);
    window.history.replaceState(null, "", `#${parts.join("&")}`);
  }

  layout(section) {
    const kinds = new Set(this.runs.map((run) => run.samples.reasoner));
    const own = kinds.size > 1 ? "log q or p" : `log ${this.runs[0].samples.reasoner}`;
    this.graded = this.entries.some((entry) =>
      [...entry.by.values()].some((question) => question.chains.some((chain) => chain.right !== null)),
    );
    const splits = [...new Set(this.entries.map((entry) => entry.split))];
    this.search = el("input", {
      type: "search",
      placeholder: "Search questions and chains",
      "aria-label": "Search questions and chains",
      title: "Key: /",
      oninput: () => this.set("search", this.search.value.trim().toLowerCase()),
    });
    this.split = el(
      "select",
      { "aria-label": "Split", onchange: () => this.set("split", this.split.value) },
      el("option", { value: "" }, "all splits"),
      splits.map((split) => el("option", { value: split }, printable(split))),
    );
    this.outcome = segmented(
      "chains",
      [
        ["all", "all", "w"],
        ["right", "✓ right", "w"],
        ["wrong", "✗ wrong", "w"],
      ],
      "all",
      (value) => this.set("outcome", value),
    );
    this.colour = segmented(
      "colour",
      [
        ["q", own, "q"],
        ["p", "log p", "p"],
      ],
      "q",
      (value) => this.set("colour", value),
    );
    this.view = segmented(
      "view",
      [
        ["chains", "list", "t"],
        ["tree", "tree", "t"],
      ],
      "chains",
      (value) => this.set("view", value),
    );
    this.list = el("div.questions", {
      role: "listbox",
      "aria-label": "Questions",
      tabindex: "0",
      onkeydown: (event) => this.listKey(event),
    });
    this.count = el("p.note.count", { role: "status" });
    this.panes = el("div.panes");
    this.legend = el("div.legends");
    this.help = helpDialog(this.graded);
    this.order = el(
      "select",
      { "aria-label": "Order", onchange: () => this.set("order", this.order.value) },
      Object.entries(ORDERS).map(([name, [label]]) => el("option", { value: name }, label)),
    );
    section.append(
      el("p", {}, this.introduction()),
      el(
        "div.toolbar",
        {},
        this.search,
        this.split,
        this.order,
        this.graded ? this.outcome.element : null,
        kinds.has("q") ? this.colour.element : null,
        this.view.element,
        this.runs.length > 1 ? this.runPickers() : null,
        el("button", { type: "button", onclick: () => this.help.showModal() }, "? keys"),
        this.help,
      ),
      this.legend,
      el("div.explorer", {}, el("div.side", {}, this.count, this.list), this.panes),
    );
    this.more = el("span"); // at the list's end: when it comes into view, the list grows
    new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && this.growList(), { root: this.list }).observe(
      this.more,
    );
    this.tooltip.follow(this.panes, (element) => this.describe(element));
    this.panes.addEventListener("keydown", (event) => this.tokenKey(event));
  }

  introduction() {
    const { samples } = this.runs[0];
    const names = [...new Set(this.runs.map((run) => run.samples.reasoner))].join(" and from ");
    return (
      `${samples.n} rationales a question, sampled from ${names}${this.runs.some((run) => run.samples.sees_answer) ? " (q sees the answer)" : ""} at temperature ${samples.temperature}, on questions kept out of training. ` +
      `Sorted by posterior weight: R ÷ the sum of R over the distinct chains, with log R = ${samples.log_reward} in nats. Hover, tap or tab to a token for its figures.`
    );
  }

  /** Which two runs are shown. */
  runPickers() {
    this.pickers = ["left", "right"].map((side, k) =>
      el(
        "select",
        {
          "aria-label": `Run on the ${side}`,
          onchange: () => {
            this.shown = this.pickers.map((one) => this.runs[Number(one.value)]);
            this.filter();
          },
        },
        this.runs.map((run, r) => el("option", { value: r, selected: run === this.shown[k] }, printable(run.name))),
      ),
    );
    return this.pickers;
  }

  set(name, value) {
    this.state[name] = value;
    if (name === "colour" || name === "view") this.showQuestion();
    else this.filter();
  }

  // -- the list ------------------------------------------------------------------------------------------

  /** Does a chain pass the filters? */
  passes(chain, entry) {
    const { outcome, search } = this.state;
    if (outcome !== "all" && chain.right !== (outcome === "right")) return false;
    return !search || entry.question.toLowerCase().includes(search) || chain.text.toLowerCase().includes(search);
  }

  filter() {
    const { split, order } = this.state;
    const found = this.entries.filter(
      (entry) =>
        (!split || entry.split === split) &&
        this.shown.some((run) => {
          const question = entry.by.get(run);
          return question && weigh(question, run.samples).chains.some((chain) => this.passes(chain, entry));
        }),
    );
    this.visible = order === "given" ? found : d3.sort(found, (entry) => -this.score(entry, order));
    const chains = d3.sum(this.visible, (entry) =>
      d3.sum(this.shown, (run) => entry.by.get(run)?.chains.filter((chain) => this.passes(chain, entry)).length ?? 0),
    );
    this.count.textContent = `${plural(this.visible.length, "question")}, ${plural(chains, "chain")}`;
    this.list.replaceChildren(this.more);
    this.rendered = 0;
    this.growList();
    if (!this.visible.includes(this.selected)) this.selected = this.visible[0] ?? null;
    this.mark();
    this.showQuestion();
  }

  growList(upTo = 0) {
    const end = Math.min(this.visible.length, Math.max(this.rendered + QUESTIONS_AT_ONCE, upTo));
    const items = this.visible.slice(this.rendered, end).map((entry) => this.listItem(entry));
    this.more.before(...items);
    this.rendered = end;
  }

  listItem(entry) {
    const names = new Set(this.shown.map((run) => run.samples.reasoner)).size > 1;
    const parts = this.shown
      .filter((run) => entry.by.has(run))
      .map((run) => {
        const { figures } = weigh(entry.by.get(run), run.samples);
        if (figures.right === null) return el("span.note", {}, `${figures.distinct} distinct`);
        const share = figures.right / run.samples.n;
        const bar = el("span.bar", { "aria-hidden": "true" });
        bar.style.setProperty("--share", String(share));
        return el(
          "span.score",
          { title: `${figures.right} of ${run.samples.n} right` },
          names ? run.samples.reasoner : null,
          bar,
          `${figures.right}/${run.samples.n}`,
        );
      });
    entry.item = el(
      "div.question-item",
      { role: "option", id: `question-${entry.id}`, "aria-selected": "false", onclick: () => this.select(entry) },
      el("code", {}, printable(entry.question)),
      el("span.tag", {}, printable(entry.split)),
      el("span.scores", {}, parts),
    );
    return entry.item;
  }

  mark() {
    this.list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    if (!this.selected) return this.list.removeAttribute("aria-activedescendant");
    this.growListTo(this.selected);
    this.selected.item.setAttribute("aria-selected", "true");
    this.list.setAttribute("aria-activedescendant", this.selected.item.id);
    return undefined;
  }

  growListTo(entry) {
    const place = this.visible.indexOf(entry);
    if (place >= this.rendered) this.growList(place + 1);
  }

  select(entry) {
    if (!entry || entry === this.selected) return;
    this.selected = entry;
    this.touched = true; // before that the address is as it was given
    this.mark();
    keepInView(entry.item, this.list);
    this.showQuestion();
  }

  /** The question so many places further on. */
  step(by) {
    const place = this.visible.indexOf(this.selected) + by;
    this.select(this.visible[Math.max(0, Math.min(this.visible.length - 1, place))]);
  }

  listKey(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    if (Number.isFinite(by)) this.step(by);
    else this.select(this.visible[by < 0 ? 0 : this.visible.length - 1]);
  }

  // -- the question --------------------------------------------------------------------------------------

  showQuestion() {
    this.tooltip.hide();
    const entry = this.selected;
    this.legend.replaceChildren(this.legendElement());
    if (!entry) {
      this.panes.replaceChildren(
        empty("Nothing matches", "No chain passes the filters; clear the search, or show all chains."),
      );
      return;
    }
    this.panes.replaceChildren(...this.shown.map((run) => this.pane(run, entry)));
    this.panes.querySelectorAll(".pane").forEach(fitTree);
    if (this.touched) this.remember();
  }

  legendElement() {
    const kinds = new Set(this.shown.map((run) => run.samples.reasoner));
    const name = this.state.colour === "p" ? "p" : kinds.size > 1 ? "the reasoner that wrote it" : [...kinds][0];
    const mark = el("span.state", { "aria-hidden": "true" });
    mark.style.setProperty("--stop", "0.6");
    return el(
      "div.legend-rows",
      {},
      scaleLegend(name),
      el(
        "div.legend",
        {},
        this.usesTools ? el("span.legend-item", {}, el("span.tool", {}, "12"), "written by a tool") : null,
        el("span.legend-item", {}, mark, "may stop here; filled: how likely it does"),
        el("span.legend-item", {}, el("span.end", {}, "⊤"), "the stop"),
      ),
    );
  }

  pane(run, entry) {
    const name = this.runs.length > 1 ? el("h4", {}, printable(run.name)) : null;
    const question = entry.by.get(run);
    if (!question)
      return el(
        "article.card.pane",
        {},
        name,
        empty("Not sampled", "This run's report has no rationales for the question."),
      );
    const { samples } = run;
    const { figures } = weigh(question, samples);
    const chains = question.chains.filter((chain) => this.passes(chain, entry));
    const numbers = [
      ["right", figures.right === null ? null : `${figures.right} of ${samples.n}`],
      ["distinct", figures.distinct],
      [`mass under ${samples.reasoner}`, percent(figures.mass)],
      [
        samples.log_reward === "log p(Z Y | X)" ? "log p(Y | X), estimated" : "log Z(X), estimated",
        figures.bound === null ? null : estimate(figures),
      ],
      ["ESS", figures.ess === null ? null : percent(figures.ess)],
    ].filter(([, value]) => value !== null);
    const head = el(
      "header.pane-head",
      {},
      name,
      el(
        "p.prompt",
        {},
        el("code", {}, printable(question.prompt)),
        el("a.link", { href: `#q=${entry.id}`, "aria-label": "Link to this question" }, "#"),
        question.answer === null
          ? null
          : el("span.note", {}, `  ${figures.right === null ? "Y" : "right answer"}: ${printable(question.answer)}`),
      ),
      el(
        "dl.figures",
        {},
        numbers.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))),
      ),
      isMoot(question) ? el("p.note", {}, MOOT) : null,
    );
    const pane = el("article.card.pane", {}, head);
    pane.question = question;
    pane.samples = samples;
    const colour = this.state.colour;
    if (!chains.length) pane.append(empty("No chain passes the filters", "Show all chains, or clear the search."));
    else if (this.state.view === "tree") pane.append(treeElement(question, samples, chains, colour));
    else pane.append(this.chainList(question, samples, chains, colour));
    return pane;
  }

  chainList(question, samples, chains, colour) {
    const list = el("ol.chains");
    const more = el("button.more", { type: "button", onclick: () => grow() });
    let done = 0;
    function grow() {
      list.append(
        ...chains.slice(done, done + CHAINS_AT_ONCE).map((chain) => chainElement(question, samples, chain, colour)),
      );
      done = Math.min(chains.length, done + CHAINS_AT_ONCE);
      more.textContent = `show ${Math.min(CHAINS_AT_ONCE, chains.length - done)} more of ${chains.length - done}`;
      more.hidden = done >= chains.length;
    }
    grow();
    return el("div", {}, list, more);
  }

  describe(element) {
    const pane = element.closest(".pane");
    return describeNode(pane.question, pane.samples, Number(element.dataset.node), "state" in element.dataset);
  }

  // -- keys ----------------------------------------------------------------------------------------------

  /** Arrow keys go from token to token, and from chain to chain. */
  tokenKey(event) {
    const token = event.target.closest?.("[data-node]");
    if (!token) return;
    const chain = token.parentElement;
    const tokens = [...chain.querySelectorAll("[data-node]")];
    const rows = [...token.closest(".pane").querySelectorAll(".chain-text")];
    let next;
    if (event.key === "ArrowRight") next = tokens[tokens.indexOf(token) + 1];
    else if (event.key === "ArrowLeft") next = tokens[tokens.indexOf(token) - 1];
    else if (event.key === "ArrowDown" || event.key === "ArrowUp")
      next = rows[rows.indexOf(chain) + (event.key === "ArrowDown" ? 1 : -1)]?.querySelector("[data-node]");
    else if (event.key === "Home") [next] = tokens;
    else if (event.key === "End") next = tokens[tokens.length - 1];
    else return;
    event.preventDefault();
    next?.focus();
  }

  /** A key that was pressed anywhere on the page, but not in a field. Returns whether it means anything. */
  key(key) {
    const cycle = { all: "right", right: "wrong", wrong: "all" };
    const actions = {
      "/": () => this.search.focus(),
      j: () => this.step(1),
      k: () => this.step(-1),
      q: () => this.colour.set("q"),
      p: () => this.colour.set("p"),
      t: () => this.view.set(this.state.view === "tree" ? "chains" : "tree"),
      ...(this.graded ? { w: () => this.outcome.set(cycle[this.state.outcome]) } : {}),
      "?": () => this.help.showModal(),
    };
    actions[key]?.();
    return key in actions;
  }
}

/** The questions of all runs, each once: {id, question, split, by: run -> its rationales}. */
function entriesOf(runs) {
  const entries = new Map();
  for (const run of runs) {
    const seen = new Map(); // a split may have a question twice, with other answers
    for (const question of run.samples.questions) {
      const text = `${question.split}\n${question.question}`;
      seen.set(text, (seen.get(text) ?? 0) + 1);
      const key = `${seen.get(text)}\n${text}`;
      if (!entries.has(key))
        entries.set(key, { id: entries.size, question: question.question, split: question.split, by: new Map() });
      entries.get(key).by.set(run, question);
    }
  }
  return [...entries.values()];
}

/** Scrolls a list, but not the page, so that an item is seen. */
function keepInView(item, list) {
  const top = item.offsetTop - list.offsetTop;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + item.offsetHeight > list.scrollTop + list.clientHeight)
    list.scrollTop = top + item.offsetHeight - list.clientHeight;
}

function helpDialog(graded) {
  const keys = [
    ["/", "search"],
    ["j  k", "next, previous question"],
    ["q  p", "colour by log q, by log p"],
    ["t", "list or tree"],
    ...(graded ? [["w", "all, right, wrong chains"]] : []),
    ["← →", "from token to token"],
    ["↑ ↓", "from chain to chain, in the list from question to question"],
    ["Esc", "leave the search field; close"],
  ];
  const dialog = el(
    "dialog",
    { "aria-label": "Keys" },
    el("h3", {}, "Keys"),
    el(
      "dl.keys",
      {},
      keys.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)]),
    ),
    el("form", { method: "dialog" }, el("button", {}, "Close")),
  );
  return dialog;
}
