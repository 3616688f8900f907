"""The configuration of a run: frozen dataclasses, and where their values come from.

A preset (a YAML file under `presets/`) overrides the defaults here, a user's YAML file (`--config`)
overrides the preset, and flags override both. Nothing here enters a kernel: `em.py` hands over numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from latent_cot.types import DataRequest, Task


@dataclass(frozen=True)
class DataConfig:
    """Which examples to learn from."""

    demonstrations: int = 50
    """Examples (X, Z, Y): question, rationale and answer."""
    unlabelled: int = 1000
    """Examples (X, Y): question and answer, the rationale unseen."""
    validation: int = 200
    """Examples held out of training and of the tests, for diagnostics and tuning."""
    train_file: str | None = None
    """Read training examples from this file (several: comma-separated) instead of the task's generator."""
    options: dict[str, str] = field(default_factory=dict)
    """The task's own settings, e.g. `operands 3,4 digits 1`."""


@dataclass(frozen=True)
class LoraSettings:
    """The adapters of p and q, which are alike."""

    rank: int = 16
    """Rank r of the update B A."""
    alpha: int = 32
    """The update is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapter's input, in fine-tuning (M-steps); log q is always without."""
    target_modules: str = "all-linear"
    """Which layers to adapt: `all-linear`, or comma-separated names such as `q_proj,v_proj`."""


@dataclass(frozen=True)
class RolloutConfig:
    """What a rationale may look like, and how it is sampled."""

    granularity: Literal["token", "step"] = "step"
    """Where a chain may stop: after every token (the paper's), or after every complete step."""
    min_tokens: int = 0
    """A prefix with fewer tokens is no state. At 0 the empty rationale is one (see `docs/log.md`)."""
    max_tokens: int = 40
    """Tokens the policy may choose in a training rollout; a tool's tokens do not count."""
    tools: tuple[str, ...] | None = None
    """Tools a chain may call: names or files. None: the task's own."""
    batch_size: int = 64
    """Rationales that are sampled at once when drawing for the M-step."""


