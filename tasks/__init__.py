"""Prefect tasks, one verb each, and what they stand on: DVC's view of the graph, child processes, what is published."""
