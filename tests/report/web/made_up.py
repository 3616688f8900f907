"""Reports that no run has made: as large, as strange or as hostile as a test needs them."""

from __future__ import annotations

import random
from typing import Any

from latent_cot.report.web import FORMAT
from latent_cot.types import JOINT

Json = dict[str, Any]

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<!-- <script> ",
    "line\u2028separator\u2029",
    "\u202eright to left\u2066",
    "nul\x00 bell\x07",
    "\ud800 lone surrogate",
    "${alert(1)} {{x}} <!--slot:scripts-->",
]
"""What a model might write."""


def question(
    text: str, rationales: list[list[tuple[str, str]]], vocabulary: list[str], rng: random.Random, split: str = "seen"
) -> Json:
    """A question whose rationales are lists of (kind, text) tokens, kind "own", "tool" or "ask" (the token that calls
    the tool). Every prefix that ends a tool's result, and the whole chain, is a state. The last token's number decides
    whether the answer is right: it is if it is even."""
    columns: Json = {key: [] for key in ("parent", "token", "log_q", "log_p", "stop_q", "stop_p", "log_reward")}

    def add(parent: int, token: int | None, kind: str, *, state: bool) -> int:
        own = token is not None and kind != "tool"
        columns["parent"].append(parent)
        columns["token"].append(token)
        columns["log_q"].append(round(-rng.expovariate(1.5), 3) if own else None)
        columns["log_p"].append(round(-rng.expovariate(1.0), 3) if own else None)
        columns["stop_q"].append(round(-rng.expovariate(1.0), 3) if state else None)
        columns["stop_p"].append(round(-rng.expovariate(1.0), 3) if state else None)
        columns["log_reward"].append(round(-20 * rng.random(), 3) if state else None)
        return len(columns["parent"]) - 1

    add(-1, None, "own", state=True)
    children: dict[tuple[int, str], int] = {}
    calls: list[Json] = []
    chains: list[Json] = []
    for rationale in rationales:
        node = 0
        for place, (kind, token) in enumerate(rationale):
            if token not in vocabulary:
                vocabulary.append(token)
            last = place == len(rationale) - 1
            ends_step = kind == "tool" and (last or rationale[place + 1][0] != "tool")
            if (node, token) not in children:
                children[node, token] = add(node, vocabulary.index(token), kind, state=last or ends_step)
                if kind == "ask":
                    request = {"tool": "calculator", "request": " 1 + 1", "result": " 2", "error": None}
                    calls.append({"node": children[node, token], **request})
            node = children[node, token]
        answer = rationale[-1][1].strip() if rationale else None
        right = bool(answer) and answer is not None and answer.isdecimal() and int(answer) % 2 == 0
        chains.append({"leaf": node, "count": 1, "cut": False, "answer": answer, "right": right})
    prompt = f"Question: {text} = ? Answer:"
    shown = {"split": split, "question": text, "prompt": prompt, "answer": "2"}
    return {**shown, "nodes": columns, "calls": calls, "chains": chains}


def chain_of(rng: random.Random, steps: int) -> list[tuple[str, str]]:
    """A rationale of so many steps, " 3 + 4 = 7," of which the result is a tool's."""
    tokens: list[tuple[str, str]] = []
    for step in range(steps):
        tokens += [("own", f" {rng.randrange(10)}"), ("own", " +"), ("own", f" {rng.randrange(10)}"), ("ask", " =")]
        tokens += [("tool", f" {rng.randrange(20)}")]
        if step < steps - 1:
            tokens += [("own", ",")]
    return tokens


def samples_of(questions: list[Json], vocabulary: list[str], n: int) -> Json:
    settings = {"reasoner": "q", "sees_answer": False, "log_reward": JOINT, "n": n, "temperature": 1.0, "seed": 0}
    outcome = {"cut": False, "answer": "2", "right": True, "text": [["own", " 1 + 1 ="], ["tool", " 2"]]}
    before_after = [
        {"split": one["split"], "question": one["question"], "answer": "2", "by": {"base": outcome, "q": outcome}}
        for one in questions[:2]
    ]
    return {**settings, "tokens": vocabulary, "questions": questions, "before_after": before_after}


