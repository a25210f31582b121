"""What several objectives have in common. No file in here is an objective."""