@dataclass(frozen=True)
class EStepConfig:
    """Training the sampler q against the posterior."""

    steps: int = 40
    """Optimiser steps a round. 0: no E-step; a q that sees X only is then the present p."""
    q_init: Literal["p", "q"] = "q"
    """What q is at the start of the second and later rounds: the present p, or the q of the round before. (In
    the first round there is only p.)"""
    questions: int = 8
    """Questions a step."""
    samples: int = 8
    """Rationales sampled for each question."""
    demonstration_weight: float = 1.0
    """How often a demonstration's question is drawn, relative to 1."""
    pair_weight: float = 1.0
    """How often a question without rationale is drawn, relative to 1."""
    objective: Literal["subtb", "pooled-subtb", "vargrad", "tb", "prefix-tb"] = "pooled-subtb"
    """The loss: `subtb` (the paper's Eq. 3), `pooled-subtb` (over all trajectories of a question), `vargrad` or
    `tb` (trajectory balance), or `prefix-tb` (the same of every prefix; for rewards that are nothing almost
    everywhere). The last two learn one log Z, which all questions share."""
    log_z_learning_rate: float = 0.1
    """Of the log Z that `tb` and `prefix-tb` learn, in nats a step."""
    huber_delta: float | None = 10.0
    """Deviations beyond this many nats count linearly. None: squared error. A small one makes training unstable
    (see `docs/log.md`)."""
    reward_floor: float | None = None
    """Of a log-reward that is lower than this many nats below the best of its question, the loss only uses that
    it is at most that (see `objectives.below_floor`). For rationales of a few kinds of tokens: among many, q escapes
    below it (see `docs/limits.md`). None: no floor."""
    reward_temperature: float = 1.0
    """log R is divided by this at the first step ..."""
    final_reward_temperature: float = 1.0
    """... and by this from the step `reward_temperature_steps` on, linearly in between."""
    reward_temperature_steps: int = 40
    """Steps of that schedule."""
    prior: Literal["model", "sampler"] = "model"
    """What a rationale is worth before Y is looked at: log p(Z | X), so that q becomes the posterior of p; or
    log q₀(Z | X[, Y]) of the sampler before its first E-step, so that q becomes q₀(Z) p(Y | X Z) up to a factor. The
    latter where q₀ has been fine-tuned on demonstrations and knows better than p what a rationale looks like. Methods
    without an E-step have p's."""
    answer_reward: Literal["joint", "normalised"] = "joint"
    """What Y adds to log R: log p(Y | X Z); or, where Y is one of a few candidates, that divided by the sum of all of
    them, which leaves out how likely p finds it that any of them comes now."""
    answer_weight: float = 1.0
    """What it is multiplied by: w in log p(Z | X) + w log p(Y | X Z). Above 1 a rationale is worth less for being
    likely itself, and more for making Y likely."""
    wrong_candidate_penalty: float = 0.0
    """Nats that a rationale loses after which p prefers another candidate to Y (50 in the paper's code)."""
    copy_penalty: float = 0.0
    """Nats that a rationale loses for each word, after the third, of the longest run of words that Y has too. Behind a
    sentence a small model finds the same sentence likely: without a penalty Y may explain itself."""
    score_tool_tokens: bool = False
    """Whether log p of a tool's tokens counts in the reward (as in the paper's code)."""
    on_policy: float = 0.5
    """Share of rationales that are sampled from q itself, ..."""
    tempered: float = 0.5
    """... from q at a temperature drawn at random for each question, ..."""
    replay: float = 0.0
    """... and that are taken from the replay buffer. The three are normalised to add up to 1."""
    mix_replay: bool = False
    """Replay that share of each question's rationales, beside sampled ones, so that these are compared with what is
    known to be good; or, if not, all or none of a question's, as in the paper."""
    temperature_low: float = 0.7
    """Lower end of the random temperature."""
    temperature_high: float = 1.5
    """Upper end of the random temperature."""
    buffer_capacity: int = 50
    """Rationales kept for each question."""
    buffer_tolerance: float = 0.25
    """Of two rationales a and b nearer than this times (|a| + |b|) edits, only the better one is kept."""
    seed_buffer: bool = True
    """Put the demonstrations' own rationales into the buffer, and those of `seed_samples`."""
    seed_samples: int = 20
    """Rationales sampled from p for each training question of a task that has prompts for it, such as one that gives
    the answer away ("wishful" ones, in the paper). They count as trajectories, but not in a planned budget."""
    learning_rate: float = 1e-4
    """AdamW's peak learning rate."""
    warmup: int = 8
    """Steps of linear warm-up."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    max_grad_norm: float = 100.0
    """Largest norm of the gradient. Usual ones are 5 to 60: this is for accidents only."""
    max_batch_tokens: int = 3072
    """Padded tokens of one forward or backward pass: bounds memory, changes nothing else."""


@dataclass(frozen=True)
class MStepConfig:
    """Fine-tuning the model p on rationales."""

    steps: int = 40
    """Optimiser steps."""
    batch_size: int = 16
    """Rationales a step."""
    samples: int = 1
    """Rationales drawn from q for each training question."""
    temperature: float = 1.0
    """The temperature they are drawn at; 1 is q itself."""
    target: Literal["joint", "answer", "candidates"] = "joint"
    """What p learns: Z and Y, log p(Z Y | X); only Y after Z, log p(Y | X Z); or only to tell Y from the other
    candidates after Z. In the last two, p decides answers after the rationales of q, and writes none itself."""
    keep: Literal["correct", "all"] = "correct"
    """Train on the drawn rationales that arrive at Y, or on all of them."""
    weighted: bool = False
    """Weight the distinct rationales of a question by p(Z Y | X) / q(Z), normalised to add up to `samples`: what is
    learned is then an average over the posterior, which q only approximates. It takes several, at temperature 1."""
    learning_rate: float = 1e-4
    """AdamW's peak learning rate."""
    warmup: int = 4
    """Steps of linear warm-up."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient."""
    interpolation: float = 1.0
    """At the end, how far p goes from the base model to what was learned, 0 to 1: below 1 what the base model could do,
    and no rationale asks for, is forgotten less."""
    max_batch_tokens: int = 3072
    """Padded tokens of one forward or backward pass: bounds memory, changes nothing else."""


