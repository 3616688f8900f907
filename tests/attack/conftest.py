"""A run that was stopped half-way, with everything in it that a checkpoint can hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latent_cot.config.settings import load_config, to_dict
from latent_cot.run import session as of_session
from latent_cot.run.run_folder import RunFolder
from latent_cot.run.session import Session, Stopped, open_session, run_loop
from tests.attack.cases import FULL, SEED, TALLY


def pytest_report_header() -> str:
    return f"attack: {f'in full, seed {SEED}' if FULL else 'a minute of it; in full: ATTACK=SEED'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for (test, what), number in sorted(TALLY.items()) if FULL else []:
        terminalreporter.write_line(f"attack: {test}: {number} {what}")


@pytest.fixture(scope="module")
def session(tiny_model_dir: Path) -> Session:
    """One for many: a run makes its adapters afresh, or restores them."""
    config = load_config("smoke")
    data = replace(config.data, demonstrations=2, unlabelled=3, validation=2)
    tests = replace(config.evaluation, splits=("3-operands",), size=2, diagnostics=1)
    e_step = replace(config.e_step, questions=2, samples=2, replay_share=0.5)
    changes: dict[str, Any] = {
        "model": str(tiny_model_dir),
        "precision": "fp32",
        "data": data,
        "evaluation": tests,
        "e_step": e_step,
    }
    return open_session(replace(config, **changes))


@pytest.fixture(scope="module")
def stopped(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped in its M-step. Do not write into it."""
    folder = RunFolder.create(tmp_path_factory.mktemp("stopped") / "run", to_dict(session.config))
    phases: list[str] = []
    with pytest.MonkeyPatch.context() as patch, folder.lock():
        patch.setattr(of_session, "SAVE_EVERY", 0.0)
        with pytest.raises(Stopped):
            run_loop(
                session,
                folder,
                on_unit=lambda loop, phase, info: phases.append(phase.name),
                should_stop=lambda: phases[-1] == "m_step",
            )
    return folder.path
