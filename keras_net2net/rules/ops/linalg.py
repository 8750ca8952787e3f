"""Operations of `keras.ops` as in `keras/src/ops/linalg.py`: they need whole matrices.

Norms stand with the other reductions.
"""

from __future__ import annotations

from keras_net2net.rules.kinds import named
from keras_net2net.widths.registry import refuse

refuse(
    "works on a whole matrix, of which units are rows or columns",
    *named("""
        cholesky cholesky_inverse det eig eigh inv logdet lstsq lu_factor matrix_rank pinv qr
        slogdet solve solve_triangular svd
    """),
)
refuse("differentiates a Python function, which may do anything to units", *named("jvp"))
