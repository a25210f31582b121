"""Built-in worlds: their words and their hidden rules."""
