"""Where a step's process runs: here, behind a command's prefix, as a job of Slurm, as a task of Ray."""
