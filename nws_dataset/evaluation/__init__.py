"""The engine of all experiments: tasks, methods, trials, scores and result files."""
