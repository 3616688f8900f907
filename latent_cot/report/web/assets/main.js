// Puts the page together.

class Tooltip {
  constructor(element) {
    this.element = element;
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
    // Focus scrolls what it finds off the screen into view; its figures go along.
    const scrolled = () => (this.target && this.target === document.activeElement ? this.place() : this.hide());
    document.addEventListener("scroll", scrolled, { passive: true, capture: true });
  }

  /** Show what `describe` says of the [data-node] element below `container` that is hovered, focused or tapped. */
  follow(container, describe) {
    const show = (event) => {
      const target = event.target.closest?.("[data-node]");
      if (target && container.contains(target)) this.show(target, describe(target));
      else if (event.type === "pointerover") this.hide();
    };
    container.addEventListener("pointerover", show);
    container.addEventListener("focusin", show);
    container.addEventListener("click", (event) => event.target.closest?.("[data-node]")?.focus());
    container.addEventListener("pointerleave", () => this.hide());
    container.addEventListener("focusout", () => this.hide());
  }

  show(target, { heading, rows }) {
    this.target?.removeAttribute("aria-describedby");
    this.target = target;
    target.setAttribute("aria-describedby", "tooltip");
    this.element.replaceChildren(
      el("strong", {}, heading),
      el(
        "dl",
        {},
        rows.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]),
      ),
    );
    this.element.hidden = false;
    this.place();
  }

  place() {
    const box = this.target.getBoundingClientRect();
    const own = this.element.getBoundingClientRect();
    const below = box.bottom + 8 + own.height < window.innerHeight;
    this.element.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - own.width - 8))}px`;
    this.element.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - own.height - 8)}px`;
  }

  hide() {
    this.target?.removeAttribute("aria-describedby");
    this.target = null;
    this.element.hidden = true;
  }
}

/** Colours: as the system has them, light, dark. */
function themeButton(button) {
  const themes = ["auto", "light", "dark"];
  let current = 0;
  button.addEventListener("click", () => {
    current = (current + 1) % themes.length;
    const theme = themes[current];
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.querySelector(".wide").textContent = ` ${theme}`;
    button.setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system has them" : theme}`);
  });
}

function start() {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const section = (id) => document.getElementById(id);
  const tooltip = new Tooltip(section("tooltip"));
  themeButton(section("theme"));
  showRuns(report, section("run"));
  showAccuracy(report, section("accuracy"));
  const explorer = showRationales(report, section("rationales"), tooltip);
  showBefore(report, section("before"));
  showTraining(report, section("training"));
  showSettings(report, section("settings"));
  for (const heading of document.querySelectorAll("main > section")) {
    const text = heading.id === "run" ? "Run" : heading.querySelector("h2").textContent;
    section("nav").append(el("a", { href: `#${heading.id}` }, text));
  }
  section("footer").append(
    `Made by latent-cot ${printable(report.version)}, ${report.made.slice(0, 16).replace("T", " ")} UTC. The plots are Observable Plot's.`,
  );
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.activeElement?.blur?.(); // then the keys mean something again
    const inField = event.target.matches?.("input, select, textarea") || section("main").querySelector("dialog[open]");
    if (inField || event.ctrlKey || event.metaKey || event.altKey) return;
    if (explorer?.key(event.key)) event.preventDefault();
  });
  document.body.dataset.ready = "yes";
}

start();
