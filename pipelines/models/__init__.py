"""Models as plain transformers folders: loading, heads, adapters, generation."""
