"""A rationale's life: its rules, how it is sampled, scored, rewarded and replayed."""
