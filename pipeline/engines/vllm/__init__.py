"""Sampling with vLLM: servers of ours or of anybody, their clients, dispatch and care."""

from pipeline.engines.vllm.engine import BACKEND

__all__ = ["BACKEND"]
