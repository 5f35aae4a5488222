"""The engine of all experiments: tasks, methods, trials, their scores and files of results."""
