"""EM with a GFlowNet sampler and a calculator, from scratch: the algorithm on one page.

Plain torch and transformers, one chain at a time, nothing cached, nothing clever: to be read, and to hold the library
against. `latent-cot em --task arithmetic` has what is left out here: a q that reads Y too, three further steps of it a
batch by forward KL, a floor, a Huber cap, schedules, colder draws, what takes bad steps back, lessons, interpolation,
LoRA. Only here half of the chains are tempered. The paper: Hu et al., "Amortizing intractable inference ..." (2024).

    X   "Question: 6 - 0 - 4 = ? Answer:"
    Z   " 6 - 0 = 6, 6 - 4 = 2"        what stands behind each "=" is written by the calculator, not by the model
    Y   ". The answer is 2."           "." is the stop: a chain ends where the model chooses it

    python examples/em_from_scratch.py FOLDER_OF_A_MODEL
"""

from __future__ import annotations

import copy
import random
import re
import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

ALPHABET = " ,.0123456789=+-*"  # all that a rationale may be written with
STOP = "."
MAX_TOKENS = 40  # that the model may choose; a chain with so many is cut


@dataclass
class Example:
    """A question X, its answer Y, and for a demonstration its rationale Z, without the calculator's results."""

    x: str
    y: str
    z: str
    answer: int


def make_example(rng: random.Random, operands: int) -> Example:
    """A sum of one-digit numbers, worked out from the left."""
    total = rng.randint(0, 9)
    question, steps = str(total), []
    for _ in range(operands - 1):
        sign, operand = rng.choice("+-"), rng.randint(0, 9)
        question += f" {sign} {operand}"
        steps.append(f" {total} {sign} {operand} =")
        total += operand if sign == "+" else -operand
    return Example(f"Question: {question} = ? Answer:", f". The answer is {total}.", ",".join(steps), total)


def calculator(text: str) -> str | None:
    """What to write behind a text that ends with "12 - 7 ="; None if there is nothing to be calculated."""
    if (found := re.search(r"(?:^|[ ,])(-?\d{1,12}) ([-+*]) (\d{1,12}) ?=$", text)) is None:
        return None
    left, right = int(found[1]), int(found[3])
    return f" {left + right if found[2] == '+' else left - right if found[2] == '-' else left * right}"


@dataclass
class Chain:
    """A rationale as it grows. A *state* is a prefix after which stopping is allowed: the empty one s_0, and one that
    ends with a result. Half a step is no rationale."""

    tokens: list[int] = field(default_factory=list)
    by_policy: list[bool] = field(default_factory=list)  # chosen by the model, or written by the calculator?
    states: list[bool] = field(default_factory=lambda: [True])  # of the len(tokens) + 1 prefixes
    cut: bool = False  # stopped by force

    @property
    def places(self) -> list[int]:
        return [i for i, state in enumerate(self.states) if state]

    def push(self, token: int, vocabulary: Vocabulary) -> None:
        """Add a token that the model chose, and what the calculator writes behind it."""
        self._append(token, by_policy=True)
        if (result := calculator(vocabulary.decode(self.tokens))) is not None:
            for written in vocabulary.encode(result):
                self._append(written, by_policy=False)
            self.states[-1] = True
        self.cut = sum(self.by_policy) >= MAX_TOKENS

    def _append(self, token: int, *, by_policy: bool) -> None:
        self.tokens.append(token)
        self.by_policy.append(by_policy)
        self.states.append(False)


class Vocabulary:
    """Text to ids and back, and the ids that a rationale may be made of. (The library takes any tokenizer, this one
    that does not put spaces of its own before words.)"""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        (self.stop,) = self.encode(STOP)
        pieces = [self.decode([i]) for i in range(len(tokenizer))]
        special = set(tokenizer.all_special_ids)
        allowed = [i for i, p in enumerate(pieces) if p and set(p) <= set(ALPHABET) and i not in special]
        self.actions = torch.tensor(allowed)  # the stop is one of them

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def log_probs(self, logits: Tensor, *, may_stop: bool) -> Tensor:
        """(V,) log q of the next token: over the allowed tokens, the stop among them only at a state."""
        mask = torch.full_like(logits, -torch.inf)
        mask[self.actions] = 0.0
        if not may_stop:
            mask[self.stop] = -torch.inf
        return (logits + mask).log_softmax(-1)


def sample(model: PreTrainedModel, x: str, vocabulary: Vocabulary, temperature: float = 1.0) -> Chain:
    """A rationale from q(Z | X); temperature 0: the likeliest token each time."""
    chain, prompt = Chain(), vocabulary.encode(x)
    while not chain.cut:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + chain.tokens])).logits[0, -1].float()
        scaled = logits / temperature if temperature else logits
        log_q = vocabulary.log_probs(scaled, may_stop=chain.states[-1])
        token = int(torch.multinomial(log_q.exp(), 1)) if temperature else int(log_q.argmax())
        if token == vocabulary.stop:
            break
        chain.push(token, vocabulary)
    chain.states[-1] = True  # where it was cut it has to stop, whatever is there
    return chain


def demonstrated(z: str, vocabulary: Vocabulary) -> Chain:
    """The chain that a demonstration stands for."""
    chain = Chain()
    for step in re.findall(r"[^=]*=", z):
        for token in vocabulary.encode(step):
            chain.push(token, vocabulary)
    return chain


