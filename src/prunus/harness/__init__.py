"""Tasks through lm-evaluation-harness: its prompts and its metrics, documents from local files, and a model that is in memory."""
