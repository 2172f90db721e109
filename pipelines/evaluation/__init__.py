"""Is a policy better, by how much, how surely, at what cost: metrics, comparison, the summary and the report page."""
