"""alignloop: iterative preference alignment as one resumable DAG."""

__version__ = "0.1.0"
