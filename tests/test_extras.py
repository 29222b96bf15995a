import subprocess
import sys

import pytest

VLLM = "import secateur as sc; from secateur.integrations.vllm import overrides, register"


@pytest.mark.parametrize(
    ("missing", "statement", "said"),
    [
        ("torch", "import secateur; secateur.attach", "secateur.attach needs torch: pip install"),
        ("torch", "import secateur.integrations.attach", "secateur.attach needs torch"),
        ("transformers", "from secateur.lab import load; load()", "secateur.lab.load needs trans"),
        ("torch", "from secateur.lab import load; load()", "secateur.lab.load needs torch"),
        ("torch", "import secateur.lab.train", "python -m secateur.lab.train needs torch"),
        ("vllm", f"{VLLM}; register()", "secateur.integrations.vllm.register needs vllm"),
        ("torch", f"{VLLM}; overrides(sc.TopK())", "integrations.vllm.overrides needs torch"),
        ("optuna", "from secateur import calibrate; calibrate(print)", "calibrate needs Optuna"),
        ("pyarrow", "import secateur.integrations.corpus", "integrations.corpus needs pyarrow"),
        ("ray", "import secateur.integrations.ray", "secateur.integrations.ray needs ray"),
        ("hypothesis", "import secateur.testing", "secateur.testing needs hypothesis"),
        ("PIL", "from secateur.demo import main; main()", "secateur.demo needs PIL"),
        ("PIL", "from secateur.photograph import main; main()", "secateur.photograph needs PIL"),
        ("rich", "from secateur.__main__ import main; main()", "the command line needs rich"),
    ],
)
def test_what_is_not_installed_is_told_in_one_sentence(missing, statement, said):
    code = f"import sys; sys.modules[{missing!r}] = None; {statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert said in last
    assert "pip install 'secateur[" in last
