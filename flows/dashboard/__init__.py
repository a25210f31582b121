"""The dashboard: one page over a workspace's files. It reads, never writes, and keeps nothing of its own."""
