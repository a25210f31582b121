"""Sampling with transformers, in the process itself: the engine where vLLM is not installed."""
