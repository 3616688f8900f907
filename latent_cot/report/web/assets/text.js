// Text and elements. Whatever a model or a tool wrote goes through `printable` and becomes a text node: there is no
// innerHTML in this report.

/** An element: el("p.note", {id: "x", onclick: f}, "text", child, ...). Attributes that are null or false are left out. */
function el(spec, attributes = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A model's text with control characters, and what changes the direction of text, made visible. */
function printable(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) =>
    c === "\n" ? "↵" : c === "\t" ? "⇥" : `\\u{${c.codePointAt(0).toString(16)}}`,
  );
}

/** What stands for a chain without text. */
const EMPTY = "(empty)";

/** A number with so many digits behind the point, and a true minus. */
function fixed(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const text = Number(value).toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

/** A figure of any size, to so many significant digits. */
function figure(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return String(value).replace("-", "−");
  const size = Math.abs(value);
  const text =
    size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

/** A share in %; never rounded to 0 or to 100 unless it is. */
function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value > 99.9 && value < 100) return "> 99.9 %";
  return `${value >= 99.95 || value === 0 ? value.toFixed(0) : value < 10 || value > 99 ? value.toFixed(1) : value.toFixed(0)} %`;
}

/** A table that may scroll sideways: the columns' headings, and each row's heading and cells. */
function table(headings, rows, kind = "table") {
  return el(
    "div.scroll",
    { tabindex: "0" },
    el(
      kind,
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          headings.map((heading) => el("th", { scope: "col" }, heading)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map(([heading, ...cells]) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, heading),
            cells.map((cell) => el("td", {}, cell)),
          ),
        ),
      ),
    ),
  );
}

/** "1 chain", "3 chains". */
function plural(n, word) {
  return `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
}

/** A group of buttons of which one is pressed. `options`: [value, label, key] triples. */
function segmented(label, options, initial, onchange) {
  const buttons = options.map(([value, text, key]) =>
    el(
      "button",
      {
        type: "button",
        "aria-pressed": String(value === initial),
        title: key ? `Key: ${key}` : null,
        "data-value": value,
        onclick: () => set(value),
      },
      text,
    ),
  );
  function set(value) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
    onchange(value);
  }
  const group = el("div.segmented", { role: "group", "aria-label": label }, buttons);
  return { element: el("div.control", {}, el("span.label", { "aria-hidden": "true" }, label), group), set };
}

/** What stands where there is nothing to show. */
function empty(title, remedy) {
  return el("div.empty", {}, el("strong", {}, title), el("p", {}, remedy));
}