@dataclass(frozen=True)
class AugmentationConfig:
    """How rationales are varied when a model is fine-tuned on them, in any method: what helps on longer chains than
    those of training (see `docs/log.md`). Rollouts and tests are as they are."""

    history_dropout: float = 0.0
    """Share of rationales whose steps before a random one are dropped: what follows is learned behind the question and
    the last steps only."""
    distractor_steps: int = 0
    """Steps of other rationales that stand in place of the dropped ones, at most: what follows must not depend on how
    many there are."""
    kept_steps: int = 1
    """Last steps that are not dropped. A single one may not tell where in the question it belongs, if that repeats
    itself."""
    concat_questions: int = 0
    """Other questions, of so many at most, whose words are joined to this one before it and behind it, in the share of
    rationales that is `history_dropout`."""
    gap_share: float = 0.0
    """Share of rationales in whose text positions are left out at random, before words and before steps."""
    words_with_gaps: float = 0.3
    """Share of the question's words before which they are left out, in such a text. Where most words have a gap, p
    unlearns to look at the next word."""
    largest_gap: int = 10
    """Positions left out at one place, at most."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How a reasoner is tested."""

    splits: tuple[str, ...] | None = None
    """Test splits; None: the task's default ones."""
    every_round: bool = True
    """Test after each round, round 0 included; or after the last one only."""
    size: int = 100
    """Questions of each split; each test split has at least 500."""
    max_tokens: int = 120
    """Tokens a chain may choose: more than in training, since test questions may be longer."""
    batch_size: int = 128
    """Chains decoded at once."""
    diagnostics: int = 32
    """Validation questions on which q is compared with the posterior before and after each E-step; 0: none."""
    diagnostic_samples: int = 16
    """Rationales sampled for each of them."""
    votes: int = 1
    """Chains a question: above 1 the majority decides."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    samples: int | None = None
    """Rationales sampled for each question of a task that has figures of them instead of right answers. None: as
    many as the task likes."""


@dataclass(frozen=True)
class EMConfig:
    """What all methods have in common, and EM's own settings."""

    task: str = "arithmetic"
    """A task's name (`latent-cot tasks`), or a Python file that defines one. Several, separated by commas: one q for
    all of them, each with the settings of its own preset."""
    model: str = "smollm2-135m"
    """A Hugging Face causal LM: hub name or local folder."""
    output_dir: str | None = None
    """The run folder; None: runs/TASK-MODEL-seedSEED, or runs/TASK-METHOD-MODEL-seedSEED if the method is not EM."""
    seed: int = 0
    """Seeds everything: the data, the rollouts, the adapters."""
    q_sees: Literal["question", "question-and-answer"] = "question"
    """What q sees: the question only, so that it can answer unseen ones itself; or the answer too, which makes
    it the true posterior, and p the reasoner."""
    rounds: int = 2
    """EM rounds."""
    p_init: Literal["demonstrations", "base", "prompt"] = "demonstrations"
    """What p is before the first round: the base model fine-tuned on the demonstrations, the base model, or
    the base model with `shots` demonstrations in its prompt."""
    shots: int = 3
    """Demonstrations in the prompt with `p_init: prompt`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 where the hardware has it, else fp32."""
    gradient_checkpointing: bool = False
    """Run each layer again in the backward pass instead of keeping what is in it: less memory, more time."""
    checkpoint_seconds: float = 60.0
    """Save the state of the run when the last save is older than this."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for a model whose author you trust."""
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    e_step: EStepConfig = field(default_factory=EStepConfig)
    init_step: MStepConfig = field(default_factory=lambda: MStepConfig(steps=60, batch_size=8, learning_rate=3e-4))
    """Round 0 with `p_init: demonstrations`: an M-step on the given rationales."""
    m_step: MStepConfig = field(default_factory=MStepConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


MethodName = Literal["few-shot", "decode", "sft", "ppo", "grpo", "rejection", "forward-kl", "gflownet", "em", "em-xy"]
"""Those of `baselines.METHODS`."""

SECTIONS: Mapping[MethodName, str] = {
    "few-shot": "fewshot",
    "decode": "decode",
    "sft": "sft",
    "ppo": "ppo",
    "grpo": "grpo",
    "rejection": "rejection",
    "forward-kl": "forward_kl",
}
"""Method -> the section of `RunConfig` that no other method reads."""


@dataclass(frozen=True)
class FewShotConfig:
    """`few-shot`: prompting."""

    k: int = 5
    """Demonstrations before each question, with the tools' results written out."""


@dataclass(frozen=True)
class SFTConfig:
    """`sft`: fine-tuning p on the demonstrations, on from `init_step`, until validation gets no better."""

    steps: int = 160
    """Optimiser steps at most, beside those of `init_step`: as many as EM takes with its defaults."""
    check_every: int = 20
    """Steps between two checks on the validation questions."""
    patience: int = 3
    """Checks without a new best after which it stops. The best p is kept."""
    questions: int = 100
    """Validation questions of a check; at most `data.validation`. 0: no checks, all steps are taken."""
    batch_size: int = 8
    """Demonstrations a step."""
    learning_rate: float = 3e-4
    """AdamW's learning rate, constant after the warm-up: nobody knows beforehand when it will stop."""
    warmup: int = 4
    """Steps of linear warm-up."""
    interpolation: float = 1.0
    """As that of `m_step`."""


@dataclass(frozen=True)
class PolicyGradientConfig:
    """`ppo` and `grpo`: training q(Z | X) to a high reward, by policy gradient."""

    steps: int = 112
    """Batches of rollouts; with the defaults they come to as many trajectories as EM samples."""
    questions: int = 8
    """Questions a batch."""
    samples: int = 8
    """Rationales sampled from q for each question; the baseline is formed from them."""
    epochs: int = 1
    """Gradient steps on a batch."""
    reward: Literal["log-reward", "correct"] = "log-reward"
    """log p(Z Y | X) of the complete rationale, as in the E-step, in nats; or 1 for one that arrives at Y, else 0."""
    reward_floor: float | None = 10.0
    """Log-rewards lower than this many nats below the best of their question are raised to it, as in the E-step.
    None: no floor."""
    advantage: Literal["leave-one-out", "normalised"] = "leave-one-out"
    """Of a rationale: its reward less the mean of its question's others (RLOO), or less the mean of all of them and
    divided by their standard deviation (GRPO)."""
    deviation_floor: float = 0.1
    """Added to what advantages are divided by (GRPO: that standard deviation; PPO: their root mean square over the
    batch), so that differences far below it, in units of the reward, are not blown up."""
    clip_range: float = 0.2
    """The ratio of new to old probability counts between 1 minus and 1 plus this."""
    kl: float = 0.05
    """Weight of KL(q || p), p being the initial model; in nats of reward a nat."""
    learning_rate: float = 1e-4
    """AdamW's peak learning rate."""
    warmup: int = 8
    """Batches of linear warm-up."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient."""
    fine_tune: bool = False
    """Draw from q afterwards and fine-tune p on it, as EM's M-step does; p then answers questions too."""


@dataclass(frozen=True)
class RejectionConfig:
    """`rejection`: STaR / ReST-EM. Sample chains from p, keep those that reach Y, fine-tune the initial p on them.

    The settings of the fine-tuning, but for its steps, are those of the M-step.
    """

    rounds: int = 2
    """How often."""
    trajectories: int = 3610
    """Chains sampled a round, over all training questions in turn; with the defaults as many as EM samples."""
    temperature: float = 1.0
    """The temperature they are sampled at."""
    per_question: int = 4
    """Distinct right chains kept for a question, at most (ReST-EM's guard against easy questions)."""
    steps: int = 80
    """Optimiser steps a round: as many as EM's E-step and M-step together."""
    start: Literal["initial", "base", "last"] = "initial"
    """What is fine-tuned in each round: the initial p, the base model (as in ReST-EM), or the p of the round before."""
    demonstrations: bool = True
    """Fine-tune on the demonstrations' own rationales too."""


@dataclass(frozen=True)
class ForwardKLConfig:
    """`forward-kl`: a posterior q learned by forward KL, and an importance-weighted M-step.

    The settings of the M-step, but for what it draws, are those of EM's.
    """

    rounds: int = 2
    """How often."""
    steps: int = 40
    """Optimiser steps of q a round."""
    questions: int = 8
    """Questions a step."""
    samples: int = 8
    """Rationales sampled from q for each question."""
    learning_rate: float = 1e-4
    """AdamW's peak learning rate."""
    warmup: int = 8
    """Steps of linear warm-up."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient."""
    model_questions: int = 262
    """Training questions, drawn at random, on which p learns in a round; ..."""
    model_samples: int = 4
    """... and rationales sampled for each of them, which compete for its weight."""


@dataclass(frozen=True)
class DecodeConfig:
    """`decode`: the initial p, decoded in the usual ways. Sampling is at `evaluation.temperature`, 0 being greedy."""

    strategy: Literal["sample", "nucleus", "beam", "diverse-beam"] = "sample"
    """Sampling, sampling from the likeliest tokens, beam search, or beam search in groups that avoid each other."""
    top_p: float = 0.95
    """`nucleus`: the probability that these tokens come to."""
    diversity_penalty: float = 1.0
    """`diverse-beam`: nats a token is less likely for each group that has chosen it at this step. There are as many
    groups as rationales are asked for, and each gives its likeliest one."""
    multiple: int = 1
    """Chains for each rationale that is asked for: beams, or samples of which the likeliest are kept."""


@dataclass(frozen=True)
class RunConfig(EMConfig):
    """One run of any method: the settings that all have in common, EM's, and a section for each of the others."""

    method: MethodName = "em"
    """The method (`latent-cot methods`)."""
    fewshot: FewShotConfig = field(default_factory=FewShotConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    ppo: PolicyGradientConfig = field(default_factory=lambda: PolicyGradientConfig(epochs=2, kl=0.2))
    grpo: PolicyGradientConfig = field(default_factory=lambda: PolicyGradientConfig(advantage="normalised", kl=0.04))
    rejection: RejectionConfig = field(default_factory=RejectionConfig)
    forward_kl: ForwardKLConfig = field(default_factory=ForwardKLConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)


def data_request(config: RunConfig) -> DataRequest:
    """What a configuration asks of its task."""
    d = config.data
    return DataRequest(d.demonstrations, d.unlabelled, d.validation, config.seed, d.train_file, d.options)


def tool_names(config: RunConfig, task: Task) -> Sequence[str]:
    """The tools that chains may call: those of the configuration or, where it names none, the task's own."""
    return task.tools if config.rollout.tools is None else config.rollout.tools