def log_policy(model: PreTrainedModel, x: str, chain: Chain, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """log q of each token, (n,), 0 where the calculator wrote it; and log q(stop) at each prefix, (n + 1,), 0 where it
    may not stop and where it has to."""
    prompt, n = vocabulary.encode(x), len(chain.tokens)
    logits = model(input_ids=torch.tensor([prompt + chain.tokens])).logits[0, len(prompt) - 1 :].float()
    zero = torch.zeros(())
    tokens, stops = [], []
    for i in range(n + 1):
        may_stop = chain.states[i] and not (chain.cut and i == n)
        log_q = vocabulary.log_probs(logits[i], may_stop=may_stop)
        stops.append(log_q[vocabulary.stop] if may_stop else zero)
        if i < n:
            tokens.append(log_q[chain.tokens[i]] if chain.by_policy[i] else zero)
    return torch.stack([*tokens, zero])[:n], torch.stack(stops)


def log_answer(model: PreTrainedModel, x: str, prefix: list[int], y: str, vocabulary: Vocabulary) -> Tensor:
    """log p(Y | X, prefix), over the whole vocabulary; () nats."""
    before, answer = vocabulary.encode(x) + prefix, vocabulary.encode(y)
    logits = model(input_ids=torch.tensor([before + answer])).logits[0, len(before) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


@torch.no_grad()
def log_rewards(p: PreTrainedModel, example: Example, chain: Chain, vocabulary: Vocabulary) -> list[float]:
    """log R(z_{1:i}) = log p(z_{1:i} Y | X) of every prefix at which the chain may stop: the unnormalised posterior."""
    tokens, _ = log_policy(p, example.x, chain, vocabulary)
    answers = {i: log_answer(p, example.x, chain.tokens[:i], example.y, vocabulary) for i in chain.places}
    return [float(tokens[:i].sum() + log_y) for i, log_y in answers.items()]


def pooled_subtb(q: PreTrainedModel, x: str, chains: list[Chain], rewards: list[list[float]], v: Vocabulary) -> Tensor:
    """Sub-trajectory balance pooled over all chains of one question; Eq. 3 of the paper has each by itself.

    a_i = log R(s_i) − log q(stop | s_i) − Σ_{k ≤ i} log q(z_k) is log Z(X) at every state once q is the posterior. So
    any two of them should be equal: the loss is half their mean squared difference.
    """
    a: list[Tensor] = []
    for chain, of_chain in zip(chains, rewards, strict=True):
        tokens, stops = log_policy(q, x, chain, v)
        a += [log_r - stops[i] - tokens[:i].sum() for i, log_r in zip(chain.places, of_chain, strict=True)]
    pairs = [(a_i - a_j) ** 2 / 2 for a_i in a for a_j in a]
    return torch.stack(pairs).mean()


def e_step(q: PreTrainedModel, p: PreTrainedModel, data: list[Example], v: Vocabulary, steps: int) -> None:
    """Train q towards p(Z | X, Y)."""
    optimiser = torch.optim.AdamW(q.parameters(), lr=1e-5)
    for step in range(steps):
        batch = random.sample(data, 8)
        for example in batch:
            hot = random.uniform(0.7, 1.5)  # half of the chains explore: the loss is right for any sampler
            chains = [sample(q, example.x, v, temperature=hot if k % 2 else 1.0) for k in range(8)]
            rewards = [log_rewards(p, example, chain, v) for chain in chains]
            loss = pooled_subtb(q, example.x, chains, rewards, v)
            (loss / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(q.parameters(), 100.0)
        optimiser.step()
        optimiser.zero_grad()
        print(f"E-step {step + 1}/{steps}  loss of its last question {loss.item():.3g}")


def m_step(p: PreTrainedModel, data: list[tuple[Example, Chain]], v: Vocabulary, steps: int) -> None:
    """Fine-tune p on rationales drawn from q: raise log p(Z Y | X)."""
    optimiser = torch.optim.AdamW(p.parameters(), lr=1e-5)
    for step in range(steps if data else 0):
        batch = random.choices(data, k=8)
        for example, chain in batch:
            tokens, _ = log_policy(p, example.x, chain, v)
            loss = -(tokens.sum() + log_answer(p, example.x, chain.tokens, example.y, v)) / len(batch)
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        print(f"M-step {step + 1}/{steps}  loss of its last question {len(batch) * loss.item():.3g}")


def is_right(chain: Chain, example: Example, v: Vocabulary) -> bool:
    """Does the chain end with the right result?"""
    return v.decode(chain.tokens).endswith(f"= {example.answer}")


def accuracy(model: PreTrainedModel, examples: list[Example], v: Vocabulary) -> float:
    return sum(is_right(sample(model, e.x, v, temperature=0.0), e, v) for e in examples) / len(examples)


def em(p: PreTrainedModel, v: Vocabulary, rounds: int = 1, size: int = 1000, steps: int = 40, tests: int = 50) -> None:
    """THE ALGORITHM."""
    rng = random.Random(0)
    training = [make_example(rng, rng.choice([3, 4])) for _ in range(50 + size)]
    demonstrations = training[:50]  # of the others z is not looked at
    known = {e.x for e in training}
    splits = {n: [e for e in (make_example(rng, n) for _ in range(tests)) if e.x not in known] for n in (3, 4, 5)}
    m_step(p, [(e, demonstrated(e.z, v)) for e in demonstrations], v, 2 * steps)
    q = copy.deepcopy(p)
    for _ in range(rounds):
        e_step(q, p, training, v, steps)
        drawn = [(e, sample(q, e.x, v)) for e in training]
        m_step(p, [(e, chain) for e, chain in drawn if is_right(chain, e, v)], v, 2 * steps)
        for n, questions in splits.items():
            print(f"{n} operands: p {accuracy(p, questions, v):.0%}, q {accuracy(q, questions, v):.0%}")


if __name__ == "__main__":
    torch.manual_seed(0)
    random.seed(0)
    # In fp32, whatever the weights are saved in: in bf16 most weights would round back to what they were.
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    em(model, Vocabulary(AutoTokenizer.from_pretrained(sys.argv[1])))
