"""What a checkpoint holds of the loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latent_cot.methods.state import State, WeightedRationale
from latent_cot.run.run_folder import Checkpoint
from latent_cot.run.session import state_in
from latent_cot.types import Rationale, UsageError


def test_a_saved_state_is_read_back() -> None:
    state = State(
        phase=3,
        unit=2,
        m_steps=1,
        drawn=[WeightedRationale(1, Rationale((5,), (True,), (True, True), "x"), 0.5)],
    )
    saved = json.loads(json.dumps({"loop": state.to_json()}))
    assert state_in(Checkpoint(Path("checkpoints/1"), saved, {})) == state


@pytest.mark.parametrize(
    "saved", [{"em": {}}, {"loop": {"phase": 1, "drawn": []}}, {"loop": {**State().to_json(), "gone": 1}}]
)
def test_a_checkpoint_of_another_version_is_refused(saved: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"checkpoints/1: saved by another version .* another --output-dir"):
        state_in(Checkpoint(Path("checkpoints/1"), saved, {}))
