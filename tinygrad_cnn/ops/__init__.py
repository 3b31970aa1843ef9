"""The differentiable ops, sorted by increasing complexity.

One op is one function: the forward pass and its vjps side by side. Importing this package fills
`autograd.OPS`. Checks of shapes and settings that users can get wrong are made in `functional.py`.
"""

from . import elementwise, reduce, shape, linalg, conv, pool, norm, loss  # noqa: F401, I001
