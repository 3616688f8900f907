"""What a run will take before it is started: memory, time and money, by a cost model."""
