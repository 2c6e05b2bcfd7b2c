"""What the functions say of themselves to input that the annotations, checked in these tests alone, would turn away.

The calls run in one Python without the checked annotations, as users have it.
"""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import jax.numpy as jnp
import numpy as np
from jax import random

from jaxkit import long_tailed as lt
from jaxkit.check import UsageError

z, y, n = [[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]], [1, 2], [300, 50, 7]
whole = [[1, 2, 0], [0, 1, -1]]
Z, Y, N = np.asarray(z, np.float32), np.asarray(y), np.asarray(n)
names = ("softmax weighted_softmax focal class_balanced ldam logit_adjusted balanced_softmax vector_scaling seesaw "
         "lade_regulariser").split()
for name in names:
    for logits in (z, whole):
        np.testing.assert_allclose(getattr(lt, name)(logits, y, n), getattr(lt, name)(Z, Y, N), rtol=1e-5, err_msg=name)
key = random.key(0)
np.testing.assert_allclose(lt.equalization(z, y, n, key), lt.equalization(Z, Y, N, key), rtol=1e-5)
np.testing.assert_allclose(lt.logit_adjustment(z, n), lt.logit_adjustment(Z, N))
np.testing.assert_allclose(lt.uno_ic(z, n, beta=0.5), lt.uno_ic(Z, N, beta=0.5))
np.testing.assert_allclose(lt.for_prior(z, [0.2, 0.3, 0.5]), lt.for_prior(Z, [0.2, 0.3, 0.5]))
np.testing.assert_allclose(lt.aggregate([z, z], [0.25, 0.75]), lt.aggregate(np.stack([Z, Z]), np.array([0.25, 0.75])))

WRONG = [
    (lambda: lt.softmax("text", y), "logits must be numbers"),
    (lambda: lt.softmax([[1.0, 2.0], [1.0]], y), "logits must be numbers"),
    (lambda: lt.softmax(z, [1.0, 2.0]), "labels must be whole numbers"),
    (lambda: lt.softmax(z, [1]), "must be labels"),
    (lambda: lt.logit_adjustment(3.0, n), "axis of classes"),
    (lambda: lt.lade_regulariser(Z[0], Y, N), "logits must be [batch, classes]"),
    (lambda: lt.lade_regulariser(Z, Y[:1], N), "logits must be [batch, classes]"),
    (lambda: lt.lade_regulariser(jnp.asarray(Z), Y, N, valid=np.ones(3, bool)), "valid must be [2]"),
    (lambda: lt.aggregation_weights(Z, Z), "views are logits [rows, experts, classes], got [2, 3]"),
    (lambda: lt.row_weights(np.array([0.0, 1.0]), np.array([0.5, 0.5])), "labels must be whole numbers"),
    (lambda: lt.row_weights(np.array([0, 1]), np.eye(2)), "prior must be one number for each class"),
    (lambda: lt.accuracy_under(np.array([0.5, 0.9, 0.1]), np.array([1.0])), "prior must be 3 numbers"),
    (lambda: lt.class_means(Z, np.array([0.0, 1.0]), 2), "labels must be whole numbers"),
    (lambda: lt.class_means(Z, np.array([0, 1, 1]), 2), "must have the same rows"),
]
for number, (call, message) in enumerate(WRONG):
    try:
        call()
    except UsageError as error:
        assert message in str(error) and chr(10) not in str(error), (number, str(error))
    else:
        raise AssertionError(f"call {number} went through")
print("done")
"""


def test_lists_are_taken_and_mistakes_are_told():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert found.stdout.strip() == "done", found.stderr[-2000:]
