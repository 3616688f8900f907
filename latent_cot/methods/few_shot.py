"""Few-shot chain-of-thought prompting: the base model with demonstrations before the question."""

from __future__ import annotations

from latent_cot.config.schema import RunConfig
from latent_cot.methods.method import Method
from latent_cot.methods.phases import Steps
from latent_cot.types import Reasoner, Task, TaskData, UsageError


class FewShot(Method):
    """Nothing is trained. Where no rationale is demonstrated, questions are shown with their answers, and answered at
    once."""

    @classmethod
    def check(cls, config: RunConfig, task: Task, data: TaskData) -> None:
        super().check(config, task, data)
        if not data.demonstrations and any(example.y is None for example in data.unlabelled[: config.shots]):
            what = f"the examples of {task.name} have no answer"
            raise UsageError(f"--shots {config.shots}: {what} to show; give --data.demonstrations, or --shots 0")
        picks = task.is_measured or all(map(task.candidates, (*data.unlabelled, *data.validation)))
        if not data.demonstrations and not picks:
            why = f"{task.name} reads the answer off a rationale, and none is shown how to write one"
            raise UsageError(f"--method few-shot: {why}; give --data.demonstrations")

    def algorithm(self) -> Steps:
        yield from self.evaluate(0)

    @property
    def rounds(self) -> int:
        return 0

    @property
    def n_shown(self) -> int:
        return self.config.shots

    @property
    def model_prefix(self) -> str:
        if self.data.demonstrations:
            return super().model_prefix
        return "".join(f"{example.x}{example.y}\n" for example in self.data.unlabelled[: self.n_shown])

    def sampler_of(self, reasoner: Reasoner) -> Reasoner | None:
        answers_at_once = not (self.data.demonstrations or self.task.is_measured)
        return None if answers_at_once else super().sampler_of(reasoner)
