"""What people see: the terminal, plots, the report and comparisons."""
