"""The settings of a run: frozen dataclasses. Unit and range stand at each field, and pydantic checks them.

`settings.py` says what overrides these defaults, and in which order. What computes (`objectives/`, `model/`) takes
numbers, never a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field

from latent_cot.types import DataRequest, Task

COMPLETE_ONLY = ("vargrad", "tb")
"""Objectives that score Y behind complete rationales only, not behind each prefix."""
WITHIN_RATIONALES = ("subtb",)
"""Objectives that compare the states of a rationale with each other only."""
DIAGNOSTIC_SAMPLES = 16
"""Rationales sampled for each validation question on which q is compared with the posterior."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-3, 1e3
"""Beyond these, logits that are divided by it overflow, or a sampler is uniform."""


def sampling_temperature(value: float) -> float:
    """The value. Raises ValueError for one that nothing can be sampled at."""
    if value != 0 and not LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE:
        raise ValueError(f"0, which is greedy, or from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}")
    return value


TRANSFORMERS, VLLM_HERE = "transformers", "vllm"


def engine_name(value: str) -> str:
    """The value. Raises ValueError for one that is no engine."""
    if value in (TRANSFORMERS, VLLM_HERE):
        return value
    addresses = [urlsplit(address) for address in value.split(",")]
    if not all(address.scheme in ("http", "https") and address.hostname for address in addresses):
        raise ValueError(f"{TRANSFORMERS}, {VLLM_HERE}, or addresses such as http://localhost:8000, comma-separated")
    return value


Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, gt=0)]
Few = Annotated[int, Field(strict=True, gt=0, le=1_000_000)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
PositiveAmount = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Temperature = Annotated[float, Field(strict=True, ge=LOWEST_TEMPERATURE, le=HIGHEST_TEMPERATURE)]
SamplingTemperature = Annotated[float, Field(strict=True), AfterValidator(sampling_temperature)]
EngineName = Annotated[str, AfterValidator(engine_name)]
Switch = Annotated[bool, Field(strict=True)]


class Section:
    """Settings that belong together. A key that is none of them is an error."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class DataConfig(Section):
    """Which examples to learn from."""

    __pydantic_config__ = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # `digits: 1` is what one writes

    demonstrations: Count = 50
    """Examples (X, Z, Y): question, rationale and answer."""
    unlabelled: Count = 1000
    """Examples (X, Y): question and answer, the rationale unseen."""
    validation: Count = 200
    """Examples held out of training and of the tests, for diagnostics and tuning."""
    train_file: str | None = None
    """Read training examples from this file (several: comma-separated) instead of the task's generator."""
    options: dict[str, str] = field(default_factory=dict)
    """The task's own settings, e.g. `operands 3,4 digits 1`."""


@dataclass(frozen=True)
class LoraSettings(Section):
    """The adapters of p and q, which are alike."""

    rank: Few = 16
    """Rank r of the update B A."""
    alpha: Positive = 32
    """The update is scaled by alpha / r."""
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input, in fine-tuning (M-steps); log q is always without."""
    target_modules: str = "all-linear"
    """Which layers to adapt: `all-linear`, or comma-separated names such as `q_proj,v_proj`."""


@dataclass(frozen=True)
class RolloutConfig(Section):
    """What a rationale may look like, and how it is sampled."""

    granularity: Literal["token", "step"] = "step"
    """Where a chain may stop: after every token (the paper's), or after every complete step."""
    min_tokens: Count = 0
    """A prefix with fewer tokens is no state. At 0 the empty rationale is one."""
    max_tokens: Positive = 40
    """Tokens the policy may choose in a training rollout; a tool's tokens do not count."""
    tools: tuple[str, ...] | None = None
    """Tools a chain may call: names or files. None: the task's own."""
    batch_size: Positive = 64
    """Chains that are sampled at once: for the M-step, in rejection sampling, for validation questions, and where the
    replay buffer is first filled. Tests decode twice as many. The rollouts of a step of training are one batch."""
    engine: EngineName = TRANSFORMERS
    """What samples while a run trains: `transformers`, `vllm` in this process, or vLLM servers, by their addresses
    (`http://localhost:8000`; several: comma-separated). See docs/engines.md."""


@dataclass(frozen=True)
class EStepConfig(Section):
    """Training the sampler q: against the posterior or, in other methods, as they train it. Forward KL, PPO and GRPO
    sample from q at temperature 1, replay nothing, and have no objective and no reward temperature."""

    steps: Count = 40
    """Batches of rationales that q learns in a round. 0: no E-step; q is then the present p or, if it
    sees Y, what the demonstrations have made of it."""
    questions: Few = 8
    """Questions a step."""
    samples: Few = 8
    """Rationales sampled for each question."""
    max_staleness: Count = 0
    """How many steps old the adapter may be that a batch was sampled from. 0: sampling and training take turns.
    Above: they go on at once, which needs vLLM servers (`rollout.engine`)."""
    updates: Positive = 4
    """Optimiser steps for each batch of sampled rationales. `ppo` and `grpo` take all of them on that batch. Other
    methods take the first on it; each further one is a step of forward KL, for twice `questions` of the questions,
    on what q has sampled at temperature 1: in this E-step and, in a later round, for the last M-step."""
    demonstration_weight: Amount = 1.0
    """How often a demonstration's question is drawn, relative to 1 for a question without rationale."""
    objective: Literal["subtb", "pooled-subtb", "vargrad", "tb", "prefix-tb"] = "pooled-subtb"
    """The loss: `subtb` (the paper's Eq. 3), `pooled-subtb` (over all trajectories of a question), `vargrad` or
    `tb` (trajectory balance), or `prefix-tb` (the same of every prefix; for rewards that are nothing almost
    everywhere). The last two learn one log Z, which all questions share: where theirs differ, q is pulled off the
    posterior."""
    huber_delta: PositiveAmount | None = 10.0
    """Deviations beyond this many nats count linearly. None: squared error."""
    reward_floor: PositiveAmount | None = 10.0
    """Nats below the best reward of a question. Of a prefix that is worth less, the loss uses only that it is worth no
    more than that; a complete chain's reward counts as it is (`objectives.balance.below_floor`), if it is not 10,000
    nats lower. `ppo` and `grpo`, which see complete chains only, raise lower rewards to the floor. None: no floor."""
    reward_temperatures: tuple[Temperature, Temperature] = (1.0, 1.0)
    """The reward is log R / T. T goes linearly from the first value, at step 0, to the second, at the step
    `reward_temperature_steps`, and stays there."""
    reward_temperature_steps: Count = 40
    """Steps of that schedule."""
    prior: Literal["model", "sampler"] = "model"
    """The prior in log R. `model`: log p(Z | X); q becomes the posterior of p. `sampler`: log q₀(Z | X[, Y]) of the
    sampler before its first E-step; q becomes q₀(Z) p(Y | X Z) up to a factor. That helps where q₀, fine-tuned on
    demonstrations, knows better than p what a rationale looks like. Only EM and the GFlowNet read this."""
    answer_reward: Literal["joint", "normalised"] = "joint"
    """What Y adds to log R. `joint`: log p(Y | X Z). `normalised`: the log of Y's share among the candidates, where
    there are any; how likely p finds it that any candidate follows is then left out, except for the stop."""
    answer_weight: PositiveAmount = 1.0
    """w in log p(Z | X) + w log p(Y | X Z). Above 1 a rationale is worth less for being likely itself, and more for
    making Y likely."""
    wrong_candidate_penalty: Amount = 0.0
    """Nats taken off a rationale if, after it, p prefers another candidate to Y (50 in the paper's code)."""
    copy_penalty: Amount = 0.0
    """Nats that a rationale loses for each word, after the third, of the longest run of words that Y has too. A small
    model finds a sentence likely once it has read it: without a penalty q copies Y."""
    score_tool_tokens: Switch = False
    """Whether log p of a tool's tokens counts in the reward (as in the paper's code)."""
    tempered_share: Share = 0.0
    """Share of the sampled rationales that are drawn at a temperature, random for each question. The others are q's."""
    temperatures: tuple[Temperature, Temperature] = (0.7, 1.5)
    """The range of that temperature."""
    replay_share: Share = 0.0
    """Share of rationales that are taken from the replay buffer."""
    mix_replay: Switch = False
    """On: `replay_share` of each question's rationales are replayed, beside sampled ones, which the loss then compares
    with good ones. Off, as in the paper: that share of the questions replay all of their rationales, the others
    none."""
    learning_rate: PositiveAmount = 2e-4
    """AdamW's peak learning rate."""
    warmup: Count = 8
    """Steps of linear warm-up."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    max_grad_norm: PositiveAmount = 1.0
    """Largest norm of the gradient. The balance losses' are 5 to 60, forward KL's some 50 times smaller: 1 makes the
    steps of both about equally long. With --e-step.updates 1 give 100, which is for accidents only."""

    @property
    def rewards_joint(self) -> bool:
        """Whether log R is log p(Z Y | X), for a task without a reward of its own."""
        other = self.wrong_candidate_penalty or self.copy_penalty or self.score_tool_tokens
        return self.prior == "model" and self.answer_reward == "joint" and self.answer_weight == 1 and not other


@dataclass(frozen=True)
class InitStepConfig(Section):
    """Fine-tuning on the given rationales: p's in round 0 with `p_init: demonstrations`, and that of a q that sees Y
    before the first round."""

    steps: Count = 60
    """Optimiser steps."""
    batch_size: Positive = 8
    """Rationales a step."""
    learning_rate: PositiveAmount = 3e-4
    """AdamW's peak learning rate."""


@dataclass(frozen=True)
class MStepConfig(Section):
    """Fine-tuning the model p on rationales."""

    steps: Count = 40
    """Optimiser steps of p a round."""
    batch_size: Positive = 16
    """Rationales a step."""
    samples: Few = 1
    """Rationales drawn from q for each training question."""
    temperature: SamplingTemperature = 1.0
    """The temperature they are drawn at; 1 is q itself."""
    target: Literal["joint", "answer", "candidates"] = "joint"
    """What p learns: Z and Y, log p(Z Y | X); only Y after Z, log p(Y | X Z); or only to tell Y from the other
    candidates after Z. With the last two p learns no rationale: in tests it decides after those of q or, if q reads Y,
    after its own, which it has not learned to write."""
    keep: Literal["correct", "all"] = "correct"
    """Train on the drawn rationales that arrive at Y, or on all of them. None is left out where p picks an
    answer among candidates, or where none is right."""
    weighted: Switch = False
    """Weight the distinct rationales of a question by p(Z Y | X) / q(Z), normalised to add up to `samples`: what is
    learned is then an average over the posterior, which q only approximates. It takes several, at temperature 1."""
    learning_rate: PositiveAmount = 1e-4
    """AdamW's peak learning rate."""
    warmup: Count = 4
    """Steps of linear warm-up. The rate falls by a cosine after them; in `sft` it stays."""
    interpolation: Share = 1.0
    """Share of the change that p keeps at the end: 1 is all of it, 0 the base model. Below 1 p forgets less of what
    the base model could do."""


@dataclass(frozen=True)
class AugmentationConfig(Section):
    """How rationales are varied when a model is fine-tuned on them, in any method (E-steps are no fine-tuning): what
    helps on longer chains than those of training (see `docs/log.md`). Rollouts and tests are as they are."""

    history_dropout: Share = 0.0
    """Share of rationales whose steps before a random one are dropped: what follows is learned behind the question and
    the last two steps only."""
    distractor_steps: Count = 0
    """Steps of other rationales that stand in place of the dropped ones, at most: what follows must not depend on how
    many there are."""
    concat_questions: Count = 0
    """Other questions, of so many at most, whose words are joined to this one before it and behind it, in the share of
    rationales that is `history_dropout`."""
    gap_share: Share = 0.0
    """Share of rationales in whose text positions are left out at random, before words and before steps."""


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """How a reasoner is tested."""

    splits: tuple[str, ...] | None = None
    """Test splits; None: the task's default ones."""
    every_round: Switch = True
    """Test after each round, round 0 included; or after the last one only."""
    size: Positive = 100
    """Questions of each split, the first ones; of a split with fewer, all."""
    max_tokens: Positive = 120
    """Tokens a chain may choose: more than in training, since test questions may be longer."""
    diagnostics: Count = 32
    """Validation questions on which q is compared with the posterior before and after each E-step; 0: none, and
    no `safeguard`, which judges by them."""
    votes: Few = 1
    """Chains a question: above 1 the majority decides."""
    temperature: SamplingTemperature = 0.0
    """Sampling temperature; 0 is greedy."""
    samples: Few | None = None
    """Rationales sampled for each question of a task that has figures of them instead of right answers. None: as
    many as the task likes."""


@dataclass(frozen=True)
class SFTConfig(Section):
    """`sft`: fine-tuning p on the demonstrations, on from round 0, with the steps, batch and rate of `m_step`."""

    check_every: Count = 20
    """Steps between two checks on the validation questions. After three checks without a new best it stops, and the
    best p is kept. 0: no checks, all steps are taken."""


@dataclass(frozen=True)
class PolicyGradientConfig(Section):
    """`ppo` and `grpo`: training q(Z | X) to a high reward, on the batches that `e_step` says."""

    reward: Literal["log-reward", "correct"] = "log-reward"
    """log p(Z Y | X) of the complete rationale, as in the E-step, in nats, no lower than `e_step.reward_floor` has it;
    or 1 for one that arrives at Y, else 0."""
    kl: Amount = 0.05
    """Weight of KL(q || p), p being the initial model; in nats of reward a nat."""
    fine_tune: Switch = False
    """Draw from q afterwards and fine-tune p on it, as EM's M-step does; p then answers questions too."""


@dataclass(frozen=True)
class DecodeConfig(Section):
    """`decode`: the initial p, decoded in the usual ways. Sampling is at `evaluation.temperature`, 0 being greedy."""

    strategy: Literal["sample", "nucleus", "beam", "diverse-beam"] = "sample"
    """Sampling, sampling from the likeliest tokens, beam search, or beam search in groups that avoid each other."""
    multiple: Few = 1
    """Chains for each rationale that is asked for: beams, or samples of which the likeliest are kept."""


MethodName = Literal["few-shot", "decode", "sft", "ppo", "grpo", "rejection", "forward-kl", "gflownet", "em", "em-x"]
"""Those of `config.methods.METHODS`."""

SECTIONS: Mapping[MethodName, str] = {
    "sft": "sft",
    "ppo": "policy_gradient",
    "grpo": "policy_gradient",
    "decode": "decode",
}
"""Method -> the section of `RunConfig` that EM does not read."""


@dataclass(frozen=True)
class RunConfig(Section):
    """One run of any method."""

    task: str = "arithmetic"
    """A task's name (`latent-cot tasks`), a YAML file of questions and answers, or a Python file that defines one."""
    model: str = "smollm2-135m"
    """A Hugging Face causal LM: hub name or local folder."""
    output_dir: str | None = None
    """The run folder; None: runs/TASK-MODEL-seedSEED, or runs/TASK-METHOD-MODEL-seedSEED if the method is not EM."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = 0
    """Seeds everything: the data, the rollouts, the adapters."""
    method: MethodName = "em"
    """The method (`latent-cot methods`)."""
    q_sees: Literal["question", "question-and-answer"] = "question-and-answer"
    """What q sees: the answer too, so that it can be the posterior, and p is the reasoner; or the question only, so
    that it can answer unseen ones itself, as a p that only decides needs it (`m_step.target`)."""
    rounds: Count = 2
    """Rounds of EM, of rejection sampling, or of forward KL."""
    p_init: Literal["demonstrations", "base", "prompt"] = "demonstrations"
    """What p is before the first round: the base model fine-tuned on the demonstrations, the base model, or
    the base model with `shots` demonstrations in its prompt."""
    shots: Count = 5
    """Demonstrations in the prompt, with the tools' results written out: of `p_init: prompt`, and of `few-shot`."""
    safeguard: Switch = True
    """Take back an E-step (of EM, GFlowNet) that has lowered the ELBO, and an M-step (of EM, forward KL) that has
    lowered log p(Y | X), of more validation questions than chance would have it (`evaluation.diagnostics` of them); and
    let an EM's q that sees X only begin a later round as p where p's ELBO is as clearly the higher one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 where the hardware has it, else fp32."""
    gradient_checkpointing: Switch = False
    """Run each layer again in the backward pass instead of keeping what is in it: less memory, more time."""
    max_batch_tokens: Positive = 3072
    """Padded tokens of one pass, a third of them in one with a gradient: bounds memory, nothing else. Where q's
    rationales are compared with each other, those of a question are always in one, however many."""
    trust_remote_code: Switch = False
    """Run Python code that comes with the model. Only for a model whose author you trust."""
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    e_step: EStepConfig = field(default_factory=EStepConfig)
    init_step: InitStepConfig = field(default_factory=InitStepConfig)
    m_step: MStepConfig = field(default_factory=MStepConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    policy_gradient: PolicyGradientConfig = field(default_factory=PolicyGradientConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)


def trained_tokens(config: RunConfig) -> int:
    """Padded tokens of one pass with a gradient, for which what is in each layer has to be kept."""
    return config.max_batch_tokens // 3


def data_request(config: RunConfig) -> DataRequest:
    """What a configuration asks of its task."""
    d = config.data
    return DataRequest(d.demonstrations, d.unlabelled, d.validation, config.seed, d.train_file, d.options)


def tool_names(config: RunConfig, task: Task) -> Sequence[str]:
    """The tools that chains may call: those of the configuration or, where it names none, the task's own."""
    return task.tools if config.rollout.tools is None else config.rollout.tools


def tested_splits(config: RunConfig, task: Task) -> Sequence[str]:
    """What a run is tested with: the splits of the configuration, which may be none, or the task's own."""
    return task.default_splits if config.evaluation.splits is None else config.evaluation.splits


def tested_chains(config: RunConfig, task: Task) -> int:
    """Rationales of a test question."""
    c = config.evaluation
    return (c.samples or task.samples) if task.is_measured else c.votes
