"""Lets servers of the tests ask for the positions of kept tokens on a CPU, as `small` does."""

import os


def register():
    """Called by vLLM in each of its processes."""
    if os.environ.get("SECATEUR_CPU_ASKS"):
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        from secateur.integrations.vllm import checking

        ask(CPUModelRunner, checking)


def ask(runner, checking):
    """Load models as the runners of accelerators do.

    And Gemma 3, whose images attention on CPUs reads one way only; the tests know.
    """
    if checking.CPU_ASKS:
        return
    stock = runner.load_model

    def load_model(self, *given, **more):
        stock(self, *given, **more)
        config = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = (
            getattr(self.get_model(), "supports_multimodal_pruning", False)
            and config is not None
            and config.is_multimodal_pruning_enabled()
        )

    runner.load_model = load_model
    checking.CPU_ASKS = checking.CPU_SEES_BOTH_WAYS = True
