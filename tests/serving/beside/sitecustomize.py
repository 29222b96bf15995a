"""Python runs this first in every process of the tests."""

import torchvision_beside_cpu  # noqa: F401
