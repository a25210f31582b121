"""Sampling with transformers, in the process itself: the engine where vLLM is not installed."""

from pipeline.engines.transformers.engine import BACKEND

__all__ = ["BACKEND"]
