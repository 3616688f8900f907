"""The report in Chromium: it loads without a complaint and without a network, and the explorer does what it says."""

from __future__ import annotations

import copy
import math
import random
import re
from typing import Any

import pytest

from tests.report.web import made_up
from tests.report.web.conftest import Open

pytestmark = pytest.mark.slow

Json = dict[str, Any]
CHAIN = ".pane .chain"


@pytest.fixture(scope="module")
def small() -> Json:
    return made_up.large(questions=6, chains=5)


def sampled(run: Json, k: int = 0) -> Json:
    question: Json = run["samples"]["questions"][k]
    return question


def path_of(question: Json, leaf: int) -> list[int]:
    path = []
    while leaf >= 0:
        path.append(leaf)
        leaf = question["nodes"]["parent"][leaf]
    return path[::-1]


def log_q_of(question: Json, chain: Json) -> float:
    nodes = question["nodes"]
    tokens = sum(nodes["log_q"][node] or 0.0 for node in path_of(question, chain["leaf"]))
    return float(tokens + nodes["stop_q"][chain["leaf"]])


def weights_of(question: Json) -> list[float]:
    """Posterior weights of the chains, the largest first."""
    rewards = [question["nodes"]["log_reward"][chain["leaf"]] for chain in question["chains"]]
    total = sum(map(math.exp, rewards))
    return sorted((math.exp(reward) / total for reward in rewards), reverse=True)


def shares(texts: list[str]) -> list[float]:
    """The numbers of texts like "posterior 62 %"; "< 0.1 %" is 0."""
    found = [re.search(r"(< )?([0-9.]+) %", text) for text in texts]
    return [0.0 if match is None or match[1] else float(match[2]) / 100 for match in found]


# -- it loads ----------------------------------------------------------------------------------------------