def run_of(samples: Json | None, name: str = "made-up") -> Json:
    """A run with two rounds and all figures."""
    rng = random.Random(name)
    steps = {
        "e_step": {
            "round": [1] * 10 + [2] * 10,
            "unit": [*range(1, 11), *range(1, 11)],
            "loss": [rng.random() * 10 for _ in range(20)],
            "variance": [rng.random() * 10 for _ in range(20)],
            "log_reward": [-rng.random() for _ in range(20)],
            "accuracy": [rng.random() for _ in range(20)],
        }
    }
    accuracy = [
        {
            "round": number,
            "reasoner": reasoner,
            "split": f"{operands}-operands",
            "accuracy": 0.5,
            "n": 60,
            "interval": [0.4, 0.6],
            "numbers": {"operands": operands, "digits": 1},
            "trained": operands < 5,
        }
        for number in range(3)
        for reasoner in (("p", "q") if number else ("p",))
        for operands in (3, 4, 5, 8)
    ]
    posterior = [
        {"round": number, "when": when, "variance": 1.0, "bound": -0.1, "ess": 0.9, "mass": 0.99}
        for number in (1, 2)
        for when in ("before", "after")
    ]
    text = [["own", " 1 + 1 ="], ["tool", " 2"], ["failed", "x: no"]]
    step = {"round": 1, "phase": "e_step", "unit": 1}
    logged = [{**step, "question": "1 + 1", "text": text, "cut": False, "log_reward": -0.5, "count": 8}]
    head = {
        "name": name,
        "task": "arithmetic",
        "model": "tiny",
        "method": "em",
        "q_sees": "question",
        "status": "finished",
    }
    facts = [["task", "integer arithmetic"], ["seed", "0"]]
    return {
        **head,
        "facts": facts,
        "settings": {"seed": 0, "e_step": {"steps": 10, "name": name}, "splits": None},
        "notes": ["a note"],
        "steps": steps,
        "posterior": posterior,
        "accuracy": accuracy,
        "metrics": [],
        "logged": logged,
        "samples": samples,
    }


def report_of(*runs: Json) -> Json:
    title = ", ".join(run["name"] for run in runs)
    made = "2026-01-01T00:00:00+00:00"
    return {"format": FORMAT, "title": title, "made": made, "version": "0.0.0", "runs": list(runs)}


def large(questions: int, chains: int, *, seed: int = 0, name: str = "made-up") -> Json:
    """A run with so many questions of so many distinct rationales each."""
    rng = random.Random(seed)
    vocabulary: list[str] = []
    made = []
    for k in range(questions):
        split = ("validation", "5-operands", "8-operands")[k % 3]
        rationales = [chain_of(rng, rng.randint(3, 5)) for _ in range(chains)]
        made.append(question(f"{100 + k} + {k}", rationales, vocabulary, rng, split))
    return run_of(samples_of(made, vocabulary, chains), name)


def hostile() -> Json:
    """A run in which every text that a model could have written is one of HOSTILE."""
    rng = random.Random(0)
    vocabulary: list[str] = []
    rationales = [[("own", text), ("tool", text), ("own", " 4")] for text in HOSTILE]
    made = [question(text, rationales, vocabulary, rng) for text in HOSTILE]
    run = run_of(samples_of(made, vocabulary, len(HOSTILE)), HOSTILE[0])
    run["facts"] = [["task", text] for text in HOSTILE]
    run["notes"] = list(HOSTILE)
    run["settings"] = {"task": HOSTILE[0]}
    run["logged"] = [{**run["logged"][0], "question": text, "text": [["own", text]]} for text in HOSTILE]
    for one in run["samples"]["questions"]:
        one["calls"] = [{"node": 1, "tool": text, "request": text, "result": None, "error": text} for text in HOSTILE]
        one["answer"] = HOSTILE[1]
    return run
