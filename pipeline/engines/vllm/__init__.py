"""Sampling with vLLM: servers of ours or of anybody, their clients, dispatch and care."""