def test_every_chart_is_drawn(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    opened.see_all()
    titles = opened.texts("figure figcaption strong")
    wanted = {"Right answers by operands", "3-operands", "loss", "log-reward", "Var(log R − log q)", "right"}
    wanted |= {"mean log p(Y | X), estimated"}
    assert wanted <= set(titles)
    assert opened.page.locator("figure .canvas > svg, figure .canvas > figure").count() == len(titles)
    assert opened.texts("h1") == ["made-up"]
    assert "integer arithmetic" in opened.page.inner_text("#run")


@pytest.mark.parametrize("nothing", ["samples", "everything"])
def test_a_run_without(open_page: Open, small: Json, nothing: str) -> None:
    run = copy.deepcopy(small)
    run["samples"] = None
    if nothing == "everything":
        run |= {"steps": {}, "accuracy": [], "posterior": [], "logged": [], "notes": [], "status": "running"}
    opened = open_page(run)
    opened.see_all()
    assert "No rationales were sampled" in opened.page.inner_text("#rationales")
    assert ("No accuracy was measured" in opened.page.inner_text("#accuracy")) == (nothing == "everything")


def test_a_task_without_answers_and_rewards(open_page: Open, small: Json) -> None:
    run = copy.deepcopy(small)
    for question in run["samples"]["questions"]:
        question["answer"] = None
        question["nodes"]["log_reward"] = [None] * len(question["nodes"]["parent"])
        question["chains"] = [{**chain, "right": None, "answer": None} for chain in question["chains"]]
    opened = open_page(run)
    assert opened.page.locator(CHAIN).count() == 5
    assert "posterior" not in opened.texts(".chain-head")[0]
    masses = shares(opened.texts(f"{CHAIN} .meter"))
    assert masses == sorted(masses, reverse=True), "without a reward the order is q's"
    assert opened.page.get_by_role("button", name="✗ wrong").count() == 0
    opened.page.keyboard.press("w")
    assert opened.page.locator(CHAIN).count() == 5, "a key for which there is no button does nothing"


def test_figures_of_a_task_without_right_answers(open_page: Open, small: Json) -> None:
    place = {"round": 1, "reasoner": "q", "split": "test"}
    about = {"metric": "diversity", "description": "how varied", "better": "higher", "text": "0.5 (0.4 to 1)"}
    opened = open_page({**small, "accuracy": [], "metrics": [{**place, **about}]})
    assert opened.texts("#accuracy h2") == ["Figures"]
    assert opened.texts("#accuracy tbody th") == ["diversity\nhow varied; higher is better"]
    assert opened.texts("#accuracy td") == ["0.5 (0.4 to 1)"]
    assert opened.texts("p.lead")[0] == "Its figures after round 1 are below."


def test_runs_of_one_name_have_columns_of_their_own(open_page: Open, small: Json) -> None:
    place = {"round": 1, "reasoner": "q", "split": "test", "metric": "diversity", "description": "", "better": "higher"}
    opened = open_page(*({**small, "accuracy": [], "metrics": [{**place, "text": text}]} for text in ("0.5", "0.9")))
    assert opened.texts("#accuracy td") == ["0.5", "0.9"]


def test_before_comes_before_after_whichever_run_is_first(open_page: Open, small: Json) -> None:
    only_before = [row for row in small["posterior"] if row["when"] == "before"]
    opened = open_page({**small, "posterior": only_before}, small)
    opened.see_all()
    ticks = opened.page.locator("#training figure").first.locator("g[aria-label='x-axis tick label'] text")
    assert ["".join(text.split()) for text in ticks.all_text_contents()] == ["1before", "1after", "2before", "2after"]


def test_a_round_that_is_being_tested_takes_no_curve_away(open_page: Open, small: Json) -> None:
    begun = {**small["accuracy"][0], "round": 3, "reasoner": "q", "n": 16}
    opened = open_page({**small, "accuracy": [*small["accuracy"], begun]})
    opened.see_all()
    assert "Right answers by operands" in opened.texts("figure figcaption strong")
    assert opened.texts("p.lead")[0].startswith("After round 2, p, the model, is ")


def test_figures_without_a_chart_are_open(open_page: Open, small: Json) -> None:
    row = {**small["accuracy"][0], "split": "test", "numbers": None}
    for rows, is_open in (([{**row, "round": 1}], True), ([{**row, "round": n} for n in (0, 1)], False)):
        opened = open_page({**small, "accuracy": rows})
        assert opened.page.locator("#accuracy table").is_visible() == is_open


def test_rounds_are_in_the_order_of_their_numbers(open_page: Open, small: Json) -> None:
    rows = [{**small["accuracy"][0], "round": number} for number in (10, 0, 2)]
    headings = open_page({**small, "accuracy": rows}).page.locator("#accuracy thead th")
    assert headings.all_text_contents()[1:] == ["round 0, p", "round 2, p", "round 10, p"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (360, "light"), (360, "dark")])
