"""What each iteration trains on, of all groups there are so far. Contract: contract.py."""
