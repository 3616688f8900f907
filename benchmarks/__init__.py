"""Speed and scale, measured against the reference code's cost model and against TRL. Run by hand, not installed."""
