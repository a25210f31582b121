"""How a judge is asked: prompts, one call (client), many of them (asking), and where answers are kept."""
