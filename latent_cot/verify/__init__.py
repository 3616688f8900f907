"""Whether the E-step learns the true posterior, in worlds small enough to list every rationale."""
