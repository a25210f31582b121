"""What runs inside vLLM's worker processes, by vLLM's own `--worker-extension-cls`. Imports nothing of ours."""

from typing import Any


class PolicyLoader:
    """Mixed into vLLM's worker: `load_policy` is callable through POST /collective_rpc."""

    reload_weights: Any  # the worker's own
    model_runner: Any

    def load_policy(self, path: str) -> None:
        """Swap in the weights of the model folder `path` (absolute).

        On CPU vLLM packs a copy of every linear layer's weights at start. `reload_weights` (vLLM 0.32) packs again what
        the checkpoint names, and a tied output layer is not named in it: it would go on with the old weights.
        """
        self.reload_weights(weights_path=path)
        for layer in self.model_runner.get_model().modules():
            if type(layer).__name__ == "ParallelLMHead" and hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)
