"""The settings of a run: their ranges, where their values come from, and the registry of methods."""
