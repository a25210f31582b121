"""The language model: folders, template, layout, forward, log-probs. Everything that runs one stands on this."""