def test_nothing_sticks_out_and_text_can_be_read(open_page: Open, small: Json, width: int, scheme: str) -> None:
    opened = open_page(small, viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened.see_all()
    for view in ("list", "tree"):
        opened.page.get_by_role("button", name=view, exact=True).click()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = opened.page.evaluate(CONTRASTS)
    assert len(contrasts) == 8
    assert min(contrasts) >= 4.5


# WCAG's contrast of text and background, of each level of the scale; a level without a colour is on the page's.
CONTRASTS = """
() => [...document.querySelectorAll('.legend.scale .token')].map((token) => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const luminance = (colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = getComputedStyle(document.body).backgroundColor;
  const style = getComputedStyle(token);
  const [a, b] = [luminance([page, style.backgroundColor]), luminance([style.color])];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})
"""


def test_the_theme_can_be_chosen(open_page: Open, small: Json) -> None:
    opened = open_page(small, color_scheme="light")
    colours = []
    for _ in range(4):
        colours.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.page.click("#theme")
    light, explicit, dark, back = colours
    assert light == explicit == back != dark


def test_5000_rationales_load_in_two_seconds_and_ten_megabytes(open_page: Open) -> None:
    opened = open_page(made_up.large(questions=250, chains=20))
    assert opened.cpu_seconds() < 2
    assert opened.file.stat().st_size < 10e6
    assert opened.texts(".count") == ["250 questions, 5,000 chains"]
    for key in ("t", "p", "w", "j"):  # and stays quick
        opened.page.keyboard.press(key)
    opened.page.get_by_role("searchbox").fill("9 + 9")
    assert not opened.texts(".count")[0].startswith("250 ")
    assert opened.cpu_seconds() < 4


# -- the explorer ------------------------------------------------------------------------------------------


def test_chains_are_sorted_by_posterior_weight(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    found = shares(opened.texts(f"{CHAIN} .meter:has-text('posterior')"))
    wanted = weights_of(sampled(small))
    assert found == pytest.approx(wanted, abs=0.006)
    logs = [float(text.split("log q ")[1].split("\n")[0].replace("−", "-")) for text in opened.texts(".numbers")]
    question = sampled(small)
    assert sorted(logs) == pytest.approx(sorted(log_q_of(question, chain) for chain in question["chains"]), abs=0.006)


def test_a_question_is_picked(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    assert opened.texts(".pane .prompt code") == ["Question: 100 + 0 = ? Answer:"]
    opened.page.locator(".question-item").nth(3).click()
    assert opened.texts(".pane .prompt code") == ["Question: 103 + 3 = ? Answer:"]
    assert opened.page.locator("[role=option][aria-selected=true] code").text_content() == "103 + 3"
    opened.page.locator(".questions").focus()
    opened.page.keyboard.press("ArrowDown")
    assert opened.texts(".pane .prompt code") == ["Question: 104 + 4 = ? Answer:"]
    opened.page.keyboard.press("Home")
    assert opened.texts(".pane .prompt code") == ["Question: 100 + 0 = ? Answer:"]


def test_a_question_that_is_there_twice_is_shown_twice(open_page: Open, small: Json) -> None:
    twice = copy.deepcopy(small)
    twice["samples"]["questions"].append({**copy.deepcopy(sampled(small)), "answer": "7"})
    opened = open_page(twice, {**twice, "name": "other"})
    assert opened.page.locator(".question-item code").all_text_contents().count("100 + 0") == 2
    assert opened.texts(".count") == ["7 questions, 70 chains"]


def test_right_and_wrong_are_filtered(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    chains = [chain for question in small["samples"]["questions"] for chain in question["chains"]]
    for name, right in (("✗ wrong", False), ("✓ right", True)):
        opened.page.get_by_role("button", name=name).click()
        verdicts = opened.texts(f"{CHAIN} .verdict")
        assert verdicts and set(verdicts) == {name}
        wanted = sum(chain["right"] is right for chain in chains)
        assert opened.texts(".count")[0].endswith(f", {wanted} chains")
    opened.page.get_by_role("button", name="all", exact=True).click()
    assert opened.texts(".count") == ["6 questions, 30 chains"]


def test_search_finds_questions_and_chains(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    opened.page.get_by_role("searchbox").fill("103 + 3")
    assert opened.texts(".pane .prompt code") == ["Question: 103 + 3 = ? Answer:"]
    first = sampled(small)["chains"][0]
    tokens = small["samples"]["tokens"]
    nodes = sampled(small)["nodes"]
    text = "".join(tokens[nodes["token"][node]] for node in path_of(sampled(small), first["leaf"])[1:])
    opened.page.get_by_role("searchbox").fill(text.strip().upper())
    assert opened.texts(".pane .prompt code") == ["Question: 100 + 0 = ? Answer:"]
    assert opened.page.locator(CHAIN).count() == 1
    opened.page.get_by_role("searchbox").fill("nothing like this")
    assert "Nothing matches" in opened.page.inner_text(".panes")
    opened.page.get_by_label("Split").select_option("5-operands")
    opened.page.get_by_role("searchbox").fill("")
    assert opened.page.locator(".question-item code").all_text_contents() == ["101 + 1", "104 + 4"]


def test_tokens_are_coloured_by_q_or_by_p(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    question = sampled(small)
    least = (0.99, 0.95, 0.8, 0.5, 0.25, 0.1, 0.01, 0.0)
    for key in ("p", "q"):
        opened.page.keyboard.press(key)
        found = opened.page.evaluate(
            "() => [...document.querySelectorAll('.pane .token')].map((t) => [Number(t.dataset.node), t.className])"
        )
        assert len(found) > 20
        for node, name in found:
            probability = math.exp(question["nodes"][f"log_{key}"][node])
            level = next(k for k, bound in enumerate(least) if probability >= bound)
            assert name == f"token s{level}"


def test_a_tools_tokens_are_set_apart(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    question = sampled(small)
    tools = [node for node, log_q in enumerate(question["nodes"]["log_q"]) if log_q is None and node]
    found = opened.page.evaluate("() => [...document.querySelectorAll('.pane .tool')].map((t) => +t.dataset.node)")
    assert set(found) == set(tools)
    opened.page.locator(".pane .tool").first.hover()
    assert opened.texts("#tooltip strong") == ["calculator: 1 + 1 → 2"]
    assert "not a choice of the model" in opened.page.inner_text("#tooltip")


def test_hover_and_focus_tell_a_tokens_figures(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    nodes = sampled(small)["nodes"]

    def tooltip() -> str:
        return str(opened.page.inner_text("#tooltip")).replace("−", "-")

    token = opened.page.locator(".pane .token").nth(2)
    token.hover()
    node = int(token.get_attribute("data-node"))
    assert f"{nodes['log_q'][node]:.3f}" in tooltip() and f"{nodes['log_p'][node]:.3f}" in tooltip()
    state = opened.page.locator(".pane .state").nth(1)
    state.hover()
    node = int(state.get_attribute("data-node"))
    for figure in ("log_reward", "stop_q", "stop_p"):
        assert f"{nodes[figure][node]:.3f}" in tooltip(), figure
    opened.page.keyboard.press("Escape")
    assert opened.page.locator("#tooltip").is_hidden()

    opened.page.mouse.move(1, 1)
    opened.page.locator(f"{CHAIN} [tabindex='0']").first.focus()
    assert "s₀" in tooltip() and f"{nodes['log_reward'][0]:.3f}" in tooltip()
    opened.page.keyboard.press("ArrowRight")
    focused = opened.page.evaluate("document.activeElement.dataset.node")
    assert nodes["parent"][int(focused)] == 0
    assert f"{nodes['log_q'][int(focused)]:.3f}" in tooltip()
    assert opened.page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tooltip"
    opened.page.keyboard.press("ArrowDown")
    second = opened.page.evaluate(
        "[...document.querySelectorAll('.chain')].indexOf(document.activeElement.closest('.chain'))"
    )
    assert second == 1
    opened.page.evaluate("window.scrollBy({ top: 40, behavior: 'instant' })")
    opened.page.wait_for_timeout(200)
    assert opened.page.locator("#tooltip").is_visible(), "focus scrolls the page; its figures stay"


def test_a_tap_tells_them_too(open_page: Open, small: Json) -> None:
    opened = open_page(small, viewport={"width": 360, "height": 700}, has_touch=True)
    opened.page.locator(".pane .token").first.tap()
    assert "log q" in opened.page.inner_text("#tooltip")
    box = opened.page.locator("#tooltip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360


def test_chains_are_merged_into_a_tree(open_page: Open) -> None:
    rng = random.Random(0)
    vocabulary: list[str] = []
    begin = [("own", " 1"), ("own", " +"), ("own", " 1"), ("ask", " ="), ("tool", " 2")]
    rationales = [begin, [*begin, ("own", ","), ("own", " 3")], [*begin, ("own", ","), ("own", " 4")], [("own", " 7")]]
    question = made_up.question("1 + 1", rationales, vocabulary, rng)
    question["nodes"]["stop_q"] = [None if stop is None else -0.5 for stop in question["nodes"]["stop_q"]]
    run = made_up.run_of(made_up.samples_of([question], vocabulary, 4))
    opened = open_page(run)
    opened.page.keyboard.press("t")
    # s0 -> "1 + 1 =2", which may stop, or go on with "," to "3" or "4"; and "7"
    texts = [re.sub(r"\s", "", text) for text in opened.texts(".segment .chain-text")]
    assert sorted(texts) == sorted(["", "1+1=2", ",", "3", "4", "7"])
    assert opened.page.locator(".tree .end .verdict").count() == 4

    masses = {
        re.sub(r"\s", "", segment.locator(".chain-text").inner_text()): shares([segment.locator(".mass").inner_text()])[
            0
        ]
        for segment in opened.page.locator(".segment").all()
    }
    q = [math.exp(log_q_of(question, chain)) for chain in question["chains"]]
    assert masses["1+1=2"] == pytest.approx(sum(q[:3]), abs=0.006)
    assert masses[","] == pytest.approx(sum(q[1:3]), abs=0.006)
    assert masses["7"] == pytest.approx(q[3], abs=0.006)
    opened.page.keyboard.press("p")
    assert "posterior weight" in opened.page.inner_text(".tree-frame")
    assert shares([opened.page.locator(".segment .mass").first.inner_text()]) == [1.0]


def test_keys(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    press = opened.page.keyboard.press

    def prompt() -> list[str]:
        return opened.texts(".pane .prompt code")

    press("j")
    press("j")
    press("k")
    assert prompt() == ["Question: 101 + 1 = ? Answer:"]
    press("w")
    press("w")
    assert set(opened.texts(f"{CHAIN} .verdict")) == {"✗ wrong"}
    press("w")
    press("/")
    opened.page.keyboard.type("jt")  # letters in a field are letters
    assert opened.page.get_by_role("searchbox").input_value() == "jt"
    opened.page.get_by_role("searchbox").fill("")
    opened.page.locator("body").click(position={"x": 2, "y": 300})
    press("?")
    assert opened.page.get_by_role("dialog").is_visible()
    press("Escape")
    assert opened.page.get_by_role("dialog").is_hidden()


@pytest.fixture
def both(small: Json) -> Json:
    """A run with the rationales of p and, beside them, of q."""
    run = copy.deepcopy(small)
    other = made_up.large(questions=6, chains=5, seed=2)["samples"]
    run["samples"] |= {"reasoner": "p", "beside": [other]}
    for k, question in enumerate(run["samples"]["questions"]):
        right = [k == 0] * 5 if k < 4 else [True, True, False, False, False] if k == 4 else [True] * 5
        for chain, one in zip(question["chains"], right, strict=True):
            chain["right"] = one
        question |= {"bound": 0.11, "bound_error": 0.25, "ess": 0.5}
    run["samples"]["questions"][2]["bound"] = None
    return run


def test_it_leads_with_p_and_q_is_beside_it(open_page: Open, both: Json) -> None:
    opened = open_page(both)
    assert opened.texts(".pane h4") == ["p, the model", "q, the sampler"]
    lead = opened.page.inner_text(".lead")
    assert lead.index("p, the model") < lead.index("q, the sampler")
    assert opened.texts("#accuracy .legend-item")[:2] == ["p", "q"]
    assert "sampled from p and from q" in opened.page.inner_text("#rationales")


def test_an_estimate_above_0_is_one_with_its_error(open_page: Open, both: Json) -> None:
    opened = open_page(both)
    names, values = (opened.texts(f".pane:first-child .figures {tag}") for tag in ("dt", "dd"))
    figures = dict(zip(names, values, strict=True))
    assert figures["log p(Y | X), estimated"] == "0.11 ± 0.25"
    assert figures["ESS"] == "50 %"


def test_it_opens_on_a_divided_question_and_sorts(open_page: Open, both: Json) -> None:
    opened = open_page(both)
    assert opened.texts(".pane .prompt code")[0] == "Question: 104 + 4 = ? Answer:", "2 of 5 samples are right"
    assert opened.page.locator(".question-item[aria-selected=true]").is_visible()

    def order(name: str) -> list[str]:
        opened.page.get_by_label("Order").select_option(name)
        return list(opened.page.locator(".question-item code").all_text_contents())

    assert order("hardest") == ["101 + 1", "102 + 2", "103 + 3", "104 + 4", "100 + 0", "105 + 5"]
    assert order("divided")[0] == "104 + 4"
    assert order("given") == [f"{100 + k} + {k}" for k in range(6)]


def test_weights_are_greyed_where_no_chain_is_right(open_page: Open, both: Json) -> None:
    opened = open_page(both)
    for k, moot in ((0, 0), (1, 5)):
        opened.page.locator(".question-item").nth(k).click()
        assert opened.page.locator(".pane:first-child .meter.moot").count() == moot
        said = opened.page.locator(".pane:first-child").get_by_text("No sampled chain is right").count()
        assert said == (moot > 0)


def test_a_selection_has_an_address(open_page: Open, both: Json) -> None:
    opened = open_page(both)
    address = "window.location.hash"
    assert opened.page.evaluate(address) == "", "it is the reader's until something is selected"
    opened.page.locator(".question-item").nth(2).click()
    opened.page.keyboard.press("t")
    assert opened.page.evaluate(address) == "#q=2&view=tree"
    opened.page.evaluate("window.location.hash = '#q=3&view=chains&colour=p'")
    opened.page.wait_for_function("document.querySelector('.pane .prompt code').textContent.includes('103 + 3')")
    assert opened.page.locator(".tree").count() == 0
    assert opened.page.get_by_role("button", name="log p", exact=True).get_attribute("aria-pressed") == "true"
    assert str(opened.page.locator(".pane .link").first.get_attribute("href")) == "#q=3"
    opened.page.reload()
    opened.page.wait_for_selector("body[data-ready]")
    assert opened.texts(".pane .prompt code")[0] == "Question: 103 + 3 = ? Answer:"
    opened.page.evaluate("window.location.hash = '#accuracy'")  # the sections keep theirs
    assert opened.texts(".pane .prompt code")[0] == "Question: 103 + 3 = ? Answer:"
    opened.requests[:] = opened.requests[:1]  # the file, asked for again


def test_the_address_of_a_question_of_a_run_that_is_not_shown(open_page: Open, small: Json) -> None:
    """A third run has validation questions of its own; its question's address is kept, and the page loaded again."""
    third = copy.deepcopy(small) | {"name": "third"}
    for n, question in enumerate(third["samples"]["questions"]):
        question["question"], question["prompt"] = f"9 * {n}", f"Question: 9 * {n} = ? Answer:"
    opened = open_page(small, {**small, "name": "other"}, third)
    n = len(small["samples"]["questions"])
    opened.page.evaluate(f"window.location.hash = '#q={n + 1}'")
    opened.page.reload()
    opened.page.wait_for_selector("body[data-ready]")
    assert opened.texts(".pane .prompt code") == ["Question: 9 * 1 = ? Answer:"]
    assert opened.page.get_by_label("Run on the left").input_value() == "2"
    opened.requests[:] = opened.requests[:1]


def test_of_another_reward_nothing_is_called_log_p_of_y(open_page: Open, small: Json) -> None:
    opened = open_page({**small, "joint": False})
    opened.see_all()
    titles, text = opened.texts("#training figure figcaption strong"), opened.page.inner_text("#training")
    assert "mean log Z(X), estimated" in titles and "mean log R of the sampled chains" in text
    assert "log p(Y | X)" not in text and "log p(Z Y | X)" not in text


def test_test_and_validation_questions_are_no_line(open_page: Open, small: Json) -> None:
    again = [{**row, "split": f"validation-{row['split']}"} for row in small["accuracy"]]
    opened = open_page({**small, "accuracy": [*small["accuracy"], *again]})
    opened.see_all()
    assert "Right answers by operands" not in opened.texts("figure figcaption strong")


def test_two_calls_at_one_place_are_both_told(open_page: Open, small: Json) -> None:
    run = copy.deepcopy(small)
    question = sampled(run)
    failed = {"tool": "search", "request": "", "result": None, "error": "there is nothing to search for"}
    question["calls"].insert(0, {"node": question["calls"][0]["node"], **failed})
    opened = open_page(run)
    assert opened.page.locator(f"{CHAIN} .failed:has-text('search')").count() > 0
    assert opened.page.locator(f"{CHAIN} .tool").count() > 0


def test_escape_gives_the_keys_back(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("1")
    opened.page.keyboard.press("Escape")
    opened.page.keyboard.press("t")
    assert opened.page.locator(".tree").count() == 1, "t is a key again, and no letter"


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_a_wide_tree_is_an_outline(open_page: Open, width: int) -> None:
    opened = open_page(made_up.large(questions=1, chains=1), viewport={"width": width, "height": 800})
    other = open_page(made_up.large(questions=1, chains=30), viewport={"width": width, "height": 800})
    for one in (opened, other):
        one.page.keyboard.press("t")
        frame = one.page.locator(".tree-frame")
        assert frame.evaluate("frame => frame.scrollWidth - frame.clientWidth") <= 1, "it need not be scrolled sideways"
    assert "outline" not in str(opened.page.locator(".tree-frame").get_attribute("class")) or width < 760
    vocabulary: list[str] = []
    deep = [[("own", "x" * 9) for _ in range(k + 1)] + [("own", "yz"[k % 2] * 9)] for k in range(9)]
    question = made_up.question("1 + 1", deep, vocabulary, random.Random(0))
    wide = open_page(
        made_up.run_of(made_up.samples_of([question], vocabulary, 9)), viewport={"width": width, "height": 800}
    )
    wide.page.keyboard.press("t")
    frame = wide.page.locator(".tree-frame")
    assert "outline" in str(frame.get_attribute("class"))
    assert frame.evaluate("frame => frame.scrollWidth - frame.clientWidth") <= 1


def test_what_is_printed_has_all_charts_uncut(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    opened.page.set_viewport_size({"width": 700, "height": 900})
    opened.page.emulate_media(media="print")
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    cut = opened.page.evaluate(
        "() => [...document.querySelectorAll('.canvas')].filter((canvas) => {"
        "  const drawn = canvas.querySelector('svg');"
        "  return !drawn || drawn.getBoundingClientRect().right > document.documentElement.clientWidth;"
        "}).length"
    )
    assert cut == 0
    assert opened.page.locator(".toolbar").is_hidden()


def test_on_a_phone_every_section_can_be_reached(open_page: Open, small: Json) -> None:
    opened = open_page(small, viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    for link in opened.page.locator("nav a").all():
        box = link.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390
        link.click()
        opened.page.wait_for_timeout(200)
        heading = opened.page.locator(f"{link.get_attribute('href')} :is(h1, h2)").first.bounding_box()
        bar = opened.page.locator(".masthead").bounding_box()
        assert heading and bar and bar["height"] - 1 <= heading["y"] < 844, link.inner_text()


def test_scales_are_named(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    notes = dict(zip(opened.texts("figcaption strong"), opened.texts("figcaption"), strict=True))
    assert "square root scale" in notes["loss"]
    assert all("%" in notes[name] for name in ("Right answers by operands", "3-operands"))


def test_what_a_run_warns_of_is_said_first(open_page: Open, small: Json) -> None:
    warning = {"round": 1, "kind": "e_step", "unit": 7, "warning": "q has collapsed"}
    opened = open_page({**small, "warnings": [warning]})
    assert opened.texts("#run [role=alert] p") == ["Round 1, E-step, unit 7: q has collapsed."]


def test_an_empty_chain_is_seen(open_page: Open) -> None:
    vocabulary: list[str] = []
    question = made_up.question("1 + 1", [[], [("own", " 2")]], vocabulary, random.Random(0))
    run = made_up.run_of(made_up.samples_of([question], vocabulary, 2))
    run["logged"][0]["text"] = []
    opened = open_page(run)
    assert opened.texts(".pane .chain-text .note") == ["(empty)"]
    assert "(empty)" in opened.page.inner_text("table.logged")


def test_a_phase_of_ones_own_has_its_curves(open_page: Open, small: Json) -> None:
    columns = {"round": [1, 1, 1], "unit": [1, 2, 3], "validation_loss": [3.0, 2.0, 1.0]}
    checks = {"round": [1, 1], "unit": [1, 2], "elbo": [-3.0, -2.0]}
    opened = open_page({**small, "steps": {"polish_p": columns, "diagnose": checks}})
    opened.see_all()
    assert [title for title in opened.texts("#training h3") if "near q" not in title] == ["polish p"]
    assert "validation loss" in opened.texts("#training figure figcaption strong")


def test_no_two_runs_are_told_apart_by_colour_alone(open_page: Open, small: Json) -> None:
    runs = [{**small, "name": f"run {k}"} for k in range(4)]
    opened = open_page(*runs)
    opened.see_all()
    samples = opened.page.locator("#accuracy .legend-item svg")
    looks = [
        (one.locator("line").get_attribute("stroke-dasharray"), one.locator("path").get_attribute("d"))
        for one in samples.all()
    ]
    assert len(set(looks)) == len(looks) >= 4


def test_two_runs_side_by_side(open_page: Open, small: Json) -> None:
    other = made_up.large(questions=4, chains=5, seed=1, name="other")
    opened = open_page(small, other)
    opened.see_all()
    assert opened.texts(".pane h4") == ["made-up", "other"]
    assert opened.texts(".pane .prompt code") == ["Question: 100 + 0 = ? Answer:"] * 2
    opened.page.locator(".question-item").nth(5).click()  # a question of the first run only
    assert "Not sampled" in opened.page.locator(".pane").nth(1).inner_text()
    opened.page.get_by_label("Run on the left").select_option("1")
    assert opened.texts(".pane h4") == ["other", "other"]
    assert "e_step.name" in opened.page.inner_text("#settings table")
    assert {"made-up, q", "other, q"} <= set(opened.texts("#accuracy .legend-item"))


def test_the_pickers_name_what_is_shown(open_page: Open, both: Json) -> None:
    other = copy.deepcopy(both) | {"name": "other"}
    opened = open_page(both, other)

    def picked() -> list[str]:
        right = [opened.page.get_by_label(f"Run on the {side}") for side in ("left", "right")]
        return [str(one.evaluate("e => e.selectedOptions[0].textContent")) for one in right]

    assert picked() == opened.texts(".pane h4") == ["made-up, p", "other, p"]
    opened.page.get_by_label("Run on the left").select_option("1")
    assert picked() == opened.texts(".pane h4") == ["made-up, q", "other, p"]


# -- hostile text ------------------------------------------------------------------------------------------


def test_what_a_model_wrote_is_text(open_page: Open) -> None:
    opened = open_page(made_up.hostile())
    opened.see_all()
    for key in "jjjjjjj":
        opened.page.keyboard.press(key)
    for key in "tt":
        opened.page.keyboard.press(key)
        for token in opened.page.locator(".pane [data-node]").all()[:6]:
            token.hover()
    opened.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator("script").count() == 4  # the data, two libraries, the report's own
    assert opened.page.locator("img, iframe, object, embed, link:not([rel=icon])").count() == 0
    shown = opened.page.inner_text("body")
    for text in (
        "</script><script>window.hacked = 1</script>",
        "<img src=x onerror='window.hacked = 2'>",
        "${alert(1)}",
    ):
        assert text in shown
    assert not set("\u2028\u2029\u202e\u2066\x00\x07\ud800") & set(shown)
    for visible in (r"line\u{2028}separator", r"\u{202e}right to left", r"nul\u{0} bell\u{7}"):
        assert visible in shown


def test_the_policy_refuses_other_scripts(open_page: Open, small: Json) -> None:
    opened = open_page(small)
    opened.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'hacked = 1'}))")
    assert opened.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)
    opened.complaints.clear()
